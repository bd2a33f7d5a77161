"""From a Model to the ONNX graphs of its network's three parts.

Weights keep their values: folding is done by operators in the graph, which a runtime evaluates once, when it loads the
file.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace

import torch
from onnx import GraphProto
from torch import Tensor, nn
from torch.export import Dim

from fastdiff.errors import InputError, unknown_name, warn_caller
from fastdiff.export.exporter import export_part
from fastdiff.export.metadata import DTYPES
from fastdiff.export.parts import ContextPart, DenoisePart, TimePart, fold_attention
from fastdiff.kernels import dispatch
from fastdiff.model import Model

BATCH = 3  # of the traced example; torch.export treats sizes 0 and 1 as constants


@dataclass(frozen=True)
class Parts:
    """A traced network, from which files are assembled.

    The graphs take and return float32, except times, which are int64 where the model's are indices.

    Attributes:
        model: with the weights as stored, in float32.
        time: (R,) times → (R, W).
        context: (B, K) → (B, V), or None if the network takes no context.
        denoise: x (B, C, H, W), time (B, W)[, context (B, V)] → the prediction (B, C, H, W).
        dtype: of the network's arithmetic.
        weights: "float32" or "float16", how weights are stored.
        prepared: whether linear attention was folded.
        width: K, 0 without contexts.
        free_size: whether denoise takes other heights and widths than the model's.
    """

    model: Model
    time: GraphProto
    context: GraphProto | None
    denoise: GraphProto
    dtype: torch.dtype
    weights: str
    prepared: bool
    width: int
    free_size: bool


def trace(
    model: Model,
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    prepared: bool = True,
    free_size: bool = False,
) -> Parts:
    """Trace the model's network; takes seconds.

    Args:
        model: is left unchanged.
        dtype: torch.float32 or torch.float16, of the network's arithmetic.
        weights: "float32" or "float16", how weights are stored; None is as dtype. They are rounded before folding, so
            weights that are halves already lose nothing.
        prepared: fold linear attention where that saves operations (see kernels.attention_block).
        free_size: leave height and width free if the network allows it; a graph of one size is a little faster.

    Returns:
        The traced network.

    Raises:
        InputError: for a network that cannot be exported, with the operator or the line of code that prevents it.
    """
    dtypes = [getattr(torch, name) for name in DTYPES]
    if dtype not in dtypes:
        raise InputError(f"dtype = {dtype!r}; accepted: {', '.join(map(str, dtypes))}")
    weights = str(dtype).removeprefix("torch.") if weights is None else weights
    if dtype == torch.float16 and weights == "float32":
        raise InputError("weights = 'float32' with dtype = torch.float16; accepted: float16")
    model = _rounded(model, weights)
    network = copy.deepcopy(model.network).to(dtype)
    integer, width = model.time == "index", _context_width(model)
    x = torch.zeros(BATCH, *model.image_shape)
    times = torch.full((BATCH,), model.schedule.first, dtype=torch.int64 if integer else torch.float32)
    contexts = (torch.zeros(BATCH, width),) if width else ()
    with torch.no_grad(), dispatch.using("reference"):
        if prepared:
            fold_attention(network, (x.to(dtype), times, *(c.to(dtype) for c in contexts)))
        of = (network, dtype, integer)
        time, context, denoise = TimePart(*of), ContextPart(*of), DenoisePart(*of)
        given = (x, time(times), *map(context, contexts))
        free_size = free_size and _takes_other_sizes(denoise, given)
        body, shapes = export_part("denoise", denoise, given, {2: Dim.AUTO, 3: Dim.AUTO} if free_size else {})
        return Parts(
            model=model,
            time=export_part("time", time, (times,))[0],
            context=export_part("context", context, contexts)[0] if contexts else None,
            denoise=body,
            dtype=dtype,
            weights=weights,
            prepared=prepared,
            width=width,
            free_size=free_size and not any(isinstance(size, int) for size in shapes[0][2:]),
        )


def _rounded(model: Model, weights: str) -> Model:
    """A copy for inference in float32 on the CPU, its weights rounded to halves if stored as float16."""
    if weights not in DTYPES:
        raise unknown_name("weights", weights, DTYPES)
    network = copy.deepcopy(model.network).to("cpu", torch.float32).eval().requires_grad_(False)
    if weights == "float16":
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
                if not torch.isfinite(tensor).all():
                    raise InputError(f"weights = 'float16' and {name} beyond 65504; accepted: float32")
    return replace(model, network=network)


def _context_width(model: Model) -> int:
    """K; 0 if neither the model nor the network declares a context, with a warning if it may take one."""
    width = model.context_width
    if width is None:
        named = [p for p in inspect.signature(model.network.forward).parameters.values() if p.kind in _BY_PLACE][2:]
        if named and named[0].default is inspect.Parameter.empty:
            raise InputError(
                f"the network takes {named[0].name!r}, of which the width is not known; "
                "give the Model class_names, or the network an attribute n_cfeat"
            )
        if named:
            warn_caller(
                f"exported without the network's {named[0].name!r}; for contexts give the Model class_names, "
                "or the network an attribute n_cfeat"
            )
    return width or 0


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _takes_other_sizes(denoise: nn.Module, given: tuple[Tensor, ...]) -> bool:
    """Whether the network runs at another size, which the exporter does not check."""
    x, *others = given
    larger = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 4 * x.shape[3])
    try:
        return denoise(larger, *others).shape == larger.shape
    except Exception:  # a network may refuse a size by any error
        return False
