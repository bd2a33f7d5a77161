"""Other libraries' own networks and loops, of a given number of parameters: other networks, without parity."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.bench.peers.schedulers import diffusers, required
from fastdiff.errors import InputError, unknown_name

MULTIPLES = (1, 2, 4)  # of the width, by level, as network A has them
WIDTHS = range(8, 513, 4)  # diffusers' attention, from the second level on, has heads of 8 channels
TIMESTEPS = 1000  # what both libraries train with unless told otherwise
LUCIDRAINS = "denoising-diffusion-pytorch is not installed; pip install --no-deps denoising-diffusion-pytorch einops"
# Modules that it imports, and that its sampling does without.
UNUSED = (
    "torchvision",
    "accelerate",
    "ema_pytorch",
    "pytorch_fid.fid_score",
    "pytorch_fid.inception",
    "scipy.optimize",
    "packaging",
)


@dataclass(frozen=True, eq=False)
class Other:
    """A library's network with random weights, and its own sampling loop.

    Attributes:
        parameters: Of the network.
        predict: (x (n, C, H, W), t (n,) int64) → the prediction, in x's dtype.
        sample: (sampler, steps, n) → n images in [0, 1] on the device, as the library returns them.
    """

    name: str
    network: nn.Module
    parameters: int
    predict: Callable[[Tensor, Tensor], Tensor]
    sample: Callable[[str, int, int], Tensor]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def of_size(make: Callable[[int], nn.Module], parameters: int) -> tuple[nn.Module, str]:
    """The network with random weights of the width at which it has about that many parameters, and its widths in words.

    By ratio; the count grows with the width.
    """

    @cache
    def found(width: int) -> int:
        with torch.device("meta"):
            return count(make(width))

    above = bisect.bisect_left(WIDTHS, parameters, key=found)
    near = WIDTHS[max(above - 1, 0) : above + 1]
    width = min(near, key=lambda width: max(found(width) / parameters, parameters / found(width)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(width).eval(), "-".join(str(width * m) for m in MULTIPLES)


def diffusers_unet(
    channels: int, size: int, parameters: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Other:
    """UNet2DModel as its defaults have it, but for the widths, and its loop as diffusers' pipelines run it."""
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

    made, widths = of_size(make, parameters)
    network: Any = nn.Module.to(made, device, dtype)  # their own `to` warns of an empty list of modules
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
        scheduler.set_timesteps(steps)
        image = torch.randn(n, channels, size, size, device=device, dtype=dtype)
        for t in scheduler.timesteps:
            image = scheduler.step(network(image, t).sample, t, image).prev_sample
        return (image / 2 + 0.5).clamp(0, 1)

    return Other(f"diffusers' UNet2DModel, {widths}", network, count(network), predict, sample)


class _Absent(ModuleType):
    """A module that is not installed, and all that is imported from it: it may be named, not used."""

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __call__(self, *given: Any, **options: Any) -> Any:
        raise ImportError(f"{self.__name__} is called, and {self.__name__.split('.')[0]} is not installed")


@contextmanager
def stand_ins(modules: Iterable[str]) -> Iterator[None]:
    """Within it those of the modules whose packages are not installed can be imported."""
    absent = [name for name in modules if find_spec(name.split(".")[0]) is None]
    sys.modules.update({name: _Absent(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def lucidrains(module: str = "denoising_diffusion_pytorch") -> ModuleType:
    """A module of denoising-diffusion-pytorch, the one that holds Unet, or an ImportError of one sentence."""
    with stand_ins(UNUSED):
        name = f"denoising_diffusion_pytorch.{module}"
        return required(name, ("denoising_diffusion_pytorch", "einops"), LUCIDRAINS)


def lucidrains_unet(
    channels: int, size: int, parameters: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Other:
    """Unet and GaussianDiffusion of denoising-diffusion-pytorch, as its README has them, but for the width.

    With another dtype than float32 it runs under autocast: its own trainer has 16 bits so, and the network's time
    embedding is float32 in any case.
    """
    library: Any = lucidrains()
    library.tqdm = lambda steps, *given, **options: steps  # which cannot be turned off in its loops
    device = torch.device(device)
    made, widths = of_size(lambda width: library.Unet(width, dim_mults=MULTIPLES, channels=channels), parameters)
    network = made.to(device)

    def autocast() -> Any:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    @torch.no_grad()
    def predict(x: Tensor, t: Tensor) -> Tensor:
        with autocast():
            return network(x, t).to(x.dtype)

    @cache  # its object fixes the number of steps; users make it once
    def loop(sampler: str, steps: int) -> Any:
        if sampler not in ("ddim", "ddpm"):
            raise InputError(f"sampler {sampler!r} with denoising-diffusion-pytorch; accepted: ddim, ddpm")
        # It runs DDIM where there are fewer steps than timesteps, and else DDPM over all of them.
        timesteps = TIMESTEPS if sampler == "ddim" else steps
        made = library.GaussianDiffusion(network, image_size=size, timesteps=timesteps, sampling_timesteps=steps)
        return made.to(device)

    def sample(sampler: str, steps: int, n: int) -> Tensor:
        with autocast():
            return loop(sampler, steps).sample(batch_size=n)

    return Other(f"denoising-diffusion-pytorch's Unet, {widths}", network, count(network), predict, sample)
