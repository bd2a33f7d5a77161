"""A graph as one straight Python function: a line for each operation, and results dropped after their last use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from fastdiff.capture.graph import Batch, Graph


def program(graph: Graph) -> Callable[..., tuple[Tensor, ...]]:
    """(the placeholders' values) → the results.

    Args:
        graph: of one batch, as at_batch gives it.
    """
    nodes = list(graph.nodes.nodes)
    last = _last_uses(graph)
    done: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        if node.op == "call_function":
            done.setdefault(user, []).append(node)
    writer = _Writer()
    for node in nodes:
        if node.op == "placeholder":
            writer.inputs.append(writer.name(node))
        elif node.op == "get_attr":
            writer.names[node] = writer.word(graph.constants[str(node.target)])
        elif node.op == "call_function":
            given = [writer.word(one) for one in node.args]
            given += [f"{name}={writer.word(one)}" for name, one in node.kwargs.items()]
            writer.lines.append(f"{writer.name(node)} = {writer.word(node.target)}({', '.join(given)})")
            if node in done:
                writer.lines.append(f"{' = '.join(writer.names[one] for one in done[node])} = None")
    writer.lines.append(f"return {writer.word(graph.results)}")
    return writer.written()


class _Writer:
    """Lines of names that are made here; of the graph's own text only the operations' argument names are in them."""

    def __init__(self) -> None:
        self.names: dict[fx.Node, str] = {}
        self.values: dict[str, Any] = {}
        self.inputs: list[str] = []
        self.lines: list[str] = []

    def name(self, node: fx.Node) -> str:
        return self.names.setdefault(node, f"v{len(self.names)}")

    def word(self, value: Any) -> str:
        """What an argument is written as: a name, or a list or a tuple of them."""
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, tuple):
            return f"({''.join(self.word(one) + ', ' for one in value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(self.word, value))}]"
        if isinstance(value, Batch):
            raise TypeError("the graph is of no one batch: it has a Batch; at_batch puts a number in its place")
        if value is None or type(value) in (bool, int):
            return repr(value)
        name = f"k{len(self.values)}"
        self.values[name] = value
        return name

    def written(self) -> Callable[..., tuple[Tensor, ...]]:
        body = "\n    ".join(self.lines)
        exec(f"def run({', '.join(self.inputs)}):\n    {body}", self.values)
        return self.values.pop("run")


def _last_uses(graph: Graph) -> dict[fx.Node, fx.Node]:
    """For each node that is used the last to use it, the output included."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes.nodes:
        last |= dict.fromkeys(node.all_input_nodes, node)
    return last
