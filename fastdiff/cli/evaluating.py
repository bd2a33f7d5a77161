"""fastdiff eval, once its options are read: the models, the bars, Ctrl-C, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from fastdiff.checkpoints.load import stored_info
from fastdiff.cli.data import data_source
from fastdiff.cli.drawn import chosen_steps, count_steps
from fastdiff.cli.options import NODES, load_model, parse_clip, parse_device, parse_dtype, refusing_nan
from fastdiff.cli.stop import INTERRUPTED, StopSignal
from fastdiff.data.images import ImageData
from fastdiff.data.load import load_data
from fastdiff.engine.placement import set_threads
from fastdiff.errors import InputError, check_int, printable
from fastdiff.evaluation import page, pixels, reference
from fastdiff.evaluation.copies import Copies
from fastdiff.evaluation.drawn import SEED, Classes, Stopped, draw, folder_name, in_turn
from fastdiff.evaluation.evaluate import evaluate
from fastdiff.evaluation.features import Features, choose
from fastdiff.evaluation.measures import frechet_metric
from fastdiff.evaluation.reference import FEWEST, Reference
from fastdiff.files import check_folder, check_writable
from fastdiff.images import save_picture
from fastdiff.model import Model
from fastdiff.provenance import machine, origin
from fastdiff.shards.manifest import Samples, read_manifest
from fastdiff.terminal import note, say

PACKAGES = ("torch", "numpy", "torchmetrics")  # whose versions a report names
SAMPLING = ("sampler", "steps", "eta", "clip", "guidance_scale", *NODES)
COMPUTING = ("batch_size", "threads", "dtype", "form", "device")  # of the engine


@dataclass(frozen=True)
class Candidate:
    """A model that is to be evaluated, as it was named, with what is drawn from it and where to."""

    name: str
    model: Model
    classes: Classes
    asked: Samples
    folder: Path
    format: str  # of the samples' files, as fine as the data
    drawn: str  # how, in words


def evaluate_models(models: Sequence[str], **options: Any) -> None:
    """The command: everything is checked before anything is drawn."""
    frechet_metric()
    n = check_int("n", options.pop("n"), FEWEST, 2**31)
    output = _report_path(options.pop("output"))
    kept = options.pop("samples")
    folder = check_folder(output.parent / "samples" if kept is None else kept)
    device = parse_device(options["device"])
    set_threads(options["threads"])
    data = load_data(**data_source(options.pop("data"), options), progress=True)
    reference.check_held_out(data)
    loaded = {name: _fitting(name, data, options) for name in dict.fromkeys(models)}
    data = _named_by(loaded.values(), data)
    candidates = [_candidate(name, model, data, folder, n, options) for name, model in loaded.items()]
    features = choose(options["features"], data.image_shape, device)
    size = features.of(pixels.held_out(data), pixels.everything(FEWEST)).shape[1]
    computing = {name: options[name] for name in COMPUTING}
    try:
        with refusing_nan():
            report = _report(candidates, data, features, size, n, computing, output)
        written = page.save(report, output)
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on with the samples in {folder}", err=True)
        raise SystemExit(INTERRUPTED) from None
    for path in written:
        say(f"wrote {path.resolve()}")


def _report(
    candidates: Sequence[Candidate],
    data: ImageData,
    features: Features,
    size: int,
    n: int,
    computing: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """What samples are compared with, then each model's samples and its row."""
    floors = {one.classes.alike for one in candidates}
    with _bar("features of real pictures", reference.work(data, n, len(floors))) as tick:
        real = Reference.of(features, data, n, floors, tick)
    with _bar("held-out pictures among training pictures", len(data.labels)) as tick:
        copies = Copies.of(data, features.device, tick)
    rows, notes = [], [_note(n, len(real.real), size), *(_other_split(one.name, data) for one in candidates)]
    for one in candidates:
        images, made_by = _draw(one, computing)
        with _bar(f"samples of {one.name} among training pictures", len(data.labels)) as tick:
            row, picture = evaluate(images, one.classes, real, copies, tick)
        nearest = output.with_name(f"{output.stem}-nearest-{one.folder.name}.png")
        save_picture(picture, nearest)
        about = {"model": one.name, "drawn": one.drawn, "images": n, "made_by": made_by, "nearest": nearest.name}
        rows.append({**about, **row})
        say(_line(rows[-1]))
    return {
        **origin(machine(features.device), PACKAGES),
        "data": data.summary(),
        "features": {"name": features.name, "size": size, **features.facts},
        "seed": SEED,
        **real.facts(),
        "held_out_to_training": copies.facts(),
        "note": " ".join(filter(None, notes)),
        "rows": rows,
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']}: distance {row['distance']:.3g} (floor {row['floor']['distance']:.3g}), precision "
        f"{row['precision']:.3f}, recall {row['recall']:.3f}, nearer to training pictures than held-out ones are in "
        f"{row['copies']['nearer']:.0%} of cases"
    )


