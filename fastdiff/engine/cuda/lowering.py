"""The CUDA form of a graph: all passes in their order."""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.engine.cuda.convolutions import fuse
from fastdiff.engine.cuda.library import activations_before_norms, biases_into_readers, depthwise_convolutions


def lower(graph: Graph) -> None:
    """Have the Triton kernels compute all that they can.

    Args:
        graph: of one batch, after the passes that all devices share; is changed.
    """
    depthwise_convolutions(graph)
    fuse(graph)
    activations_before_norms(graph)
    biases_into_readers(graph)
