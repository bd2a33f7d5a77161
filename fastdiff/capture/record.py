"""Recording one real evaluation of a network as a graph of ATen operations.

The network runs on real tensors while a dispatch mode writes down what is called. Operations in place become operations
with a result, and every later use of what they changed, views included, is a use of that result. What a graph cannot
hold raises NotRecordableError.

make_fx and torch's own functionalization give the same graphs, but import torch._dynamo and sympy, which takes longer
than sampling an image.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fastdiff.capture.graph import Graph

aten = torch.ops.aten


class NotRecordableError(Exception):
    """Why an evaluation cannot be recorded, with the user's line that does it."""


def record(call: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Graph:
    """The graph of call(*inputs), without gradients; tensors that `call` holds are its constants.

    Raises:
        NotRecordableError: for what a graph cannot hold.
    """
    recorder = _Recorder(inputs)
    with torch.no_grad(), _Whole(recorder), recorder:
        out = call(*inputs.values())
    if recorder.refused:  # the network's own code may have caught it
        raise recorder.refused
    recorder.nodes.output((recorder.node_of(out),))
    graph = Graph(recorder.nodes, recorder.constants)
    graph.tidy()
    return graph


class _View(NamedTuple):
    """How a view was made: the part of function(*args, **kwargs), or the whole (None); `of` is among the args."""

    of: Tensor
    function: Any
    args: tuple
    kwargs: dict
    part: int | None


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps the mode, for which it imports torch._dynamo

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.nodes = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.known: dict[int, fx.Node] = {}  # by a tensor's id
        self.kept: list[Tensor] = []  # all of them, so that no id comes twice
        self.views: dict[int, _View] = {}
        self.stale: set[int] = set()  # views of what has been written to since
        self.paused = False
        self.refused: NotRecordableError | None = None
        for name, value in inputs.items():
            self._learn(value, self.nodes.placeholder(name), inputs=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return function(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise self._refusal(f"{function} draws random numbers")
        arguments = function._schema.arguments
        written = [place for place, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write]
        if written:
            return self._write(function, written, args, kwargs)
        out = function(*args, **kwargs)
        if function is aten.lift_fresh.default:  # torch.tensor(...): what it returns is a tensor of its own
            constant = self._constant(out, out.clone())
            self._learn(out, self.nodes.call_function(aten.clone.default, (constant,)))  # which may be written to
            return out
        self.add(function, args, kwargs, out)
        return out

    def node_of(self, value: Any) -> Any:
        """The node whose result a tensor is; other values are returned."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.known:
            self._constant(value, value)
        elif id(value) in self.stale:
            self.stale.discard(id(value))
            view = self.views[id(value)]
            node = self._call(view.function, view.args, view.kwargs)
            node = node if view.part is None else self.nodes.call_function(operator.getitem, (node, view.part))
            self._learn(value, node)
        return self.known[id(value)]

    def add(self, function: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """A call and its result."""
        viewed = next((args[k] for k, one in enumerate(function._schema.arguments) if one.alias_info), None)
        parts = [(None, out)] if isinstance(out, Tensor) else list(enumerate(out)) if isinstance(out, (tuple, list)) else []
        if not parts:
            if any(self._from_inputs(node) for node in self._call(function, args, kwargs).all_input_nodes):
                raise self._refusal(f"a number is read from the images, the time or the context ({function})")
            return
        node = self._call(function, args, kwargs)
        for place, part in parts:
            if isinstance(part, Tensor):
                one = node if place is None else self.nodes.call_function(operator.getitem, (node, place))
                self._learn(part, one)
                if isinstance(viewed, Tensor) and part is not viewed:
                    self.views[id(part)] = _View(viewed, function, args, kwargs, place)

    def _call(self, function: Any, args: tuple, kwargs: dict) -> fx.Node:
        return self.nodes.call_function(function, tree_map(self.node_of, args), tree_map(self.node_of, kwargs))

    def _learn(self, value: Tensor, node: fx.Node, inputs: bool = False) -> None:
        self.known[id(value)] = node
        self.kept.append(value)
        inputs = inputs or any(map(self._from_inputs, node.all_input_nodes))
        node.meta.update(shape=tuple(value.shape), dtype=value.dtype, inputs=inputs)

    @staticmethod
    def _from_inputs(node: fx.Node) -> bool:
        return node.meta.get("inputs") or any(one.meta.get("inputs") for one in node.all_input_nodes)

    def _constant(self, value: Tensor, content: Tensor) -> fx.Node:
        name = f"constant{len(self.constants)}"
        self.constants[name] = content
        node = self.nodes.get_attr(name)
        self._learn(value, node)
        return node

    def _write(self, function: Any, written: list[int], args: tuple, kwargs: dict) -> Any:
        """An operation in place, as the operation of the same name that has a result."""
        packet = getattr(aten, function._schema.name.removeprefix("aten::").removesuffix("_"), None)
        overload = function._overloadname
        if function.namespace != "aten" or written != [0] or packet is None or overload not in packet.overloads():
            raise self._refusal(f"{function} writes to an argument")
        chain: list[Tensor] = [args[0]]  # up to what is no view
        while id(chain[-1]) in self.views:
            chain.append(self.views[id(chain[-1])].of)
        if self.node_of(chain[-1]).op == "get_attr":
            raise self._refusal(f"{function} writes to a tensor of the network")
        changed = self._call(getattr(packet, overload), args, kwargs)
        for value, base in zip(chain, [*chain[1:], None], strict=True):
            if base is not None:
                changed, part = self._scattered(self.views[id(value)], self.node_of(base), changed), changed
            else:
                part = changed
            self._learn(value, part)
        self.stale |= {key for key in self.views if self._root(key) is chain[-1]} - {id(value) for value in chain}
        return function(*args, **kwargs)

    def _root(self, key: int) -> Tensor:
        """What the view of that id is a view of, in the end."""
        value = self.views[key].of
        return self._root(id(value)) if id(value) in self.views else value

    def _scattered(self, view: _View, base: fx.Node, changed: fx.Node) -> fx.Node:
        """The base with the view's places changed."""
        packet, places = view.function.overloadpacket, view.args[1:]
        if packet in _RENAMED:
            return self.nodes.call_function(aten.reshape.default, (changed, list(view.of.shape)))
        if packet in _UNDONE:
            return self.nodes.call_function(view.function, (changed, *_UNDONE[packet](*places)))
        if packet in _SCATTERED:
            return self.nodes.call_function(_SCATTERED[packet], (base, changed, *places), view.kwargs)
        raise self._refusal(f"a result of {view.function} is written to")

    def _refusal(self, what: str) -> NotRecordableError:
        """The error, with the innermost line that is neither torch's nor ours."""
        ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
        frames = [one for one in traceback.extract_stack() if not one.filename.startswith(ours)]
        line = f", in {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
        self.refused = NotRecordableError(what + line)
        return self.refused


def _inverse(dims: list[int]) -> tuple[list[int]]:
    places = [dim % len(dims) for dim in dims]
    return ([places.index(k) for k in range(len(places))],)


# How a change of a view becomes one of what it is a view of: by the base's shape, by the same function with other
# arguments, or by an operation of torch's.
_RENAMED = (aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.detach, aten.alias)
_UNDONE = {aten.transpose: lambda *dims: dims, aten.t: lambda: (), aten.permute: _inverse}
_SCATTERED = {aten.select: aten.select_scatter.default, aten.slice: aten.slice_scatter.default}


# Functions that are recorded as the one operation that they are, not as what torch calls for it on some device.
_WHOLE = {
    F.group_norm: aten.group_norm.default,
    F.layer_norm: aten.layer_norm.default,
    F.batch_norm: aten.batch_norm.default,
    F.linear: aten.linear.default,
    F.scaled_dot_product_attention: aten.scaled_dot_product_attention.default,
    torch.group_norm: aten.group_norm.default,
    torch.layer_norm: aten.layer_norm.default,
    torch.batch_norm: aten.batch_norm.default,
}
_DROPOUT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}


class _Whole(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in _DROPOUT:
            return args[0] if args else kwargs["input"]  # a function may be called without regard to eval()
        if function not in _WHOLE or self.recorder.paused:
            return function(*args, **kwargs)
        self.recorder.paused = True
        try:
            out = function(*args, **kwargs)
        finally:
            self.recorder.paused = False
        arguments = _WHOLE[function]._schema.arguments
        try:  # Python's own functions have an order of their own
            given = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
        except ValueError:
            given = dict(zip((one.name for one in arguments), args, strict=False)) | kwargs
        if given.get("dropout_p"):
            given["dropout_p"] = 0.0
        ordered = [given.get(one.name, one.default_value) for one in arguments if not one.kwarg_only]
        named = {one.name: given[one.name] for one in arguments if one.kwarg_only and one.name in given}
        self.recorder.add(_WHOLE[function], tuple(ordered), named, out)
        return out
