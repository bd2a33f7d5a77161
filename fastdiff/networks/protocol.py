"""What our networks tell the ONNX export, which is not captured yet, and the width of a network's contexts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

Embedding = tuple[Tensor, ...]


@runtime_checkable
class SeparableNetwork(Protocol):
    """A network whose forward(x, t, context) is denoise(x, embed_time(t), embed_context(context)).

    An exported loop computes the embeddings once; the engine finds that out by itself, see fastdiff.capture.split.
    """

    def embed_time(self, t: Tensor) -> Embedding:
        """(R,) times → tensors whose first dimension is R."""
        ...

    def embed_context(self, context: Tensor | None) -> Embedding:
        """(B, K) contexts → tensors whose first dimension is B; None, the zero context → B or 1."""
        ...

    def denoise(self, x: Tensor, time: Embedding, context: Embedding) -> Tensor:
        """x (B, C, H, W), embeddings whose first dimension is B or 1 → (B, C, H, W)."""
        ...


def context_width(network: nn.Module) -> int | None:
    """K of the contexts that a network takes, its attribute n_cfeat; None if it has none."""
    width = getattr(network, "n_cfeat", None)
    return None if width is None else int(width)
