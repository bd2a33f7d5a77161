"""What turns pictures into features: the project's classifiers, or a network of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError, with_type
from fastdiff.evaluation import classifier
from fastdiff.evaluation.pixels import Pictures

BATCH = 250  # pictures whose features are taken at once

Tick = Callable[[int], object]  # called with the number of pictures that are done


def silent(count: int) -> None:
    """The Tick of those who show nothing."""


@dataclass(frozen=True)
class Features:
    """A feature network on its device.

    Attributes:
        name: what reports call it.
        network: (N, C, H, W) float32 in [-1, 1] on the device → (N, D).
        device: where it is called.
        facts: what else reports say of it, plain values.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    device: torch.device
    facts: dict[str, Any]

    @torch.no_grad()
    def of(self, pictures: Pictures, rows: Tensor, tick: Tick = silent) -> Tensor:
        """(n,) rows of pictures → (n, D) float64 on the CPU.

        Raises:
            InputError: if the network fails, or gives something else than a row of finite numbers for each picture.
        """
        parts = []
        for part in rows.split(BATCH):
            parts.append(self._checked(pictures(part).to(self.device)))
            tick(len(part))
        return torch.cat(parts)

    def _checked(self, x: Tensor) -> Tensor:
        try:
            found = self.network(x)
        except InputError:
            raise
        except Exception as error:  # of the user's own code
            raise InputError(f"features {self.name!r} fail on pictures {tuple(x.shape)}: {with_type(error)}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise InputError(
                f"features {self.name!r} of pictures {tuple(x.shape)} are {what}; accepted: a tensor ({len(x)}, D)"
            )
        checked = found.double().cpu()
        if not checked.isfinite().all():
            raise InputError(f"features {self.name!r} hold NaN or infinity; accepted: finite numbers")
        return checked


def own(name: str, device: torch.device) -> Features:
    """Those of the project's classifier of that name."""
    network = classifier.load(name).to(device)
    accuracy, pictures = classifier.stated_accuracy(name)
    facts = {"accuracy": accuracy, "accuracy_pictures": pictures}
    return Features(f"fastdiff's {name} classifier", network.features, device, facts)


def choose(given: str | None, image_shape: tuple[int, int, int], device: torch.device) -> Features:
    """The features that were named, or those of the project's classifier of such pictures.

    Args:
        given: an import path MODULE:NAME, see `imported`; None is the project's own.
        image_shape: (C, H, W) of the pictures.
        device: where they are computed.

    Raises:
        InputError: if there are none.
    """
    if given is not None:
        return Features(given, imported(given, device), device, {})
    shapes = classifier.shapes()
    if image_shape not in shapes:
        known = " and ".join(f"{_sizes(shape)} ({name})" for shape, name in shapes.items())
        raise InputError(
            f"no feature network for pictures {_sizes(image_shape)}; fastdiff has its own for {known}: give --features "
            "MODULE:NAME for others"
        )
    return own(shapes[image_shape], device)


def _sizes(image_shape: tuple[int, int, int]) -> str:
    channels, height, width = image_shape
    return f"{height}x{width}x{channels}"


def imported(path: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The callable of an import path. Runs the code of that module, which is the user's own.

    Args:
        path: MODULE:NAME, such as my_features:embed; the module is also looked for in the working folder. A class is
            called without arguments first. A module of torch is put into eval mode, and onto the device.
        device: where it is to run.

    Raises:
        InputError: if it cannot be imported, or is no callable.
    """
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise InputError(f"--features {path!r}; accepted: MODULE:NAME, such as my_features:embed")
    try:
        with _working_folder():
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            if inspect.isclass(found):
                found = found()
    except Exception as error:  # whatever that module's code raises
        raise InputError(f"cannot import --features {path!r}: {with_type(error)}") from error
    if not callable(found):
        raise InputError(f"--features {path!r} is a {type(found).__name__}; accepted: a callable, or an nn.Module")
    return found.eval().to(device) if isinstance(found, nn.Module) else found


@contextmanager
def _working_folder():  # type: ignore[no-untyped-def]
    """Modules of the working folder can be imported, as with `python -m`."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
