"""A scheduler's run as a step table, found by running it on unit vectors.

The steps of most schedulers are linear in what they are given: x_T, the network's outputs, the clipped x0 and the
noise. Run on vectors of which each such quantity is one axis, a scheduler's own code says how much of each is in every
x, with all of its options honoured, so that no formula is written a second time here. The sums are then expressed by
the table's columns, and the table is compared with a loop of the scheduler's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdiff.samplers.prediction import Clip, coefficients
from fastdiff.samplers.table import HISTORY, StepTable, leads_to

FIT = 1e-8  # the largest distance of a sum of the table's columns from the scheduler's x, relative to its size
LOOP = 1e-4  # of the table's loop from the scheduler's, which is computed in float32, relative to the largest |x|
OUT, CLIPPED, NOISE = range(3)  # a row's axes
CLAMPS = (torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)


class NotLinearError(Exception):
    """A scheduler whose steps no table can hold; the message says why."""


class Plan(NamedTuple):
    """What is run.

    Attributes:
        name: the table's.
        scheduler: makes a scheduler of diffusers with its timesteps set.
        begin: how many of its timesteps are left out.
        clip: of the predicted x0, as its options say it.
        learned: whether the network's second output chooses the variance.
        more: further arguments of its step.
        time: noise levels sigma / alpha → what the network is given for them; None for the scheduler's timesteps.
    """

    name: str
    scheduler: Callable[[], Any]
    begin: int
    clip: Clip
    learned: bool
    more: dict[str, Any]
    time: Callable[[np.ndarray], np.ndarray] | None = None

    def start(self) -> tuple[Any, Sequence[Tensor]]:
        """A fresh scheduler that begins there, and the timesteps that are left."""
        scheduler = self.scheduler()
        if self.begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.begin)
        return scheduler, scheduler.timesteps[self.begin :]


def table_of(plan: Plan) -> StepTable:
    """The table of the run.

    Raises:
        NotLinearError: for a scheduler whose steps no table can hold.
        InputError: where no x0 follows from its first timestep.
    """
    run = _Run(plan, variance=-1.0)
    upper = _Run(plan, variance=1.0).s if plan.learned else run.s
    try:
        table = run.table(upper, noise=False)
    except NotLinearError as problem:
        if run.s.any():  # of which what is remembered would have a share
            raise
        try:
            table = run.table(upper, noise=True)
        except NotLinearError:
            raise problem from None
    _compare(table, plan)
    return table


class _Axes(TorchFunctionMode):
    """Within it a step's noise and its clipped x0 are axes, and float64 stays float64.

    Attributes:
        shape: of every vector: one pixel for each axis, x_T first and then each row's three.
        row: the one that is run.
        unclipped: what that row has clipped, or None.
        drawn: whether it has drawn noise.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.shape = (1, 1, 1, 1 + 3 * rows)
        self.begin(0)

    def begin(self, row: int) -> None:
        self.row, self.drawn = row, False
        self.unclipped: np.ndarray | None = None

    def axis(self, number: int) -> Tensor:
        made = torch.zeros(self.shape, dtype=torch.float64)
        made[..., number] = 1
        return made

    def clipped(self, x0: Tensor) -> Tensor:
        """The axis of the clipped x0, which x0 becomes."""
        if self.unclipped is not None:
            raise NotLinearError("it clips twice in a step")
        self.unclipped = x0.numpy().ravel().copy()
        return self.axis(1 + 3 * self.row + CLIPPED)

    def noise(self) -> Tensor:
        if self.drawn:
            raise NotLinearError("it draws noise twice in a step")
        self.drawn = True
        return self.axis(1 + 3 * self.row + NOISE)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        whole = bool(args) and isinstance(args[0], Tensor) and args[0].shape == self.shape
        if func in (torch.randn, torch.randn_like):
            return self.noise()
        if whole and func in CLAMPS:
            return self.clipped(args[0])
        if whole and (func is Tensor.float or (func is Tensor.to and torch.float32 in (*args, *kwargs.values()))):
            return args[0]
        return func(*args, **kwargs)


