"""Models of EDM's networks (Karras et al. 2022), which denoise x0 + sigma noise, given sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.capture.outputs import first_output
from fastdiff.errors import InputError, check_float, wrong_type
from fastdiff.model import Model
from fastdiff.samplers.schedule import Schedule

TIMESTEPS = 1000  # log sigma is linear between them too, so that samplers with nodes of their own are exact
LOWEST, HIGHEST = 1e-6, 1e6  # between which float64 tells 1 - alphas_cumprod
ATTRIBUTES = ("img_channels", "img_resolution", "label_dim", "sigma_min", "sigma_max", "round_sigma")


def from_edm(
    network: nn.Module, *, sigma_min: float = 0.002, sigma_max: float = 80.0, class_names: Sequence[str] = ()
) -> Model:
    """A Model of one of EDM's networks with its preconditioning, what the "ema" of its pickles is.

    >>> model = fastdiff.from_edm(network)
    >>> images = fastdiff.sample(model, 8, "edm", steps=18)

    That is the loop of EDM's generate.py, from the same noise. eta up to 1 is its churn, as a share of the largest, in
    all steps but the first, which would begin above sigma_max. Any other sampler runs as well, "karras" sigmas with it.
    Classes are contexts: one-hot, or by name; without one, and as what guidance leads away from, the network is given
    zeros, as in EDM.

    Args:
        network: an EDMPrecond, VPPrecond or VEPrecond, or what is called as they are: (x (B, C, H, W), sigma (B,), and
            class_labels (B, label_dim) where label_dim is above 0) → the denoised image; with their attributes
            img_channels, img_resolution, label_dim, sigma_min, sigma_max and round_sigma. It is used as it is.
        sigma_min, sigma_max: the range of noise levels, cut to the network's own.
        class_names: as in Model.

    Returns:
        The model, which predicts "sample"; its timesteps 0 to 999 are the noise levels sigma_min to sigma_max in equal
        steps of log sigma.

    Raises:
        InputError: for another network, or one that rounds noise levels, as iDDPMPrecond does; for a range that is
            empty.
    """
    if not isinstance(network, nn.Module):
        raise wrong_type("network", network, "one of EDM's, such as an EDMPrecond")
    lacking = [name for name in ATTRIBUTES if not hasattr(network, name)]
    if lacking:
        raise InputError(
            f"a network of class {type(network).__name__} without {', '.join(lacking)}; accepted: one of EDM's with "
            "its preconditioning, such as an EDMPrecond; for another make a fastdiff.Model(network, schedule, ...)"
        )
    edm: Any = network
    low = max(check_float("sigma_min", sigma_min, 0, HIGHEST), float(edm.sigma_min))
    high = min(check_float("sigma_max", sigma_max, 0, HIGHEST), float(edm.sigma_max))
    denoiser = Denoiser(network, low, high, edm.label_dim)
    given = denoiser.sigma(torch.arange(TIMESTEPS))
    if not torch.allclose(torch.as_tensor(edm.round_sigma(given)).float().cpu(), given, rtol=1e-4, atol=0):
        raise InputError(
            f"a network of class {type(network).__name__}, which rounds noise levels to some of its own; accepted: an "
            "EDMPrecond, VPPrecond or VEPrecond"
        )
    return Model(
        denoiser,
        denoiser.schedule(),
        prediction_type="sample",
        image_shape=(edm.img_channels, edm.img_resolution, edm.img_resolution),
        class_names=class_names,
    )


class Denoiser(nn.Module):
    """(x (B, C, H, W) of variance-preserving scale, t (B,)[, context]) → the denoised image, as x.

    Its timesteps 0 to 999 are noise levels in equal steps of log sigma.

    Args:
        network: (x0 + sigma noise, sigma[, context]) → the denoised image; a context of n_cfeat numbers is zeros where
            none is given.
        sigma_min, sigma_max: sigma at t = 0 and 999.
        n_cfeat: K of its contexts, 0 for none, None for others.

    Raises:
        InputError: for a range that is empty or beyond 1e-6 to 1e6.
    """

    def __init__(self, network: nn.Module, sigma_min: float, sigma_max: float, n_cfeat: int | None = 0) -> None:
        super().__init__()
        if not LOWEST <= sigma_min < sigma_max <= HIGHEST:
            raise InputError(
                f"noise levels from {sigma_min:g} to {sigma_max:g}; accepted: sigma_min from {LOWEST:g} on and below "
                f"sigma_max, up to {HIGHEST:g}"
            )
        self.network, self.n_cfeat = network, n_cfeat
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.first, self.step = math.log(sigma_min), math.log(sigma_max / sigma_min) / (TIMESTEPS - 1)

    def sigma(self, t: Tensor) -> Tensor:
        """The noise levels of timesteps, which may lie between two, float32."""
        return (self.first + self.step * t.to(torch.float32)).exp()

    def timesteps(self, sigma: np.ndarray) -> np.ndarray:
        """Those of noise levels between sigma_min and sigma_max, float64."""
        return np.clip((np.log(sigma) - self.first) / self.step, 0, TIMESTEPS - 1)

    def schedule(self) -> Schedule:
        """Of these timesteps."""
        abar = 1 / (1 + np.exp(self.first + self.step * np.arange(TIMESTEPS)) ** 2)
        return Schedule(1 - abar / np.append(1.0, abar[:-1]))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        sigma = self.sigma(t)
        unscaled = x * (1 + sigma**2).sqrt().to(x.dtype)[:, None, None, None]
        if context is None and self.n_cfeat:
            context = x.new_zeros(len(x), self.n_cfeat)
        out: Tensor = self.network(unscaled, sigma) if context is None else self.network(unscaled, sigma, context)
        return out


class Preconditioned(nn.Module):
    """(x0 + sigma noise, sigma[, context]) → the denoised image, by a network of (c_in x, c_noise[, context]).

    The coefficients are those of Karras et al. 2022, table 1.

    Args:
        network: the network; of another library's outputs the prediction is taken.
        sigma_data: the images' standard deviation.
        sign: of c_out; -1 where the network predicts v.
    """

    def __init__(self, network: nn.Module, sigma_data: float, sign: float) -> None:
        super().__init__()
        self.network, self.sign = network, sign
        self.sigma_data = check_float("sigma_data", sigma_data, LOWEST, HIGHEST)

    def forward(self, x: Tensor, sigma: Tensor, *context: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        total = level**2 + self.sigma_data**2
        skip, out = self.sigma_data**2 / total, self.sign * level * self.sigma_data / total.sqrt()
        given = (x / total.sqrt()).to(x.dtype)
        predicted = first_output(self.network(given, sigma.log() / 4, *context), x.shape[1])
        return skip.to(x.dtype) * x + out.to(x.dtype) * predicted
