"""One model's row of a report, from its samples."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from fastdiff.evaluation import pixels
from fastdiff.evaluation.copies import Copies
from fastdiff.evaluation.drawn import classes_of, contexts
from fastdiff.evaluation.features import Tick, silent
from fastdiff.evaluation.reference import Reference
from fastdiff.model import Model


def evaluate(
    model: Model, images: Tensor, reference: Reference, copies: Copies, tick: Tick = silent
) -> tuple[dict[str, Any], Image.Image]:
    """All measures of a model's samples.

    Args:
        model: what they were drawn from.
        images: (n, C, H, W), uint8 or float32 in [-1, 1]; of drawn.contexts, if it takes classes.
        reference: of the same n.
        copies: of the same data.
        tick: called with the number of training pictures that were looked through.

    Returns:
        The row, plain values, and the picture of samples and training pictures.

    Raises:
        InputError: if the features have no finite distance.
    """
    made = reference.features.of(pixels.samples(images), pixels.everything(len(images)))
    row = reference.compare(made)
    if reference.floor["distance"] > 0:
        row["times_floor"] = row["distance"] / reference.floor["distance"]
    classes, row["no_classes"] = classes_of(model, reference.data)
    order = contexts(model, reference.data)[1]
    row["classes"] = reference.by_class(made, classes, order) if classes else []
    row["copies"], picture = copies.compare(images, tick)
    return row, picture
