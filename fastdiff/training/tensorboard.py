"""Losses and samples of a run for TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.errors import InputError, install

if TYPE_CHECKING:  # the command line reads LOGS without them
    from PIL import Image

NOWHERE = "none"
LOGS = ("tensorboard", NOWHERE)


class Board:
    """Writes event files; `tensorboard --logdir FOLDER` shows them.

    Args:
        folder: for the files of this run.
        steps_done: what earlier files say of later steps is hidden.

    Raises:
        InputError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=steps_done + 1 if steps_done else None)

    def add(self, step: int, **values: float) -> None:
        """Add a value of each name at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Add a picture at a step."""
        import numpy as np

        self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def check_installed() -> None:
    """Raises InputError if tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise InputError(f"--log tensorboard needs tensorboard; {install('tensorboard')}")
