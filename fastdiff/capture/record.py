"""Recording one real evaluation of a network as a graph of ATen operations.

The network runs on real tensors while a dispatch mode writes down what is called. Operations in place become operations
with a result, and every later use of what they changed, views included, is a use of that result. What a graph cannot
hold raises NotRecordableError.

make_fx and torch's own functionalization give the same graphs, but import torch._dynamo and sympy, which takes longer
than sampling an image.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.capture.graph import Graph, described, mapped
from fastdiff.capture.refusal import NotRecordableError, users_line
from fastdiff.capture.views import VIEWS_IN_PLACE, View, scattered

aten = torch.ops.aten


def record(call: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Graph:
    """The graph of call(*inputs), without gradients; the tensors that `call` holds are its constants.

    Dropout is left out, as in eval(). Neither the inputs nor what `call` holds is written to. A network that keeps
    something from its first evaluation for the next (a table of sines) must have been run before.

    Args:
        call: inputs' values, in their order → a tensor.
        inputs: the placeholders' names and what to run it on, tensors of any shape.

    Raises:
        NotRecordableError: for what a graph cannot hold: numbers read from the inputs, control flow on them, shapes
            that depend on them, random numbers, writes to the network's tensors, gradients.
    """
    torch.clear_autocast_cache()  # whose tensors no operation would be seen to make
    recorder = _Recorder()
    given = [recorder.placeholder(name, value) for name, value in inputs.items()]
    try:
        # Below autograd the mode sees linear or group_norm itself, not what torch makes of it on some device.
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), recorder:
            out = call(*given)
    except Exception:
        if recorder.refused is None:
            raise
    if recorder.refused is not None:  # the network's own code may have caught it
        raise NotRecordableError(recorder.refused)
    if not isinstance(out, Tensor):
        raise NotRecordableError(f"it returns a value of type {type(out).__name__}, not a tensor")
    recorder.nodes.output((recorder.node_of(out),))
    graph = Graph(recorder.nodes, recorder.constants)
    graph.tidy()
    return graph


# Recorded as the one operation that they are; other composite operations as what they are composed of.
_WHOLE = {
    aten.group_norm.default,
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.batch_norm.default,
    aten.linear.default,
    aten.scaled_dot_product_attention.default,
}
_DROPOUT = {
    packet
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for packet in (getattr(aten, name), getattr(aten, f"{name}_"))
}
_INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps the mode, for which it imports torch._dynamo

    def __init__(self) -> None:
        super().__init__()
        self.nodes = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.known: dict[int, fx.Node] = {}  # by a tensor's id
        self.kept: list[Tensor] = []  # all of them, so that neither an id nor an address comes twice
        self.addresses: set[int] = set()  # of the memory of what depends on the inputs
        self.views: dict[int, View] = {}
        self.stale: set[int] = set()  # views of what has been written to since
        self.refused: str | None = None

    def placeholder(self, name: str, value: Tensor) -> Tensor:
        """An input: a copy, which the network may write to."""
        value = value.detach().clone()
        self._learn(value, self.nodes.placeholder(name), inputs=True)
        return value

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket in _DROPOUT:
            return self._dropout(function, *args, **kwargs)
        if function is aten.instance_norm.default:
            function, args, kwargs = _instance_norm(*_in_full(function, args, kwargs)[0])
        if function in _WHOLE or (function is aten.one_hot.default and len(args) > 1 and args[1] > 0):
            args, kwargs = _in_full(function, args, kwargs)
        elif _is_composite(function):
            if function is aten.resolve_neg.default and self._is_input(args[0]):  # which tolist() calls, and then reads
                raise self._read(function)
            with self:
                return function._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        self._check(function, args)
        if _writes(function):
            return self._write(function, args, kwargs)
        sizes_alone = function is aten.convolution.default and self._is_input(args[0])
        out = _repeated(*args) if sizes_alone else function(*args, **kwargs)
        if function is aten.lift_fresh.default:  # torch.tensor(...): what it returns is a tensor of its own, which may
            self._learn(out, self._call(aten.clone.default, (self._constant(out, out.clone()),), {}))  # be written to
        else:
            self._add(function, args, kwargs, out)
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
            self._learn(value, node if view.part is None else self._getitem(node, view.part))
        return self.known[id(value)]

    def _check(self, function: Any, args: tuple) -> None:
        """Refuses what must not even run, or would not show in the result."""
        if function is aten.batch_norm.default and args[5] and args[3] is not None:
            raise self._refusal("a BatchNorm in training mode writes to its running statistics")
        if torch.Tag.nondeterministic_seeded in function.tags and function not in _WHOLE:
            raise self._refusal(f"{function} draws random numbers")
        if function in _INDEXING:
            dynamic = any(_is_mask(one) for one in args[1])
        else:
            dynamic = torch.Tag.dynamic_output_shape in function.tags and function is not aten.one_hot.default
        if dynamic:
            raise self._refusal(f"the shape of a result of {function} depends on values")
        if torch.is_grad_enabled():
            if any(isinstance(one, Tensor) and one.requires_grad and self._is_input(one) for one in args):
                raise self._refusal("gradients are computed")

    def _is_input(self, value: Tensor) -> bool:
        """Whether a tensor is an input or depends on one."""
        return id(value) in self.known and _from_inputs(self.known[id(value)])

    def _dropout(self, function: Any, value: Tensor, p: float, train: bool) -> Tensor:
        """Nothing, as in eval(); out of training torch gives back the tensor itself."""
        if function._schema.is_mutable or not train:
            return value
        with self:
            return value.clone()

    def _add(self, function: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """A call and its result."""
        node = self._call(function, args, kwargs)
        several = isinstance(out, (tuple, list))
        parts: list[Any] = list(out) if several else [out]
        if any(isinstance(part, (tuple, list)) for part in parts):
            raise self._refusal(f"{function} returns lists of tensors")
        if _from_inputs(node) and not any(isinstance(part, Tensor) for part in parts):
            raise self._read(function)
        viewed = next((arg for arg, alias in zip(args, _aliased(function), strict=False) if alias), None)
        for place, part in enumerate(parts):
            if isinstance(part, Tensor):
                self._learn(part, self._getitem(node, place) if several else node)
                if isinstance(viewed, Tensor) and part is not viewed:
                    self.views[id(part)] = View(viewed, function, args, kwargs, place if several else None)

    def _call(self, function: Any, args: tuple, kwargs: dict) -> fx.Node:
        node = self.nodes.call_function(function, mapped(args, self.node_of), mapped(kwargs, self.node_of))
        node.meta.update(inputs=any(map(_from_inputs, node.all_input_nodes)), line=users_line())
        return node

    def _getitem(self, node: fx.Node, part: int) -> fx.Node:
        return self._call(operator.getitem, (node, part), {})

    def _learn(self, value: Tensor, node: fx.Node, inputs: bool = False) -> None:
        """That the tensor is now the node's result."""
        self.known[id(value)] = described(node, tuple(value.shape), value.dtype)
        self.kept.append(value)
        node.meta["inputs"] = inputs or any(map(_from_inputs, node.all_input_nodes))
        if node.meta["inputs"] and (address := _address(value)):
            self.addresses.add(address)

    def _constant(self, value: Tensor, content: Tensor) -> fx.Node:
        """A tensor that no operation has made."""
        if _address(value) in self.addresses:
            raise self._refusal("values of the images, the time or the context come from outside of torch's operations")
        name = f"constant{len(self.constants)}"
        self.constants[name] = content
        node = self.nodes.get_attr(name)
        node.meta["line"] = users_line()
        self._learn(value, node)
        return node

    def _write(self, function: Any, args: tuple, kwargs: dict) -> Any:
        """An operation in place, as the operation of the same name that has a result."""
        if function is aten.detach_.default:
            return args[0]
        if function is aten.as_strided_.default and _shows_the_same(*args, **kwargs):
            return function(*args, **kwargs)
        if torch.Tag.inplace_view in function.tags:
            return self._view_in_place(function, args, kwargs)
        functional = _functional(function)
        if functional is None:
            raise self._refusal(f"{function} writes to an argument")
        chain: list[Tensor] = [args[0]]  # up to what is no view
        while id(chain[-1]) in self.views:
            chain.append(self.views[id(chain[-1])].of)
        if self.node_of(chain[-1]).op == "get_attr":
            raise self._refusal(f"{function} writes to a tensor of the network")
        out = functional(*args, **kwargs)
        changed = self._call(functional, args, kwargs)
        if out.dtype != args[0].dtype:  # a comparison, or another argument of a wider dtype
            described(changed, tuple(out.shape), out.dtype)
            changed = self._call(aten._to_copy.default, (changed,), {"dtype": args[0].dtype})
        args[0].copy_(out)
        self._learn(args[0], changed)
        for value, base in zip(chain, chain[1:], strict=False):
            whole = scattered(self.nodes, self.views[id(value)], self.node_of(base), changed)
            if whole is None:
                raise self._refusal(f"a result of {self.views[id(value)].function} is written to")
            whole.meta["line"] = users_line()
            self._learn(base, whole)
            changed = whole
        self.stale |= {key for key in self.views if self._root(key) is chain[-1]} - {id(value) for value in chain}
        return args[0]

    def _view_in_place(self, function: Any, args: tuple, kwargs: dict) -> Tensor:
        """unsqueeze_ and the like: from now on the tensor is a view of what it was."""
        value, *more = args
        if function not in VIEWS_IN_PLACE:
            raise self._refusal(f"{function} changes a tensor's shape in place")
        if self.node_of(value).op == "get_attr":
            raise self._refusal(f"{function} writes to a tensor of the network")
        before = aten.alias.default(value)
        self._learn(before, self.node_of(value))
        if id(value) in self.views:
            self.views[id(before)] = self.views[id(value)]
        for key, view in self.views.items():
            if view.of is value:
                self.views[key] = view._replace(of=before, args=(before, *view.args[1:]))
        functional = VIEWS_IN_PLACE[function]
        function(*args, **kwargs)
        self._learn(value, self._call(functional, (before, *more), kwargs))
        self.views[id(value)] = View(before, functional, (before, *more), kwargs, None)
        return value

    def _root(self, key: int) -> Tensor:
        """What the view of that id is a view of, in the end."""
        value = self.views[key].of
        while id(value) in self.views:
            value = self.views[id(value)].of
        return value

    def _read(self, function: Any) -> NotRecordableError:
        return self._refusal(f"a number is read from the images, the time or the context ({function})")

    def _refusal(self, what: str) -> NotRecordableError:
        error = NotRecordableError.at(what, users_line())
        self.refused = str(error)
        return error


