"""Every exported file is run in ONNX Runtime against torch, on fresh random inputs, before it gets its name."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdiff.errors import InputError
from fastdiff.export import philox
from fastdiff.export.assemble import Face
from fastdiff.export.graph import INT64, Graph, finish_model, value
from fastdiff.export.runner import OnnxSampler, onnxruntime, open_file
from fastdiff.export.trace import Parts
from fastdiff.images import to_uint8
from fastdiff.kernels import philox as reference
from fastdiff.kernels.denoise_step import denoise_step_reference, x0_bound
from fastdiff.model import Model
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.table import StepTable
from fastdiff.sampling import sample

NETWORK_BATCHES = (1, 3, 8)
LOOP_BATCHES = (1, 3)
ANY_STEPS = 10  # rows of the tables by which a file without one is tried
# Of the network relative to the norm, of a loop's images in units of max(1, max|x|). In float16 every evaluation is off
# by about 1e-3, which a loop adds up.
NETWORK_BOUNDS = {torch.float32: 1e-5, torch.float16: 3e-3}
LOOP_BOUNDS = {torch.float32: 1e-4, torch.float16: 5e-2}
SHAKY = 10


@dataclass(frozen=True)
class Check:
    """One comparison: what was compared, how far apart, how far it may be, and what the two numbers count."""

    what: str
    distance: float
    bound: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.what}: off by {self.distance:.1e}{self.unit} (accepted: up to {self.bound:.0e})"


def checked(checks: Iterable[Check]) -> list[Check]:
    """All of them; raises InputError at the first beyond its bound, NaN included."""
    done = []
    for check in checks:
        if not check.distance <= check.bound:
            raise InputError(f"the exported file differs from torch: {check}; no file was written")
        done.append(check)
    return done


def network_checks(path: Path, parts: Parts) -> Iterator[Check]:
    """The network, relative to the norm of torch's prediction."""
    model, dice = parts.model, _dice()
    session, _ = open_file(path)
    schedule, worst = model.schedule, 0.0
    channels, height, width = model.image_shape
    sizes = [(batch, *model.image_shape) for batch in NETWORK_BATCHES]
    if parts.free_size:
        sizes.append((2, channels, 2 * height, 4 * width))
    for shape in sizes:
        batch = shape[0]
        x = torch.randn(shape, generator=dice)
        last = schedule.first + schedule.num_timesteps
        timestep = torch.randint(schedule.first, last, (batch,), generator=dice)
        time = timestep if model.time == "index" else timestep.float() / schedule.num_timesteps
        given = [x, time]
        if parts.width:
            given.append(torch.rand(batch, parts.width, generator=dice) * 2)
        with torch.no_grad():
            expected = model.network(*given)
        names = [one.name for one in session.get_inputs()]
        out = session.run(None, dict(zip(names, (tensor.numpy() for tensor in given), strict=True)))[0]
        worst = _worse(worst, float(np.linalg.norm(out - expected.numpy()) / expected.norm()))
    batches = ", ".join(map(str, NETWORK_BATCHES))
    size = " and of another size" if parts.free_size else ""
    yield Check(f"network, batches of {batches}{size}", worst, NETWORK_BOUNDS[parts.dtype], " of its norm")


def sampler_checks(path: Path, parts: Parts, face: Face) -> Iterator[Check]:
    """The noise's integers, then whole loops."""
    yield integers_check()
    model, bound = parts.model, LOOP_BOUNDS[parts.dtype]
    sampler, dice = OnnxSampler(path), _dice()
    for table in [face.table] if face.table is not None else _some_tables(model):
        worst, notes = 0.0, ""
        for n in LOOP_BATCHES:
            context = torch.rand(n, parts.width, generator=dice) if parts.width else None
            run = Run(
                model,
                table,
                n,
                secrets.randbelow(2**63),
                secrets.randbelow(2**62),
                face.clip,
                context,
                None if context is None or n == 1 else 1 + 2 * float(torch.rand((), generator=dice)),
            )
            given = None if face.table is not None else table
            out = sampler.sample(
                n, seed=run.seed, first=run.first, context=context, guidance_scale=run.guidance_scale, table=given
            )
            assert isinstance(out, np.ndarray)
            distance, note = run.distance(out, bound)
            worst, notes = _worse(worst, distance), notes + note
        of = f"{table.sampler}, {len(table)} steps, batches of {', '.join(map(str, LOOP_BATCHES))}"
        if face.pictures:
            # A float beyond the edge between two values moves a pixel by one.
            yield Check(f"pictures by {of}", worst, 1 + bound * 127.5, " of 255")
        else:
            yield Check(f"images by {of}{notes}", worst, bound, " of max(1, max|x|)")


