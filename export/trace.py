"""From a Model to ONNX graphs of its network's three parts, by torch's own exporter.

A part's floats come and go in float32 whatever the network computes in. Weights keep their values: what is folded is
folded by operators in the graph, which a runtime evaluates once, when it loads the file.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from onnx import GraphProto
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim

from fastdiff.engine.prepared import FoldedLinearAttention, fold_block
from fastdiff.errors import InputError, unknown_name
from fastdiff.export.graph import OPSET
from fastdiff.kernels import dispatch
from fastdiff.kernels.attention_block import attention_block_reference
from fastdiff.model import Model
from fastdiff.networks.blocks import normed
from fastdiff.networks.protocol import SeparableNetwork

WEIGHTS = ("float32", "float16")
SMALL = 16  # elements; shapes and scalars have fewer
BATCH = 3  # of the example that is traced; torch.export takes sizes 0 and 1 for constants


@dataclass(frozen=True)
class Parts:
    """A traced network, from which the files are put together.

    time: (R,) times → (R, W). context: (B, K) → (B, V), or None where the network takes none.
    denoise: x (B, C, H, W), time (B, W)[, context (B, V)] → the prediction (B, C, H, W). All float32, but for times,
    which are int64 where the model's are indices. model: with the weights as they are stored, in float32. dtype: what
    the network computes in. weights: how they are stored. width: K, 0 without contexts. free_size: whether denoise
    takes other heights and widths than the model's.
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

    dtype: float32 or float16, of the network's arithmetic. weights: float32 or float16, as which they are stored, the
    dtype unless given; what is made of them is made of the rounded ones, so nothing is lost where they were halves.
    prepared: with linear
    attention folded where that saves operations (see kernels.attention_block), else as published. free_size: leave
    height and width open where the network allows; a graph of one size is a little faster.
    Raises InputError for a network that cannot be exported, with the operator or the line that stands in the way.
    """
    if dtype not in (torch.float32, torch.float16):
        raise InputError(f"dtype = {dtype!r}; accepted: torch.float32 or torch.float16")
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
            _fold_attention(network, (x.to(dtype), times, *(c.to(dtype) for c in contexts)))
        of = (network, dtype, integer)
        time, context, denoise = _TimePart(*of), _ContextPart(*of), _DenoisePart(*of)
        given = (x, time(times), *map(context, contexts))
        free_size = free_size and _takes_other_sizes(denoise, given)
        body, shapes = _export("denoise", denoise, given, {2: Dim.AUTO, 3: Dim.AUTO} if free_size else {})
        return Parts(
            model=model,
            time=_export("time", time, (times,))[0],
            context=_export("context", context, contexts)[0] if contexts else None,
            denoise=body,
            dtype=dtype,
            weights=weights,
            prepared=prepared,
            width=width,
            free_size=free_size and not any(isinstance(size, int) for size in shapes[0][2:]),
        )


def _rounded(model: Model, weights: str) -> Model:
    """A copy for inference on the CPU, its weights float32, with the values of halves where they are stored so."""
    if weights not in WEIGHTS:
        raise unknown_name("weights", weights, WEIGHTS)
    network = copy.deepcopy(model.network).to("cpu", torch.float32).eval().requires_grad_(False)
    if weights == "float16":
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
                if not torch.isfinite(tensor).all():
                    raise InputError(f"weights = 'float16' and {name} beyond 65504; accepted: float32")
    return replace(model, network=network)


def _context_width(model: Model) -> int:
    """K; a network of the user's own is taken for one without contexts where nothing tells."""
    width = model.context_width
    if width is None:
        named = [p for p in inspect.signature(model.network.forward).parameters.values() if p.kind in _BY_PLACE][2:]
        if named and named[0].default is inspect.Parameter.empty:
            raise InputError(
                f"the network takes {named[0].name!r}, of which the width is not known; "
                "give the Model class_names, or the network an attribute n_cfeat"
            )
        if named:
            warnings.warn(
                f"exported without the network's {named[0].name!r}; for contexts give the Model class_names, "
                "or the network an attribute n_cfeat",
                stacklevel=4,
            )
    return width or 0


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _takes_other_sizes(denoise: nn.Module, given: tuple[Tensor, ...]) -> bool:
    """The exporter alone would leave sizes open that the network refuses in words."""
    x, *others = given
    larger = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 4 * x.shape[3])
    try:
        return denoise(larger, *others).shape == larger.shape
    except Exception:  # whatever a network says to that
        return False


