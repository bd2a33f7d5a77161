"""Puts the committed results into README.md and docs/, and draws their tables and plots anew."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import click

from fastdiff.bench import report
from fastdiff.bench.case import Kind
from fastdiff.bench.contender import FASTDIFF, ONNXRUNTIME, Role, Status
from fastdiff.bench.families import compare
from fastdiff.bench.networks import SHIPPED
from fastdiff.bench.quality import page
from fastdiff.bench.tables import ratio_text, seconds_text
from fastdiff.files import save_text
from fastdiff.markdown import table
from fastdiff.samplers.samplers import DEFAULT, STEPS
from fastdiff.samplers.samplers import SAMPLERS as SAMPLER_ENTRIES
from fastdiff.terminal import say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
MODELS = ROOT / "docs" / "models.md"
README, SPEED, SAMPLERS = ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "docs" / "samplers.md"
SHOWN = "ddim 25"
# What the README's table shows beside fastdiff; docs/speed.md has all contenders.
IN_SHORT = ("torch.compile, max-autotune", "ONNX Runtime", "diffusers' scheduler", FASTDIFF)


def reports() -> dict[Path, dict[str, Any]]:
    """The committed reports of `fastdiff bench` that have whole sampling in them, by folder, GPUs' first."""
    found = {path.parent: report.read(path) for path in sorted(RESULTS.glob(f"*/{report.NAME}"))}
    found = {folder: made for folder, made in found.items() if _shown(made)}
    return dict(sorted(found.items(), key=lambda item: item[1]["rows"][0]["device"] == "cpu"))


def _shown(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in made["rows"] if row["kind"] == Kind.SAMPLING and row["what"] == SHOWN]


