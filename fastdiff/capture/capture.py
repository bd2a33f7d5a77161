"""From a network to the three graphs of its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fastdiff.capture.batch import merged
from fastdiff.capture.graph import Graph
from fastdiff.capture.passes.affine import join_affine
from fastdiff.capture.passes.simplify import simplify
from fastdiff.capture.passes.written_norms import fuse_group_norms
from fastdiff.capture.record import record
from fastdiff.capture.split import Split, split
from fastdiff.capture.tidy import fold_constants, normalise
from fastdiff.kernels import dispatch

BATCHES = (2, 3)  # of the two recordings; sizes of 1 broadcast, and would hide what grows with the batch


def capture(
    call: Callable[..., Tensor], example: Callable[[int], Mapping[str, Tensor]], exact: Mapping[int, Tensor]
) -> Split:
    """Record two evaluations, and split what they have in common.

    Args:
        call: (x, t) and perhaps x_self_cond and context by name → the prediction.
        example: batch → its arguments by these names.
        exact: by the id of a tensor of the network, its value before it was rounded to the network's dtype.

    Returns:
        The graphs, which hold for every batch; their constants are folded.

    Raises:
        NotRecordableError: for what a graph cannot hold; and whatever `call` raises.
    """

    def recorded(inputs: Mapping[str, Tensor]) -> Graph:
        return record(lambda *values: call(**dict(zip(inputs, values, strict=True))), inputs)

    one, two = (recorded(example(batch)) for batch in BATCHES)
    graph = merged(one, two, BATCHES)
    graph.exact = {name: exact[id(value)] for name, value in graph.constants.items() if id(value) in exact}
    normalise(graph)
    with dispatch.using("reference"):  # launches may be withheld while a network is recorded
        fold_constants(graph)
        simplify(graph)
        fuse_group_norms(graph)
        join_affine(graph)
        fold_constants(graph)
    return split(graph)
