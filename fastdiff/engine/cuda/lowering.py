"""The CUDA form of a graph: all passes in their order."""

from __future__ import annotations

from fastdiff.capture.graph import Graph
from fastdiff.engine.cuda.attention import picture_attentions
from fastdiff.engine.cuda.convolutions import fuse
from fastdiff.engine.cuda.images import join_projections, stay
from fastdiff.engine.cuda.library import activations_before_norms, depthwise_convolutions, endings
from fastdiff.engine.cuda.padding import pad_channels


def lower(graph: Graph) -> None:
    """Have the Triton kernels compute all that they can.

    Args:
        graph: of one batch, after the passes that all devices share; is changed.
    """
    join_projections(graph)
    picture_attentions(graph)
    stay(graph)
    depthwise_convolutions(graph)
    fuse(graph)
    activations_before_norms(graph)
    endings(graph)
    pad_channels(graph)
