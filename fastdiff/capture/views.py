"""Views that are written to: how a change of the view becomes a change of what it is a view of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class View(NamedTuple):
    """How a view was made: the part of function(*args, **kwargs), or the whole (None); `of` is its first argument."""

    of: Tensor
    function: Any
    args: tuple
    kwargs: dict
    part: int | None


def scattered(nodes: fx.Graph, view: View, base: fx.Node, changed: fx.Node) -> fx.Node | None:
    """The base with the view's places changed, or None for a view of another kind.

    Args:
        base, changed: what the view is a view of, and what has been written to the view.
    """
    function, places = view.function, view.args[1:]
    if function in _RENAMED:
        return nodes.call_function(aten.reshape.default, (changed, list(view.of.shape)))
    if function in _UNDONE:
        return nodes.call_function(function, (changed, *_UNDONE[function](*places)))
    if function in _SCATTERED:
        return nodes.call_function(_SCATTERED[function], (base, changed, *places), view.kwargs)
    if view.part is None:
        return None
    dim = places[1] if len(places) > 1 else 0
    if function is aten.unbind.int:
        return nodes.call_function(aten.select_scatter.default, (base, changed, *(places or (0,)), view.part))
    if function is aten.split.Tensor:
        start, size = view.part * places[0], places[0]
    elif function is aten.split_with_sizes.default:
        start, size = sum(places[0][: view.part]), places[0][view.part]
    else:
        return None
    return nodes.call_function(aten.slice_scatter.default, (base, changed, dim, start, start + size))


def _inverse(dims: list[int]) -> tuple[list[int]]:
    places = [dim % len(dims) for dim in dims]
    return ([places.index(k) for k in range(len(places))],)


# Operations that change the shape alone.
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
# By the base's shape, by the same function with other arguments, or by an operation of torch's.
_RENAMED = {*RESHAPES, aten.detach.default, aten.alias.default}
_UNDONE: dict[Any, Callable[..., tuple]] = {
    aten.transpose.int: lambda *dims: dims,
    aten.t.default: lambda: (),
    aten.permute.default: _inverse,
}
_SCATTERED = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}

# Operations that make a view of their argument in its own place.
VIEWS_IN_PLACE = {
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.transpose_.default: aten.transpose.int,
    aten.t_.default: aten.t.default,
}
