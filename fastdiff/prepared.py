"""The eager form of a network: everything that does not depend on x is computed before the loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.kernels.attention_block import attention_block, fits, fold
from fastdiff.kernels.dispatch import triton_for
from fastdiff.networks.blocks import HEAD_DIM, HEADS, ChannelNorm, LinearAttention, PreNorm, Residual, normed
from fastdiff.networks.protocol import SeparableNetwork
from fastdiff.table import StepTable


def prepare_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of the network for inference; the user's own module stays as it was.

    channels_last is 1.08x (system A) and 1.19x (system B) of the default format's speed on two AVX2 cores. Where
    the Triton kernels run in 16 bits, each residual linear-attention block becomes one operator with folded weights.
    """
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    prepared = prepared.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    if triton_for(device, dtype):
        for module in list(prepared.modules()):
            for name, child in module.named_children():
                if FoldedLinearAttention.replaces(child) and fits(dtype, child.fn.norm.num_channels, HEAD_DIM):
                    setattr(module, name, FoldedLinearAttention(child))
    return prepared


class FoldedLinearAttention(nn.Module):
    """Residual(PreNorm(LinearAttention)) by kernels.attention_block, for inference."""

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether it is that block itself; a subclass may have a forward of its own."""
        return type(module) is Residual and type(module.fn) is PreNorm and type(module.fn.fn) is LinearAttention

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        norm, attention = block.fn.norm, block.fn.fn
        project, last = attention.to_out
        gain = last.g if isinstance(last, ChannelNorm) else None
        self.last = None if gain is not None else last
        self.folded = fold(
            norm.weight, norm.bias, attention.to_qkv.weight, project.weight, project.bias, gain,
            HEADS, attention.divide_by_n, norm.eps,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = attention_block(x, self.folded)
        return out if self.last is None else normed(self.last, out) + x


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Within it float32 means float32: cuDNN's convolutions would use TF32 (10 bits of mantissa) by default."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


class EagerNetwork:
    """(x, row) → the network's output for one batch, in the network's dtype.

    network, device, dtype: as prepare_network made it. context: (n, K) or (1, K) or None. A guidance_scale other than
    1 evaluates the zero context too: the output is then (2 n, C, H, W), the n predictions without a context first,
    and denoise_step combines them by `guidance_scale`, a float32 on the device (None where there is no guidance).
    A network that is not a SeparableNetwork is called as network(x, t[, context]).
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        table: StepTable,
        integer_time: bool,
        context: Tensor | None,
        guidance_scale: float | None,
    ) -> None:
        self.network = network
        self.separable = isinstance(network, SeparableNetwork)
        self.guidance_scale = (
            None if guidance_scale in (None, 1) else torch.tensor(guidance_scale, dtype=torch.float32, device=device)
        )
        self.dtype = dtype
        # A network of the user's own may feed t to a layer as it comes; ours convert it themselves.
        fraction = torch.float32 if self.separable else dtype
        self.time = torch.tensor(table.time, dtype=torch.int64 if integer_time else fraction, device=device)  # (rows,)
        self.context = None if context is None else context.to(device=device, dtype=dtype)
        self.time_embedding = network.embed_time(self.time) if self.separable else ()

    def batch(self, rows: slice, n: int) -> EagerBatch:
        """The prediction of the samples in `rows` of the context, n of them."""
        context = self.context
        if context is not None:
            context = context.expand(n, -1) if len(context) == 1 else context[rows]
            if self.guidance_scale is not None:
                context = torch.cat((torch.zeros_like(context), context))
        return EagerBatch(self, context)


class EagerBatch:
    def __init__(self, form: EagerNetwork, context: Tensor | None) -> None:
        self.form, self.context = form, context
        self.context_embedding = form.network.embed_context(context) if form.separable else ()

    def __call__(self, x: Tensor, i: int) -> Tensor:
        form = self.form
        given = x.to(dtype=form.dtype, memory_format=torch.channels_last)
        if form.guidance_scale is not None:
            given = torch.cat((given, given))
        if form.separable:
            time = tuple(e[i : i + 1] for e in form.time_embedding)
            out = form.network.denoise(given, time, self.context_embedding)
        else:
            t = form.time[i].expand(len(given))
            out = form.network(given, t) if self.context is None else form.network(given, t, self.context)
        if out.shape != given.shape:
            raise InputError(f"the network returned shape {tuple(out.shape)} for images of shape {tuple(given.shape)}")
        return out
