"""Comparisons of exported files, run by ONNX Runtime on fresh random inputs, with torch, before they are renamed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdiff.capture.graph import SELF_CONDITION
from fastdiff.capture.outputs import first_output
from fastdiff.errors import InputError
from fastdiff.export import philox
from fastdiff.export.assemble import Face, network_model
from fastdiff.export.expected import LOOP_BOUNDS, Run
from fastdiff.export.graph import INT64, Graph, finish_model, value
from fastdiff.export.parts import Parts
from fastdiff.export.runner import OnnxSampler, onnxruntime
from fastdiff.kernels import philox as torch_philox
from fastdiff.model import Model
from fastdiff.samplers.table import HISTORY, StepTable

NETWORK_BATCHES = (1, 3, 8)
LOOP_BATCHES = (1, 3)
ANY_STEPS = 10  # rows of the tables with which a file without one is checked
# The largest distance of the network's output, relative to the norm of torch's. Float16 rounds it by about 1e-3.
NETWORK_BOUNDS = {torch.float32: 1e-5, torch.float16: 3e-3}


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        what: the quantity and the inputs, in words.
        distance: the largest found.
        bound: the largest accepted.
        unit: of both numbers, as a suffix.
    """

    what: str
    distance: float
    bound: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.what}: off by {self.distance:.1e}{self.unit} (accepted: up to {self.bound:.0e})"


def checked(checks: Iterable[Check]) -> list[Check]:
    """The checks as a list; raises InputError at the first whose distance exceeds its bound or is NaN."""
    done = []
    for check in checks:
        if not check.distance <= check.bound:
            raise InputError(f"the exported file differs from torch: {check}; no file was written")
        done.append(check)
    return done


def network_checks(file: bytes, parts: Parts) -> Iterator[Check]:
    """The output of a network's file against torch's, by relative norm."""
    model, dice = parts.model, _dice()
    channels = model.image_shape[0] * (1 + parts.learned_variance)
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 3  # as open_file
    session = onnxruntime().InferenceSession(file, options, providers=["CPUExecutionProvider"])
    schedule, worst = model.schedule, 0.0
    for batch in NETWORK_BATCHES:
        x = torch.randn(batch, *model.image_shape, generator=dice)
        last = schedule.first + schedule.num_timesteps
        timestep = torch.randint(schedule.first, last, (batch,), generator=dice)
        time = timestep.to(parts.time) if model.time == "index" else timestep.float() / schedule.num_timesteps
        given = [x, time]
        if parts.context is not None:
            given.append(parts.context.example(batch, dice))
        before = {}
        if model.self_condition:
            before[SELF_CONDITION] = torch.randn(x.shape, generator=dice)
        with torch.no_grad():
            expected = first_output(model.network(*given, **before), channels)
        given += before.values()
        names = [one.name for one in session.get_inputs()]
        out = session.run(None, dict(zip(names, (tensor.numpy() for tensor in given), strict=True)))[0]
        worst = _worse(worst, float(np.linalg.norm(out - expected.numpy()) / expected.norm()))
    batches = ", ".join(map(str, NETWORK_BATCHES))
    yield Check(f"network, batches of {batches}", worst, NETWORK_BOUNDS[parts.dtype], " of its norm")


def sampler_checks(path: Path, parts: Parts, face: Face) -> Iterator[Check]:
    """The noise's integers, one evaluation of the network, then the images of whole loops."""
    yield integers_check()
    yield from network_checks(network_model(parts).SerializeToString(), parts)
    model, bound = parts.model, LOOP_BOUNDS[parts.dtype]
    if face.pictures:  # where rounding crosses the edge between two pixel values, they differ by one
        bound = 1 + bound * 127.5
    sampler, dice = OnnxSampler(path), _dice()
    for table in [face.table] if face.table is not None else _some_tables(model, parts.learned_variance):
        worst, notes = 0.0, ""
        for n in LOOP_BATCHES:
            context = None if parts.context is None else parts.context.example(n, dice)
            run = Run(
                model,
                table,
                n,
                secrets.randbelow(2**63),
                secrets.randbelow(2**62),
                face.clip,
                context,
                None if parts.null is None or n == 1 else 1 + 2 * float(torch.rand((), generator=dice)),
                parts.dtype,
            )
            given = None if face.table is not None else table
            out = sampler.sample(
                n, seed=run.seed, first=run.first, context=context, guidance_scale=run.guidance_scale, table=given
            )
            assert isinstance(out, np.ndarray)
            distance, note = run.distance(out, bound)
            worst, notes = _worse(worst, distance), notes + note
        of = f"{table.sampler}, {len(table)} steps, batches of {', '.join(map(str, LOOP_BATCHES))}"
        what, unit = ("pictures", " of 255") if face.pictures else ("images", " of max(1, max|x|)")
        yield Check(f"{what} by {of}{notes}", worst, bound, unit)


def _dice() -> torch.Generator:
    """A freshly seeded generator, which leaves torch's global one alone."""
    return torch.Generator().manual_seed(secrets.randbelow(2**63))


def _some_tables(model: Model, learned_variance: bool) -> list[StepTable]:
    """Tables for a file without one: a deterministic sampler, one with noise and history, and one of all columns."""
    steps = min(ANY_STEPS, model.schedule.num_timesteps)
    plain, noisy = (model.table(name, steps) for name in ("ddim", "dpmpp_2m_sde"))
    free: dict[str, Any] = {"preserves_mean": False, "preserves_variance": False}
    if learned_variance:
        noisy = replace(noisy, S=2 * noisy.s, **free)
    weights: dict[str, Any] = {
        name: np.append(np.zeros(back), np.full(steps, 0.1))[:steps] for back, name in enumerate(HISTORY, start=1)
    }
    weights["o"] = 0.1
    if not model.self_condition:
        weights |= {"u": 0.2, "v": 0.8}
    full = replace(plain, sampler="all columns", init_noise_sigma=1.5, **weights, **free)
    return [plain, noisy, full]


def _worse(one: float, other: float) -> float:
    """The larger; NaN if either is."""
    return float(np.maximum(one, other))


def integers_check(write: Callable[..., list[str]] = philox.words) -> Check:
    """The share of Philox words in which the graph's operators and kernels.philox differ.

    Seeds and first samples are two random pairs, the largest ones, and ones whose lower 32 bits are all ones.
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
        made = torch_philox.words(seed, given["draw"], first, samples, elements, torch.device("cpu"))
        for ours, theirs in zip(out, made, strict=True):
            wrong += int((ours != theirs.numpy()).sum())
            total += ours.size
    return Check("noise, its integers", wrong / total, 0.0, " of them")