@functools.cache
def _is_composite(function: Any) -> bool:
    """Whether an ATen operation is composed of others. Another library's is one node however it is composed."""
    return function.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        function.name(), "CompositeImplicitAutograd"
    )


def _repeated(x: Tensor, *args: Any) -> Tensor:
    """The first sample's convolution for each sample: a recording has no values of results, and those take the time."""
    return torch.cat([aten.convolution.default(x[:1], *args)] * len(x))


def _instance_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, own: bool, *rest: Any) -> tuple:
    """An InstanceNorm's call, as that of the norm that it is.

    Of the picture's own statistics it is a GroupNorm with a group for each channel, and of those that the network has
    kept it is a BatchNorm. What torch composes it of puts the batch into the channels.
    """
    momentum, eps, cudnn = rest
    if own and mean is None:
        return aten.group_norm.default, (x, x.shape[1], weight, bias, eps, cudnn), {}
    return aten.batch_norm.default, (x, weight, bias, mean, variance, own, momentum, eps, cudnn), {}


def _shows_the_same(x: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> bool:
    """Whether as_strided_ would show the same values in the same places.

    F.adaptive_avg_pool2d to one position does that, so that its result counts as channels_last.
    """
    strides = zip(size, stride, x.stride(), strict=False)
    same = all(count == 1 or one == other for count, one, other in strides)
    return tuple(size) == tuple(x.shape) and same and storage_offset in (None, x.storage_offset())


@functools.cache
def _writes(function: Any) -> bool:
    return any(one.alias_info and one.alias_info.is_write for one in function._schema.arguments)


@functools.cache
def _aliased(function: Any) -> tuple[bool, ...]:
    """For each argument whether results share its memory."""
    return tuple(one.alias_info is not None for one in function._schema.arguments)


def _in_full(function: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments with the defaults that the dispatcher leaves out, without dropout."""
    schema = function._schema.arguments
    given = {one.name: one.default_value for one in schema}
    given |= dict(zip(given, args, strict=False)) | kwargs
    if "dropout_p" in given:
        given["dropout_p"] = 0.0
    named = {one.name for one in schema if one.kwarg_only}
    args = tuple(value for name, value in given.items() if name not in named)
    return args, {name: given[name] for name in named}


def _functional(function: Any) -> Any:
    """The operation that returns what this one writes to its first argument; None if there is none."""
    written = [one.alias_info is not None and one.alias_info.is_write for one in function._schema.arguments]
    packet = getattr(aten, function._schema.name.removeprefix("aten::").removesuffix("_"), None)
    overload = function._overloadname
    if function.namespace != "aten" or written[0] + sum(written) != 2 or packet is None:
        return None
    return getattr(packet, overload) if overload in packet.overloads() else None


def _from_inputs(node: fx.Node) -> bool:
    return node.meta.get("inputs", False)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _address(value: Tensor) -> int:
    """Where its memory begins; 0 if it has none."""
    return value.untyped_storage().data_ptr() if value.layout is torch.strided else 0
