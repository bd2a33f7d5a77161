"""The CPU form of a network: its 3x3 convolutions, norms and linear attention by the C kernels (kernels.cpu)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.engine.prepared import FoldedLinearAttention, hooked
from fastdiff.kernels.cpu import attention as native_attention
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.cpu import operators as native
from fastdiff.networks.blocks import HEAD_DIM, ConvNextBlock, normed
from fastdiff.networks.context import ResidualConvBlock


def make_native(network: nn.Module) -> nn.Module:
    """Replace what the kernels can compute in a float32 network on the CPU, in place.

    Convolutions and norms remain the same modules, with readable weights and hooks that are called; only their
    computation changes, so this is safe for any network. What the kernels do not take (gradients, images without a
    batch) is computed as before.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if FoldedLinearAttention.replaces(child) and native_attention.fits(child.fn.norm.num_channels, HEAD_DIM):
                setattr(module, name, NativeAttention(child))
    for module in network.modules():
        for plain, replacement in ((nn.Conv2d, NativeConv), (nn.Conv2d, NativeDepthwise), (nn.GroupNorm, NativeNorm)):
            if type(module) is plain and replacement.replaces(module):
                module.__class__ = replacement
        if isinstance(module, (NativeConv, NativeDepthwise)):
            module.pack()
    for module in network.modules():
        if type(module) is ResidualConvBlock:
            _join(module.conv1)
            _join(module.conv2)
        elif NativeConvNext.replaces(module):
            module.__class__ = NativeConvNext
    return network


def _join(sequence: nn.Sequential) -> None:
    """Of (convolution, nn.Identity, GELU), fuse the GELU into the convolution, unless either has hooks."""
    conv, between, gelu = sequence
    if type(conv) is NativeConv and type(between) is nn.Identity and type(gelu) is nn.GELU:
        if not (hooked(conv) or hooked(gelu)):
            conv.activation = "gelu" if gelu.approximate == "none" else "gelu_tanh"
            sequence[2] = nn.Identity()


def _plain(x: Tensor) -> bool:
    """Whether the kernels take x: a batch of float32 images, and no gradient is asked for."""
    differentiated = torch.is_grad_enabled() and x.requires_grad
    return x.ndim == 4 and x.dtype == torch.float32 and x.device.type == "cpu" and len(x) > 0 and not differentiated


class NativeConv(nn.Conv2d):
    """A 3x3 convolution by Winograd's method, with the norm before and what follows in the same pass."""

    @staticmethod
    def replaces(conv: nn.Conv2d) -> bool:
        return (
            conv.kernel_size == (3, 3)
            and conv.padding == (1, 1)
            and conv.padding_mode == "zeros"
            and conv.stride == conv.dilation == (1, 1)
            and conv.groups == 1
            and min(conv.in_channels, conv.out_channels) >= compiled.vector_width()
        )

    def pack(self) -> None:
        self.activation: str | None = None  # set by _join
        self.packed: dict[int, Tensor] = {}  # by tile size, made on first use

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x, self.activation) if _plain(x) else super().forward(x)

    def fused(
        self,
        x: Tensor,
        activation: str | None = None,
        residual: Tensor | None = None,
        norm: NativeNorm | None = None,
    ) -> Tensor:
        """activation(conv(norm(x))) + residual."""
        m = native.winograd_tile(x.shape[0], x.shape[-2], x.shape[-1])
        if m not in self.packed:
            self.packed[m] = native.winograd_weight(self.weight, m)
        numbers = None if norm is None else norm.numbers
        return native.winograd(x, self.packed[m], self.bias, self.out_channels, activation, residual, numbers)


class NativeDepthwise(nn.Conv2d):
    """A depthwise convolution that keeps the picture's size."""

    @staticmethod
    def replaces(conv: nn.Conv2d) -> bool:
        size = conv.kernel_size[0]
        return (
            conv.groups == conv.in_channels == conv.out_channels >= compiled.vector_width()
            and size % 2 == 1
            and conv.kernel_size == (size, size)
            and conv.padding == (size // 2, size // 2)
            and conv.padding_mode == "zeros"
            and conv.stride == conv.dilation == (1, 1)
            and not conv._forward_pre_hooks  # which may make the weight anew, as weight_norm's does
        )

    def pack(self) -> None:
        self.packed = native.depthwise_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x, self.bias) if _plain(x) else super().forward(x)

    def fused(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """conv(x) with another bias."""
        return native.depthwise(x, self.packed, bias)


class NativeNorm(nn.GroupNorm):
    """A GroupNorm, by itself or as part of the convolution that follows."""

    @staticmethod
    def replaces(norm: nn.GroupNorm) -> bool:
        whole = norm.weight is not None and norm.bias is not None
        return whole and not norm._forward_pre_hooks and norm.num_channels >= compiled.vector_width()

    @property
    def numbers(self) -> native.Norm:
        return self.num_groups, self.weight, self.bias, self.eps

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if _plain(x) else super().forward(x)

    def fused(self, x: Tensor, after: str | None = None) -> Tensor:
        """after(norm(x))."""
        return native.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, after)


class NativeConvNext(ConvNextBlock):
    """The block without separate passes for its norms: each convolution normalises its input."""

    @staticmethod
    def replaces(block: nn.Module) -> bool:
        if type(block) is not ConvNextBlock:
            return False
        norm1, expand, _, norm2, contract = block.net
        classes = [type(module) for module in (block.ds_conv, norm1, expand, norm2, contract)]
        return classes == [NativeDepthwise, NativeNorm, NativeConv, NativeNorm, NativeConv]

    def forward(self, x: Tensor, time_bias: Tensor | None = None) -> Tensor:
        norm1, expand, _, norm2, contract = self.net
        if time_bias is None or len(time_bias) > 1:
            h = self.ds_conv(x)
            h = h if time_bias is None else h + time_bias
        else:  # one time for the batch: added with the convolution's bias
            bias = time_bias.flatten()
            h = self.ds_conv.fused(x, bias if self.ds_conv.bias is None else bias + self.ds_conv.bias)
        h = expand.fused(h, self.gelu, norm=norm1)
        return contract.fused(h, residual=self.res_conv(x), norm=norm2)


class NativeAttention(FoldedLinearAttention):
    """Residual(PreNorm(LinearAttention)) by kernels.cpu.attention."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.packed = native_attention.pack(self.folded)

    def forward(self, x: Tensor) -> Tensor:
        out = native_attention.attention_block(x, self.packed)
        return out if self.last is None else normed(self.last, out) + x


def build_error(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this form cannot run there, or None."""
    if device.type != "cpu" or dtype != torch.float32:
        return f"it is float32 on the CPU, this is {dtype} on {device}"
    return compiled.build_error()
