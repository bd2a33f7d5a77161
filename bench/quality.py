"""Time per image against quality, by sampler and steps: python -m fastdiff.bench.quality.

For each point (a sampler, a number of steps) images 0 to n - 1 of seed 0 are sampled into SAMPLES/MODEL/SAMPLER-STEPS,
where an interrupted run goes on and a finished folder is taken as it is, and compared with the pictures that the model
was not trained on: the Fréchet distance between features of this project's own classifier (fastdiff.bench.classifier),
by torchmetrics. The floor is the distance of as many training pictures. Beside it stand the distances of the images
with even and with odd numbers, which tell how firm it is, and the distance to training pictures. The times are those
of engine.sample(64), the points taking turns; --times-only adds them to a report that is there, on a quiet machine.
Writes the report, its table and its plot. Exits with 1 where a point could not be measured.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.bench import classifier, reporting
from fastdiff.bench.timing import in_turns
from fastdiff.data.images import ImageData
from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import choose_device
from fastdiff.engine.request import DEFAULT_BATCH
from fastdiff.errors import InputError, check_int
from fastdiff.files import check_writable, write_atomically
from fastdiff.shards.manifest import RESTORED, Samples, read_manifest
from fastdiff.shards.processes import Processes
from fastdiff.shards.run import ShardRun

OUTPUT = Path(__file__).resolve().parent.parent / "bench" / "results" / "quality-cpu.json"
POINTS = {
    "fashion-mnist": "ddim:5 ddim:10 ddim:15 ddim:25 ddim:50 dpmpp_2m:5 dpmpp_2m:10 dpmpp_2m:15 dpmpp_2m:25 "
    "dpmpp_2m_sde:10 dpmpp_2m_sde:25 dpmpp_2m_sde:50",
    "sprites": "ddim:10 ddim:25 dpmpp_2m:10 dpmpp_2m:15 dpmpp_2m_sde:10 dpmpp_2m_sde:25 ddpm_large:100",
}
SEED = 0
BATCH = 250  # pictures whose features are taken at once
FLOORS = 5  # draws of training pictures
TRAINING = 10_000  # training pictures at most for the second distance
UNTIMED = "not timed: "
NEAR = 1.1  # times the best distance: near enough to take the faster point


class Point(NamedTuple):
    """A sampler, its steps, and the guidance scale if there is one."""

    sampler: str
    steps: int
    guidance_scale: float | None = None

    @classmethod
    def parse(cls, text: str) -> Point:
        """From SAMPLER:STEPS or SAMPLER:STEPS:GUIDANCE; raises InputError."""
        parts = re.fullmatch(r"(\w+):(\d+)(?::(\d+(?:\.\d+)?))?", text)
        if parts is None:
            raise InputError(f"point {text!r}; accepted: SAMPLER:STEPS[:GUIDANCE], such as ddim:25")
        return cls(parts[1], int(parts[2]), None if parts[3] is None else float(parts[3]))

    def __str__(self) -> str:
        """Also the name of its folder."""
        guided = "" if self.guidance_scale is None else f"-g{self.guidance_scale:g}"
        return f"{self.sampler}-{self.steps}{guided}"

    @property
    def evaluations(self) -> int:
        """Of the network, for one image."""
        return self.steps * (1 if self.guidance_scale in (None, 1) else 2)


def request(model: fastdiff.Model, point: Point, n: int) -> Samples:
    """Images 0 to n - 1, as `fastdiff sample` makes them; a model of classes draws them in turn."""
    contexts = torch.eye(model.context_width or 0).tolist()
    return Samples(point.sampler, point.steps, eta=0.0, spacing="trailing", clip="model", seed=SEED, first=0, n=n,
                   contexts=contexts, guidance_scale=point.guidance_scale)  # fmt: skip


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
        used = run.manifest["configuration"]
    threads = used.get("threads") or 0
    counted = [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    how = ", ".join([used["device"], used["form"], *counted, used["dtype"]])
    made_by = f"fastdiff {run.manifest['fastdiff']} ({how})"
    return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2), made_by


class Distance:
    """The Fréchet distance of pictures, uint8 (n, C, H, W), to the real ones, by torchmetrics."""

    def __init__(self, network: classifier.Features, real: Tensor, device: torch.device) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise InputError(f"the Fréchet distance needs torchmetrics ({error}); pip install torchmetrics") from error
        shape = tuple(real.shape[1:])
        self.metric = FrechetInceptionDistance(network, False, normalize=True, input_img_size=shape).to(device)
        self.device = device
        self._take(real, True)

    def _take(self, images: Tensor, real: bool) -> None:
        for part in images.split(BATCH):
            self.metric.update(part.to(self.device).float() / 255, real=real)

    def __call__(self, images: Tensor) -> float:
        self.metric.reset()  # of these, not of the real ones
        self._take(images, False)
        return float(self.metric.compute())


def evenly(labels: Tensor, n: int, seed: int) -> Tensor:
    """Up to n rows at random, as many of each class; fewer where a class has no more."""
    generator = torch.Generator().manual_seed(seed)
    kinds = labels.argmax(dim=1)
    own = [(kinds == k).nonzero()[:, 0] for k in range(labels.shape[1])]
    own = [rows[torch.randperm(len(rows), generator=generator)] for rows in own if len(rows)]
    each = min(-(-n // len(own)), *map(len, own))
    return torch.stack([rows[:each] for rows in own], dim=1).flatten()[:n]


def floor(data: ImageData, distance: Distance, n: int) -> dict[str, Any]:
    """Of n training pictures, drawn `FLOORS` times."""
    drawn = [evenly(data.labels, n, seed) for seed in range(FLOORS)]
    found = [distance(data.images[rows]) for rows in drawn]
    return {"pictures": len(drawn[0]), "draws": FLOORS, "distance": statistics.mean(found), "lowest": min(found),
            "highest": max(found)}  # fmt: skip


def quality(
    name: str, points: list[Point], data: ImageData, n: int, samples: Path, device: torch.device, threads: int | None
) -> dict[str, Any]:
    """The model's part of the report: a row for each point; one that fails is a row with a note."""
    model = fastdiff.load(name)
    network = classifier.features(name)
    distance = Distance(network, data.val_images, device)
    rows = evenly(data.labels, TRAINING, FLOORS)
    to_training = Distance(network, data.images[rows], device)
    accuracy, pictures = classifier.stated_accuracy(name)
    counts = data.val_labels.sum(dim=0).int().tolist()
    entry: dict[str, Any] = {
        "model": name, "images": n, "seed": SEED, "accuracy": accuracy, "accuracy_pictures": pictures,
        "real": len(data.val_images), "real_of_each_class": dict(zip(data.class_names, counts, strict=True)),
        "training": len(rows), "in_turn": list(model.class_names) if model.context_width else [],
        "floor": floor(data, distance, n), "rows": [],
    }  # fmt: skip
    for point in points:
        row: dict[str, Any] = {**point._asdict(), "evaluations": point.evaluations}
        entry["rows"].append(row)
        try:
            ask = request(model, point, n)
            images, row["made_by"] = draw(model, name, ask, samples / name / str(point), device.type, threads)
            found = distance(images)
            if not math.isfinite(found):
                raise ValueError(f"the distance is {found}")
            row.update(distance=found, halves=[distance(images[k::2]) for k in (0, 1)], to_training=to_training(images))
        except Exception as problem:
            row["note"] = str(problem) if isinstance(problem, InputError) else reporting.failure(problem)
        print(f"{name} {point}: {row.get('distance', row.get('note'))}", flush=True)
    return entry


