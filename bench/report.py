"""A run of `fastdiff bench` as JSON, and the JSON as Markdown with plots."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdiff.bench.case import Kind, case_key, case_text
from fastdiff.bench.tables import cells, remarks, seconds_text
from fastdiff.errors import InputError
from fastdiff.files import save_json, save_text
from fastdiff.markdown import table

Report = dict[str, Any]
Row = dict[str, Any]

NAME = "report.json"
PARTIAL, PARTIAL_TEXT = "report.partial.json", "report.partial.md"  # while a run goes on, or where it was cut short
FORMAT = 2
LIBRARIES = ("diffusers", "denoising-diffusion-pytorch", "azula")  # that fastdiff is compared with
PACKAGES = ("torch", "triton", "numpy", "onnxruntime", "onnxruntime-gpu", *LIBRARIES)
KERNELS = 12  # listed of a profile's row


def origin(machine: str) -> dict[str, Any]:
    """What every report says of its making."""
    from fastdiff import provenance  # which imports torch
    from fastdiff.kernels.dispatch import interpreted

    made = provenance.origin(machine, PACKAGES)
    return {**made, "note": "Run in Triton's interpreter: the times mean nothing." if interpreted() else ""}


def heading(report: Report) -> str:
    """A report's origin in words."""
    from fastdiff import provenance

    note = f"; {report['note'].strip()}" if report.get("note") else ""
    return f"{provenance.heading(report)}{note}"


def read(path: str | Path, machine: str | None = None) -> Report:
    """A report, from its file or its folder.

    Raises:
        InputError: For anything else, reports of another format, and where a machine is given those of another.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    try:
        report = json.loads(file.read_text())
        known = {"format", "machine", "rows", "versions", "fastdiff", "command"} <= report.keys()
    except OSError as error:
        raise InputError(f"cannot read the report {str(file)!r}: {error.strerror or error}") from error
    except (ValueError, AttributeError):
        known = False
    if not known:
        problem, accepted = "is no report of `fastdiff bench`", f"a folder that it wrote, or its {NAME}"
    elif report["format"] != FORMAT:
        problem, accepted = f"has format {report['format']!r}", f"format {FORMAT}; `fastdiff bench` makes it anew"
    elif machine not in (None, report["machine"]):
        problem = f"is of {report['machine']!r}, this machine is {machine!r}"
        accepted = "a report of the same machine"
    else:
        return report
    raise InputError(f"{str(file)!r} {problem}; accepted: {accepted}")


def save_partial(report: Report, folder: Path) -> None:
    """What is done of a run, as JSON and Markdown."""
    save_json(report, folder / PARTIAL)
    save_text(markdown(report), folder / PARTIAL_TEXT)


def remove_partial(folder: Path) -> None:
    for name in (PARTIAL, PARTIAL_TEXT):
        (folder / name).unlink(missing_ok=True)


MADE_BY = {"command": " and then ", "fastdiff": " and ", "plan": " and "}  # what joins those of several runs


def updated(old: Report, new: Report) -> Report:
    """The old report with the new one's rows in place of its own for the same cases; both runs are named."""
    cases = {case_key(row) for row in new["rows"]}
    kept = [row for row in old["rows"] if case_key(row) not in cases]
    made = {**old, "rows": kept + new["rows"], "seconds": old["seconds"] + new["seconds"]}
    made["runs"] = [run for one in (old, new) for run in one.get("runs", [{name: one[name] for name in MADE_BY}])]
    for name, join in MADE_BY.items():
        made[name] = join.join(dict.fromkeys(run[name] for run in made["runs"]))
    made["versions"] = {**old["versions"], **new["versions"]}
    made["cases"] = done(made)
    return made


def write(report: Report, folder: Path) -> list[Path]:
    """The JSON, the Markdown and the plots; returns their paths."""
    save_json(report, folder / NAME)
    return [folder / NAME, *render(report, folder)]


def render(report: Report, folder: Path) -> list[Path]:
    """The Markdown and the plots; returns their paths."""
    from fastdiff.bench import plots

    text = folder / "report.md"
    pictures = plots.write(report, folder)
    save_text(markdown(report, [p.name for p in pictures]), text)
    return [text, *pictures]


