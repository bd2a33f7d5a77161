"""What a network offers so that a sampler can compute everything that does not depend on x once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

Embedding = tuple[Tensor, ...]


@runtime_checkable
class SeparableNetwork(Protocol):
    """forward(x, t, context) = denoise(x, embed_time(t), embed_context(context)).

    embed_time: (R,) times → tensors whose first dimension is R. embed_context: (B, K) contexts, or None for
    the zero context → tensors whose first dimension is B (or 1). denoise: x (B, C, H, W) with embeddings whose
    first dimension is B or 1 → (B, C, H, W).
    """

    def embed_time(self, t: Tensor) -> Embedding: ...

    def embed_context(self, context: Tensor | None) -> Embedding: ...

    def denoise(self, x: Tensor, time: Embedding, context: Embedding) -> Tensor: ...
