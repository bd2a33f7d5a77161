"""Time per image against quality, by sampler and steps.

\b
fastdiff bench quality --samples out/quality      distances, then times
fastdiff bench quality --do times                 only times, for the report that is there, on a quiet machine

For each point (a sampler, a number of steps) images 0 to n - 1 of seed 0 are sampled into SAMPLES/MODEL/SAMPLER-STEPS,
where an interrupted run goes on and a finished folder is taken as it is, and compared with the pictures that the model
was not trained on: the Fréchet distance between features of the project's own classifier. The floor is the distance of
as many training pictures. Beside it stand the distances of the images with even and with odd numbers, which tell how
firm it is, and the distance to training pictures. The times are those of engine.sample(64), the points taking turns.
Exits with 1 where a point could not be measured.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.contender import Ready
from fastdiff.bench.quality import classifier, page
from fastdiff.bench.quality.frechet import evenly, features, frechet
from fastdiff.bench.report import origin
from fastdiff.bench.tables import failure
from fastdiff.bench.timing import Turns
from fastdiff.data.images import ImageData
from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import choose_device
from fastdiff.engine.request import DEFAULT_BATCH, Asked
from fastdiff.errors import InputError, check_int, unknown_name
from fastdiff.files import check_writable
from fastdiff.provenance import machine
from fastdiff.shards.manifest import RESTORED, Samples, read_manifest
from fastdiff.shards.processes import Processes
from fastdiff.shards.run import ShardRun

OUTPUT = Path(__file__).resolve().parent.parent.parent / "bench" / "results" / "quality-cpu.json"
POINTS = {
    "fashion-mnist": "ddim:5 ddim:10 ddim:15 ddim:25 ddim:50 dpmpp_2m:5 dpmpp_2m:10 dpmpp_2m:15 dpmpp_2m:25 "
    "dpmpp_2m_sde:10 dpmpp_2m_sde:25 dpmpp_2m_sde:50",
    "sprites": "ddim:10 ddim:25 dpmpp_2m:10 dpmpp_2m:15 dpmpp_2m_sde:10 dpmpp_2m_sde:25 ddpm_large:100",
}
SEED = 0
FLOORS = 5  # draws of training pictures
TRAINING = 10_000  # training pictures at most for the second distance


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

    def request(self, model: fastdiff.Model, n: int) -> Samples:
        """Images 0 to n - 1, as `fastdiff sample` makes them; a model of classes draws them in turn."""
        contexts = torch.eye(model.context_width or 0).tolist()
        return Samples(
            self.sampler,
            self.steps,
            eta=0.0,
            spacing="trailing",
            clip="model",
            seed=SEED,
            first=0,
            n=n,
            contexts=contexts,
            guidance_scale=self.guidance_scale,
        )


def draw(
    model: fastdiff.Model, name: str, ask: Samples, folder: Path, device: str | None, threads: int | None
) -> tuple[Tensor, str]:
    """The folder's images, uint8 (n, C, H, W), made where they are missing, and with what they were made."""
    given: dict[str, Any] = {**dict.fromkeys(RESTORED), "format": "npz", "shard_size": None}
    if read_manifest(folder) is None:  # else its own hold
        given.update(device=device, threads=threads)
    with ShardRun(model, name, ask, folder, given, Processes(device)) as run:
        run.run(lambda made: None, lambda: False)
        parts = [np.load(run.folder.file(shard), allow_pickle=False)["arr_0"] for shard in run.plan]
        used, made_by = run.manifest["configuration"], run.manifest["fastdiff"]
    threads = used.get("threads")
    counted = [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    how = ", ".join([used["device"], used["form"], *counted, used["dtype"]])
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2), f"fastdiff {made_by} ({how})"


def quality(
    name: str, points: list[Point], data: ImageData, n: int, samples: Path, device: torch.device, threads: int | None
) -> dict[str, Any]:
    """The model's part of the report: a row for each point; one that fails is a row with a reason."""
    model = fastdiff.load(name)
    network = classifier.load(name).to(device)
    real = features(network, data.val_images, device)
    known = evenly(data.labels, TRAINING, FLOORS)
    training = features(network, data.images[known], device)
    draws = [data.images[evenly(data.labels, n, seed)] for seed in range(FLOORS)]
    floors = [frechet(features(network, drawn, device), real) for drawn in draws]
    accuracy, pictures = classifier.stated_accuracy(name)
    counts = data.val_labels.sum(dim=0).int().tolist()
    entry: dict[str, Any] = {
        "model": name,
        "images": n,
        "seed": SEED,
        "accuracy": accuracy,
        "accuracy_pictures": pictures,
        "real": len(real),
        "real_of_each_class": dict(zip(data.class_names, counts, strict=True)),
        "training": len(training),
        "in_turn": list(model.class_names) if model.context_width else [],
        "floor": {
            "pictures": len(draws[0]),
            "draws": FLOORS,
            "distance": statistics.mean(floors),
            "lowest": min(floors),
            "highest": max(floors),
        },
        "rows": [],
    }
    for point in points:
        row: dict[str, Any] = {**point._asdict(), "evaluations": point.evaluations}
        entry["rows"].append(row)
        try:
            ask = point.request(model, n)
            images, row["made_by"] = draw(model, name, ask, samples / name / str(point), device.type, threads)
            made = features(network, images, device)
            distance = frechet(made, real)
            if not math.isfinite(distance):
                raise ValueError(f"the distance is {distance}")
            halves = [frechet(made[k::2], real) for k in (0, 1)]
            row.update(distance=distance, halves=halves, to_training=frechet(made, training))
        except Exception as problem:
            row["reason"] = str(problem) if isinstance(problem, InputError) else failure(problem)
        click.echo(f"{name} {point}: {row.get('distance', row.get('reason'))}")
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
            row["untimed"] = failure(problem)
    for turn in range(rounds):
        for name, failed in turns.round(turn):
            rows[name]["untimed"] = failure(failed)
        click.echo(f"{entry['model']}, round {turn + 1} of {rounds}")
    for name, taken in turns.seconds.items():
        each = [seconds * 1e3 / DEFAULT_BATCH for seconds in taken]
        rows[name].update(milliseconds=statistics.median(each), lowest=min(each), highest=max(each))


def _point(row: dict[str, Any]) -> Point:
    return Point(row["sampler"], row["steps"], row["guidance_scale"])


def checked(name: str, texts: tuple[str, ...], n: int) -> list[Point]:
    """A model's points, or those of its grid, before any work; raises InputError."""
    if name not in classifier.NAMES:
        raise unknown_name("model", name, classifier.NAMES)
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
        pictures = {name: classifier.read_data(name, data, labels) for name in models}
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
    click.echo(page.markdown(report), nl=False)
    if any("reason" in row or "untimed" in row for entry in report["models"] for row in entry["rows"]):
        raise SystemExit(1)