def _note(n: int, held_out: int, size: int) -> str:
    """What makes the distances doubtful, if anything does."""
    if n // 2 > size < held_out:
        return ""
    if min(n, held_out) > size:
        return f"Half of {n:,} samples are no more than {size:,} features: the distances of halves are much too large."
    return (
        f"With {n:,} samples and {held_out:,} held-out pictures for {size:,} features, covariances are short of their "
        "full rank: distances are much too large, and compare only with those of the same numbers."
    )


def _other_split(name: str, data: ImageData) -> str:
    """What is to be said where a model of fastdiff train does not say that it was trained on the data as it is read."""
    trained = stored_info(name).get("data", "")
    counts = f"{len(data):,} pictures {'x'.join(map(str, data.image_shape))}, {len(data.val_images):,} held out"
    if not isinstance(trained, str) or not trained or counts in trained:
        return ""
    said = f"{name} was trained on {trained}; the data is read as {counts}: what is held out may be what it has seen."
    note(said)
    return said


def _draw(one: Candidate, computing: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """The samples; raises KeyboardInterrupt where they were cut short, between two batches."""
    with StopSignal() as stop, _bar(f"samples of {one.name}", one.asked.n) as tick:
        there = 0

        def progress(made: int) -> None:
            nonlocal there
            tick(made - there)
            there = made

        try:
            return draw(
                one.model,
                one.name,
                one.asked,
                one.folder,
                computing,
                format=one.format,
                progress=progress,
                stop=lambda: stop.asked,
            )
        except Stopped:
            raise KeyboardInterrupt from None


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, else a line when it is done."""
    with tqdm(total=total, desc=printable(what), unit="img", disable=None, leave=False) as bar:
        yield bar.update
        if bar.disable:
            say(f"{what}: {total:,}", err=True)


def _report_path(output: str) -> Path:
    path = check_writable(output)
    if path.suffix.lower() != ".json":
        raise InputError(f"output {output!r}; accepted: a name that ends in .json")
    return path


def _fitting(name: str, data: ImageData, options: dict[str, Any]) -> Model:
    """The model of that name; raises InputError where it makes other pictures than the data holds."""
    model = load_model(name, dict(options))
    if model.image_shape != data.image_shape:
        shapes = ["x".join(map(str, shape)) for shape in (model.image_shape, data.image_shape)]
        raise InputError(f"model {name!r} makes images {shapes[0]}, the data holds {shapes[1]}; accepted: the same")
    if model.value_range not in (None, data.own_range):
        low, high = model.value_range
        raise InputError(
            f"model {name!r} was trained on values from {low:g} to {high:g}, which the data is not read in; give "
            f"--range {low:g},{high:g}"
        )
    if model.needs_context and not in_turn(model):
        raise InputError(
            f"model {name!r} needs {model.needs_context}, and has no classes to take in turn; accepted: a model "
            "without contexts, or one of classes"
        )
    return model


def _candidate(name: str, model: Model, data: ImageData, folder: Path, n: int, options: dict[str, Any]) -> Candidate:
    """The model with its samples, checked; raises InputError."""
    if options["dtype"] is not None:
        parse_dtype(options["dtype"])
    classes = Classes.of(model, data)
    asked = _samples(model, classes, n, {key: options[key] for key in SAMPLING})
    table = asked.request(model).table
    assert table is not None
    drawn = f"{table.sampler}, {count_steps(asked.count, len(table))}"
    if asked.guidance_scale is not None:
        drawn += f", guidance {asked.guidance_scale:g}"
    format = "npz" if data.own_range is None else "npy"
    there = folder / folder_name(name, model, asked, options, format)
    read_manifest(there)
    return Candidate(name, model, classes, asked, there, format, drawn)


def _samples(model: Model, classes: Classes, n: int, options: dict[str, Any]) -> Samples:
    """Samples 0 to n - 1, as `fastdiff sample` makes them."""
    return Samples(
        **chosen_steps(options, model),
        eta=options["eta"],
        clip=parse_clip(options["clip"]),
        seed=SEED,
        first=0,
        n=n,
        contexts=classes.contexts,
        guidance_scale=options["guidance_scale"],
    )


def _named_by(models: Iterable[Model], data: ImageData) -> ImageData:
    """The data, its classes named as the first model does where they have no names."""
    names = next((one.class_names for one in models if one.class_names), ())
    fits = data.unnamed and len(names) == data.labels.shape[1] > 0
    return data.named(tuple(names)) if fits else data
