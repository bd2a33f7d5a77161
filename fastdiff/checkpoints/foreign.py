"""Files that are not fastdiff's own; the network of a state dict is recognised by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastdiff.checkpoints.annotated import annotated_model
from fastdiff.checkpoints.context import context_model
from fastdiff.checkpoints.mindspore import is_mindspore, read_mindspore
from fastdiff.checkpoints.torch_file import read_torch, strip_prefixes
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.samplers.schedule import Schedule


def load_foreign(
    path: Path,
    tensors: Mapping[str, Tensor] | None,
    schedule: Schedule | None,
    image_size: int | tuple[int, int] | None,
) -> Model:
    """A Model from a file that is not fastdiff's own.

    Args:
        path: the file.
        tensors: its tensors, if they have been read already (bare safetensors).
        schedule: the training schedule; None is the network's usual one.
        image_size: side or (height, width) in pixels; None is the network's usual one.

    Raises:
        InputError: for a damaged file, or one of an unknown network.
    """
    if tensors is None and is_mindspore(path):
        tensors = read_mindspore(path)
        try:
            return recognise(path, tensors, schedule, image_size)
        except InputError as error:
            if "init_conv.weight" not in tensors and "time_mlp.1.weight" not in tensors and len(tensors) < 50:
                raise
            raise InputError(
                f"{error}; the file holds {len(tensors)} tensors: one saved without the tutorial's loop that renames "
                "every parameter holds 114 of the network's 166, for parameters of one name overwrite each other; save "
                "it again with that loop"
            ) from error
    return recognise(path, read_torch(path) if tensors is None else tensors, schedule, image_size)


def recognise(
    path: Path, tensors: Mapping[str, Tensor], schedule: Schedule | None, image_size: int | tuple[int, int] | None
) -> Model:
    """A Model from a bare state dict; raises InputError if its network or its edition is unknown."""
    tensors = strip_prefixes(tensors)
    if "init_conv.conv1.0.weight" in tensors and "contextembed1.model.0.weight" in tensors:
        return context_model(path, tensors, schedule, image_size)
    if "init_conv.weight" in tensors and "time_mlp.1.weight" in tensors:
        return annotated_model(path, tensors, schedule, image_size)
    some = ", ".join(sorted(tensors)[:3])
    raise InputError(
        f"{str(path)!r} is not a network that fastdiff knows (its keys begin {some}); accepted: the Annotated "
        "Diffusion U-Net, ContextUnet, or wrap your own network: fastdiff.Model(network, schedule, image_shape=...)"
    )
