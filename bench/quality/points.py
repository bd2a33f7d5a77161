"""Time per image against quality, by sampler and steps.

\b
fastdiff bench quality --samples out/quality      distances, then times
fastdiff bench quality --do times                 only times, for the report that is there, on a quiet machine

For each point (a sampler, a number of steps) images 0 to n - 1 of seed 0 are sampled into SAMPLES/MODEL/SAMPLER-STEPS,
where an interrupted run goes on and a finished folder is taken as it is, and compared with the pictures that the model
was not trained on: the Fréchet distance between features of the project's own classifier. The floor is the distance of
as many training pictures. Beside it stand the distances of the first and the last half of the images, which tell how
firm it is, and the distance to training pictures. The times are those of engine.sample(64), the points taking turns.
Exits with 1 where a point could not be measured.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

import fastdiff
from fastdiff.bench.contender import Ready
from fastdiff.bench.quality import page
from fastdiff.bench.quality.data import read_data
from fastdiff.bench.report import origin
from fastdiff.bench.timing import Turns
from fastdiff.data.images import ImageData
from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import choose_device
from fastdiff.engine.request import DEFAULT_BATCH, Asked
from fastdiff.errors import InputError, check_int, unknown_name, with_type
from fastdiff.evaluation import pixels
from fastdiff.evaluation.classifier import NAMES
from fastdiff.evaluation.drawn import SEED, Classes, class_names, draw, in_turn
from fastdiff.evaluation.features import own
from fastdiff.evaluation.reference import Reference
from fastdiff.files import check_writable
from fastdiff.provenance import machine
from fastdiff.shards.manifest import Samples
from fastdiff.terminal import say, show

OUTPUT = Path(__file__).resolve().parent.parent.parent / "bench" / "results" / "quality-cpu.json"
POINTS = {
    "fashion-mnist": "ddim:5 ddim:10 ddim:15 ddim:25 ddim:50 dpmpp_2m:5 dpmpp_2m:10 dpmpp_2m:15 dpmpp_2m:25 "
    "dpmpp_2m_sde:10 dpmpp_2m_sde:25 dpmpp_2m_sde:50",
    "sprites": "ddim:10 ddim:25 dpmpp_2m:10 dpmpp_2m:15 dpmpp_2m_sde:10 dpmpp_2m_sde:25 ddpm_large:100",
}


class Point(NamedTuple):
    """A sampler, its steps, and the guidance scale if there is one."""

    sampler: str
    steps: int
    guidance_scale: float | None = None

    @classmethod
    def parse(cls, text: str) -> Point:
        """From SAMPLER:STEPS or SAMPLER:STEPS:GUIDANCE; raises InputError."""
        try:
            sampler, steps, *guidance = text.split(":")
            return cls(sampler, int(steps), *map(float, guidance))
        except (ValueError, TypeError):
            raise InputError(f"point {text!r}; accepted: SAMPLER:STEPS[:GUIDANCE], such as ddim:25") from None

    def __str__(self) -> str:
        """Also the name of its folder."""
        guided = "" if self.guidance_scale is None else f"-g{self.guidance_scale:g}"
        return f"{self.sampler}-{self.steps}{guided}"

    @property
    def evaluations(self) -> int:
        """Of the network, for one image."""
        return self.steps * (1 if self.guidance_scale in (None, 1) else 2)

    def request(self, model: fastdiff.Model, n: int, contexts: list[Any] | None = None) -> Samples:
        """Images 0 to n - 1, as `fastdiff sample` makes them; classes in turn unless contexts are given."""
        return Samples(
            self.sampler,
            self.steps,
            eta=0.0,
            spacing="trailing",
            clip="model",
            seed=SEED,
            first=0,
            n=n,
            contexts=in_turn(model) if contexts is None else contexts,
            guidance_scale=self.guidance_scale,
        )


def quality(
    name: str, points: list[Point], data: ImageData, n: int, samples: Path, device: torch.device, threads: int | None
) -> dict[str, Any]:
    """The model's part of the report: a row for each point; one that fails is a row with a reason."""
    model = fastdiff.load(name)
    features = own(name, device)
    classes = Classes.of(model, data)
    reference = Reference.of(features, data, n, [classes.alike])
    entry: dict[str, Any] = {
        "model": name,
        "seed": SEED,
        **features.facts,
        **reference.facts(),
        "floor": reference.floors[classes.alike],
        "in_turn": class_names(model),
        "rows": [],
    }
    for point in points:
        row: dict[str, Any] = {**point._asdict(), "evaluations": point.evaluations}
        entry["rows"].append(row)
        try:
            ask = point.request(model, n, classes.contexts)
            options = {"device": device.type, "threads": threads}
            images, row["made_by"] = draw(model, name, ask, samples / name / str(point), options)
            row.update(reference.compare(features.of(pixels.samples(images), pixels.everything(n))))
        except Exception as problem:
            row["reason"] = str(problem) if isinstance(problem, InputError) else with_type(problem)
        say(f"{name} {point}: {row.get('distance', row.get('reason'))}")
    return entry