@dataclass(frozen=True)
class Run:
    """Samples that both sides make: first .. first + n - 1 of the seed."""

    model: Model
    table: StepTable
    n: int
    seed: int
    first: int
    clip: Clip
    context: torch.Tensor | None
    guidance_scale: float | None

    def distance(self, out: np.ndarray, bound: float) -> tuple[float, str]:
        """The largest of the samples, and a note on samples that no float32 computes well.

        A loop can amplify its own rounding: on some samples torch's float32 is far from float64, and from any other
        float32. Such a one is judged by SHAKY times torch's own distance from float64.
        """
        expected = sample(
            self.model,
            self.n,
            self.table,
            seed=self.seed,
            first=self.first,
            context=self.context,
            device="cpu",
            guidance_scale=self.guidance_scale,
            clip=self.clip,
            form="eager",
        )
        assert isinstance(expected, torch.Tensor)
        if out.dtype == np.uint8:
            pixels = to_uint8(expected).permute(0, 2, 3, 1).numpy()
            return float(np.abs(out.astype(int) - pixels.astype(int)).max()), ""
        images, unit = torch.from_numpy(out), max(1.0, float(expected.abs().max()))
        apart = _largest(images - expected) / unit
        if bool((apart <= bound).all()) or bound > LOOP_BOUNDS[torch.float32]:
            return float(apart.max()), ""
        try:
            exact = self.exact()
        except RuntimeError:  # a network that does not run in float64
            return float(apart.max()), ""
        own = _largest(expected - exact) / unit
        judged = _largest(images - exact) / unit * (bound / (SHAKY * own))
        shaky = apart > bound
        note = f" ({int(shaky.sum())} where torch's float32 is {float(own.max()):.0e} from float64, judged by that)"
        return float(torch.where(shaky, judged, apart).max()), note

    def exact(self) -> torch.Tensor:
        """The images by a plain loop in float64, from the float32 noise."""
        network = copy.deepcopy(self.model.network).double()
        rows = torch.from_numpy(self.table.rows)
        times = torch.tensor(self.table.time, dtype=torch.int64 if self.model.time == "index" else torch.float64)
        guided = self.guidance_scale not in (None, 1)
        scale = torch.tensor(self.guidance_scale, dtype=torch.float64) if guided else None
        contexts = [] if self.context is None else [self.context.double()]
        shape = (self.n, *self.model.image_shape)

        def normals(draw: int) -> torch.Tensor:
            return reference.normals_reference(self.seed, draw, self.first, shape, torch.device("cpu")).double()

        x, x0 = normals(0), None
        for i in range(len(rows)):
            index, time = torch.tensor(i), times[i].expand(self.n)
            with torch.no_grad():
                out = network(x, time, *contexts)
                if guided:
                    out = torch.cat((network(x, time, torch.zeros_like(contexts[0])), out))
            clip: Any = self.clip
            if isinstance(clip, tuple):
                clip = x0_bound(x, out, rows, index, clip[1], scale)
            x, x0 = denoise_step_reference(
                x, out, rows, index, x0, noise=normals(i + 1), clip=clip, guidance_scale=scale
            )
        return x


def _largest(difference: torch.Tensor) -> torch.Tensor:
    """(n,): the largest size in each sample."""
    return difference.abs().flatten(1).amax(1)


def _dice() -> torch.Generator:
    """Fresh random inputs, with the caller's generator left alone."""
    return torch.Generator().manual_seed(secrets.randbelow(2**63))


def _some_tables(model: Model) -> list[StepTable]:
    steps = min(ANY_STEPS, model.schedule.num_timesteps)
    return [model.table(name, steps) for name in ("ddim", "dpmpp_2m_sde")]


def _worse(one: float, other: float) -> float:
    """The larger; NaN if either is."""
    return float(np.maximum(one, other))


def integers_check(write: Callable[..., list[str]] = philox.words) -> Check:
    """The words that the graph's operators make against kernels.philox, as the share that differs.

    Two random seeds and sample indices beyond 2^32, and the largest, whose halves are negative as 32-bit integers.
    """
    elements, samples, wrong, total = 13, 5, 0, 0
    g = Graph()
    stream = philox.streams(g, "seed", "first", "n")
    names = [g.named(word, f"word{i}") for i, word in enumerate(write(g, stream, "draw", elements))]
    scalars = [value(name, INT64, ()) for name in ("seed", "first", "n", "draw")]
    model = finish_model(g.finish("words", scalars, [value(name, INT64, ("n", "blocks")) for name in names]), {})
    session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    top = 2**63 - 1
    cases = [(secrets.randbelow(top), secrets.randbelow(2**62)) for _ in range(2)]
    for seed, first in [*cases, (top, top - samples), (0xFFFFFFFF, 0xFFFFFFFE)]:
        given = {"seed": seed, "first": first, "n": samples, "draw": secrets.randbelow(1000)}
        out = session.run(None, {name: np.array(number) for name, number in given.items()})
        made = reference.words(seed, given["draw"], first, samples, elements, torch.device("cpu"))
        for ours, theirs in zip(out, made, strict=True):
            wrong += int((ours != theirs.numpy()).sum())
            total += ours.size
    return Check("noise, its integers", wrong / total, 0.0, " of them")
