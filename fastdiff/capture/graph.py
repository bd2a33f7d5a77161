"""One evaluation of a network as a graph: torch.fx nodes, each an operation on tensors without side effects.

What torch.fx leaves open:

- The placeholders are named x, t and, where the network takes them, x_self_cond and context.
- A constant is a get_attr node, its tensor in Graph.constants under the node's target.
- An integer that grows with the batch is a Batch among a node's arguments.
- node.meta["shape"] is the result's shape, with Batch sizes, and node.meta["dtype"] its dtype. A result in several
  parts has neither; each part that is used has a getitem node.
- node.meta["line"] is the file and the line of the network that calls it, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

SELF_CONDITION = "x_self_cond"  # the argument of networks with self-conditioning, as lucidrains' have it
IMAGES = ("x", SELF_CONDITION)  # the placeholders that change from step to step


@dataclass(frozen=True)
class Batch:
    """The integer `times` × the batch."""

    times: int = 1


@dataclass
class Graph:
    """Operations, and the constants that they use, which are shared with the network that was recorded.

    Attributes:
        nodes: the operations.
        constants: by the get_attr nodes' targets.
        exact: for constants that were rounded to the network's dtype, the values before.
    """

    nodes: fx.Graph = field(default_factory=fx.Graph)
    constants: dict[str, Tensor] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)

    @property
    def results(self) -> tuple[fx.Node, ...]:
        """What it returns."""
        return tuple(self.nodes.output_node().args[0])  # type: ignore[arg-type]

    def constant(self, value: Tensor, before: fx.Node) -> fx.Node:
        """A node of a new constant."""
        number = len(self.constants)
        while (name := f"made{number}") in self.constants:
            number += 1
        self.constants[name] = value
        with self.nodes.inserting_before(before):
            return described(self.nodes.get_attr(name), tuple(value.shape), value.dtype)

    def tidy(self) -> None:
        """Drop what is not used."""
        for node in reversed(self.nodes.nodes):  # fx's own way checks the whole graph first
            if not node.users and node.op not in ("placeholder", "output"):
                self.nodes.erase_node(node)
        used = {node.target for node in self.nodes.nodes if node.op == "get_attr"}
        self.constants = {name: value for name, value in self.constants.items() if name in used}
        self.exact = {name: value for name, value in self.exact.items() if name in used}

    def extract(self, inputs: Mapping[fx.Node, str], results: Iterable[fx.Node]) -> Graph:
        """The part that computes these results from these inputs, by their new placeholders' names."""
        results = tuple(results)
        wanted: set[fx.Node] = set()
        pending = list(results)
        while pending:
            node = pending.pop()
            if node not in wanted and node not in inputs:
                wanted.add(node)
                pending += node.all_input_nodes
        made = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node, name in inputs.items():
            copies[node] = described(made.placeholder(name), node.meta.get("shape"), node.meta.get("dtype"))
        for node in self.nodes.nodes:
            if node in wanted:
                copies[node] = made.node_copy(node, copies.__getitem__)
        made.output(tuple(copies[node] for node in results))
        part = Graph(made, dict(self.constants), dict(self.exact))
        part.tidy()
        return part


def described(node: fx.Node, shape: Any, dtype: Any) -> fx.Node:
    """The node, told the shape and the dtype of its result."""
    node.meta.update(shape=shape, dtype=dtype)
    return node


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A node's argument with the function applied to everything in its lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(one, function) for one in value])
    if isinstance(value, dict):
        return {name: mapped(one, function) for name, one in value.items()}
    return function(value)


def grows(value: Any) -> bool:
    """Whether there is a Batch in a node's argument, its lists, tuples and dicts included."""
    if isinstance(value, (list, tuple)):
        return any(map(grows, value))
    return grows(list(value.values())) if isinstance(value, dict) else isinstance(value, Batch)