def _link(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


def _threads(row: dict[str, Any]) -> str:
    return f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["device"] == "cpu" else ""


def in_short(folder: Path, made: dict[str, Any]) -> str:
    """Times as fast as the published loop: the smallest and the largest batch, the contenders of IN_SHORT."""
    rows = [row for row in _shown(made) if row["contender"] in IN_SHORT]
    columns = []
    for name in SHIPPED:
        batches = sorted({row["batch"] for row in rows if row["network"] == name})
        columns += [(name, batch) for batch in dict.fromkeys((*batches[:1], *batches[-1:]))]
    heads = [f"{SHIPPED[name]}, {batch:,} image{'s' * (batch > 1)}" for name, batch in columns]
    labels = list(dict.fromkeys((row["contender"], row["dtype"]) for row in rows))
    several = len({dtype for _, dtype in labels}) > 1
    lines = []
    for label in labels:
        found = {(r["network"], r["batch"]): r.get("ratio") for r in rows if (r["contender"], r["dtype"]) == label}
        text = f"**{label[0]}**" if label[0] == FASTDIFF else label[0]
        ratios = [found.get(column) for column in columns]
        lines.append([f"{text}{', ' + label[1] if several else ''}", *(f"{r[0]:.2f}" if r else "" for r in ratios)])
    where = f"{made['machine']}{_threads(rows[0])}; [the whole report]({_link(folder, README)}/report.md)."
    return "\n".join([*table(["times as fast", *heads], lines), "", where])


def measured(folder: Path, made: dict[str, Any]) -> str:
    """Whole sampling of the largest batch that was measured: a line for each contender, a column for each network."""
    rows = _shown(made)
    batch = max(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    networks = [name for name in SHIPPED if any(row["network"] == name for row in rows)]
    count = "1 image" if batch == 1 else f"{batch:,} images"
    labels = list(dict.fromkeys((row["contender"], row["dtype"], row["role"] == Role.OTHER_NETWORK) for row in rows))
    several = len({dtype for _, dtype, _ in labels}) > 1
    lines = []
    for name, dtype, other in sorted(labels, key=lambda label: label[2]):
        found = {row["network"]: row for row in rows if (row["contender"], row["dtype"]) == (name, dtype)}
        text = f"**{name}**" if name == FASTDIFF else f"{name} (another network of that size)" if other else name
        cells = [_cell(found[network]) if network in found else "" for network in networks]
        lines.append([f"{text}{', ' + dtype if several else ''}", *cells])
    where = _link(folder, SPEED)
    text = [
        *table([f"{count}, DDIM with 25 steps{_threads(rows[0])}", *(SHIPPED[name] for name in networks)], lines),
        "",
        "The time, and how many times faster than the reference (median over interleaved rounds in one process, its "
        f"95% interval), after every contender's images had been compared with the reference's. "
        f"{report.heading(made)}; [the whole report]({where}/report.md).",
    ]
    picture = folder / "images-by-batch.png"
    if picture.exists():
        text += ["", f"![images a second by batch]({where}/{picture.name})"]
    return "\n".join(text)


def against_own_loops() -> str:
    """Sampling against eager and ONNX Runtime in the same loop: a line for each network, a column for each batch."""
    folder = RESULTS / "networks-cpu"
    made = report.read(folder)
    all_rows = [row for row in made["rows"] if row["kind"] == Kind.EAGER and row["status"] == Status.MEASURED]
    all_rows = [row for row in all_rows if row["what"] == all_rows[0]["what"]]
    rows = [row for row in all_rows if row["role"] == Role.FASTDIFF]
    theirs = {
        (row["network"], row["batch"]): row["median_seconds"] for row in all_rows if row["contender"] == ONNXRUNTIME
    }
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        cells = dict.fromkeys(batches, "")
        for row in rows:
            if row["network"] == network:
                other = theirs.get((network, row["batch"]))
                against = f"; {other / row['median_seconds']:.2f}x" if other else ""
                cells[row["batch"]] = f"{ratio_text(row['ratio'])}{against}"
        lines.append([f"`{network}`", *cells.values()])
    heads = [f"{batch} image{'s' * (batch > 1)}" for batch in batches]
    where = f"{report.heading(made)}; [the whole report]({_link(folder, SPEED)}/report.md)."
    return "\n".join([*table([f"{rows[0]['what']}{_threads(rows[0])}", *heads], lines), "", where])


def trainings() -> str:
    """A training step: a line for each contender and dtype, a column for each network and batch."""
    folder = RESULTS / "training-cpu"
    made = report.read(folder)
    rows = [row for row in made["rows"] if row["kind"] == Kind.TRAINING and row["status"] == Status.MEASURED]
    columns = sorted({(list(SHIPPED).index(row["network"]), row["batch"], row["network"]) for row in rows})
    cells: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for row in rows:
        name, pace = row["contender"], f"{row['batch'] / row['median_seconds']:.0f}"
        reference = row["role"] == Role.REFERENCE  # which is float32 in all cases
        faster = "" if reference else f", {row['ratio'][0]:.2f}x"
        label = (f"**{name}**" if name == FASTDIFF else name, "float32" if reference else row["dtype"])
        cells.setdefault(label, {}).setdefault((row["network"], row["batch"]), pace + faster)
    heads = [f"{SHIPPED[network]}, batches of {batch}" for _, batch, network in columns]
    lines = [
        [f"{name}, {dtype}", *(found.get((network, batch), "") for _, batch, network in columns)]
        for (name, dtype), found in sorted(cells.items(), key=lambda item: item[0][1] != "float32")
    ]
    where = f"{report.heading(made)}; [the whole report]({_link(folder, SPEED)}/report.md)."
    return "\n".join([*table([f"images a second{_threads(rows[0])}", *heads], lines), "", where])


def _cell(row: dict[str, Any]) -> str:
    if row["status"] != Status.MEASURED:
        return row["reason"]
    time, faster = seconds_text(row["median_seconds"]), ratio_text(row.get("ratio"))
    return time if row["role"] == Role.REFERENCE or not faster else f"{time}, {faster}"


def advised(path: Path) -> str:
    """The plot of speed against quality, and what to take."""
    made = page.read(path)
    picture = _link(path.with_suffix(".png"), SAMPLERS)
    lines = [f"![time an image against Fréchet distance]({picture})", ""]
    for entry in made["models"]:
        lines += [*page.advice(entry), ""]
    lines += [
        f"{what}: {of['machine']}; fastdiff {of['fastdiff']}."
        for what, of in (("Distances", made), ("Times", made["times"]))
    ]
    return "\n".join([*lines, f"[The table]({_link(path.with_suffix('.md'), SAMPLERS)})."])


def worth(path: Path) -> str:
    """What samples of the shipped models are worth, by the default sampler: a line for each model."""
    made, lines = page.read(path), []
    for entry in made["models"]:
        (row,) = (row for row in entry["rows"] if (row["sampler"], row["steps"]) == (DEFAULT, STEPS))
        cells = [f"{row[name]:.3g} ({entry['floor'][name]:.3g})" for name in ("distance", "precision", "recall")]
        lines.append([f"`{entry['model']}`", *cells])
    return "\n".join(table(["", "Fréchet distance", "precision", "recall"], lines))


def costs_of_a_step() -> tuple[tuple[float, float], tuple[float, float]]:
    """A step's time over its network's in ONNX Runtime, (lowest, highest): of exported loops and of the engine."""
    rows = report.read(RESULTS / "onnx-cpu")["rows"]
    if any(row["status"] != Status.MEASURED for row in rows):
        raise ValueError("a row of the exported loops has no figure")
    costs = [[1 / row["ratio"][0] for row in rows if row["role"] == role] for role in (Role.PEER, Role.FASTDIFF)]
    loop, own = ((min(some), max(some)) for some in costs)
    return loop, own


def offered() -> str:
    """The samplers, by their entries."""
    lines = []
    for name, sampler in SAMPLER_ENTRIES.items():
        steps = "all T" if sampler.steps is None else str(sampler.steps)
        lines.append([f"`{name}`{' (default)' * (name == DEFAULT)}", steps, sampler.title, sampler.paper])
    return "\n".join(table(["sampler", "steps unless given", "what it is", "published as"], lines))


def _models() -> dict[str, str]:
    made = json.loads((RESULTS / "models.json").read_text())
    speeds = report.read(RESULTS / "networks-cpu")
    return {"models": compare.summary(made, speeds), "configurations": compare.details(made)}


def sections() -> dict[Path, dict[str, str]]:
    """What stands between the markers of each page."""
    return {
        README: {
            "worth": worth(RESULTS / "quality-cpu.json"),
            "speed": "\n\n".join(in_short(folder, made) for folder, made in reports().items()),
        },
        SPEED: {
            "measured": "\n\n".join(measured(folder, made) for folder, made in reports().items()),
            "networks": against_own_loops(),
            "training": trainings(),
        },
        SAMPLERS: {
            "samplers": offered(),
            "quality": "\n\n".join(advised(path) for path in sorted(RESULTS.glob("quality-*.json"))),
        },
        MODELS: _models(),
    }


def put_in(text: str, name: str, section: str) -> str:
    """The text with that section between its markers; raises ValueError where they are missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    made, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{section}\n{end}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{count} sections {begin} ... {end}; one is needed")
    return made


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 where a page differs from the results.")
def command(check: bool) -> None:
    """Put the committed results into README.md and docs/, and draw their tables and plots anew.

    bench/results/MACHINE/report.json, of `fastdiff bench`, gives the tables of README.md and docs/speed.md, of `make
    networks` that of other networks, of `make trainings` that of training; bench/results/quality-*.json, of `fastdiff
    bench quality`, what README.md says of the shipped models and docs/samplers.md of samplers;
    bench/results/models.json, of `fastdiff bench models`, docs/models.md.
    """
    if not check:
        for folder, made in reports().items():
            report.render(made, folder)
        for path in sorted(RESULTS.glob("quality-*.json")):
            page.render(page.read(path), path)
    differing = []
    for place, parts in sections().items():
        before = text = place.read_text()
        for name, section in parts.items():
            text = put_in(text, name, section)
        if text != before:
            differing.append(place.name)
            if not check:
                save_text(text, place)
    if check and differing:
        raise click.ClickException(f"{', '.join(differing)}: not what the results say; run fastdiff bench readme")
    say("README.md and docs/ tell what the results do")
