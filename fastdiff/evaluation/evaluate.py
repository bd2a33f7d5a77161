"""One model's row of a report, from its samples."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from fastdiff.evaluation import pixels
from fastdiff.evaluation.copies import Copies
from fastdiff.evaluation.drawn import Classes
from fastdiff.evaluation.features import Tick, silent
from fastdiff.evaluation.reference import Reference


def evaluate(
    images: Tensor, classes: Classes, reference: Reference, copies: Copies, tick: Tick = silent
) -> tuple[dict[str, Any], Image.Image]:
    """All measures of a model's samples.

    Args:
        images: (n, C, H, W), uint8 or float32 in [-1, 1].
        classes: which they were drawn of.
        reference: of the same n, with the floor of such samples.
        copies: of the same data.
        tick: called with the number of training pictures that were looked through.

    Returns:
        The row, plain values, and the picture of samples and training pictures.

    Raises:
        InputError: if the features have no finite distance.
    """
    made = reference.features.of(pixels.samples(images), pixels.everything(len(images)))
    row = reference.compare(made)
    row["floor"] = reference.floors[classes.alike]
    if row["floor"]["distance"] > 0:
        row["times_floor"] = row["distance"] / row["floor"]["distance"]
    row["no_classes"] = classes.why
    row["classes"] = reference.by_class(made, classes.known, classes.order) if classes.known else []
    row["copies"], picture = copies.compare(images, tick)
    return row, picture
