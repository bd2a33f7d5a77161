"""What is compared: a library's loop, and fastdiff's from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdiff.capture.outputs import first_output
from fastdiff.samplers.schedule import make_schedule

IMAGES, BATCH, TRAINED = 2, 16, 1000


@dataclass(frozen=True)
class Loop:
    """One configuration.

    Attributes:
        configuration: in words.
        clipped: whether x0 is clipped.
        theirs: () → the library's images in [-1, 1], (IMAGES, C, H, W), by what torch.randn gives.
        ours: () → fastdiff's, by `normals`.
    """

    configuration: str
    clipped: bool
    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]


@dataclass(frozen=True)
class Family:
    """A library's networks.

    Attributes:
        title: the library and the network.
        loops: () → its configurations.
        needs: packages without which there are none.
        measured: the network of the catalogue whose speed stands for it; None where none is measured.
    """

    title: str
    loops: Callable[[], Iterator[Loop]]
    needs: tuple[str, ...] = ()
    measured: str | None = None


def settled(network: nn.Module, image_shape: tuple[int, int, int], *context: Tensor) -> nn.Module:
    """The network after a hundred steps of learning noise.

    What a random network predicts has nothing to do with the noise that is there. Clipped loops of it are chaotic: they
    amplify rounding without bounds, so that a library's own in float32 and in float64 differ by a tenth of the range.
    One with self-conditioning is given its own guess of x0 in every second step.
    """
    dice = torch.Generator().manual_seed(0)
    abar = torch.tensor(make_schedule("linear", TRAINED).alphas_cumprod).float()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    channels, height, width = image_shape
    for step in range(100):
        coarse = torch.rand(BATCH, channels, 4, 4, generator=dice) * 2 - 1
        x0 = F.interpolate(coarse, (height, width), mode="bilinear")
        noise = torch.randn(x0.shape, generator=dice)
        t = torch.randint(TRAINED, (BATCH,), generator=dice)
        level = abar[t].view(-1, 1, 1, 1)
        given = [one[:1].expand(BATCH, *one.shape[1:]) for one in context]
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        x, named = alpha * x0 + sigma * noise, {}
        if getattr(network, "self_condition", False) and step % 2:
            with torch.no_grad():
                guess = (x - sigma * first_output(network(x, t, *given), channels)) / alpha
            named["x_self_cond"] = guess.clamp(-1, 1)
        out = first_output(network(x, t, *given, **named), channels)
        optimizer.zero_grad()
        F.mse_loss(out, noise).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def normals(draw: int, first: int, shape: tuple[int, ...]) -> Tensor:
    """fastdiff's noise source: standard normals by the draw's number."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + draw))


class Drawing(TorchFunctionMode):
    """Within it the first call of torch.randn gives draw 0, the next draw 1, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.randn, torch.randn_like):
            return func(*args, **(kwargs or {}))
        self.drawn += 1
        if func is torch.randn_like:
            return normals(self.drawn - 1, 0, tuple(args[0].shape))
        sizes = args[0] if isinstance(args[0], (tuple, list, torch.Size)) else args
        return normals(self.drawn - 1, 0, tuple(sizes))


@torch.no_grad()
def drawn(loop: Callable[[], Tensor]) -> Tensor:
    """A library's images from those normals."""
    with Drawing():
        return loop()
