"""Other libraries' own networks and loops, of a given number of parameters: other networks, without parity."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.bench.peers.schedulers import diffusers
from fastdiff.bench.peers.standins import stand_in
from fastdiff.errors import InputError, check_int, unknown_name

SIZES = (16, 28, 32, 64)  # three levels: 28 halves twice
MULTIPLES = (1, 2, 4)  # of the width, by level, as network A has them
WIDTHS = range(8, 513, 4)  # diffusers' attention, from the second level on, has heads of 8 channels
TIMESTEPS = 1000  # what both libraries train with unless told otherwise
LUCIDRAINS = "denoising-diffusion-pytorch is not installed; pip install --no-deps denoising-diffusion-pytorch einops"
UNUSED = ("torchvision", "accelerate", "ema_pytorch", "pytorch_fid", "scipy", "packaging")  # by what it samples with


@dataclass(frozen=True, eq=False)
class Other:
    """A library's network with random weights, and its own sampling loop.

    parameters: of the network. predict: (x (n, C, H, W), t (n,) int64) → the prediction, in x's dtype.
    sample: (sampler, steps, n) → n images in [0, 1] on the device, as the library returns them.
    """

    name: str
    network: nn.Module
    parameters: int
    predict: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[str, int, int], Tensor]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _nearest(make: Callable[[int], nn.Module], parameters: int) -> int:
    """The width at which the network has about that many parameters, by ratio; the count grows with the width."""

    @cache
    def found(width: int) -> int:
        with torch.device("meta"):
            return count(make(width))

    above = bisect.bisect_left(WIDTHS, parameters, key=found)
    near = WIDTHS[max(above - 1, 0) : above + 1]
    return min(near, key=lambda width: max(found(width) / parameters, parameters / found(width)))


def _seeded(make: Callable[[int], nn.Module], width: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(width).eval()


def _checked(channels: int, size: int, parameters: int) -> None:
    check_int("channels", channels, 1, 4096)
    check_int("parameters", parameters, 1, 2**40)
    if size not in SIZES:
        raise InputError(f"size = {size!r}; accepted: {', '.join(map(str, SIZES))}")


def diffusers_unet(
    channels: int, size: int, parameters: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Other:
    """UNet2DModel as its defaults have it, but for the widths, and its loop as diffusers' pipelines run it."""
    _checked(channels, size, parameters)
    library, device = diffusers(), torch.device(device)

    def make(width: int) -> nn.Module:
        return library.UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=tuple(width * m for m in MULTIPLES),
            norm_num_groups=4,  # the default of 32 divides few widths
        )

    width = _nearest(make, parameters)
    # Their own `to` warns of an empty list of modules.
    network: Any = nn.Module.to(_seeded(make, width), device, dtype)
    schedulers = {
        "ddim": library.DDIMScheduler(TIMESTEPS),
        "ddpm": library.DDPMScheduler(TIMESTEPS),
        "ddpm_large": library.DDPMScheduler(TIMESTEPS, variance_type="fixed_large"),
        "dpmpp_2m": library.DPMSolverMultistepScheduler(TIMESTEPS),
    }

    @torch.no_grad()
    def predict(x: Tensor, t: Tensor) -> Tensor:
        return network(x.to(dtype), t).sample.to(x.dtype)

    @torch.no_grad()
    def sample(sampler: str, steps: int, n: int) -> Tensor:
        if sampler not in schedulers:
            raise unknown_name("sampler", sampler, schedulers)
        scheduler = schedulers[sampler]
        scheduler.set_timesteps(check_int("steps", steps, 1, TIMESTEPS))
        image = torch.randn(n, channels, size, size, device=device, dtype=dtype)
        for t in scheduler.timesteps:
            image = scheduler.step(network(image, t).sample, t, image).prev_sample
        return (image / 2 + 0.5).clamp(0, 1)

    widths = "-".join(str(width * m) for m in MULTIPLES)
    return Other(f"diffusers' UNet2DModel, {widths}", network, count(network), predict, sample)


def lucidrains() -> ModuleType:
    """The module of denoising-diffusion-pytorch that holds Unet, or an ImportError of one sentence."""
    try:
        with stand_in(*UNUSED):
            return importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in ("denoising_diffusion_pytorch", "einops"):
            raise
        raise ImportError(LUCIDRAINS) from error


def _silent(steps: Iterable[int], *given: Any, **options: Any) -> Iterable[int]:
    """In place of tqdm, which cannot be turned off in the library's loops."""
    return steps


def lucidrains_unet(
    channels: int, size: int, parameters: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Other:
    """Unet and GaussianDiffusion of denoising-diffusion-pytorch, as its README has them, but for the width.

    With another dtype than float32 it runs under autocast: its own trainer has 16 bits so, and the network's time
    embedding is float32 in any case.
    """
    _checked(channels, size, parameters)
    library: Any = lucidrains()
    device = torch.device(device)

    def make(width: int) -> nn.Module:
        return library.Unet(width, dim_mults=MULTIPLES, channels=channels)

    width = _nearest(make, parameters)
    network = _seeded(make, width).to(device)
    loops: dict[tuple[int, int], Any] = {}  # their object fixes the number of steps; users make it once

    def autocast() -> Any:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    @torch.no_grad()
    def predict(x: Tensor, t: Tensor) -> Tensor:
        with autocast():
            return network(x, t).to(x.dtype)

    def sample(sampler: str, steps: int, n: int) -> Tensor:
        if sampler not in ("ddim", "ddpm"):
            raise InputError(f"sampler {sampler!r} with denoising-diffusion-pytorch; accepted: ddim, ddpm")
        # It runs DDIM where there are fewer steps than timesteps, and else DDPM over all of them.
        steps = check_int("steps", steps, 1, TIMESTEPS - 1 if sampler == "ddim" else TIMESTEPS)
        chosen = (TIMESTEPS if sampler == "ddim" else steps), steps
        if chosen not in loops:
            made = library.GaussianDiffusion(network, image_size=size, timesteps=chosen[0], sampling_timesteps=steps)
            loops[chosen] = made.to(device)
        own, library.tqdm = library.tqdm, _silent
        try:
            with autocast():
                return loops[chosen].sample(batch_size=n)
        finally:
            library.tqdm = own

    widths = "-".join(str(width * m) for m in MULTIPLES)
    return Other(f"denoising-diffusion-pytorch's Unet, {widths}", network, count(network), predict, sample)
