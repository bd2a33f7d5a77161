"""Puts the committed results into README.md and docs/, and draws their plots anew: python -m fastdiff.bench.readme.

bench/results/MACHINE/report.json, of `fastdiff bench`, gives the tables of README.md and docs/speed.md;
bench/results/quality-*.json, of fastdiff.bench.quality, what docs/samplers.md says about samplers. --check changes
nothing and exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from fastdiff.bench import quality, report
from fastdiff.bench.cases import SAMPLING
from fastdiff.bench.networks import SHIPPED
from fastdiff.bench.predictors import PUBLISHED
from fastdiff.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README, SPEED, SAMPLERS = ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "docs" / "samplers.md"
SHOWN = "ddim 25"
NAMES = {"A28@28": "fashion-mnist", "B@16": "sprites"}
# What the README's table shows beside fastdiff; docs/speed.md has all contenders.
IN_SHORT = ("torch.compile, max-autotune", "ONNX Runtime", "diffusers' scheduler")


def reports() -> dict[Path, dict[str, Any]]:
    """The committed reports of `fastdiff bench` that have whole sampling in them, by folder, GPUs' first."""
    found = {path.parent: report.read(path) for path in sorted(RESULTS.glob(f"*/{report.NAME}"))}
    found = {folder: made for folder, made in found.items() if _shown(made)}
    return dict(sorted(found.items(), key=lambda item: item[1]["rows"][0]["device"] == "cpu"))


def _shown(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in made["rows"] if row["kind"] == SAMPLING and row["what"] == SHOWN]


def _link(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


def in_short(folder: Path, made: dict[str, Any]) -> str:
    """Times as fast as the published loop: the smallest and the largest batch, the contenders of IN_SHORT."""
    rows = [row for row in _shown(made) if row["contender"] in (*IN_SHORT, "fastdiff")]
    networks = [name for name in SHIPPED if any(row["network"] == name for row in rows)]
    batches = {name: sorted({row["batch"] for row in rows if row["network"] == name}) for name in networks}
    columns = [(name, batch) for name in networks for batch in dict.fromkeys((batches[name][0], batches[name][-1]))]
    heads = [f"{NAMES[name]}, {batch:,} image{'s' * (batch > 1)}" for name, batch in columns]
    lines = [f"| times as fast | {' | '.join(heads)} |", "| --- |" + " --- |" * len(columns)]
    labels = list(dict.fromkeys((row["contender"], row["dtype"]) for row in rows))
    several = len({dtype for _, dtype in labels}) > 1
    for name, dtype in labels:
        found = {
            (row["network"], row["batch"]): row for row in rows if (row["contender"], row["dtype"]) == (name, dtype)
        }
        ratios = [found.get(column, {}).get("ratio") for column in columns]
        text = f"**{name}**" if name == "fastdiff" else name
        lines.append(
            f"| {text}{', ' + dtype if several else ''} | "
            + " | ".join(f"{ratio[0]:.2f}" if ratio else "" for ratio in ratios)
            + " |"
        )
    threads = f", {rows[0]['threads']} thread{'s' * (rows[0]['threads'] > 1)}" if rows[0]["device"] == "cpu" else ""
    return "\n".join(
        [*lines, "", f"{made['machine']}{threads}; [the whole report]({_link(folder, README)}/report.md)."]
    )


def measured(folder: Path, made: dict[str, Any]) -> str:
    """Whole sampling of the largest batch that was measured: a line for each contender, a column for each network."""
    rows = _shown(made)
    batch = max(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    networks = [name for name in SHIPPED if any(row["network"] == name for row in rows)]
    first = rows[0]
    threads = f", {first['threads']} thread{'s' * (first['threads'] > 1)}" if first["device"] == "cpu" else ""
    count = "1 image" if batch == 1 else f"{batch:,} images"
    where = _link(folder, SPEED)
    lines = [
        f"| {count}, DDIM with 25 steps{threads} | " + " | ".join(NAMES[name] for name in networks) + " |",
        "| --- |" + " --- |" * len(networks),
    ]
    labels = list(dict.fromkeys((row["contender"], row["dtype"], row["other_network"]) for row in rows))
    several = len({dtype for _, dtype, _ in labels}) > 1
    for name, dtype, other in sorted(labels, key=lambda label: label[2]):
        found = {row["network"]: row for row in rows if (row["contender"], row["dtype"]) == (name, dtype)}
        cells = [_cell(found[network]) if network in found else "" for network in networks]
        text = f"**{name}**" if name == "fastdiff" else f"{name} (another network of that size)" if other else name
        lines.append(f"| {text}{', ' + dtype if several else ''} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines += [
        "",
        "The time, and how many times faster than the reference (median over interleaved rounds in one process, its "
        f"95% interval), after every contender's images had been compared with the reference's. {made['machine']}; "
        f"Python {made['python']}, {versions}; fastdiff {made['fastdiff']}; `{made['command']}`; "
        f"[the whole report]({where}/report.md).",
    ]
    picture = folder / "images-by-batch.png"
    if picture.exists():
        lines += ["", f"![images a second by batch]({where}/{picture.name})"]
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "median_seconds" not in row:
        return re.sub(r"^\w+(Error|Exception): ", "", row["note"]).split(";")[0].replace("|", "/")
    time, faster = report.seconds_text(row["median_seconds"]), report.ratio_text(row.get("ratio"))
    return time if row["contender"] == PUBLISHED or not faster else f"{time}, {faster}"


def told(path: Path) -> str:
    """The plot of speed against quality, and what to take."""
    made = quality.read_report(path)
    picture = _link(path.with_suffix(".png"), SAMPLERS)
    lines = [f"![time an image against Fréchet distance]({picture})", ""]
    for entry in made["models"]:
        lines += [*quality.advice(entry), ""]
    where = _link(path.with_suffix(".md"), SAMPLERS)
    return "\n".join([*lines, f"{made['machine']}; fastdiff {made['fastdiff']}; [the table]({where})."])


def sections() -> dict[Path, dict[str, str]]:
    """What stands between the markers of each page."""
    return {
        README: {"speed": "\n\n".join(in_short(folder, made) for folder, made in reports().items())},
        SPEED: {"measured": "\n\n".join(measured(folder, made) for folder, made in reports().items())},
        SAMPLERS: {"quality": "\n\n".join(told(path) for path in sorted(RESULTS.glob("quality-*.json")))},
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="only see whether the pages tell what the results do")
    given = parser.parse_args(arguments)
    if not given.check:
        for folder, made in reports().items():
            report.write(made, folder)
        for path in sorted(RESULTS.glob("quality-*.json")):
            quality.save(quality.read_report(path), path)
    differing = []
    for page, parts in sections().items():
        before = text = page.read_text()
        for name, section in parts.items():
            text = put_in(text, name, section)
        if text != before:
            differing.append(page.name)
            if not given.check:
                write_atomically(page, lambda path, text=text: path.write_text(text))
    if given.check and differing:
        sys.exit(f"{', '.join(differing)}: not what the results say; run python -m fastdiff.bench.readme")
    print("README.md and docs/ tell what the results do")


if __name__ == "__main__":
    main()