def measure(entry: dict[str, Any], device: torch.device, rounds: int) -> None:
    """Puts milliseconds per image into the rows: medians of rounds, of a batch of `DEFAULT_BATCH` in one call."""
    model, calls, rows = fastdiff.load(entry["model"]), {}, {}
    contexts = request(model, Point("ddim", 1), 1).context()
    context = None if contexts is None else contexts(0, DEFAULT_BATCH)
    engine: Engine | None = None
    for row in (row for row in entry["rows"] if "distance" in row):
        for stale in ("milliseconds", "lowest", "highest"):
            row.pop(stale, None)
        if row.get("note", "").startswith(UNTIMED):
            del row["note"]
        point = Point(row["sampler"], row["steps"], row["guidance_scale"])
        try:
            table = request(model, point, 1).table(model)
            engine = engine or Engine(model, table, batch_size=DEFAULT_BATCH, device=device)

            def call(table=table, scale=point.guidance_scale, engine=engine):
                return engine.sample(
                    DEFAULT_BATCH, seed=SEED, first=0, context=context, guidance_scale=scale, table=table
                )

            call()
            calls[str(point)], rows[str(point)] = call, row
        except Exception as problem:
            row["note"] = UNTIMED + reporting.failure(problem)
    done = Counter[str]()

    def tell(name: str, seconds: float) -> None:
        done[name] += 1
        print(f"{entry['model']} {name}, round {done[name]}: {seconds * 1e3 / DEFAULT_BATCH:.3g} ms", flush=True)

    for name, taken in in_turns(calls, rounds, tell).items():
        each = [seconds * 1e3 / DEFAULT_BATCH for seconds in taken]
        rows[name].update(milliseconds=statistics.median(each), lowest=min(each), highest=max(each))


