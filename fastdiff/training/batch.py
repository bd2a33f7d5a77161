"""What is random in a step, and what the network is given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.capture.graph import SELF_CONDITION
from fastdiff.capture.outputs import first_output
from fastdiff.data.images import ImageData
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.samplers.prediction import coefficients


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class Draws:
    """All that is random in a batch, drawn for the whole of it, whatever processes and parts it is shared out to.

    Attributes:
        t: (B,) int64 timesteps.
        noise: (B, C, H, W) standard normals.
        flip: (B,) bool, which pictures are mirrored.
        drop: (B,) bool, which lose their context.
        conditioned: whether the network is given its own guess of x0, of all rows or of none.
    """

    t: Tensor
    noise: Tensor
    flip: Tensor
    drop: Tensor
    conditioned: bool

    @classmethod
    def of(
        cls, model: Model, count: int, random: torch.Generator, *, flip: bool = False, context_dropout: float = 0.0
    ) -> Draws:
        """A batch's, on the CPU: flips with probability 1/2 if at all, context_dropout is a share of 0 to 1."""
        schedule = model.schedule
        # Said, because the caller may have other defaults.
        whole: dict[str, Any] = dict(generator=random, device="cpu")
        plain = dict(**whole, dtype=torch.float32)
        t = torch.randint(schedule.first, schedule.first + schedule.num_timesteps, (count,), **whole)
        noise = torch.randn(count, *model.image_shape, **plain)
        flipped = torch.rand(count, **plain) < 0.5
        dropped = torch.rand(count, **plain) < context_dropout
        conditioned = model.self_condition and bool(torch.rand((), **plain) < 0.5)
        return cls(t, noise, flipped & flip, dropped, conditioned)

    def part(self, rows: slice) -> Draws:
        """Those of some rows."""
        return Draws(self.t[rows], self.noise[rows], self.flip[rows], self.drop[rows], self.conditioned)


class Labels:
    """The labels of data as the contexts of a model's network.

    Args:
        model: whose network is trained.
        data: whose labels they are; where its classes have the model's names in another order, they are put in order.
        dropout: whether contexts are to be dropped.

    Attributes:
        given: the width of the data's labels.

    Raises:
        InputError: for a network that cannot be trained with such labels.
    """

    def __init__(self, model: Model, data: ImageData, dropout: bool = False) -> None:
        self.given = width = data.labels.shape[1]
        self._order: list[int] | None = None
        if set(data.class_names) == set(model.class_names) and tuple(data.class_names) != tuple(model.class_names):
            self._order = [data.class_names.index(name) for name in model.class_names]
        self.width, self.classes, self.null = model.context_width or 0, model.num_classes, model.null_class
        if self.classes is None and not self.width and model.needs_context:
            raise InputError(
                f"a network that needs {model.needs_context!r} cannot be trained; accepted: contexts of K numbers, "
                "class numbers, or none"
            )
        if self.classes is not None:
            self._check_numbers(width, dropout)
        elif self.width and width not in (0, self.width):
            raise InputError(f"labels of {width} classes for a model of {self.width}; accepted: {self.width}, or none")

    def _check_numbers(self, width: int, dropout: bool) -> None:
        assert self.classes is not None
        real = self.classes - (self.null is not None)
        if width > real or (not width and self.null is None):
            raise InputError(
                f"labels of {width} classes for a model of {real}; accepted: {real}"
                + (", or none" if self.null is not None else "")
            )
        if dropout and self.null is None:
            raise InputError("context_dropout with a model that has no null class; accepted: 0")

    def __bool__(self) -> bool:
        """Whether the network is given any."""
        return bool(self.width or self.classes)

    def contexts(self, labels: Tensor, drop: Tensor) -> tuple[Tensor, ...]:
        """(B, width) labels, and which rows lose theirs → the network's further arguments: one or none."""
        labels = labels if self._order is None else labels[:, self._order]
        if self.classes is not None:
            numbers = labels.argmax(1) if labels.shape[1] else labels.new_zeros(len(labels), dtype=torch.int64)
            drop = drop if labels.shape[1] else torch.ones_like(drop)
            return (numbers if self.null is None else torch.where(drop, self.null, numbers),)
        if not self.width:
            return ()
        return (nn.functional.pad(labels, (0, self.width - labels.shape[1])) * ~drop[:, None],)


class Predictor:
    """f of the loss: (x_t, t) → the network's output in float32, with contexts and, where drawn, its own guess of x0.

    Args:
        model: says what its network is given.
        network: the one in training, or its average.
        contexts: what Labels.contexts made, on the device.
        conditioned: whether the network is given its own guess.
        bf16: whether it runs in bfloat16.
    """

    def __init__(
        self, model: Model, network: nn.Module, contexts: tuple[Tensor, ...], conditioned: bool, bf16: bool
    ) -> None:
        self.model, self.network, self.contexts = model, network, contexts
        self.conditioned, self.bf16 = conditioned, bf16

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if not self.conditioned:
            return self._evaluated(x, t)
        with torch.no_grad():  # the network's own guess (Chen et al. 2023, algorithm 1)
            p, q = coefficients(self.model.prediction_type, *self.model.schedule.alpha_sigma(t, x))
            x0 = p * x + q * self._evaluated(x, t)
            if isinstance(self.model.clip, float):  # as when it is sampled from
                x0 = x0.clamp(-self.model.clip, self.model.clip)
        return self._evaluated(x, t, **{SELF_CONDITION: x0})

    def _evaluated(self, x: Tensor, t: Tensor, **named: Any) -> Tensor:
        time = t.float() / self.model.schedule.num_timesteps if self.model.time == "fraction" else t
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(x, time.to(x.device), *self.contexts, **named)
        return first_output(out, x.shape[1]).float()
