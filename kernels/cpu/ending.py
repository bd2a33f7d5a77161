"""The numbers of finish.h: how a product or a convolution ends."""

from __future__ import annotations

from typing import NamedTuple

from fastdiff.kernels.cpu.plan import View, activation_code, per_channel


class Ending(NamedTuple):
    """activation(sums + bias) + residual.

    Attributes:
        bias: (O,), (1, O) or (B, O), a picture's side by side, or None.
        activation: None, "gelu" (erf), "gelu_tanh", "silu" or "relu".
        residual: as the result, or None.
    """

    bias: View | None = None
    activation: str | None = None
    residual: View | None = None

    def numbers(self, op: str, b: int, o: int) -> tuple[int, int]:
        """How far apart two pictures' biases lie, and the activation's number; raises ValueError for others."""
        return per_channel(op, "bias", self.bias, b, o), activation_code(op, "activation", self.activation)


PLAIN = Ending()  # the sums as they are