def named(row: dict[str, Any]) -> str:
    guided = f", guidance {row['guidance_scale']:g}" if row["guidance_scale"] is not None else ""
    return f"`{row['sampler']}` with {row['steps']} steps{guided}"


def costs(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """What the points cost: (key, unit), the time if every point with a distance has one, else evaluations."""
    timed = all("milliseconds" in row for row in rows if "distance" in row)
    return ("milliseconds", "ms an image") if timed else ("evaluations", "evaluations")


def front(rows: list[dict[str, Any]], cost: str, key: str = "distance") -> list[dict[str, Any]]:
    """From the cheapest to the nearest, the rows to which none is both no dearer and nearer."""
    kept: list[dict[str, Any]] = []
    for row in sorted((r for r in rows if key in r), key=lambda r: (r[cost], r[key])):
        if not kept or row[key] < kept[-1][key]:
            kept.append(row)
    return kept


def choice(rows: list[dict[str, Any]], cost: str, key: str = "distance") -> dict[str, Any]:
    """The cheapest row whose distance is within `NEAR` times the smallest."""
    kept = front(rows, cost, key)
    return next(row for row in kept if row[key] <= NEAR * kept[-1][key])


def advice(entry: dict[str, Any]) -> list[str]:
    """What the rows say to take, in Markdown."""
    rows, (cost, unit) = entry["rows"], costs(entry["rows"])
    kept = front(rows, cost)
    if not kept:
        return [f"**{entry['model']}**: no point was measured."]

    def told(row: dict[str, Any]) -> str:
        return f"{named(row)} (distance {row['distance']:.3g}, {row[cost]:.3g} {unit})"

    best, taken = kept[-1], choice(rows, cost)
    over = best["distance"] / entry["floor"]["distance"]
    lines = [f"**{entry['model']}**: take {told(taken)}."]
    if taken is best:
        lines[0] += f" It has the smallest distance, {over:.3g} times the floor's."
    else:
        lines[0] += (
            f" It is the cheapest within {NEAR - 1:.0%} of the smallest distance, which is that of {told(best)}, "
            f"{over:.3g} times the floor's and {best[cost] / taken[cost]:.3g} times as dear."
        )
    other = choice(rows, cost, "to_training")
    lines[0] += " By the distance to training pictures it is " + ("the same." if other is taken else f"{named(other)}.")
    faster = kept[: kept.index(taken)]
    if faster:
        lines += ["", "For less time, the nearest at its cost: " + "; ".join(map(told, reversed(faster))) + "."]
    return lines


def _row(row: dict[str, Any], base: float) -> str:
    guided = f"{row['guidance_scale']:g}" if row["guidance_scale"] is not None else ""
    time = f"{row['milliseconds']:.3g} ({row['lowest']:.3g} to {row['highest']:.3g})" if "milliseconds" in row else ""
    found = " | | | "
    if "distance" in row:
        halves = " and ".join(f"{half:.3g}" for half in row["halves"])
        found = f"{row['distance']:.3g} | {row['distance'] / base:.3g} | {halves} | {row['to_training']:.3g}"
    return (
        f"| {row['sampler']} | {row['steps']} | {guided} | {row['evaluations']} | {time} | {found} | "
        f"{row.get('note', '')} |"
    )


def table(report: dict[str, Any]) -> str:
    """The report in Markdown: a table for each model, then what they say to take."""
    lines = [reporting.heading(report) + report["note"]]
    times = report.get("times")
    if times:
        lines += ["", f"Times: {reporting.heading(times)}; `engine.sample({times['batch']})`, medians of "
                  f"{times['rounds']} interleaved rounds (lowest to highest).{times['note']}"]  # fmt: skip
    for entry in report["models"]:
        base, counts = entry["floor"], entry["real_of_each_class"]
        even = len(set(counts.values())) == 1
        each = f"{next(iter(counts.values())):,} of each class" if even else \
            ", ".join(f"{count:,} {name}" for name, count in counts.items())  # fmt: skip
        turn = f", of the classes {', '.join(entry['in_turn'])} in turn" if entry["in_turn"] else ""
        by = sorted({row["made_by"] for row in entry["rows"] if "made_by" in row})
        lines += [
            "", f"## {entry['model']}", "",
            f"Distance of {entry['images']:,} images a point (0 to {entry['images'] - 1:,} of seed {entry['seed']}"
            f"{turn}) to {entry['real']:,} held-out pictures ({each}), by features of the project's classifier "
            f"({entry['accuracy']:.2%} right on {entry['accuracy_pictures']:,} held-out pictures). Floor: "
            f"{base['pictures']:,} training pictures, as many of each class, have {base['distance']:.3g} (mean of "
            f"{base['draws']} draws, {base['lowest']:.3g} to {base['highest']:.3g})."
            f" The last distance is to {entry['training']:,} training pictures, as many of each class."
            + (f" Images by {'; '.join(by)}." if by else ""), "",
            "| sampler | steps | guidance | evaluations | ms an image | Fréchet distance | times the floor | "
            "of its halves | to training pictures | |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_row(row, base["distance"]) for row in entry["rows"]),
        ]  # fmt: skip
    lines += ["", "## What to take"]
    for entry in report["models"]:
        lines += ["", *advice(entry)]
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> bool:
    """Distance over time, a line for each sampler; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    models = report["models"]
    figure, panels = plt.subplots(1, len(models), figsize=(6.4 * len(models), 4.8), layout="constrained", squeeze=False)
    for axes, entry in zip(panels[0], models, strict=True):
        cost, unit = costs(entry["rows"])
        lines: dict[str, list[dict[str, Any]]] = {}
        for row in entry["rows"]:
            if row.get("distance", 0) > 0:
                guided = f", guidance {row['guidance_scale']:g}" if row["guidance_scale"] is not None else ""
                lines.setdefault(row["sampler"] + guided, []).append(row)
        for label, rows in lines.items():
            rows.sort(key=lambda row: row["steps"])
            axes.plot([r[cost] for r in rows], [r["distance"] for r in rows], marker="o", markersize=4, label=label)
            for row in rows:
                axes.annotate(str(row["steps"]), (row[cost], row["distance"]), (4, 4), textcoords="offset points",
                              fontsize=8)  # fmt: skip
        axes.axhline(entry["floor"]["distance"], linestyle="--", color="gray", label="training pictures")
        # Distances from 0: by a logarithm the gap to the floor would hide those between the points.
        axes.set(xlabel=unit, ylabel="Fréchet distance to held-out pictures", xscale="log", ylim=(0, None),
                 title=f"{entry['model']}, {entry['images']:,} images a point")  # fmt: skip
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_atomically(path, lambda p: figure.savefig(p, dpi=110))
    plt.close(figure)
    return True


def save(report: dict[str, Any], output: Path) -> None:
    reporting.save(report, table(report), output)
    if plot(report, output.with_suffix(".png")):
        print(f"wrote {output.with_suffix('.png').name}")
    else:
        print("no plot without matplotlib: pip install 'fastdiff-engine[train]'", file=sys.stderr)


def read_report(path: Path) -> dict[str, Any]:
    """A report of this command; raises InputError."""
    try:
        report = json.loads(path.read_text())
        if not report["models"] or not all(entry["rows"] and entry["floor"] for entry in report["models"]):
            raise ValueError("it has no rows")
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no report of this command ({type(error).__name__}: {error})") from error


def _checked(names: list[str], texts: list[str] | None, n: int) -> dict[str, list[Point]]:
    """The points of each model, before any work; raises InputError."""
    found = {}
    for name in names:
        model = fastdiff.load(name)
        found[name] = [Point.parse(text) for text in (texts or POINTS[name].split())]
        for point in found[name]:
            request(model, point, n).facts(model)
            if point.guidance_scale is not None and not model.context_width:
                raise InputError(f"point {str(point)!r} has guidance, but {name!r} takes no context")
    return found


def _measured(given: argparse.Namespace, arguments: list[str] | None) -> dict[str, Any]:
    """The report without times; the arguments and the data are checked before any work."""
    device = choose_device(given.device)
    n = 10_000 if device.type == "cuda" else 2000
    n = n if given.n is None else check_int("n", given.n, 4, 2**31)
    points = _checked(given.model, given.points, n)
    own = {"sprites": (given.data, given.labels)}
    data = {name: classifier.read_data(name, *own.get(name, ())) for name in given.model}
    for name, pictures in data.items():
        if not pictures.labels.shape[1]:
            raise InputError(f"data {pictures.name!r} of {name!r} has no labels; give them with --labels")
    entries = [quality(name, points[name], data[name], n, given.samples, device, given.threads)
               for name in given.model]  # fmt: skip
    return {**reporting.provenance("quality", device, arguments), "models": entries}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=classifier.NAMES, nargs="+", default=["fashion-mnist"],
                        help="default fashion-mnist")  # fmt: skip
    parser.add_argument("--data", help="the sprites' pictures, sprites_16x16.npy")
    parser.add_argument("--labels", help="the sprites' labels, sprite_labels.npy")
    parser.add_argument("--points", nargs="+", metavar="SAMPLER:STEPS[:GUIDANCE]", help="default: the model's grid")
    parser.add_argument("-n", type=int, help="images a point (default 2000, on a GPU 10000)")
    parser.add_argument("--samples", type=Path, default=Path("out/quality"), help="the images' folders")
    parser.add_argument("--device", help="default: the CUDA device if there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=5, help="of the times (default 5)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--no-times", action="store_true", help="distances alone")
    chosen.add_argument("--times-only", action="store_true", help="times for the report at OUTPUT, of all its models")
    chosen.add_argument("--render", action="store_true", help="only the table and the plot of the report at OUTPUT")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the report; its table and plot beside it")
    given = parser.parse_args(arguments)
    try:
        check_writable(given.output)
        if given.threads is not None:
            torch.set_num_threads(check_int("threads", given.threads, 1, 1024))
        device = choose_device(given.device)
        there = given.times_only or given.render
        report = read_report(given.output) if there else _measured(given, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if not given.no_times and not given.render:
        if not there:
            save(report, given.output)  # the distances took long
        if given.threads is not None:  # sampling may have taken those of a folder
            torch.set_num_threads(given.threads)
        for entry in report["models"]:
            measure(entry, device, given.rounds)
        report["times"] = {**reporting.provenance("quality", device, arguments), "rounds": given.rounds,
                           "batch": DEFAULT_BATCH}  # fmt: skip
    save(report, given.output)
    sys.exit(1 if any("note" in row for entry in report["models"] for row in entry["rows"]) else 0)


if __name__ == "__main__":
    main()
