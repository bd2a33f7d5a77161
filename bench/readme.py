"""Puts the committed results into the README, and draws their plots anew: python -m fastdiff.bench.readme.

bench/results/MACHINE/report.json, of `fastdiff bench`, gives the README's first table; bench/results/quality-*.json, of
fastdiff.bench.quality, what it says about samplers. --check changes nothing and exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
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
SHOWN = "ddim 25"
NAMES = {"A28@28": "fashion-mnist (system A)", "B@16": "sprites (system B)"}


def reports() -> dict[Path, dict[str, Any]]:
    """The committed reports of `fastdiff bench` that have whole sampling in them, by folder, GPUs' first."""
    found = {path.parent: report.read(path) for path in sorted(RESULTS.glob(f"*/{report.NAME}"))}
    found = {folder: made for folder, made in found.items() if _shown(made)}
    return dict(sorted(found.items(), key=lambda item: item[1]["rows"][0]["device"] == "cpu"))


def _shown(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in made["rows"] if row["kind"] == SAMPLING and row["what"] == SHOWN]


def measured(folder: Path, made: dict[str, Any]) -> str:
    """Whole sampling of the largest batch that was measured: a line for each contender, a column for each network."""
    rows = _shown(made)
    batch = max(row["batch"] for row in rows)
    rows = [row for row in rows if row["batch"] == batch]
    networks = [name for name in SHIPPED if any(row["network"] == name for row in rows)]
    first = rows[0]
    threads = f", {first['threads']} thread{'s' * (first['threads'] > 1)}" if first["device"] == "cpu" else ""
    count = "1 image" if batch == 1 else f"{batch:,} images"
    where = folder.relative_to(ROOT)
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
    picture = path.with_suffix(".png").relative_to(ROOT)
    lines = [f"![time an image against Fréchet distance]({picture})", ""]
    for entry in made["models"]:
        lines += [*quality.advice(entry), ""]
    where = path.with_suffix(".md").relative_to(ROOT)
    return "\n".join([*lines, f"{made['machine']}; fastdiff {made['fastdiff']}; [the table]({where})."])


def sections() -> dict[str, str]:
    """What stands between the README's markers."""
    found = {"measured": "\n\n".join(measured(folder, made) for folder, made in reports().items())}
    found["quality"] = "\n\n".join(told(path) for path in sorted(RESULTS.glob("quality-*.json")))
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="only see whether the README tells what the results do")
    given = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    before = readme.read_text()
    if not given.check:
        for folder, made in reports().items():
            report.write(made, folder)
        for path in sorted(RESULTS.glob("quality-*.json")):
            quality.save(quality.read_report(path), path)
    text = before
    for name, section in sections().items():
        text = put_in(text, name, section)
    if given.check:
        sys.exit("README.md differs from the results; run python -m fastdiff.bench.readme" if text != before else 0)
    write_atomically(readme, lambda path: path.write_text(text))
    print("README.md tells what the results do")


if __name__ == "__main__":
    main()
