"""Noise schedules: betas and alphas_cumprod in float64, and the forward process.

Two index conventions exist. Most systems number timesteps 0 .. T-1, each with its beta. The course
"How Diffusion Models Work" keeps T + 1 points, calls index 0 clean (alphas_cumprod[0] = 1) and numbers
timesteps 1 .. T; `first` is the number of the first noisy timestep.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.errors import InputError, check_float, check_int, shown, unknown_name, wrong_type

if TYPE_CHECKING:  # the command line reads names and numbers without torch
    from torch import Tensor

MAX_TIMESTEPS = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """A variance-preserving noise schedule (Ho et al. 2020, eq. 2 and 4).

    Attributes:
        betas: (N,) float64 in (0, 1), indexed by timestep; N = T, or T + 1 where first = 1. The last may be 1, so that
            x_T is pure noise (zero terminal SNR); such a schedule is not for networks that predict epsilon.
        first: the first timestep, 0 or 1. With 1, alphas_cumprod[0] is set to 1 after the product is taken, so the
            factor 1 - betas[0] stays in every later entry, as the course has it.
        name, params: how it was made, kept in checkpoints; "custom" for betas of the user's own.
        alphas_cumprod: (N,) float64, the product of 1 - betas.

    Raises:
        InputError: for betas outside of these or not one-dimensional.
    """

    betas: np.ndarray
    _: KW_ONLY
    first: int = 0
    name: str = "custom"
    params: Mapping[str, Any] = field(default_factory=dict)
    alphas_cumprod: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.betas, str):
            raise InputError(f"betas = {self.betas!r}; accepted: numbers, or fastdiff.make_schedule({self.betas!r})")
        try:
            betas = np.array(self.betas, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise wrong_type("betas", self.betas, "numbers, one for each timestep") from None
        if self.first not in (0, 1):
            raise InputError(f"first = {self.first!r}; accepted: 0 or 1")
        if betas.ndim != 1 or len(betas) <= self.first:
            raise InputError(f"betas of shape {betas.shape}; accepted: one dimension, one entry per timestep")
        good = (betas > 0) & ((betas < 1) | ((betas == 1) & (np.arange(len(betas)) == len(betas) - 1)))  # not NaN
        if not good.all():
            raise InputError(
                f"a beta of {betas[~good][0]}; accepted: values strictly between 0 and 1, the last up to 1"
            )
        alphas_cumprod = np.cumprod(1.0 - betas)
        if self.first == 1:
            alphas_cumprod[0] = 1.0
        for column in (betas, alphas_cumprod):
            column.setflags(write=False)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alphas_cumprod", alphas_cumprod)

    @property
    def num_timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.betas) - self.first

    def __repr__(self) -> str:
        params = "".join(f", {name}={value:g}" for name, value in self.params.items())
        return f"Schedule({self.name!r}, {self.num_timesteps} timesteps{params})"

    def config(self) -> dict[str, Any]:
        """Plain values from which `from_config` makes this schedule again."""
        if self.name == "custom":
            return {"name": "custom", "betas": self.betas.tolist(), "first": self.first}
        return {"name": self.name, "timesteps": self.num_timesteps, **self.params}

    def q_sample(self, x0: Tensor, t: int | Tensor, noise: Tensor | None = None) -> Tensor:
        """Forward process, q(x_t | x_0) = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020, eq. 4).

        Args:
            x0: (B, ...) float.
            t: a timestep for all, or (B,) integers, within the indices of alphas_cumprod.
            noise: x0's shape; drawn by torch.randn_like unless given.

        Returns:
            (B, ...) in x0's dtype.

        Raises:
            InputError: for a timestep that the schedule does not have.
        """
        import torch

        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * (torch.randn_like(x0) if noise is None else noise)

    def alpha_sigma(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), (B, 1, ...) or (1, 1, ...), in the dtype and on the device of `like`."""
        import torch

        last = len(self.alphas_cumprod) - 1
        try:
            t = torch.as_tensor(t, device="cpu").reshape(-1)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise wrong_type("t", t, f"a whole number from 0 to {last}, or one for each image") from None
        if (
            t.dtype == torch.bool
            or t.is_floating_point()
            or len(t) not in (1, len(like))
            or not 0 <= int(t.min()) <= int(t.max()) <= last
        ):
            raise InputError(f"t = {t.tolist()}; accepted: a whole number from 0 to {last}, or one for each image")
        abar = torch.from_numpy(self.alphas_cumprod.copy())[t].view(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like), (1.0 - abar).sqrt().to(like)


