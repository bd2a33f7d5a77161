"""How far 16-bit images are from float32 ones: python -m fastdiff.bench.distance.

The shipped network A, DDIM with 25 steps, the same noise: the RMS of each image's difference from that of the float32
engine on the same device, mean and 99th percentile. And whether images stay finite over a whole ddpm run of 1,000
steps; only that is asked there, for the network was not trained on so long a schedule.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.bench import reporting
from fastdiff.bench.evaluations import ddim
from fastdiff.engine.engine import Engine

DTYPES = reporting.DTYPES
STEPS = 25


def distance(
    model: fastdiff.Model, n: int, batch: int, device: torch.device, steps: int = 1000, whole: int = 64
) -> list[dict[str, Any]]:
    """A row for each dtype, float32 first: n images, and `whole` images of a run of `steps` steps."""
    long = replace(model, schedule=fastdiff.make_schedule("linear", steps))
    table = fastdiff.make_table("ddpm", long.schedule, steps, prediction_type=model.prediction_type, time=model.time)
    rows, exact = [], None
    for name, dtype in DTYPES.items():
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
                row["note"] = "not finite"
        except Exception as problem:
            row["note"] = reporting.failure(problem)
    return rows


def distance_table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows in Markdown."""
    first = rows[0]
    lines = [
        f"Images against float32's, in [-1, 1], DDIM, {STEPS} steps, {first['images']} images; and "
        f"{first['full_run_images']} images of a whole ddpm run of {first['full_run_steps']} steps.",
        "",
        "| dtype | mean RMS | 99th percentile | whole run finite | its largest value |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "full_run_finite" not in row:
            lines.append(f"| {row['dtype']} | {row['note']} | | | |")
            continue
        lines.append(
            f"| {row['dtype']} | {row['mean_rms']:.2e} | {row['percentile_99']:.2e} | "
            f"{'yes' if row['full_run_finite'] else 'NO'} | {row['full_run_largest']:.3g} |"
        )
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.distance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("-n", type=int, default=1024, help="images (default 1024)")
    parser.add_argument("--batch", type=int, default=64, help="default 64")
    parser.add_argument("--whole", type=int, default=4, help="images of the whole run (default 4)")
    parser.add_argument("--steps", type=int, default=1000, help="of the whole run (default 1000)")
    parser.add_argument("--output", type=Path, default=Path("distance.json"), help="the report; its table beside it")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    rows = distance(fastdiff.load("fashion-mnist"), given.n, given.batch, device, given.steps, given.whole)
    report = {**reporting.provenance("distance", device, arguments), "rows": rows}
    reporting.save(report, "\n".join([reporting.heading(report), "", *distance_table(rows)]), given.output)
    sys.exit(1 if any("note" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
