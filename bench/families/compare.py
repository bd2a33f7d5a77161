"""How far fastdiff's loops are from the libraries' own, as JSON, and the JSON as docs/models.md's table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from tqdm.auto import tqdm

from fastdiff.bench.case import Kind
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.families import azula, classifier_free, diffusers, edm, lucidrains, mnist, openai, signals
from fastdiff.bench.families.family import Family, Loop
from fastdiff.bench.report import heading, origin
from fastdiff.bench.tables import ratio_text
from fastdiff.errors import with_type
from fastdiff.files import save_json
from fastdiff.markdown import table
from fastdiff.provenance import machine
from fastdiff.terminal import say

FAMILIES: tuple[Family, ...] = (
    *diffusers.FAMILIES,
    *lucidrains.FAMILIES,
    *classifier_free.FAMILIES,
    *signals.FAMILIES,
    *openai.FAMILIES,
    *edm.FAMILIES,
    *azula.FAMILIES,
    *mnist.FAMILIES,
)
# Of the images' range: two orders of float32's rounding, and what clipping can make of it.
UNCLIPPED, CLIPPED = 1e-5, 1e-3
Row = dict[str, Any]


def compared(loop: Loop) -> Row:
    """A configuration's row: the largest distance, relative to the largest |x| where that is above 1."""
    row: Row = {"configuration": loop.configuration, "clipped": loop.clipped}
    try:
        theirs, ours = loop.theirs(), loop.ours()
        row["distance"] = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    except Exception as problem:
        row["reason"] = with_type(problem)
    return row


def measure(families: tuple[Family, ...] = FAMILIES) -> list[Row]:
    """A row for each family, with its configurations'."""
    rows: list[Row] = []
    for family in families:
        row: Row = {"family": family.title, "measured": family.measured, "loops": []}
        rows.append(row)
        absent = [name for name in family.needs if find_spec(name) is None]
        if absent:
            row["reason"] = f"{absent[0]} is not installed"
            continue
        for loop in tqdm(family.loops(), desc=family.title, leave=False, disable=None):
            row["loops"].append(compared(loop))
    return rows


def within(loop: Row) -> bool:
    """Whether a configuration agrees."""
    distance = loop.get("distance")
    return distance is not None and distance <= (CLIPPED if loop["clipped"] else UNCLIPPED)


def _farthest(loops: list[Row]) -> str:
    """The largest distance, and of how many."""
    if not loops:
        return ""
    agree = sum(map(within, loops))
    worst = max(loop.get("distance", float("inf")) for loop in loops)
    return f"{worst:.0e} ({agree} of {len(loops)} agree)"


def summary(made: dict[str, Any], speeds: dict[str, Any]) -> str:
    """A line for each family.

    Args:
        made: the report.
        speeds: of `fastdiff bench --only "against eager"`.
    """
    lines = []
    for row in made["rows"]:
        cells = [_farthest([one for one in row["loops"] if one["clipped"] == clipped]) for clipped in (False, True)]
        found = cells if row["loops"] else [row["reason"], ""]
        lines.append([row["family"], *found, _faster(row["measured"], speeds)])
    head = ["network", f"unclipped, to {UNCLIPPED:.0e}", f"clipped, to {CLIPPED:.0e}", "times as fast, 1 and 8 images"]
    return "\n".join([*table(head, lines), "", f"{heading(made)}."])


def _faster(network: str | None, speeds: dict[str, Any]) -> str:
    found = [
        row
        for row in speeds["rows"]
        if row["kind"] == Kind.EAGER
        and row["network"] == network
        and row["role"] == Role.FASTDIFF
        and row["status"] == Status.MEASURED
    ]
    return ", ".join(ratio_text(row["ratio"]) for row in sorted(found, key=lambda row: row["batch"]))


def details(made: dict[str, Any]) -> str:
    """A list of each family's configurations, with their distances."""
    text: list[str] = []
    for row in made["rows"]:
        lines = [
            [one["configuration"], f"{one['distance']:.1e}" if "distance" in one else one["reason"]]
            for one in row["loops"]
        ]
        text += [f"### {row['family']}", "", *table(["configuration", "distance"], lines), ""]
    return "\n".join(text).strip()


@click.command()
@click.option(
    "-o", "--output", type=Path, default=Path("models.json"), show_default=True, metavar="FILE", help="The report."
)
def command(output: Path) -> None:
    """Compare fastdiff's images with those of other libraries' own loops, from the same noise.

    For each family of networks, with random weights, and for the configurations of schedulers that people use most: the
    largest distance of a pixel, relative to the largest where that is above 1. Exits with 1 where one is above 1e-5, or
    1e-3 where the predicted image is clipped. Families whose library is not installed are named.
    """
    made = {**origin(machine(torch.device("cpu"))), "rows": measure()}
    save_json(made, output)
    far = [one for row in made["rows"] for one in row["loops"] if not within(one)]
    for row in made["rows"]:
        count = len(row["loops"])
        say(f"{row['family']}: {row.get('reason') or f'{count} configurations'}")
    for one in far:
        say(f"too far: {one['configuration']}: {one.get('distance', one.get('reason'))}", err=True)
    say(f"wrote {output.resolve()}")
    if far:
        raise SystemExit(1)