class _Part(nn.Module):
    """One of a network's three parts. A network that is not a SeparableNetwork is all in the last."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, integer: bool) -> None:
        super().__init__()
        self.network, self.dtype, self.integer = network, dtype, integer
        self.separable = isinstance(network, SeparableNetwork)

    def side_by_side(self, embeddings: Sequence[Tensor]) -> Tensor:
        return torch.cat([e.flatten(1) for e in embeddings], dim=1).float()


class _TimePart(_Part):
    def forward(self, t: Tensor) -> Tensor:
        return self.side_by_side(self.network.embed_time(t)) if self.separable else t[:, None].float()


class _ContextPart(_Part):
    def forward(self, context: Tensor) -> Tensor:
        if not self.separable:
            return context.clone()
        return self.side_by_side(self.network.embed_context(context.to(self.dtype)))


class _DenoisePart(_Part):
    """The embeddings' shapes are taken from the network once, when the part is made."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, integer: bool) -> None:
        super().__init__(network, dtype, integer)
        if self.separable:
            time = torch.zeros(1, dtype=torch.int64 if integer else torch.float32)
            self.time_shapes = [e.shape[1:] for e in network.embed_time(time)]
            self.context_shapes = [e.shape[1:] for e in network.embed_context(None)]

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        x, time = x.to(self.dtype), time.to(self.dtype if self.separable or not self.integer else torch.int64)
        contexts = () if context is None else (context.to(self.dtype),)
        if not self.separable:
            return self.network(x, time[:, 0], *contexts).float()
        embedded = self.network.embed_context(None) if context is None else _split(contexts[0], self.context_shapes)
        return self.network.denoise(x, _split(time, self.time_shapes), embedded).float()


def _split(embedding: Tensor, shapes: list[torch.Size]) -> tuple[Tensor, ...]:
    if not shapes:
        return ()
    parts = embedding.split([shape.numel() for shape in shapes], dim=1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))


class _FoldedAttention(nn.Module):
    """Residual(PreNorm(LinearAttention)) by kernels.attention_block, its weights folded when called."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        folded = fold_block(self.block, torch.float32)
        out = attention_block_reference(x, folded)
        _, last = self.block.fn.fn.to_out
        return out if folded.gain is not None else normed(last, out) + x


def _fold_attention(network: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Replace the residual linear-attention blocks where the fold saves operations at the example's size."""
    positions: dict[nn.Module, int] = {}
    hooks = [
        block.register_forward_pre_hook(lambda block, xs: positions.update({block: xs[0].shape[2:].numel()}))
        for block in network.modules()
        if FoldedLinearAttention.replaces(block)
    ]
    if not hooks:
        return
    network(*given)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in positions and child.fn.norm.num_channels < positions[child]:
                setattr(parent, name, _FoldedAttention(child))


def _export(
    name: str, part: nn.Module, given: tuple[Tensor, ...], sizes: dict[int, Any] | None = None
) -> tuple[GraphProto, list[torch.Size]]:
    """The part's graph with a dynamic first dimension, without notes on where it came from; its inputs' shapes."""
    free: list[dict[int, Any]] = [{0: Dim("batch")} for _ in given]
    free[0].update(sizes or {})
    with _quiet():
        try:
            program = torch.onnx.export(
                part.eval(),
                given,
                dynamic_shapes=tuple(free),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as problem:
            raise InputError(f"the network's {name} part cannot be exported: {_reason(problem)}") from problem
        assert program is not None and program.exported_program is not None
        model = program.model_proto
        # Weights are left alone: only what is as small as a shape is folded.
        optimizer.fold_constants(model, input_size_limit=SMALL, output_size_limit=SMALL)
        optimizer.remove_unused_nodes(model)
    graph = model.graph
    graph.name = name
    del graph.value_info[:]
    for node in graph.node:
        if node.domain:
            raise InputError(f"the network's {name} part has the operator {node.domain}.{node.op_type}; not in ONNX")
        node.doc_string = ""
        del node.metadata_props[:]
    traced = program.exported_program
    placeholders = {node.name: node.meta["val"].shape for node in traced.graph.nodes if node.op == "placeholder"}
    return graph, [placeholders[user] for user in traced.graph_signature.user_inputs]


def _reason(problem: BaseException) -> str:
    """The exporter's own errors are pages; their innermost cause says what it is about."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    where = re.search(r'File "(.+)", line (\d+), in .+\n *(.+)', str(problem))
    line = f" ({Path(where[1]).name}, line {where[2]}: {where[3].strip()})" if where else ""
    return f"{type(problem).__name__}: {lines[0] if lines else problem}{line}"


def _own_levels() -> list[str]:
    """Loggers of torch that have levels of their own."""
    known = logging.Logger.manager.loggerDict
    return [name for name, one in known.items() if name.startswith("torch.") and getattr(one, "level", 0)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on torchvision's absence and on its own inner workings."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", *_own_levels())]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        nowhere = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
