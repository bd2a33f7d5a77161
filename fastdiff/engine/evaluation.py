"""One evaluation of a network in parts: what depends on the time alone, on the context alone, and the rest.

The eager parts call the network as it is. The captured ones are programs made from the network's graph: see
fastdiff.capture.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdiff.capture.batch import at_batch
from fastdiff.capture.capture import capture
from fastdiff.capture.graph import IMAGES, SELF_CONDITION, Graph
from fastdiff.capture.outputs import first_output
from fastdiff.capture.passes.batch_norm import fold_batch_norm
from fastdiff.capture.passes.convolutions import fuse_convolutions
from fastdiff.capture.passes.folded_attention import fold_linear_attention
from fastdiff.capture.passes.linear_attention import fuse_linear_attention
from fastdiff.capture.passes.norms import fuse_norms
from fastdiff.capture.passes.position_norms import fuse_position_norms
from fastdiff.capture.passes.rows import hoist_rows
from fastdiff.capture.passes.softmax_attention import fuse_softmax_attention
from fastdiff.capture.program import program
from fastdiff.capture.refusal import NotRecordableError
from fastdiff.capture.split import Split
from fastdiff.engine.context import ContextKind
from fastdiff.engine.cpu.function import PlannedFunction
from fastdiff.engine.cpu.lowering import Packed
from fastdiff.engine.cpu.operations import planned
from fastdiff.engine.cpu.plan import Plan
from fastdiff.engine.cpu.step import PlannedStep
from fastdiff.engine.cuda.casts import norms_without_casts
from fastdiff.engine.cuda.convolutions import leave_last
from fastdiff.engine.cuda.images import as_images
from fastdiff.engine.cuda.lowering import lower
from fastdiff.engine.memory import held_bytes
from fastdiff.engine.placement import out_of_memory
from fastdiff.errors import first_line
from fastdiff.kernels import dispatch
from fastdiff.kernels.attention_block import fits as fits_triton
from fastdiff.kernels.last_conv import LastConv

Made = TypeVar("Made")

PREPARED = 4  # batches, or kinds of recording, for which a network stays prepared, besides those that engines use
ROWS = 32  # times whose embeddings are computed together; with another number a Linear may give other bits
# The largest distance of a captured evaluation from the network's own, relative to the norm of that.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


OURS = "this is a fault of fastdiff's rewriting or kernels, please report it: {}"


class NotCapturedError(Exception):
    """Why a network runs as it is."""


class Parts(NamedTuple):
    """The parts of an evaluation.

    Attributes:
        time: (ROWS,) times → tensors whose first dimension is ROWS.
        context: the contexts of a batch, (B, ...), or None → any tensors.
        step: x (B, C, H, W), with self-conditioning the x0 before, as x, a row (1, ...) of each tensor from time, and
            those from context → the prediction; with a learned variance it and the variance, (B, 2C, H, W). On a CUDA
            device the convolution that makes them may be left to the sampler's update.
    """

    time: Callable[[Tensor], tuple[Tensor, ...]]
    context: Callable[[Tensor | None], tuple[Tensor, ...]]
    step: Callable[..., Tensor | LastConv]


@dataclass(frozen=True)
class Given:
    """What a network is evaluated on.

    Attributes:
        batch: B.
        image_shape: (C, H, W).
        context: what kind, or None without any.
        times: (R,) int64 or float32, those that the network may be given.
        device: of everything.
        dtype: of x.
        halves: 2 with guidance: the batch is each sample twice, in two halves.
        learned_variance: whether the network returns the prediction and a variance, (B, 2C, H, W), and both are wanted.
        self_condition: whether the network takes x_self_cond, of x's shape.
    """

    batch: int
    image_shape: tuple[int, int, int]
    context: ContextKind | None
    times: Tensor
    device: torch.device
    dtype: torch.dtype
    halves: int = 1
    learned_variance: bool = False
    self_condition: bool = False

    def example(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random arguments by name; all times are one."""
        dice = torch.Generator().manual_seed(seed)
        # Said, because the caller may have other defaults.
        plain: dict[str, Any] = dict(generator=dice, device="cpu", dtype=torch.float32)

        def images() -> Tensor:
            made = torch.randn(batch, *self.image_shape, **plain).to(self.device, self.dtype)
            return made.contiguous(memory_format=torch.channels_last)

        x, t = images(), self.times[int(len(self.times) * torch.rand((), **plain))]
        made = {"x": x, "t": t.to(self.device).expand(batch).clone()}
        if self.self_condition:
            made[SELF_CONDITION] = images()
        if self.context is not None:
            made["context"] = self.context.example(batch, dice).to(self.device)
        return made

    def recording(self) -> Hashable:
        """What a recording depends on besides the network, its device and its dtype."""
        defaults = torch.get_default_dtype(), torch.get_default_device()  # of tensors that the network makes
        kinds = self.image_shape, self.context, self.times.dtype, self.learned_variance, self.self_condition
        return *kinds, defaults, dispatch.backend()


