"""What is left in a step that depends on the time's row alone is computed with the rows, before the loop."""

from __future__ import annotations

import torch
from torch import fx

from fastdiff.capture.graph import Graph, described
from fastdiff.capture.passes.match import aten, only_user, supersede


def hoist_rows(time: Graph, step: Graph) -> None:
    """An operation of one row and numbers, element by element, moves to the rows, if nothing else reads the row.

    Args:
        time: of one batch; its result number k is the step's input tk. Is changed.
        step: of one batch; is changed.
    """
    inputs = {node.target: node for node in step.nodes.nodes if node.op == "placeholder"}
    for place, row in enumerate(time.results):
        given = inputs[f"t{place}"]
        while (user := only_user(given)) is not None and _of_one_row(user, given):
            assert callable(user.target)
            results = list(time.results)
            args = tuple(row if one is given else one for one in user.args)
            with time.nodes.inserting_after(row):
                row = time.nodes.call_function(user.target, args, user.kwargs)
            results[place] = described(row, results[place].meta["shape"], user.meta["dtype"])
            time.nodes.output_node().args = (tuple(results),)
            given.meta["dtype"] = user.meta["dtype"]
            supersede(step, user, given)


def _of_one_row(user: fx.Node, row: fx.Node) -> bool:
    cast = user.target is aten._to_copy.default and set(user.kwargs) == {"dtype"}
    pointwise = isinstance(user.target, torch._ops.OpOverload) and torch.Tag.pointwise in user.target.tags
    return (cast or pointwise) and user.all_input_nodes == [row] and user.meta.get("shape") == row.meta["shape"]
