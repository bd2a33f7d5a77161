"""A network ready for a sampler's loop: everything that does not depend on x is computed before it.

`prepare_network` copies a network for inference; `Prediction` calls the copy at a table's row.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.kernels.attention_block import attention_block, fits
from fastdiff.kernels.depthwise_conv import taps_first
from fastdiff.kernels.dispatch import triton_for
from fastdiff.kernels.folded_attention import FoldedAttention, fold
from fastdiff.networks.blocks import (
    HEAD_DIM,
    HEADS,
    ChannelNorm,
    ConvNextBlock,
    LinearAttention,
    PreNorm,
    Residual,
    normed,
)
from fastdiff.networks.context import ResidualConvBlock
from fastdiff.networks.protocol import SeparableNetwork
from fastdiff.samplers.table import StepTable


def prepare_network(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of the network for inference; the user's module is left unchanged.

    channels_last is 1.08x (AnnotatedUnet) and 1.19x (ContextUnet) of the default format's speed on two AVX2 cores. A
    ContextUnet's BatchNorms go into the weights of the convolutions before them. Where the Triton kernels run in 16
    bits, each residual linear-attention block becomes one operator with folded weights. Folding is done in float64
    from the given weights, and rounded to dtype once.
    """
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    for module in prepared.modules():
        if type(module) is ResidualConvBlock:  # only ours: in other networks, something else may call these layers
            _fold_batchnorm(module.conv1)
            _fold_batchnorm(module.conv2)
    prepared = prepared.to(device=device)
    on_triton = triton_for(device, dtype)
    if on_triton:
        for module in list(prepared.modules()):
            for name, child in module.named_children():
                if FoldedLinearAttention.replaces(child) and fits(dtype, child.fn.norm.num_channels, HEAD_DIM):
                    setattr(module, name, FoldedLinearAttention(child, dtype))
    prepared = prepared.to(dtype=dtype, memory_format=torch.channels_last)
    if on_triton:
        for module in prepared.modules():
            if isinstance(module, ConvNextBlock):
                module.ds_conv.weight.data = taps_first(module.ds_conv.weight)
    return prepared


def _fold_batchnorm(sequence: nn.Sequential) -> None:
    """Of (convolution, BatchNorm, activation), fold the first two into one convolution, unless either has hooks."""
    conv, norm, _ = sequence
    if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and not (hooked(conv) or hooked(norm)):
        sequence[0], sequence[1] = nn.utils.fuse_conv_bn_eval(conv.double(), norm.double()), nn.Identity()


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class FoldedLinearAttention(nn.Module):
    """Residual(PreNorm(LinearAttention)) by kernels.attention_block, for inference."""

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Whether it is exactly that block; a subclass may have a forward of its own."""
        return type(module) is Residual and type(module.fn) is PreNorm and type(module.fn.fn) is LinearAttention

    def __init__(self, block: nn.Module, dtype: torch.dtype | None = None) -> None:
        """dtype: of the folded weights, the block's unless given; a last norm that is not folded keeps its own."""
        super().__init__()
        self.folded = fold_block(block, dtype=dtype)
        _, last = block.fn.fn.to_out
        self.last = None if self.folded.gain is not None else last

    def forward(self, x: Tensor) -> Tensor:
        out = attention_block(x, self.folded)
        return out if self.last is None else normed(self.last, out) + x


def fold_block(
    block: nn.Module, precision: torch.dtype = torch.float64, dtype: torch.dtype | None = None
) -> FoldedAttention:
    """The folded weights of a block that FoldedLinearAttention.replaces; precision and dtype: as in `fold`."""
    norm, attention = block.fn.norm, block.fn.fn
    project, last = attention.to_out
    return fold(
        norm.weight,
        norm.bias,
        attention.to_qkv.weight,
        project.weight,
        project.bias,
        last.g if isinstance(last, ChannelNorm) else None,
        HEADS,
        attention.divide_by_n,
        norm.eps,
        precision,
        dtype,
    )


class TimeInputs:
    """What the network is given as time at each row of a table, in one buffer.

    A SeparableNetwork's time embeddings are concatenated, (capacity, total width), so that a row is one read; for any
    other network the buffer holds the times, (capacity,). A table is loaded into the first rows.

    Args:
        network: as prepare_network made it.
        device: of the buffer.
        dtype: the network's.
        integer: whether times are integer timesteps.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype, integer: bool) -> None:
        self.network, self.device = network, device
        self.separable = isinstance(network, SeparableNetwork)
        # A user's network may feed t to a layer as it is; ours convert it themselves.
        self.dtype = torch.int64 if integer else torch.float32 if self.separable else dtype
        self.shapes: list[torch.Size] = []
        self.values: Tensor | None = None  # (capacity, width), or (capacity,)

    def load(self, table: StepTable, capacity: int) -> bool:
        """Compute the table's rows. Returns whether the buffer was reallocated."""
        time = torch.tensor(table.time, dtype=self.dtype, device=self.device)
        if self.separable:
            embeddings = self.network.embed_time(time)
            self.shapes = [e.shape[1:] for e in embeddings]
            time = torch.cat([e.flatten(1) for e in embeddings], dim=1) if embeddings else time[:, None]
        before = self.values
        if before is None or len(before) < len(time):
            self.values = time.new_zeros((max(len(time), capacity), *time.shape[1:]))
        self.values[: len(time)] = time  # type: ignore[index]
        return self.values is not before

    def at(self, index: Tensor, n: int) -> Tensor | tuple[Tensor, ...]:
        """Row `index`: the embeddings, each with first dimension 1, or the time, (n,)."""
        row = self.values.index_select(0, index.reshape(1))
        if not self.separable:
            return row.expand(n)
        parts = row.split([shape.numel() for shape in self.shapes], dim=1) if self.shapes else ()
        return tuple(part.view(1, *shape) for part, shape in zip(parts, self.shapes, strict=True))


class Prediction:
    """(x, index) → the network's output for a batch, in the network's dtype.

    With guidance the network runs on twice the batch: the output is (2 B, C, H, W), the B predictions without a
    context first, and denoise_step combines them. A network that is not a SeparableNetwork is called as
    network(x, t[, context]).

    Args:
        network: as prepare_network made it.
        dtype: the network's.
        time: loaded with the table.
        guided: whether there is classifier-free guidance.

    Raises:
        InputError: on a call, if the network returns another shape than x's.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, time: TimeInputs, guided: bool) -> None:
        self.network, self.dtype, self.time, self.guided = network, dtype, time, guided
        self.context: tuple[Tensor, ...] = ()

    def load_context(self, context: Tensor | None) -> None:
        """Set the batch's contexts: (B, K), (1, K) for all, or None. Equal shapes reuse the same buffers."""
        if context is not None:
            context = context.to(device=self.time.device, dtype=self.dtype)
            if self.guided:
                context = torch.cat((torch.zeros_like(context), context))
        if self.time.separable:
            made = self.network.embed_context(context)
        else:
            made = () if context is None else (context,)
        if len(made) == len(self.context) and all(a.shape == b.shape for a, b in zip(made, self.context, strict=True)):
            for place, value in zip(self.context, made, strict=True):
                place.copy_(value)
        else:
            self.context = tuple(value.clone() for value in made)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        given = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        if self.guided:
            given = torch.cat((given, given))
        time = self.time.at(index, len(given))
        if self.time.separable:
            out = self.network.denoise(given, time, self.context)
        else:
            out = self.network(given, time, *self.context)
        if out.shape != given.shape:
            raise InputError(f"the network returned shape {tuple(out.shape)} for images of shape {tuple(given.shape)}")
        return out