class _Run:
    """A run on axes.

    Attributes:
        x: for each row what the network is given, and at the end the images, (axes,).
        unclipped: for each row the x0 that it clips, (axes,), or None.
        time, alpha, sigma, p, q, s: the table's columns.
    """

    def __init__(self, plan: Plan, variance: float) -> None:
        scheduler, timesteps = plan.start()
        config, count = scheduler.config, len(timesteps)
        for name, value in vars(scheduler).items():
            if isinstance(value, Tensor) and value.is_floating_point() and name != "timesteps":
                setattr(scheduler, name, value.double())
        self.name, self.kind = plan.name, "sample" if preconditions(scheduler) else config.prediction_type
        self.alpha, self.sigma = _levels(scheduler, timesteps, plan.begin)
        self.time = np.array([float(t) for t in timesteps]) if plan.time is None else plan.time(self.sigma / self.alpha)
        self.p, self.q = coefficients(self.kind, self.alpha, self.sigma)
        axes = _Axes(count)
        scheduler._threshold_sample = axes.clipped
        sample = axes.axis(0) * float(scheduler.init_noise_sigma)
        self.x: list[np.ndarray] = []
        self.unclipped: list[np.ndarray | None] = []
        for row, t in enumerate(timesteps):
            self.x.append(_given(scheduler, sample, t).numpy().ravel().copy())
            out = _output(scheduler, axes.axis(1 + 3 * row + OUT), sample)
            if plan.learned:
                out = torch.cat((out, torch.full(axes.shape, variance, dtype=torch.float64)), dim=1)
            axes.begin(row)
            with axes:
                sample = scheduler.step(out, t, sample, return_dict=False, **plan.more)[0]
            self.unclipped.append(axes.unclipped)
        self.x.append(sample.numpy().ravel().copy())
        if not np.isfinite(self.x).all():
            raise NotLinearError("its steps are not finite")
        self.s = np.array([self.x[row + 1][_place(row, NOISE)] for row in range(count)])

    def _x0(self, row: int) -> np.ndarray:
        """What the row takes for x0."""
        made = self.p[row] * self.x[row]
        made[_place(row, OUT)] += self.q[row]
        unclipped = self.unclipped[row]
        if unclipped is None:
            return made
        if np.linalg.norm(unclipped - made) > FIT * np.linalg.norm(made):
            raise NotLinearError(f"it clips something else than the predicted image in step {row}")
        return np.eye(1, len(made), _place(row, CLIPPED))[0]

    def table(self, upper: np.ndarray, noise: bool) -> StepTable:
        """The table.

        Args:
            upper: its column S.
            noise: whether the predicted noise is remembered, not x0.

        Raises:
            NotLinearError: if no table gives this run.
        """
        ones = np.ones_like(self.p)
        u, v = (ones / self.sigma, -self.alpha / self.sigma) if noise else (0 * ones, ones)
        columns: dict[str, Any] = {"p": self.p, "q": self.q, "s": self.s, "u": u, "v": v, "S": upper}
        columns |= {name: 0 * ones for name in ("a", "b", "o", *HISTORY)}
        remembered: list[np.ndarray] = []
        for row, end in enumerate(self.x[1:]):
            x0, left = self._x0(row), end.copy()
            out, clipped = _place(row, OUT), _place(row, CLIPPED)
            # Where nothing is clipped, x0 serves for the output that it consists of.
            b, o = (left[out] / self.q[row], 0.0) if self.unclipped[row] is None else (left[clipped], left[out])
            left -= b * x0
            left[[out, _place(row, NOISE)]] -= o, self.s[row]
            weights = _weights(left, [self.x[row], *remembered[:3]], float(np.linalg.norm(end)))
            if weights is None:
                raise NotLinearError(f"step {row} uses more than the table's columns hold")
            for name, value in zip(("b", "o", "a", *HISTORY), (b, o, *weights), strict=False):
                columns[name][row] = value + 0.0  # not -0
            remembered.insert(0, u[row] * self.x[row] + v[row] * x0)
        columns |= {"alpha": self.alpha, "sigma": self.sigma}
        alpha_next, sigma_next = leads_to(columns)
        return StepTable(
            sampler=self.name,
            prediction_type=self.kind,
            timestep=self.time,
            time=self.time,
            alpha_next=alpha_next,
            sigma_next=sigma_next,
            init_noise_sigma=self.x[0][0],
            **columns,
        )


def _place(row: int, kind: int) -> int:
    """The axis of a row's OUT, CLIPPED or NOISE."""
    return 1 + 3 * row + kind


def _weights(total: np.ndarray, parts: Sequence[np.ndarray], size: float) -> np.ndarray | None:
    """Those of the first parts, as few as it takes, that sum up to total within FIT of that size; None if none do."""
    for count in range(1, len(parts) + 1):
        matrix = np.stack(parts[:count], axis=1)
        weights = np.linalg.lstsq(matrix, total, rcond=None)[0]
        if np.linalg.norm(matrix @ weights - total) <= FIT * size:
            return weights
    return None


def _levels(scheduler: Any, timesteps: Sequence[Tensor], begin: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma of the timesteps, which schedulers have as alphas_cumprod or as sigma / alpha."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        abar = scheduler.alphas_cumprod[torch.stack([torch.as_tensor(t) for t in timesteps]).long()].numpy()
        return np.sqrt(abar), np.sqrt(1 - abar)
    ratio = sigmas[begin : begin + len(timesteps)].numpy()
    return 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)


