"""A graph as one straight Python function: a line for each operation, and results dropped after their last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from fastdiff.capture.graph import Batch, Graph


def program(
    graph: Graph, lowered: Mapping[fx.Node, tuple[Callable[..., Any], tuple]] | None = None
) -> Callable[..., tuple[Tensor, ...]]:
    """(the placeholders' values) → the results.

    Args:
        graph: of one batch, as at_batch gives it.
        lowered: for some nodes what is called in their place, and with which arguments.
    """
    lowered = lowered or {}
    nodes = list(graph.nodes.nodes)
    calls: dict[fx.Node, tuple[Any, tuple, dict]] = {}
    for node in nodes:
        if node in lowered:
            calls[node] = (*lowered[node], {})
        elif node.op == "call_function":
            calls[node] = node.target, tuple(node.args), dict(node.kwargs)
    last = _last_uses(graph, calls)
    done: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        if node in calls:
            done.setdefault(user, []).append(node)
    writer = _Writer()
    for node in nodes:
        if node.op == "placeholder":
            writer.inputs.append(writer.name(node))
        elif node not in last:  # such as the weights that a lowered call holds in another form
            continue
        elif node.op == "get_attr":
            writer.names[node] = writer.word(graph.constants[str(node.target)])
        else:
            function, args, kwargs = calls[node]
            given = [writer.word(one) for one in args]
            given += [f"{name}={writer.word(one)}" for name, one in kwargs.items()]
            writer.lines.append(f"{writer.name(node)} = {writer.word(function)}({', '.join(given)})")
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


def _last_uses(graph: Graph, calls: Mapping[fx.Node, tuple[Any, tuple, dict]]) -> dict[fx.Node, fx.Node]:
    """For each node that is used the last to use it, the output included."""
    last: dict[fx.Node, fx.Node] = {}
    for node, (_, args, kwargs) in calls.items():
        last |= dict.fromkeys(_nodes((args, kwargs)), node)
    return last | dict.fromkeys(graph.results, graph.nodes.output_node())


def _nodes(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, (list, tuple)):
        return [node for one in value for node in _nodes(one)]
    return _nodes(list(value.values())) if isinstance(value, dict) else []
