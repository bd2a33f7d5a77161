"""Networks and sampler's steps on meta tensors, where kernels are compiled and counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdiff.bench.networks import Network
from fastdiff.engine import evaluation
from fastdiff.engine.prediction import Prediction
from fastdiff.engine.step import State, advance
from fastdiff.kernels.begin_step import begin_step
from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.last_conv import LastConv, denoise_step_of
from fastdiff.kernels.philox import normals
from fastdiff.kernels.step_rows import COLUMNS
from fastdiff.samplers.samplers import make_table
from fastdiff.samplers.schedule import make_schedule

META = torch.device("meta")


class _ChannelsLast(torch.autograd.Function):
    """A meta tensor and its gradient in channels_last; nothing is copied, for there is nothing in them."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[override]
        return torch.empty_like(x, memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx, dx):  # type: ignore[override]
        return torch.empty_like(dx, memory_format=torch.channels_last)


_ATTENTIONS = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
_CONVOLUTIONS = (F.conv2d, F.conv_transpose2d, torch.ops.aten.convolution.default)


class _AsOnAGpu(TorchFunctionMode):
    """What the meta device does otherwise: cuDNN leaves channels_last, and attention is a single kernel."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        if func in _ATTENTIONS and not torch.is_grad_enabled():
            if args[0].element_size() == 2:
                return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, False)[0]
        if func not in _CONVOLUTIONS or args[0].ndim != 4:
            return func(*args, **(kwargs or {}))
        return _ChannelsLast.apply(func(_ChannelsLast.apply(args[0]), *args[1:], **(kwargs or {})))


def on_meta(network: Network, dtype: torch.dtype) -> nn.Module:
    """The module on meta tensors, as it is."""
    with torch.device(META):
        module = network.make()
    # Not the module's own `to`: diffusers' networks warn in it.
    return nn.Module.to(module, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def evaluate(module: nn.Module, shape: tuple[int, ...], batch: int, dtype: torch.dtype, train: bool = False) -> None:
    """One evaluation of a module made by on_meta at one time, or one training step."""
    x = torch.empty(batch, *shape, dtype=dtype, device=META, memory_format=torch.channels_last)
    t = torch.empty(batch if train else 1, dtype=torch.float32, device=META)
    with torch.set_grad_enabled(train), _AsOnAGpu():
        out = module.train(train)(x, t)
        if train:
            out.sum().backward()


def captured_step(network: Network, dtype: torch.dtype, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """On meta tensors, the evaluation in an engine's step, and the whole step: without guidance, by any sampler."""
    table = make_table("ddim", make_schedule("linear", 200), 25)
    with torch.no_grad(), torch.device(META):
        times = torch.tensor(table.time, dtype=torch.int64, device="cpu")
        given = evaluation.Given(batch, network.image_shape, None, times, META, dtype)
        parts = evaluation.captured(evaluation.Network(on_meta(network, dtype), META, dtype), given)
        prediction = Prediction(parts, META, dtype, whole=True, guided=False)
        prediction.load_table(table, len(table))
        prediction.load_context(None)
        x = torch.empty(batch, *network.image_shape).contiguous(memory_format=torch.channels_last)
        key, index, current = (torch.empty(shape, dtype=torch.int64) for shape in ((2,), (), ()))
        state = State(x, torch.empty(table.rows.shape), index, current, key=key, history=torch.empty_like(x)[None])
        rounded = x.to(dtype)

    def evaluate() -> None:
        with torch.no_grad(), _AsOnAGpu():
            out = parts.step(rounded, *prediction.time, *prediction.context)
            if isinstance(out, LastConv):
                out.prediction()

    def step() -> None:
        with torch.no_grad(), _AsOnAGpu():
            advance(state, prediction)

    return evaluate, step


def sampler_steps() -> None:
    """Each kind of step on meta tensors: both systems' pictures, predictions as the network leaves them.

    Their last convolutions, too: a 1x1 and a 3x3 one.
    """

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    rows, index, current = empty(25, COLUMNS), empty(dtype=torch.int64), empty(dtype=torch.int64)
    key, guidance = empty(2, dtype=torch.int64), empty()
    for shape, channels, window in (
        ((1, 28, 28), 28, Window((1, 1))),
        ((3, 16, 16), 64, Window((3, 3), padding=(1, 1))),
    ):
        n = 64
        normals(key, 0, (n, *shape))
        x = empty(n, *shape)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            out = empty(n, *shape, dtype=dtype).to(memory_format=torch.channels_last)
            wide = empty(n, 2 * shape[0], *shape[1:], dtype=dtype).to(memory_format=torch.channels_last)
            both = empty(2 * n, *shape, dtype=dtype).to(memory_format=torch.channels_last)
            for options in (
                dict(out=out),  # ddim
                dict(out=out, key=key),  # ddpm
                dict(out=out, history=empty(1, n, *shape)),  # dpmpp_2m
                dict(out=out, history=empty(3, n, *shape)),  # of third order
                dict(out=both, guidance_scale=guidance, key=key, clip=1.0),
                dict(out=both, guidance_scale=guidance, clip=empty(n), noise=empty(n, *shape)),
                dict(out=wide[:, : shape[0]], variance=wide[:, shape[0] :], key=key),  # ddpm with a learned variance
            ):
                denoise_step(x, rows=rows, index=index, **options)
            if dtype.itemsize > 2:
                continue
            weight = pack(empty(shape[0], channels, *window.kernel, dtype=dtype), window)
            for halves, history, clip, scale in (
                (1, empty(1, n, *shape), None, None),
                (2, empty(3, n, *shape), 1.0, guidance),
            ):
                given = empty(halves * n, channels, *shape[1:], dtype=dtype).to(memory_format=torch.channels_last)
                last = LastConv(given, weight, window, shape[0], empty(shape[0], dtype=dtype))
                named = dict(key=key, next_index=index, guidance_scale=scale)
                denoise_step_of(x, last, rows, current, history, clip=clip, **named)
                begin_step(x, index, current, dtype, history, halves == 2)