class Network:
    """A copy of a network for inference, and what was prepared of it; the user's module is left unchanged.

    Engines may share one, each in a thread of its own: what is prepared has no state.

    Args:
        network: the user's.
        device: of the copy.
        dtype: of the copy's floating-point parameters and buffers.
        key: what other networks of the same content have as well; None for none.

    Attributes:
        refused: why evaluations of it cannot be captured, by what they are of.
        bytes: of its tensors and those of all that was prepared; 0 before anything was.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, dtype: torch.dtype, key: Hashable | None = None
    ) -> None:
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.module.to(device=device)
        for one in _tensors(self.module):
            if one.ndim == 4:
                one.data = one.data.contiguous(memory_format=torch.channels_last)
        if any(one.is_floating_point() and one.dtype != dtype for one in _tensors(self.module)):
            self.module.to(dtype)  # not called in vain, since diffusers' networks warn of it
        self.device, self.dtype, self.key = device, dtype, key
        self.refused: dict[Hashable, str] = {}
        self.bytes = 0
        pairs = zip(_tensors(self.module), _tensors(network), strict=True)
        # Copies, since the user's may have changed when they are asked for.
        self.exact = {id(ours): theirs.detach().clone() for ours, theirs in pairs if ours.dtype != theirs.dtype}
        self._lock = threading.RLock()
        self._untouched: nn.Module | None = None  # the module as it was before it was recorded
        self._captured: OrderedDict[Hashable, Split] = OrderedDict()
        self._parts: OrderedDict[Hashable, Parts] = OrderedDict()

    def captured(self, given: Given) -> Split:
        """The graphs, recorded once; raises as fastdiff.capture.capture.capture."""

        def record() -> Split:
            return capture(self.on(given), lambda batch: given.example(batch, batch), self.exact)

        def again() -> Split:
            try:
                return record()
            except NotRecordableError:  # perhaps for what a network's first evaluation keeps for the next ones
                self.on(given)(**given.example(given.batch))
                return record()

        return self._once(self._captured, given.recording(), again)

    def prepared(self, given: Given, prepare: Callable[[Network, Given], Parts]) -> Parts:
        """The parts of an evaluation, prepared, or refused, once for each batch; raises what `prepare` raises."""
        kind = given.batch, given.halves, torch.get_num_threads(), given.recording()
        if kind in self.refused:
            raise NotCapturedError(self.refused[kind])
        try:
            return self._once(self._parts, kind, lambda: prepare(self, given))
        except NotCapturedError as problem:
            self.refused[kind] = str(problem)
            raise

    def own(self) -> Network:
        """To run the code of, which may leave a state: a network whose code has not run, and that nothing else uses.

        It is the network itself, under no key any more, unless parts were prepared that use its tensors.
        """
        with self._lock:
            untouched = self.module if self._untouched is None else self._untouched
            if self._parts:
                return Network(untouched, self.device, self.dtype)
            self.module, self.key = untouched, None
            return self

    def _once(self, made: OrderedDict[Hashable, Made], key: Hashable, make: Callable[[], Made]) -> Made:
        with self._lock:
            if key not in made:
                if self._untouched is None:
                    weights = {id(one): one for one in self.module.parameters()}
                    self._untouched = copy.deepcopy(self.module, weights)  # but for the weights, which are shared
                made[key] = make()
                if len(made) > PREPARED:
                    made.popitem(last=False)
                self.bytes = self._count()
            made.move_to_end(key)
            return made[key]

    def _count(self) -> int:
        constants = [
            graph.constants for parts in self._captured.values() for graph in (parts.time, parts.context, parts.step)
        ]
        return held_bytes(self.module, self._untouched, self.exact, constants, list(self._parts.values()))

    def on(self, given: Given) -> Callable[..., Tensor]:
        """The network's arguments by name → the prediction, or with a learned variance both."""
        return partial(self, learned_variance=given.learned_variance)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        x_self_cond: Tensor | None = None,
        learned_variance: bool = False,
    ) -> Tensor:
        """The prediction, x's shape, or both, see first_output; raises InputError where the network returns neither."""
        contexts = () if context is None else (context,)
        named = {} if x_self_cond is None else {SELF_CONDITION: x_self_cond}
        with nullcontext() if self.dtype == torch.float32 else _InWeightsDtype():
            out = self.module(x, t, *contexts, **named)
        return first_output(out, x.shape[1], learned_variance)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class _InWeightsDtype(TorchFunctionMode):
    """A product of times or contexts, which stay float32, with weights of 16 bits is computed in the weights' dtype.

    A norm of what a network casts to float32 is computed in float32, although its weights have 16 bits.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and len(args) > 1 and args[0].dtype != args[1].dtype:
            args = (args[0].to(args[1].dtype), *args[1:])
        elif function in (F.group_norm, F.layer_norm) and args:
            dtype = args[0].dtype

            def widened(one: Any) -> Any:
                narrow = isinstance(one, Tensor) and one.dtype.itemsize < dtype.itemsize
                return one.to(dtype) if narrow else one

            args = tuple(map(widened, args))
            kwargs = {name: widened(one) for name, one in kwargs.items()}
        return function(*args, **kwargs)


class _WithoutDropout(TorchFunctionMode):
    """Dropout that a network asks for by a function, whatever its mode, is off, as in what is recorded."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if function is F.scaled_dot_product_attention:
            args, kwargs["dropout_p"] = args[:4], 0.0
        return function(*args, **kwargs)