EXPLAINED = {
    Kind.STEP: "A sampler's update alone, x and the prediction given; ddpm's includes its noise.",
    Kind.EVALUATION: "One evaluation of the network.",
    Kind.SAMPLING: "From noise to images on the host, by each contender's own loop.",
    Kind.TRAINING: "A batch's loss, its gradients and the optimizer's update.",
    Kind.EXPORT: "From a model in memory to an .onnx file; fastdiff's time includes its check against torch.",
    Kind.COLD: "A fresh process, from the interpreter's start to one image on disk.",
    Kind.OPERATOR: "One operator at a shape of the network, over inputs that together exceed a GPU's cache. The "
    "reference is plain torch; the difference is from plain torch in float64.",
    Kind.PROFILE: "One evaluation in the sampler's layout and precision, through plain torch and through fastdiff's "
    "operators; the bytes of the limit are each one's own.",
    Kind.LOOP: "Exported files of the whole sampling loop in ONNX Runtime; the reference is the network's file, "
    "evaluated as often as the loop has steps.",
    Kind.EAGER: "From noise to images on the host, by fastdiff.sample; the reference calls the network as it is, "
    "ONNX Runtime has its plain export in the same loop.",
    Kind.THREADS: "From noise to images on the host by fastdiff with several threads against one, and a large product "
    "likewise. Busy: `fastdiff sample` as a process, by default and with one thread, while other processes compute on "
    "all cores.",
}
METHOD = (
    "Contenders take turns, round after round, in one process, each after its result has been compared with the "
    "reference's (*difference*: relative, of the whole result). *Faster*: the reference's time over the "
    "contender's within a round, median over rounds and its 95% bootstrap interval. *A second*: images. *Of the "
    "limit*: {limit} An *other network* has about as many parameters, and does not compute the same."
)
# By whether a report has the rate of the cores' multiply-adds.
LIMITS = {
    True: "the time that the operations would take at the rate, in the same run, of the cores' multiply-adds (in "
    "float32 on a CPU, by a loop in C) or of a large matrix product, or the bytes at that of a large copy, whichever "
    "is longer, over the time taken. A plan of fastdiff's C kernels has the operations and bytes that it does itself, "
    "Winograd's convolutions the fewer products; all others have the plain network's operations, counted directly, "
    "and can exceed 100% where they do fewer.",
    False: "the time that the operations, counted directly, would take at the rate of a large matrix product in "
    "the same run, or the bytes at that of a large copy, whichever is longer, over the time taken; Winograd's "
    "convolutions do fewer operations, so it can exceed 100%.",
}
COLUMNS = ("case", "contender", "time", "faster", "a second", "of the limit", "difference", "first call", "")


def markdown(report: Report, pictures: Iterable[str] = ()) -> str:
    lines = [f"# fastdiff bench, {report['plan']}", "", f"{heading(report)}; {report['seconds'] / 60:.0f} minutes."]
    if done(report) != report["cases"]:
        lines += ["", f"**Cut short: {done(report)} of {report['cases']} cases.**"]
    by_core = any("core_gflops" in row for row in report["rows"])
    lines += ["", METHOD.format(limit=LIMITS[by_core]), ""]
    for picture in pictures:
        lines += [f"![{Path(picture).stem.replace('-', ' ')}]({picture})", ""]
    for kind in Kind:
        rows = [row for row in report["rows"] if row["kind"] == kind]
        if rows:
            first = [seconds_text(row["first_seconds"]) if "first_seconds" in row else "" for row in rows]
            lines += [f"## {kind.capitalize()}", "", EXPLAINED[kind], ""]
            lines += table(
                COLUMNS,
                [[case_text(row), *cells(row), begun, remarks(row)] for row, begun in zip(rows, first, strict=True)],
            )
            lines += [*_against_compiled(rows), ""]
            for row in rows:
                lines += _kernels(row)
    return "\n".join(lines)


def _against_compiled(rows: list[Row]) -> list[str]:
    won = [math.log(row["against_compiled"][0]) for row in rows if "against_compiled" in row]
    return ["", f"Geometric mean against torch.compile: {math.exp(statistics.mean(won)):.2f}x"] if won else []


def _kernels(row: Row) -> list[str]:
    """A profile's kernels by time."""
    kernels = row.get("kernels", [])
    total = sum(kernel["microseconds"] for kernel in kernels)
    listed = [
        [k["kernel"][:90], f"{k['calls']:g}", f"{k['microseconds']:.1f}", f"{k['microseconds'] / total:.0%}"]
        for k in kernels[:KERNELS]
    ]
    title = f"{case_text(row)}, {row['contender']}: kernels by time"
    return [title, "", *table(["kernel", "calls", "µs", "share"], listed), ""] if kernels else []


def done(report: Report) -> int:
    """Cases that were finished."""
    return len({case_key(row) for row in report["rows"]})
