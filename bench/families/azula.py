"""azula's UNet in its denoisers and samplers, whose last node is not quite clean: sigma is there 1e-3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.bench.families.family import IMAGES, Family, Loop, drawn, normals
from fastdiff.bench.peers.wrapped import Backbone
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.path import Path
from fastdiff.samplers.samplers import tabulate

SIZE, LAST = 16, 999
# The denoiser's preconditioning, the schedule, the steps, and eta of DDIM, 1 for its DDPM.
CONFIGURATIONS = (
    ("Karras", "VP", 20, 0.0),
    ("Karras", "VP", 20, 1.0),
    ("Karras", "Cosine", 20, 0.0),
    ("Karras", "Cosine", 50, 1.0),
    ("Simple", "VP", 50, 0.0),
    ("Simple", "VP", 20, 1.0),
    ("Simple", "Cosine", 20, 0.0),
    ("Simple", "Cosine", 20, 1.0),
    ("Karras", "VP", 100, 0.0),
    ("Karras", "VP", 50, 0.5),
)


class Denoised(nn.Module):
    """(x, t) → the denoised image, by a denoiser of azula's, whose time goes from 0 to 1."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.denoiser(x, t.to(torch.float32) / LAST).mean
        return out


def _loops() -> Iterator[Loop]:
    import azula.denoise
    import azula.nn.unet
    import azula.noise
    import azula.sample

    torch.manual_seed(0)
    unet = azula.nn.unet.UNet(3, 3, hid_channels=(16, 32), hid_blocks=(1, 1), norm="group", groups=4, mod_features=8)
    backbone = Backbone(unet, 8).eval().requires_grad_(False)
    for kind, schedule, steps, eta in CONFIGURATIONS:
        levels = getattr(azula.noise, f"{schedule}Schedule")()
        denoiser = getattr(azula.denoise, f"{kind}Denoiser")(backbone, levels)
        options: dict[str, Any] = {"steps": steps, "silent": True, "dtype": torch.float64}
        sampler = azula.sample.DDPMSampler(denoiser, **options)
        if eta < 1:
            sampler = azula.sample.DDIMSampler(denoiser, eta=eta, **options)
        words = "DDPM" if eta == 1 else f"DDIM, eta {eta:g}"
        yield Loop(
            f"{kind}Denoiser, {schedule}Schedule, {words}, {steps} steps",
            False,
            partial(drawn, partial(_theirs, sampler)),
            partial(_ours, denoiser, levels, steps, eta),
        )


def _theirs(sampler: Any) -> Tensor:
    x: Tensor = sampler(sampler.init((IMAGES, 3, SIZE, SIZE), var=0.0))
    return x.float()


def _ours(denoiser: nn.Module, levels: Any, steps: int, eta: float) -> Tensor:
    model = fastdiff.Model(
        Denoised(denoiser),
        fastdiff.make_schedule("linear", LAST + 1),
        prediction_type="sample",
        image_shape=(3, SIZE, SIZE),
    )
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    alpha, sigma = (level.numpy() for level in levels(times))
    path = Path.through(LAST * times[:-1].numpy(), alpha[:-1], sigma[:-1], alpha_last=alpha[-1], sigma_last=sigma[-1])
    table = tabulate("ddim", path, ddim(path, math.sqrt(eta)), prediction_type="sample")  # its eta is of variances
    return fastdiff.sample(model, IMAGES, table, noise=normals, device="cpu")


FAMILIES = (Family("azula's UNet", _loops, ("azula", "einops"), "azula@32"),)
