"""Puts the committed results into the README, and draws their tables and plots anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from fastdiff.bench import report
from fastdiff.bench.case import Kind
from fastdiff.bench.contender import FASTDIFF, Role, Status
from fastdiff.bench.networks import SHIPPED
from fastdiff.bench.old_reports import exported_loops
from fastdiff.bench.quality import page
from fastdiff.bench.tables import ratio_text, seconds_text, table
from fastdiff.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SHOWN = "ddim 25"
NAMES = {"A28@28": "fashion-mnist (system A)", "B@16": "sprites (system B)"}


def reports() -> dict[Path, dict[str, Any]]:
    """The committed reports of `fastdiff bench` that have whole sampling in them, by folder, GPUs' first."""
    found = {path.parent: report.read(path) for path in sorted(RESULTS.glob(f"*/{report.NAME}"))}
    found = {folder: made for folder, made in found.items() if _shown(made)}
    return dict(sorted(found.items(), key=lambda item: item[1]["rows"][0]["device"] == "cpu"))


def _shown(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in made["rows"] if row["kind"] == Kind.SAMPLING and row["what"] == SHOWN]


def measured(folder: Path, made: dict[str, Any]) -> str:
    """Whole sampling of the largest batch that was measured: a line for each contender, a column for each network."""
    rows = _shown(made)
    batch = max(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    networks = [name for name in SHIPPED if any(row["network"] == name for row in rows)]
    first = rows[0]
    threads = f", {first['threads']} thread{'s' * (first['threads'] > 1)}" if first["device"] == "cpu" else ""
    count = "1 image" if batch == 1 else f"{batch:,} images"
    labels = list(dict.fromkeys((row["contender"], row["dtype"], row["role"] == Role.OTHER_NETWORK) for row in rows))
    several = len({dtype for _, dtype, _ in labels}) > 1
    lines = []
    for name, dtype, other in sorted(labels, key=lambda label: label[2]):
        found = {row["network"]: row for row in rows if (row["contender"], row["dtype"]) == (name, dtype)}
        text = f"**{name}**" if name == FASTDIFF else f"{name} (another network of that size)" if other else name
        cells = [_cell(found[network]) if network in found else "" for network in networks]
        lines.append([f"{text}{', ' + dtype if several else ''}", *cells])
    where = folder.relative_to(ROOT)
    told = [
        *table([f"{count}, DDIM with 25 steps{threads}", *(NAMES[name] for name in networks)], lines),
        "",
        "The time, and how many times faster than the reference (median over interleaved rounds in one process, its "
        f"95% interval), after every contender's images had been compared with the reference's. "
        f"{report.heading(made)}; [the whole report]({where}/report.md).",
    ]
    picture = folder / "images-by-batch.png"
    if picture.exists():
        told += ["", f"![images a second by batch]({where}/{picture.name})"]
    return "\n".join(told)


def _cell(row: dict[str, Any]) -> str:
    if row["status"] != Status.MEASURED:
        return row["reason"]
    time, faster = seconds_text(row["median_seconds"]), ratio_text(row.get("ratio"))
    return time if row["role"] == Role.REFERENCE or not faster else f"{time}, {faster}"


def advised(path: Path) -> str:
    """The plot of speed against quality, and what to take."""
    made = page.read(path)
    picture = path.with_suffix(".png").relative_to(ROOT)
    lines = [f"![time an image against Fréchet distance]({picture})", ""]
    for entry in made["models"]:
        lines += [*page.advice(entry), ""]
    where = path.with_suffix(".md").relative_to(ROOT)
    return "\n".join([*lines, f"{made['machine']}; fastdiff {made['fastdiff']}; [the table]({where})."])


def costs_of_a_step() -> tuple[tuple[float, float], tuple[float, float]]:
    """A step's time over its network's in ONNX Runtime, (lowest, highest): of exported loops and of the engine."""
    folder, old = RESULTS / "onnx-cpu", RESULTS / "onnx-cpu.json"
    rows = report.read(folder)["rows"] if folder.is_dir() else exported_loops(old)
    if any(row["status"] != Status.MEASURED for row in rows):
        raise ValueError("a row of the exported loops has no figure")
    costs = [[1 / row["ratio"][0] for row in rows if row["role"] == role] for role in (Role.PEER, Role.FASTDIFF)]
    loop, own = ((min(some), max(some)) for some in costs)
    return loop, own


def sections() -> dict[str, str]:
    """What stands between the README's markers."""
    found = {"measured": "\n\n".join(measured(folder, made) for folder, made in reports().items())}
    found["quality"] = "\n\n".join(advised(path) for path in sorted(RESULTS.glob("quality-*.json")))
    return found


def put_in(text: str, name: str, section: str) -> str:
    """The text with that section between its markers; raises ValueError where they are missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    made, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{section}\n{end}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"README.md has {count} sections {begin} ... {end}; it needs one")
    return made


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 where the README differs from the results.")
def command(check: bool) -> None:
    """Put the committed results into the README, and draw their tables and plots anew.

    bench/results/MACHINE/report.json, of `fastdiff bench`, gives the README's first table;
    bench/results/quality-*.json, of `fastdiff bench quality`, what it says about samplers.
    """
    readme = ROOT / "README.md"
    before = text = readme.read_text()
    if not check:
        for folder, made in reports().items():
            report.render(made, folder)
        for path in sorted(RESULTS.glob("quality-*.json")):
            page.render(page.read(path), path)
    for name, section in sections().items():
        text = put_in(text, name, section)
    if check:
        if text != before:
            raise click.ClickException("README.md differs from the results; run fastdiff bench readme")
        return
    write_atomically(readme, lambda path: path.write_text(text))
    click.echo("README.md tells what the results do")