def preconditions(scheduler: Any) -> bool:
    """Whether it has the network's preconditioning of EDM in it; the tables are then for the denoised image."""
    if not hasattr(scheduler, "precondition_outputs"):
        return False
    data, sigma = scheduler.config.sigma_data, torch.tensor([0.1, 7.0], dtype=torch.float64)
    total = sigma**2 + data**2
    wanted = sigma.log() / 4, data**2 / total, sigma * data / total.sqrt()
    found = (
        scheduler.precondition_noise(sigma),
        scheduler.precondition_outputs(1.0, 0.0, sigma),
        scheduler.precondition_outputs(0.0, 1.0, sigma).abs(),
    )
    return all(torch.allclose(one, other, rtol=1e-6) for one, other in zip(found, wanted, strict=True))


def _given(scheduler: Any, sample: Tensor, t: Tensor) -> Tensor:
    """What the network is given: of EDM's schedulers, what an edm.Denoiser is."""
    given: Tensor = scheduler.scale_model_input(sample, t)
    return sample / (1 + scheduler.sigmas[scheduler.step_index] ** 2).sqrt() if preconditions(scheduler) else given


def _output(scheduler: Any, out: Tensor, sample: Tensor) -> Tensor:
    """The output for a step: of EDM's schedulers, that which is preconditioned to the denoised image `out`."""
    if not preconditions(scheduler):
        return out
    sigma = scheduler.sigmas[scheduler.step_index]
    nothing = scheduler.precondition_outputs(sample, 0.0, sigma)
    made: Tensor = (out - nothing) / scheduler.precondition_outputs(0.0, 1.0, sigma)
    return made


class _Draws(TorchFunctionMode):
    """Within it these normals are drawn."""

    def __init__(self, normals: Tensor) -> None:
        super().__init__()
        self.normals = normals

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.randn, torch.randn_like):
            return self.normals
        return func(*args, **(kwargs or {}))


def _compare(table: StepTable, plan: Plan) -> None:
    """Raise NotLinearError unless a loop by the table ends where the scheduler's own does."""
    dice = torch.Generator().manual_seed(0)
    shape = (2, 3, 4, 5)
    normals = torch.randn(len(table) + 1, *shape, generator=dice)

    def network(x: Any, t: float) -> Tensor:
        made = 0.8 * torch.tanh(torch.as_tensor(x) + np.sin(0.01 * t))  # of a slope that amplifies no rounding
        return torch.cat((made, made.flip(-1)), dim=1) if plan.learned else made

    scheduler, timesteps = plan.start()
    theirs = normals[0] * scheduler.init_noise_sigma
    for drawn, t, time in zip(normals[1:], timesteps, table.time, strict=True):
        out = _output(scheduler, network(_given(scheduler, theirs, t), float(time)), theirs)
        with _Draws(drawn):
            theirs = scheduler.step(out, t, theirs, return_dict=False, **plan.more)[0]
    ours, largest = looped(table, lambda x, t: network(x, t).numpy(), normals.double().numpy(), plan.clip)
    off = float(np.abs(ours - theirs.numpy()).max()) / largest
    if not off <= LOOP:
        raise NotLinearError(f"its loop and the table's differ by {off:.1g} of the largest |x|")


def looped(
    table: StepTable, network: Callable[[np.ndarray, float], np.ndarray], normals: np.ndarray, clip: Clip
) -> tuple[np.ndarray, float]:
    """A run of a table in float64.

    Args:
        network: (x, t) → its output.
        normals: (rows + 1, n, C, H, W), of x_T and of each row.

    Returns:
        The images (n, C, H, W), and the largest |x| on the way.
    """
    x = normals[0] * table.init_noise_sigma
    remembered: list[np.ndarray] = []
    largest = float(np.abs(x).max())
    for row in range(len(table)):
        p, q, a, b, c, s, o, d, e, u, v, upper = table.rows[row]
        out = network(x, float(table.time[row]))
        channels = x.shape[1]
        out, variance = out[:, :channels], out[:, channels:]
        x0 = p * x + q * out
        if isinstance(clip, tuple):
            bound = np.quantile(np.abs(x0).reshape(len(x0), -1), clip[1], axis=1).clip(1).reshape(-1, 1, 1, 1)
            x0 = x0.clip(-bound, bound) / bound
        elif clip is not None:
            x0 = x0.clip(-clip, clip)
        past = sum(weight * m for weight, m in zip((c, d, e), remembered, strict=False) if weight)
        deviation = s if upper == s else s * (upper / s) ** ((variance + 1) / 2)
        remembered.insert(0, u * x + v * x0)
        x = a * x + b * x0 + o * out + past + deviation * normals[row + 1]
        largest = max(largest, float(np.abs(x).max()))
    return x, largest