def measure(entry: dict[str, Any], device: torch.device, rounds: int) -> None:
    """Put milliseconds per image into the rows: medians of rounds, of a batch of `DEFAULT_BATCH` in one call."""
    model, turns = fastdiff.load(entry["model"]), Turns()
    rows = {str(_point(row)): row for row in entry["rows"] if "distance" in row}
    contexts = Point("ddim", 1).request(model, 1).request(model).contexts
    context = None if contexts is None else contexts.rows(0, DEFAULT_BATCH)
    engine = Engine(model, batch_size=DEFAULT_BATCH, device=device)  # each call has its own table
    for name, row in rows.items():
        for stale in ("milliseconds", "lowest", "highest", "untimed"):
            row.pop(stale, None)
        point = _point(row)
        asked = Asked(seed=SEED, context=context, guidance_scale=point.guidance_scale)
        call = partial(engine.sample, DEFAULT_BATCH, table=point.request(model, 1).request(model).table, **asked)
        try:
            call()
            turns.add(name, Ready(call))
        except Exception as problem:
            row["untimed"] = with_type(problem)
    for turn in range(rounds):
        for name, failed in turns.round(turn):
            rows[name]["untimed"] = with_type(failed)
        say(f"{entry['model']}, round {turn + 1} of {rounds}")
    for name, taken in turns.seconds.items():
        each = [seconds * 1e3 / DEFAULT_BATCH for seconds in taken]
        rows[name].update(milliseconds=statistics.median(each), lowest=min(each), highest=max(each))


def _point(row: dict[str, Any]) -> Point:
    return Point(row["sampler"], row["steps"], row["guidance_scale"])


def checked(name: str, texts: tuple[str, ...], n: int) -> list[Point]:
    """A model's points, or those of its grid, before any work; raises InputError."""
    if name not in NAMES:
        raise unknown_name("model", name, NAMES)
    model = fastdiff.load(name)
    points = [Point.parse(text) for text in (texts or POINTS[name].split())]
    for point in points:
        if point.guidance_scale is not None and not model.context_width:
            raise InputError(f"point {str(point)!r} has guidance, but {name!r} takes no context")
        point.request(model, n).request(model)
    return points


@click.command(help=__doc__)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["fashion-mnist"],
    show_default=True,
    metavar="NAME",
    help="fashion-mnist or sprites; repeatable.",
)
@click.option("--data", help="The sprites' pictures, sprites_16x16.npy.")
@click.option("--labels", help="The sprites' labels, sprite_labels.npy.")
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="SAMPLER:STEPS[:GUIDANCE]",
    help="Repeatable.  [default: the model's grid]",
)
@click.option("-n", type=int, help="Images a point.  [default: 2000, on a GPU 10000]")
@click.option("--samples", type=Path, default=Path("out/quality"), show_default=True, help="The images' folders.")
@click.option("--device", help="cpu, cuda, ...  [default: cuda where there is one]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: as many as cores]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of the times.")
@click.option(
    "--do",
    type=click.Choice(["all", "distances", "times"]),
    default="all",
    show_default=True,
    help="times, of all models, are for the report that is at OUTPUT.",
)
@click.option(
    "-o",
    "--output",
    type=Path,
    default=OUTPUT,
    metavar="FILE",
    help="The report, JSON; its table and plot lie beside it.  [default: bench/results/quality-cpu.json]",
)
def command(
    models: tuple[str, ...],
    data: str | None,
    labels: str | None,
    points: tuple[str, ...],
    n: int | None,
    samples: Path,
    device: str | None,
    threads: int | None,
    rounds: int,
    do: str,
    output: Path,
) -> None:
    check_writable(output)
    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    if do == "times":
        report = page.read(output)
    else:
        n = (10_000 if where.type == "cuda" else 2000) if n is None else check_int("n", n, 4, 2**31)
        chosen = {name: checked(name, points, n) for name in models}
        pictures = {name: read_data(name, data, labels) for name in models}
        entries = [quality(name, chosen[name], pictures[name], n, samples, where, threads) for name in models]
        report = {**origin(machine(where)), "models": entries}
        page.save(report, output)  # the distances took long
    if do != "distances":
        if threads:
            torch.set_num_threads(threads)  # sampling may have taken those of a folder
        for entry in report["models"]:
            measure(entry, where, rounds)
        report["times"] = {**origin(machine(where)), "rounds": rounds, "batch": DEFAULT_BATCH}
        page.save(report, output)
    show(page.markdown(report), newline=False)
    if any("reason" in row or "untimed" in row for entry in report["models"] for row in entry["rows"]):
        raise SystemExit(1)
