"""A run of `fastdiff bench` as JSON, and the JSON as Markdown."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdiff.bench.cases import COLD, EVALUATION, EXPORT, KINDS, SAMPLING
from fastdiff.errors import InputError
from fastdiff.files import write_atomically

Report = dict[str, Any]
Row = dict[str, Any]

NAME = "report.json"
PARTIAL, PARTIAL_TEXT = "report.partial.json", "report.partial.md"  # while a run goes on, or where it was cut short
FORMAT = 1
PACKAGES = ("torch", "triton", "numpy", "onnxruntime", "onnxruntime-gpu", "diffusers", "denoising-diffusion-pytorch")


def installed() -> dict[str, str]:
    """Versions of what a figure depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def case_key(row: Row) -> tuple[str, ...]:
    """Case.key of a row's case."""
    return tuple(str(row[name]) for name in ("kind", "network", "what", "batch", "dtype", "device", "threads"))


def read(path: str | Path) -> Report:
    """A report, from its file or its folder. Raises InputError for anything else."""
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    try:
        report = json.loads(file.read_text())
        ours = report["format"] == FORMAT and {"machine", "rows", "versions", "fastdiff", "command"} <= report.keys()
    except OSError as error:
        raise InputError(f"cannot read the report {str(file)!r}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{str(file)!r} is no report of `fastdiff bench`; accepted: a folder that it wrote, or its "
                         f"{NAME}")  # fmt: skip
    return report


def save(report: Report, folder: Path, name: str = NAME) -> Path:
    """The JSON alone."""
    write_atomically(folder / name, lambda path: path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n"))
    return folder / name


def save_partial(report: Report, folder: Path) -> None:
    """What is done of a run, as JSON and Markdown."""
    save(report, folder, PARTIAL)
    write_atomically(folder / PARTIAL_TEXT, lambda path: path.write_text(markdown(report)))


def remove_partial(folder: Path) -> None:
    for name in (PARTIAL, PARTIAL_TEXT):
        (folder / name).unlink(missing_ok=True)


def updated(old: Report, new: Report) -> Report:
    """The old report with the new one's rows in place of its own for the same cases; both are named."""
    cases = {case_key(row) for row in new["rows"]}
    kept = [row for row in old["rows"] if case_key(row) not in cases]
    made = {**old, "rows": kept + new["rows"], "seconds": old["seconds"] + new["seconds"]}
    for name, join in (("command", " and then "), ("fastdiff", " and "), ("plan", " and ")):
        if new[name] not in old[name].split(join):
            made[name] = f"{old[name]}{join}{new[name]}"
    made["versions"] = {**old["versions"], **new["versions"]}
    made["cases"] = done(made)
    return made


def write(report: Report, folder: Path) -> list[Path]:
    """The JSON, the Markdown and the plots; returns their paths."""
    from fastdiff.bench import plots

    data, text = save(report, folder), folder / "report.md"
    pictures = plots.write(report, folder)
    write_atomically(text, lambda path: path.write_text(markdown(report, [p.name for p in pictures])))
    return [data, text, *pictures]


def ratio_text(values: list[float] | None) -> str:
    return "" if not values else f"{values[0]:.2f}x ({values[1]:.2f} to {values[2]:.2f})"


def seconds_text(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def cells(row: Row) -> list[str]:
    """What the tables show of a row after its case: contender, time, ratio, rate, share, parity."""
    precision = f" ({row['precision']})" if row.get("precision") else ""
    name = row["contender"] + (" (other network)" if row["other_network"] else precision)
    if "median_seconds" not in row:
        return [name, row.get("note", "not measured"), "", "", "", ""]
    rate = next((f"{row[key]:.3g}" for key in ("images_per_second", "evaluations_per_second") if key in row), "")
    share = f"{row['share_of_limit']:.0%}" if "share_of_limit" in row else ""
    parity = f"{row['parity']:.0e}" if "parity" in row else "no claim" if row["other_network"] else ""
    return [name, seconds_text(row["median_seconds"]), ratio_text(row.get("ratio")), rate, share, parity]


def case_text(row: Row) -> str:
    words = [row["network"], row["what"], f"batch {row['batch']}", "" if row["dtype"] == "float32" else row["dtype"]]
    if row["device"] == "cpu" and row["threads"] > 1:
        words.append(f"{row['threads']} threads")
    return ", ".join(filter(None, words))


EXPLAINED = {
    "denoise step": "A sampler's update alone, x and the prediction given; ddpm's includes its noise.",
    EVALUATION: "One evaluation of the network.",
    SAMPLING: "From noise to images on the host, by each contender's own loop.",
    "training step": "A batch's loss, its gradients and the optimizer's update.",
    EXPORT: "From a model in memory to an .onnx file; fastdiff's time includes its check against torch.",
    COLD: "A fresh process, from the interpreter's start to one image on disk.",
}


def markdown(report: Report, pictures: Iterable[str] = ()) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"# fastdiff bench, {report['plan']}",
        "",
        f"{report['machine']}; Python {report['python']}, {versions}; fastdiff {report['fastdiff']}; "
        f"`{report['command']}`; {report['seconds'] / 60:.0f} minutes.",
        *_cut_short(report),
        "",
        "Contenders take turns, round after round, in one process, each after its result has been compared with the "
        "reference's (*difference*: relative, of the whole result). *Faster*: the reference's time over the "
        "contender's within a round, median over rounds and its 95% bootstrap interval. *A second*: images. *Of the "
        "limit*: the time that the operations, counted directly, would take at the rate of a large matrix product in "
        "the same run, or the bytes at that of a large copy, whichever is longer, over the time taken; Winograd's "
        "convolutions do fewer operations, so it can exceed 100%. An *other network* has about as many parameters, and "
        "does not compute the same.",
        "",
    ]
    for picture in pictures:
        lines += [f"![{Path(picture).stem.replace('-', ' ')}]({picture})", ""]
    for kind in KINDS:
        rows = [row for row in report["rows"] if row["kind"] == kind]
        if not rows:
            continue
        lines += [f"## {kind.capitalize()}", "", EXPLAINED[kind], ""]
        lines += ["| case | contender | time | faster | a second | of the limit | difference | first call | |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        for row in rows:
            first = seconds_text(row["first_seconds"]) if "first_seconds" in row else ""
            told = [case_text(row), *cells(row), first, _extra(row)]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in told)} |")
        lines.append("")
    return "\n".join(lines)


def done(report: Report) -> int:
    """Cases that were finished."""
    return len({case_key(row) for row in report["rows"]})


def _cut_short(report: Report) -> list[str]:
    whole = done(report) == report["cases"]
    return [] if whole else ["", f"**Cut short: {done(report)} of {report['cases']} cases.**"]


def _extra(row: Row) -> str:
    words = []
    if "parameters" in row:
        words.append(f"{row['parameters'] / 1e6:.2f} M parameters")
        if "gflop_of_an_image" in row:
            words.append(f"{row['gflop_of_an_image']:.3g} GFLOP an image and evaluation")
    if "peak_bytes" in row:
        words.append(f"peak {row['peak_bytes'] / 1e6:.0f} MB")
    if "graph_bytes" in row:
        words.append(f"its graphs hold {row['graph_bytes'] / 1e6:.0f} MB")
    return ", ".join([*words, *filter(None, [row.get("told")])])