_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}


def eager(network: Network, given: Given) -> Parts:
    """The network as it is."""
    evaluation = network.on(given)

    def step(x: Tensor, *rest: Tensor) -> Tensor:
        before = {SELF_CONDITION: rest[0]} if given.self_condition else {}
        t, *context = rest[len(before) :]
        return evaluation(x, t.expand(len(x)), *context, **before)

    return Parts(lambda t: (t,), lambda context: () if context is None else (context,), step)


def captured(network: Network, given: Given) -> Parts:
    """Programs for that batch, by the C kernels on a CPU and the Triton kernels on a CUDA device.

    Raises:
        NotCapturedError: for a network that cannot be captured.
    """
    # While it is recorded nothing is launched: each kernel would be compiled for batches that nobody asked for.
    idle = nullcontext() if given.device.type == "cpu" else dispatch.withholding(lambda *launch: None)
    try:
        with idle:
            graphs = network.captured(given)
    except NotRecordableError as problem:
        raise NotCapturedError(str(problem)) from problem
    except Exception as problem:
        if out_of_memory(problem):
            raise
        network.on(given)(**given.example(given.batch))  # which raises what it raises without a recorder
        raise NotCapturedError(first_line(problem)) from problem
    try:
        return _programs(graphs, given)
    except Exception as problem:
        if out_of_memory(problem):
            raise
        raise NotCapturedError(OURS.format(first_line(problem))) from problem


