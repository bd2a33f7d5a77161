"""Pictures that samples begin as, and what is known of them: SDEdit and RePaint."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastdiff.engine.per_sample import Rows, rows_of
from fastdiff.errors import InputError
from fastdiff.samplers.spacing import STRENGTH


class Known(NamedTuple):
    """What is known of the samples (Lugmayr et al. 2022).

    Attributes:
        mask: (count, 1 or C, H, W), 1 where it is, 0 where it is not, and between.
        pictures: (count, C, H, W), the images there.
    """

    mask: Rows
    pictures: Rows


def resolve_pictures(name: str, given: Any, shapes: tuple[tuple[int, ...], ...], n: int, first: int) -> Rows:
    """The pictures of samples first .. first + n - 1, checked.

    Args:
        name: the argument's.
        given: numbers of one of these shapes for all, or with n of them side by side.
        shapes: of one picture, (C, H, W).
        n: how many samples.
        first: the first sample's index.

    Raises:
        InputError: for anything else.
    """
    try:
        pictures = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is of type {type(given).__name__}; accepted: images as numbers ({error})") from error
    shape = tuple(pictures.shape)
    if not pictures.is_floating_point():
        raise InputError(f"{name} holds {pictures.dtype}; accepted: floats")
    pictures = pictures.detach().float()
    pictures = pictures[None] if pictures.ndim == 3 else pictures
    if pictures.shape[1:] not in shapes or len(pictures) not in (1, n):
        accepted = " or ".join(str(one) for shape in shapes for one in (shape, (n, *shape)))
        raise InputError(f"{name} of shape {shape}; accepted: {accepted}")
    if not torch.isfinite(pictures).all():
        raise InputError(f"{name} holds NaN or infinity; accepted: finite numbers")
    return rows_of(pictures, first)


def resolve_known(mask: Any, known: Any, image_shape: tuple[int, int, int], n: int, first: int) -> Known | None:
    """What is known of samples first .. first + n - 1, checked; None if nothing is.

    Raises:
        InputError: for one without the other, other shapes than (1 or C, H, W) with or without n before it, and a mask
            outside 0 .. 1.
    """
    if (mask is None) != (known is None):
        raise InputError("mask and known belong together; give both or neither")
    if mask is None:
        return None
    whole, one = image_shape, (1, *image_shape[1:])
    made = Known(
        resolve_pictures("mask", mask, (one, whole) if whole != one else (whole,), n, first),
        resolve_pictures("known", known, (whole,), n, first),
    )
    values = made.mask(first, n)
    if values.min() < 0 or values.max() > 1:
        raise InputError(f"a mask from {values.min():g} to {values.max():g}; accepted: 0 (drawn) to 1 (known)")
    return made


def choose_strength(strength: float | None, init: Any) -> float:
    """The share of the steps that is run: the one given, else STRENGTH with pictures to begin with, and 1 without.

    Raises:
        InputError: for a strength without pictures.
    """
    if init is None and strength is not None:
        raise InputError(f"strength = {strength} without init; give pictures to begin with")
    return strength if strength is not None else 1.0 if init is None else STRENGTH


def check_resample(resample: int, mask: Any) -> None:
    """Raises InputError for steps that are run several times with nothing known for them to fit to."""
    if resample != 1 and mask is None:
        raise InputError(f"resample = {resample} without mask and known; accepted: 1")