def _check_range(beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise InputError(f"beta_start = {beta_start}, beta_end = {beta_end}; accepted: 0 < beta_start <= beta_end < 1")


def _linear(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """DDPM (Ho et al. 2020), section 4."""
    _check_range(beta_start, beta_end)
    return np.linspace(beta_start, beta_end, timesteps)


def _quadratic(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    _check_range(beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2


def _sigmoid(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    _check_range(beta_start, beta_end)
    return 1.0 / (1.0 + np.exp(-np.linspace(-6, 6, timesteps))) * (beta_end - beta_start) + beta_start


def _cosine(timesteps: int, s: float = 0.008, min_beta: float = 1e-4, max_beta: float = 0.9999) -> np.ndarray:
    """Improved DDPM (Nichol and Dhariwal 2021), eq. 17, with beta clipped as the Annotated tutorial does."""
    if not 0 <= min_beta < max_beta < 1:
        raise InputError(f"min_beta = {min_beta}, max_beta = {max_beta}; accepted: 0 <= min_beta < max_beta < 1")
    x = np.linspace(0, timesteps, timesteps + 1) / timesteps
    abar = np.cos((x + s) / (1 + s) * np.pi / 2) ** 2
    return np.clip(1 - abar[1:] / abar[:-1], min_beta, max_beta)


def _squaredcos_cap_v2(timesteps: int, max_beta: float = 0.999) -> np.ndarray:
    """The cosine with the bounds of diffusers, OpenAI's code and denoising-diffusion-pytorch."""
    return _cosine(timesteps, min_beta=0.0, max_beta=max_beta)


def _rescaled(betas: np.ndarray) -> np.ndarray:
    """Betas whose abar ends in 0 and starts as before (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas))
    abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return 1 - abar / np.append(1.0, abar[:-1])


def _course(timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """The course's T + 1 points; index 0 is the clean end."""
    return _linear(timesteps + 1, beta_start, beta_end)


_BETAS: dict[str, Callable[..., np.ndarray]] = {
    "linear": _linear,
    "cosine": _cosine,
    "squaredcos_cap_v2": _squaredcos_cap_v2,
    "quadratic": _quadratic,
    "scaled_linear": _quadratic,
    "sigmoid": _sigmoid,
    "course": _course,
}
NAMES = tuple(_BETAS)


def make_schedule(name: str, timesteps: int, *, rescale_zero_snr: bool = False, **params: float) -> Schedule:
    """A schedule by name.

    Args:
        name: linear, cosine, squaredcos_cap_v2, quadratic, scaled_linear (the same), sigmoid, or course (How Diffusion
            Models Work: T + 1 linear points, of which timesteps 1 .. T are used).
        timesteps: T, 1 to 100,000.
        rescale_zero_snr: Whether abar is shifted and scaled to end in 0 (Lin et al. 2024, algorithm 1), from 2
            timesteps on.
        params: beta_start, beta_end (defaults 1e-4 and 0.02); of cosine s, min_beta and max_beta (0.008, 1e-4, 0.9999);
            of squaredcos_cap_v2 max_beta (0.999).

    Returns:
        The schedule, of T timesteps.

    Raises:
        InputError: for another name, and values outside these.
    """
    if not isinstance(name, str) or name not in _BETAS:
        raise unknown_name("schedule", name, _BETAS)
    timesteps = check_int("timesteps", timesteps, 1 + bool(rescale_zero_snr), MAX_TIMESTEPS)
    params = {key: check_float(key, value) for key, value in params.items()}
    accepted = list(inspect.signature(_BETAS[name]).parameters)[1:]
    if not params.keys() <= set(accepted):
        raise InputError(f"schedule {name!r} got {sorted(params)}; accepted parameters: {', '.join(accepted)}")
    betas = _BETAS[name](timesteps, **params)
    if rescale_zero_snr:
        betas, params = _rescaled(betas), {**params, "rescale_zero_snr": True}
    return Schedule(betas, first=int(name == "course"), name=name, params=dict(params))


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The inverse of Schedule.config."""
    options = dict(config)
    name = options.pop("name", None)
    if name == "custom":
        try:
            betas = np.asarray(options["betas"], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"betas = {shown(options.get('betas'))}; accepted: a list of numbers") from None
        return Schedule(betas, first=options.get("first", 0))
    return make_schedule(str(name), options.pop("timesteps", 0), **options)
