"""From a Model to the captured graphs of its network, from which files are assembled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fastdiff.capture.capture import BATCHES
from fastdiff.capture.passes.folded_attention import fold_linear_attention
from fastdiff.capture.passes.linear_attention import fuse_linear_attention
from fastdiff.capture.refusal import NotRecordableError
from fastdiff.capture.split import Split
from fastdiff.engine.context import ContextKind
from fastdiff.engine.evaluation import Given, Network
from fastdiff.engine.placement import out_of_memory
from fastdiff.errors import InputError, check_int, unknown_name, warn_caller, with_type
from fastdiff.export.metadata import DTYPES
from fastdiff.model import Model, context_argument


@dataclass(frozen=True)
class Parts:
    """A captured network.

    Attributes:
        model: with the weights as stored, in float32.
        graphs: of its evaluation, at any batch; x and the prediction are of `dtype`.
        dtype: of the network's arithmetic.
        weights: "float32" or "float16", how weights are stored.
        prepared: whether linear attention was folded.
        context: what kind the network takes, None without.
        time: torch.int64 or torch.float32, of the times that the network is given.
        steady: whether norms are written so that they stay exact in onnxruntime-web, see layers.normed.
    """

    model: Model
    graphs: Split
    dtype: torch.dtype
    weights: str
    prepared: bool
    context: ContextKind | None
    time: torch.dtype
    steady: bool

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives 2 C channels, the prediction and a variance."""
        return self.model.learned_variance

    @property
    def null(self) -> int | None:
        """What a context without a class consists of; None where there is no such context, and so no guidance."""
        if self.context is None:
            return None
        return 0 if self.context.classes is None else self.model.null_class


def capture(
    model: Model,
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    prepared: bool = True,
    steady: bool = False,
    fractional: bool = False,
    context_shape: Sequence[int] | None = None,
) -> Parts:
    """Capture the model's network.

    Args:
        model: is left unchanged.
        dtype: torch.float32 or torch.float16, of the network's arithmetic.
        weights: "float32" or "float16", how weights are stored; None is as dtype. They are rounded before anything is
            folded.
        prepared: fold linear attention where that saves operations (see kernels.attention_block).
        steady: see Parts.
        fractional: whether a network of integer timesteps is given float32 ones, which lie between them.
        context_shape: of a sample's context, (L, D) for tokens, where neither the model nor its network declares one.

    Raises:
        InputError: for a network that cannot be captured, with the line of code that prevents it; or that fails at
            the batches at which it is recorded, with its error.
    """
    dtypes = [getattr(torch, name) for name in DTYPES]
    if dtype not in dtypes:
        raise InputError(f"dtype = {dtype!r}; accepted: {', '.join(map(str, dtypes))}")
    weights = str(dtype).removeprefix("torch.") if weights is None else weights
    if dtype == torch.float16 and weights == "float32":
        raise InputError("weights = 'float32' with dtype = torch.float16; accepted: float16")
    model = _rounded(model, weights)
    kind, times = _context_kind(model, context_shape), _times(model, fractional)
    cpu = torch.device("cpu")
    try:
        graphs = Network(model.network, cpu, dtype).captured(
            Given(
                *(1, model.image_shape, kind, times, cpu, dtype),
                learned_variance=model.learned_variance,
                self_condition=model.self_condition,
            )
        )
    except NotRecordableError as problem:
        raise InputError(f"the network cannot be exported: {problem}") from problem
    except Exception as problem:
        if isinstance(problem, InputError) or out_of_memory(problem):
            raise
        raise InputError(
            f"the network cannot be exported: recording it at batches {' and '.join(map(str, BATCHES))} raised "
            f"{with_type(problem)}"
        ) from problem
    if prepared:
        for graph in (graphs.context, graphs.step):
            fuse_linear_attention(graph)
            fold_linear_attention(graph, lambda channels, _, positions: channels < positions)
    return Parts(model, graphs, dtype, weights, prepared, kind, times.dtype, steady)


def _rounded(model: Model, weights: str) -> Model:
    """A copy for inference in float32 on the CPU, its weights rounded to halves if stored as float16."""
    if weights not in DTYPES:
        raise unknown_name("weights", weights, DTYPES)
    network = copy.deepcopy(model.network).to("cpu").eval().requires_grad_(False)
    held = [*network.parameters(), *network.buffers()]
    if any(one.is_floating_point() and one.dtype != torch.float32 for one in held):
        network.to(torch.float32)  # not called in vain, since diffusers' networks warn of it
    if weights == "float16":
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
                if not torch.isfinite(tensor).all():
                    raise InputError(f"weights = 'float16' and {name} beyond 65504; accepted: float32")
    return replace(model, network=network)


def _times(model: Model, fractional: bool) -> torch.Tensor:
    """Times that the network may be given, all of the schedule's."""
    schedule = model.schedule
    times = torch.arange(schedule.first, schedule.first + schedule.num_timesteps, device="cpu")
    if model.time == "index":
        return times.float() if fractional else times
    return times.float() / schedule.num_timesteps


def _context_kind(model: Model, context_shape: Sequence[int] | None) -> ContextKind | None:
    """The network's contexts; None if neither the model nor the network declares one, with a warning if it may."""
    width = model.context_width
    if context_shape is not None:
        shape = tuple(check_int("a size in context_shape", size, 1, 2**31) for size in context_shape)
        declared = "the number of a class" if model.num_classes is not None else width
        if declared is not None or not shape:
            raise InputError(
                f"context_shape = {shape} for a model whose context is {'unknown' if declared is None else declared}; "
                "accepted: sizes such as (L, D), where the model does not say its context's"
            )
        return ContextKind(shape)
    if model.num_classes is not None:
        return ContextKind((), model.num_classes)
    if width is None:
        declare = (
            "give context_shape (--context-shape), or the Model class_names, or num_classes for class numbers, or the "
            "network an attribute n_cfeat"
        )
        argument = context_argument(model.network)
        if model.needs_context is not None:
            raise InputError(f"the network takes {model.needs_context!r}, of which the shape is not known; {declare}")
        if argument is not None:
            warn_caller(f"exported without the network's {argument.name!r}; for contexts {declare}")
    return ContextKind((width,)) if width else None
