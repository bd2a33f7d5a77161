"""What a network offers so that a sampler computes only once what does not depend on x."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

Embedding = tuple[Tensor, ...]


@runtime_checkable
class SeparableNetwork(Protocol):
    """A network whose forward(x, t, context) is denoise(x, embed_time(t), embed_context(context))."""

    def embed_time(self, t: Tensor) -> Embedding:
        """(R,) times → tensors whose first dimension is R."""
        ...

    def embed_context(self, context: Tensor | None) -> Embedding:
        """(B, K) contexts → tensors whose first dimension is B; None, the zero context → B or 1."""
        ...

    def denoise(self, x: Tensor, time: Embedding, context: Embedding) -> Tensor:
        """x (B, C, H, W), embeddings whose first dimension is B or 1 → (B, C, H, W)."""
        ...
