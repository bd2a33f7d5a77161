"""A captured graph as ONNX operators; see writer.Writer."""

from __future__ import annotations

from collections.abc import Sequence

from fastdiff.capture import graph as capture
from fastdiff.export import layers, pointwise, shapes
from fastdiff.export.graph import Graph
from fastdiff.export.writer import Writer

TRANSLATIONS = {**pointwise.TABLE, **shapes.TABLE, **layers.TABLE}


def write(g: Graph, part: capture.Graph, inputs: Sequence[str], steady: bool = False) -> list[str]:
    """Add a captured graph to an ONNX graph; its constants become initializers of that.

    Args:
        g: the ONNX graph.
        part: of any batch.
        inputs: the names of what its placeholders are given, in their order. What is a row (1, ...) in the captured
            graph may have the whole batch's rows.
        steady: norms add long sums in two stages, see layers.normed.

    Returns:
        The names of its results.

    Raises:
        InputError: for an operation without a translation, by the network's line.
    """
    return Writer(g, part, inputs, steady).write(TRANSLATIONS)
