"""A graph as one straight Python function: a line for each operation, and results dropped after their last use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from fastdiff.capture.graph import Graph


def program(graph: Graph, lowered: Mapping[fx.Node, tuple[Callable[..., Any], tuple]] = {}) -> Callable[..., Any]:
    """(the placeholders' values) → the results, a tuple.

    Args:
        graph: of one batch.
        lowered: for some nodes what is called in their place, and with which arguments.
    """
    known: dict[str, Any] = {}
    names: dict[fx.Node, str] = {}
    lines: list[str] = []

    def word(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, (list, tuple)):
            return f"({' '.join(word(one) + ',' for one in value)})"
        name = f"k{len(known)}"
        known[name] = value
        return name

    nodes = list(graph.nodes.nodes)
    last: dict[fx.Node, int] = {}
    calls: dict[int, tuple[Any, tuple, dict]] = {}
    for place, node in enumerate(nodes):
        if node.op == "call_function":
            function, args = lowered.get(node, (node.target, node.args))
            calls[place] = function, args, {} if node in lowered else node.kwargs
            for used in _nodes((args, calls[place][2])):
                last[used] = place
    ends: dict[int, list[fx.Node]] = {}
    for node, place in last.items():
        ends.setdefault(place, []).append(node)
    kept = set(_nodes(graph.results))
    inputs = []
    for place, node in enumerate(nodes):
        if node.op == "placeholder":
            names[node] = node.target
            inputs.append(node.target)
        elif node.op == "get_attr":
            names[node] = word(graph.constants[node.target])
        elif node.op == "call_function" and node in last or node in kept:
            function, args, kwargs = calls[place]
            names[node] = f"v{place}"
            given = [word(one) for one in args] + [f"{name}={word(one)}" for name, one in kwargs.items()]
            lines.append(f"{names[node]} = {word(function)}({', '.join(given)})")
            done = [names[one] for one in ends.get(place, ()) if one not in kept and names[one].startswith("v")]
            if done:
                lines.append(f"{' = '.join(done)} = None")
    body = "\n    ".join([*lines, f"return {word(graph.results)}"])
    exec(f"def run({', '.join(inputs)}):\n    {body}", known)  # noqa: S102
    return known["run"]


def _nodes(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, (list, tuple)):
        return [node for one in value for node in _nodes(one)]
    if isinstance(value, dict):
        return _nodes(list(value.values()))
    return []
