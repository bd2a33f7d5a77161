"""How far 16-bit images are from float32 ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

import fastdiff
from fastdiff.bench.contenders.evaluations import ddim
from fastdiff.bench.plans import DTYPES
from fastdiff.bench.report import heading, origin, save_json, save_text
from fastdiff.bench.tables import failure, table
from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import choose_device
from fastdiff.provenance import machine

MODEL = "fashion-mnist"


def distances(
    model: fastdiff.Model, n: int, batch: int, device: torch.device, steps: int = 1000, whole: int = 64
) -> list[dict[str, Any]]:
    """A row for each dtype, float32 first: n images, and `whole` images of a run of `steps` steps."""
    long = replace(model, schedule=fastdiff.make_schedule("linear", steps))
    table = fastdiff.make_table("ddpm", long.schedule, steps, prediction_type=model.prediction_type, time=model.time)
    rows, exact = [], None
    for name in DTYPES:
        dtype = getattr(torch, name)
        row: dict[str, Any] = {"dtype": name, "images": n, "full_run_steps": steps, "full_run_images": whole}
        rows.append(row)
        try:
            images = Engine(model, ddim(model), batch_size=batch, dtype=dtype, device=device).sample(n)
            exact = images if exact is None else exact
            rms = (images - exact).square().flatten(1).mean(dim=1).sqrt()
            row.update(mean_rms=float(rms.mean()), percentile_99=float(rms.quantile(0.99)))
            full = Engine(long, table, batch_size=whole, dtype=dtype, device=device).sample(whole)
            row.update(full_run_finite=bool(torch.isfinite(full).all()), full_run_largest=float(full.abs().max()))
            if not (row["full_run_finite"] and torch.isfinite(rms).all()):
                row["reason"] = "not finite"
        except Exception as problem:
            row["reason"] = failure(problem)
    return rows


def markdown(report: dict[str, Any]) -> str:
    rows, cells = report["rows"], []
    for row in rows:
        if "full_run_finite" in row:
            rms = [f"{row[key]:.2e}" for key in ("mean_rms", "percentile_99")]
            figures = [*rms, "yes" if row["full_run_finite"] else "NO", f"{row['full_run_largest']:.3g}"]
        else:
            figures = [row["reason"], "", "", ""]
        cells.append([row["dtype"], *figures])
    first, steps = rows[0], len(ddim(fastdiff.load(MODEL)))
    compared = (
        f"Images against float32's, in [-1, 1], DDIM, {steps} steps, {first['images']} images; and "
        f"{first['full_run_images']} images of a whole ddpm run of {first['full_run_steps']} steps."
    )
    columns = ["dtype", "mean RMS", "99th percentile", "whole run finite", "its largest value"]
    return "\n".join([heading(report), "", compared, "", *table(columns, cells)])


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

    The shipped network A, DDIM with 25 steps: the RMS of each image's difference from the float32 engine's, mean and
    99th percentile. And whether images stay finite over a whole ddpm run of 1,000 steps; only that is asked there,
    for the network was not trained on so long a schedule.
    """
    where = choose_device(device)
    rows = distances(fastdiff.load(MODEL), n, batch, where, steps, whole)
    report = {**origin(machine(where)), "rows": rows}
    save_json(report, output)
    text = markdown(report)
    save_text(text + "\n", output.with_suffix(".md"))
    click.echo(text)
    if any("reason" in row for row in rows):
        raise SystemExit(1)
