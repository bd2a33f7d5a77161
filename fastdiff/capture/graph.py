"""One evaluation of a network as a graph: torch.fx nodes, each an operation on tensors, without side effects.

What torch.fx leaves open and holds here:

- The placeholders are x, t and, where the network takes one, context.
- A constant is a get_attr node, its tensor in Graph.constants under the node's target.
- An integer that grows with the batch is a Batch among a node's arguments.
- node.meta["shape"] is the result's shape, with Batch sizes; node.meta["dtype"] its dtype. Results in several parts have
  a getitem node for each part that is used, and no shape of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx




@dataclass(frozen=True)
class Batch:
    """The integer `times` × the batch."""

    times: int

    def __repr__(self) -> str:
        return "B" if self.times == 1 else f"{self.times}B"


@dataclass
class Graph:
    """Attributes:
    nodes: the operations.
    constants: by the target of their get_attr nodes; shared with the network that was recorded.
    """

    nodes: fx.Graph
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def result(self) -> fx.Node:
        """What the graph returns."""
        return self.nodes.output_node().args[0]

    def constant(self, value: Tensor, before: fx.Node | None = None) -> fx.Node:
        """A new constant's node."""
        name = f"made{len(self.constants)}"
        self.constants[name] = value
        with self.nodes.inserting_before(before or next(iter(self.nodes.nodes))):
            return described(self.nodes.get_attr(name), tuple(value.shape), value.dtype)


def described(node: fx.Node, shape: tuple[Any, ...], dtype: torch.dtype) -> fx.Node:
    """The node, with the shape and the dtype of its result."""
    node.meta.update(shape=shape, dtype=dtype)
    return node


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A node's argument with the function applied to all in it but lists, tuples, slices and dicts."""
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(one, function) for one in value) if type(value) in (list, tuple) else [
            mapped(one, function) for one in value
        ]
    if isinstance(value, dict):
        return {name: mapped(one, function) for name, one in value.items()}
    return function(value)