def _programs(graphs: Split, given: Given, rewritten: bool = True) -> Parts:
    """By the kernels, or, unless `rewritten`, the recorded operations one by one in torch."""

    def fused(graph: Graph, batch: int) -> Graph:
        graph = at_batch(graph, batch)
        if rewritten:
            _fuse(graph, given)
        return graph

    def contexts_first(context: Callable[..., tuple[Tensor, ...]]) -> Callable[[Tensor | None], tuple[Tensor, ...]]:
        return lambda contexts: context() if contexts is None else context(contexts)

    time, context = at_batch(graphs.time, ROWS), fused(graphs.context, given.batch)
    if rewritten and _in_c(given):
        before = [PlannedFunction(planned(graph, batch)) for graph, batch in ((time, ROWS), (context, given.batch))]

        def of_batch(batch: int, packed: Packed) -> Plan:
            return planned(fused(graphs.step, batch), batch, given.halves, packed)

        step = PlannedStep(of_batch, given.batch, given.halves)
        return Parts(before[0], contexts_first(before[1]), step)
    whole = fused(graphs.step, given.batch)
    if rewritten and dispatch.triton_for(given.device, given.dtype):
        leave_last(whole)
        hoist_rows(time, whole)
    run = program(whole)
    return Parts(program(time), contexts_first(program(context)), lambda *inputs: run(*inputs)[0])


def _fuse(graph: Graph, given: Given) -> None:
    fold_batch_norm(graph)
    triton = dispatch.triton_for(given.device, given.dtype)
    fuse_linear_attention(graph)
    fuse_position_norms(graph, any_norm=triton or _in_c(given))
    if triton:
        fold_linear_attention(graph, lambda channels, width, _: fits_triton(given.dtype, channels, width))
    elif _in_c(given):
        fold_linear_attention(graph, lambda *sizes: True)
    fuse_softmax_attention(graph)
    if triton:
        norms_without_casts(graph)
        as_images(graph)
    fuse_norms(graph)
    fuse_convolutions(graph)
    if triton:
        lower(graph)


def _in_c(given: Given) -> bool:
    cpu = given.device.type == "cpu" and given.dtype == torch.float32
    return cpu and not dispatch.triton_for(given.device, given.dtype)


def evaluated(parts: Parts, inputs: Mapping[str, Tensor], times: Tensor | None = None, row: int = 0) -> Tensor:
    """The prediction for arguments by name, all times the same, as in a step: the time's row of a table.

    Args:
        parts: of the evaluation.
        inputs: see Given.example.
        times: the table's, (ROWS,), of which t is at `row`; unless given they are all t.
        row: in the table.
    """
    table = inputs["t"][:1].expand(ROWS) if times is None else times
    rows = [one[row : row + 1] for one in parts.time(table)]
    images = [inputs[name] for name in IMAGES if name in inputs]
    out = parts.step(*images, *rows, *parts.context(inputs.get("context")))
    return out.prediction() if isinstance(out, LastConv) else out


def check(network: Network, parts: Parts, given: Given) -> None:
    """Compare captured parts with the network on fresh inputs at the batch that will run.

    Raises:
        NotCapturedError: if they differ by more than rounding.
    """
    inputs, row = given.example(given.batch, seed=1), 3
    places = torch.linspace(0, len(given.times) - 1, ROWS, device="cpu").long()
    times = given.times[places].to(given.device)
    times[row] = inputs["t"][0]
    # Else the kernels of a network that calls them are compiled for this alone.
    with dispatch.using("reference"), _WithoutDropout():
        expected = network.on(given)(**inputs).float()

    def problem_of(parts: Parts) -> str | None:
        try:
            out = evaluated(parts, inputs, times, row).float()
        except Exception as problem:
            if out_of_memory(problem):
                raise
            return first_line(problem)
        if out.shape == expected.shape and (out - expected).norm() <= BOUNDS[given.dtype] * expected.norm():
            return None
        return "what was recorded computes something else on other inputs"

    problem = problem_of(parts)
    if problem is None:
        return
    if problem_of(_programs(network.captured(given), given, rewritten=False)) is None:
        raise NotCapturedError(OURS.format(problem))
    raise NotCapturedError(
        f"{problem}; some of the network is computed outside of torch, or depends on the values that it is given"
    )
