"""How far 16-bit images are from float32 ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

import fastdiff
from fastdiff.bench.contenders.evaluations import ddim
from fastdiff.bench.report import heading, origin
from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import DTYPES, choose_device
from fastdiff.errors import with_type
from fastdiff.files import save_json, save_text
from fastdiff.markdown import table
from fastdiff.provenance import machine
from fastdiff.terminal import show

MODEL = "fashion-mnist"
Row = dict[str, Any]


def distances(model: fastdiff.Model, n: int, batch: int, device: torch.device, steps: int, whole: int) -> list[Row]:
    """A row for each dtype, float32 first: n images, and `whole` images of a run of `steps` steps."""
    long = replace(model, schedule=fastdiff.make_schedule("linear", steps))
    rows, exact = [], None
    for name in DTYPES:
        given: dict[str, Any] = {"dtype": getattr(torch, name), "device": device}
        row: Row = {"dtype": name}
        rows.append(row)
        try:
            images = Engine(model, ddim(model), batch_size=batch, **given).sample(n)
            exact = images if exact is None else exact
            rms = (images - exact).square().flatten(1).mean(dim=1).sqrt()
            full = Engine(long, long.table("ddpm", steps), batch_size=whole, **given).sample(whole)
            if not (full.isfinite().all() and rms.isfinite().all()):
                raise ValueError("not finite")
            row.update(mean_rms=float(rms.mean()), percentile_99=float(rms.quantile(0.99)))
            row.update(full_run_largest=float(full.abs().max()))
        except Exception as problem:
            row["reason"] = with_type(problem)
    return rows


def markdown(report: dict[str, Any]) -> str:
    columns = {"mean_rms": "mean RMS", "percentile_99": "99th percentile", "full_run_largest": "largest of a whole run"}
    cells = [
        [row["dtype"], *(f"{row[key]:.3g}" if key in row else "" for key in columns), row.get("reason", "")]
        for row in report["rows"]
    ]
    head = ["dtype", *columns.values(), ""]
    return "\n".join([heading(report), "", report["compared"], "", *table(head, cells)])


@click.command()
@click.option("--device", help="cpu, cuda, ...  [default: cuda where there is one]")
@click.option("-n", type=click.IntRange(1), default=1024, show_default=True, help="Images.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--whole", type=click.IntRange(1), default=4, show_default=True, help="Images of the whole run.")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Of the whole run.")
@click.option(
    "-o",
    "--output",
    type=Path,
    default=Path("distance.json"),
    show_default=True,
    metavar="FILE",
    help="The report, and its table beside it.",
)
def command(device: str | None, n: int, batch: int, whole: int, steps: int, output: Path) -> None:
    """How far 16-bit images are from float32 ones, from the same noise, on one device.

    The fashion-mnist network, DDIM with 25 steps: the RMS of each image's difference from the float32 engine's, mean
    and 99th percentile. And whether images stay finite over a whole ddpm run of 1,000 steps; only that is asked there,
    for the network was not trained on so long a schedule.
    """
    where, model = choose_device(device), fastdiff.load(MODEL)
    compared = (
        f"Images against float32's, in [-1, 1], DDIM, {len(ddim(model))} steps, {n} images; and {whole} images of a "
        f"whole ddpm run of {steps} steps."
    )
    rows = distances(model, n, batch, where, steps, whole)
    report = {**origin(machine(where)), "compared": compared, "rows": rows}
    save_json(report, output)
    text = markdown(report)
    save_text(text + "\n", output.with_suffix(".md"))
    show(text)
    if any("reason" in row for row in rows):
        raise SystemExit(1)
