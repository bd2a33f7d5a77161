"""A network's three parts as modules that torch's exporter takes: time, context, and the rest.

A part takes and returns float32, whatever the network computes in; embeddings are flattened and joined to (R, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdiff.capture.outputs import first_output
from fastdiff.kernels.attention_block import attention_block_reference
from fastdiff.networks.blocks import normed
from fastdiff.networks.folded import can_fold, fold_block
from fastdiff.networks.protocol import SeparableNetwork


class _Part(nn.Module):
    """One of the three parts; a network that is not a SeparableNetwork is wholly in the last."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, integer: bool) -> None:
        super().__init__()
        self.network, self.dtype, self.integer = network, dtype, integer
        self.separable = isinstance(network, SeparableNetwork)

    def joined(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Embeddings (R, ...) → (R, W) float32."""
        return torch.cat([e.flatten(1) for e in embeddings], dim=1).float()


class TimePart(_Part):
    """(R,) times → (R, W)."""

    def forward(self, t: Tensor) -> Tensor:
        return self.joined(self.network.embed_time(t)) if self.separable else t[:, None].float()


class ContextPart(_Part):
    """(B, K) → (B, V)."""

    def forward(self, context: Tensor) -> Tensor:
        if not self.separable:
            return context.clone()
        return self.joined(self.network.embed_context(context.to(self.dtype)))


class DenoisePart(_Part):
    """x (B, C, H, W), time (B, W)[, context (B, V)] → (B, C, H, W)."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, integer: bool) -> None:
        super().__init__(network, dtype, integer)
        if self.separable:  # the shapes into which the joined embeddings are split
            time = torch.zeros(1, dtype=torch.int64 if integer else torch.float32)
            self.time_shapes = [e.shape[1:] for e in network.embed_time(time)]
            self.context_shapes = [e.shape[1:] for e in network.embed_context(None)]

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        x, time = x.to(self.dtype), time.to(self.dtype if self.separable or not self.integer else torch.int64)
        contexts = () if context is None else (context.to(self.dtype),)
        if not self.separable:
            return first_output(self.network(x, time[:, 0], *contexts), x.shape[1]).float()
        embedded = self.network.embed_context(None) if context is None else _split(contexts[0], self.context_shapes)
        return self.network.denoise(x, _split(time, self.time_shapes), embedded).float()


def _split(embedding: Tensor, shapes: list[torch.Size]) -> tuple[Tensor, ...]:
    """(R, W) → embeddings (R, ...) of these shapes."""
    if not shapes:
        return ()
    parts = embedding.split([shape.numel() for shape in shapes], dim=1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))


class _FoldedAttention(nn.Module):
    """Residual(PreNorm(LinearAttention)) by kernels.attention_block, the weights folded by operators of the graph."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        folded = fold_block(self.block, torch.float32)
        out = attention_block_reference(x, folded)
        _, last = self.block.fn.fn.to_out
        return out if folded.gain is not None else normed(last, out) + x


def fold_attention(network: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Replace the residual linear-attention blocks in which folding saves operations at the example's size.

    Args:
        network: is changed in place.
        given: the example's arguments.
    """
    positions: dict[nn.Module, int] = {}
    hooks = [
        block.register_forward_pre_hook(lambda block, xs: positions.update({block: xs[0].shape[2:].numel()}))
        for block in network.modules()
        if can_fold(block)
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
