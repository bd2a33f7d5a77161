"""The CPU form of a network: its 3x3 convolutions, norms and linear attention by the C kernels (kernels.native)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.kernels import native, native_attention
from fastdiff.networks.blocks import HEAD_DIM, normed
from fastdiff.prepared import FoldedLinearAttention


def make_native(network: nn.Module) -> nn.Module:
    """Replace what the kernels take, in a float32 network on the CPU that is this function's to change.

    Convolutions and norms stay what they were (their weights can still be read, hooks are still called) and only
    compute otherwise, so that this holds for a network of the user's own as well.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if FoldedLinearAttention.replaces(child) and native_attention.fits(child.fn.norm.num_channels, HEAD_DIM):
                setattr(module, name, NativeAttention(child))
            elif type(child) is nn.Sequential:
                _join(child)
    for module in network.modules():
        if type(module) is nn.Conv2d and NativeConv.replaces(module):
            module.__class__ = NativeConv
            module.pack()  # type: ignore[operator]
        elif type(module) is nn.GroupNorm and module.affine and module.num_channels >= native.vector_width():
            module.__class__ = NativeNorm
    return network


def _join(sequence: nn.Sequential) -> None:
    """Convolution, BatchNorm, GELU → a convolution with the BatchNorm in its weights that ends in GELU."""
    parts = list(sequence)
    if [type(part) for part in parts] != [nn.Conv2d, nn.BatchNorm2d, nn.GELU]:
        return
    conv, norm, gelu = parts
    if not NativeConv.replaces(conv) or norm.running_mean is None or any(map(_hooked, parts)):
        return
    fused = nn.utils.fuse_conv_bn_eval(conv, norm)
    fused.__class__ = NativeConv
    fused.pack("gelu" if gelu.approximate == "none" else "gelu_tanh")
    sequence[0], sequence[1], sequence[2] = fused, nn.Identity(), nn.Identity()


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class NativeConv(nn.Conv2d):
    """A 3x3 convolution by Winograd's method, with what may follow it in the same pass."""

    @staticmethod
    def replaces(conv: nn.Conv2d) -> bool:
        return (
            conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "zeros"
            and conv.stride == conv.dilation == (1, 1) and conv.groups == 1
            and min(conv.in_channels, conv.out_channels) >= native.vector_width()
        )  # fmt: skip

    def pack(self, activation: str | None = None) -> None:
        """activation: what the module itself ends in."""
        self.activation = activation
        self.packed = native.winograd_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x, self.activation)

    def fused(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        """activation(conv(x)) + residual."""
        return native.winograd(x, self.packed, self.bias, self.out_channels, activation, residual)


class NativeNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if x.ndim == 4 else super().forward(x)

    def fused(self, x: Tensor, after: str | None = None) -> Tensor:
        """after(norm(x))."""
        return native.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, after)


class NativeAttention(FoldedLinearAttention):
    """Residual(PreNorm(LinearAttention)) by kernels.native_attention."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.packed = native_attention.pack(self.folded)

    def forward(self, x: Tensor) -> Tensor:
        out = native_attention.attention_block(x, self.packed)
        return out if self.last is None else normed(self.last, out) + x


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this form cannot run there, or None."""
    if device.type != "cpu" or dtype != torch.float32:
        return f"it is float32 on the CPU, this is {dtype} on {device}"
    return native.missing()
