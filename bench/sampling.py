"""Sampling against the published loops: python -m fastdiff.bench.sampling.

Contenders are interleaved in rounds in one process, after a parity check in the same run; a round's ratio is the
reference's time over fastdiff's, and the report gives the median and the range over rounds. Writes a JSON report to
bench/results and puts its table into the README.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff.bench.reference import AnnotatedLoop, AnnotatedReference, ContextReference, CourseLoop
from fastdiff.files import write_atomically
from fastdiff.noise import PhiloxNoise
from fastdiff.placement import ieee_float32
from fastdiff.provenance import cpu_name, machine, source_version, versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- sampling table: begin -->", "<!-- sampling table: end -->"
LOOP_BOUND = 1e-4  # relative difference of whole loops, float32


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def annotated_case(n: int, device: torch.device) -> dict[str, Any]:
    """System A: the tutorial's step, 25 of its 200 evaluations, every frame kept as published."""
    model = fastdiff.load("fashion-mnist")
    options = {k: model.network.options[k] for k in ("dim", "init_dim", "dim_mults", "channels", "edition")}
    network = AnnotatedReference(**options).eval()
    network.load_state_dict(model.network.state_dict())
    network.to(device)
    loop = AnnotatedLoop(torch.from_numpy(model.schedule.betas.copy()).float())
    noise = PhiloxNoise(0, device)
    shape = model.image_shape

    def reference() -> Tensor:
        x, frames = noise(0, 0, (n, *shape)), []
        for k, t in enumerate(range(199, -1, -8)):
            x = loop.p_sample(network, x, t, noise(k + 1, 0, (n, *shape)))
            frames.append(x.cpu())
        return x

    def ours() -> Tensor:
        return fastdiff.sample(model, n, "ddim", 25, seed=0, batch_size=n, device=device)  # type: ignore[return-value]

    whole = loop.p_sample_loop(network, lambda k: noise(k, 0, (2, *shape)))[-1]
    parity = _relative(fastdiff.sample(model, 2, "ddpm", 200, seed=0, device=device), whole)  # type: ignore[arg-type]
    return {
        "name": "fashion-mnist (system A)",
        "n": n,
        "steps": 25,
        "parity": parity,
        "reference": reference,
        "ours": ours,
    }


def context_case(n: int, device: torch.device) -> dict[str, Any]:
    """System B: the course's DDIM, 25 steps, the same noise and nodes on both sides."""
    model = fastdiff.load("sprites")
    options = {k: model.network.options[k] for k in ("in_channels", "n_feat", "n_cfeat", "height")}
    network = ContextReference(**options, shortcut="trained").eval()
    network.load_state_dict(model.network.state_dict())
    network.to(device)
    loop = CourseLoop(500)
    noise = PhiloxNoise(0, device)

    def reference(count: int = n) -> Tensor:
        return loop.sample_ddim(network, lambda k: noise(k, 0, (count, *model.image_shape)), 25)

    def ours(count: int = n) -> Tensor:
        return fastdiff.sample(model, count, "ddim", 25, spacing="course", seed=0, batch_size=count, device=device)  # type: ignore[return-value]

    parity = _relative(ours(2), reference(2).cpu())
    return {"name": "sprites (system B)", "n": n, "steps": 25, "parity": parity, "reference": reference, "ours": ours}


def _seconds(call: Callable[[], Tensor]) -> float:
    """Both contenders end with the images on the host, so the clock needs no further synchronisation."""
    began = time.perf_counter()
    call().cpu()
    return time.perf_counter() - began


def measure(case: dict[str, Any], threads: int, rounds: int) -> dict[str, Any]:
    """Times of both contenders over interleaved rounds, after one warm-up of each."""
    if not case["parity"] <= LOOP_BOUND:
        raise SystemExit(f"{case['name']}: parity {case['parity']:.1e} exceeds {LOOP_BOUND:.0e}; nothing is timed")
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {"reference": [], "ours": []}
    for name in times:
        case[name]()
    for turn in range(rounds):
        order = list(times) if turn % 2 == 0 else list(times)[::-1]
        for name in order:
            times[name].append(_seconds(case[name]))
    ratios = [a / b for a, b in zip(times["reference"], times["ours"], strict=True)]
    row = {
        **{k: case[k] for k in ("name", "n", "steps", "parity")},
        "threads": threads,
        "seconds": {name: [round(t, 4) for t in taken] for name, taken in times.items()},
        "median_seconds": {name: statistics.median(taken) for name, taken in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }
    print(_line(row), flush=True)
    return row


def _line(row: dict[str, Any]) -> str:
    ours, reference = row["median_seconds"]["ours"], row["median_seconds"]["reference"]
    low, high = row["ratio_range"]
    return (
        f"| {row['name']} | {row['threads']} | {reference:.2f} s | {ours:.2f} s | {row['n'] / ours:.1f} | "
        f"{row['ratio']:.2f}x ({low:.2f} to {high:.2f}) | {row['parity']:.0e} |"
    )


def table(report: dict[str, Any]) -> str:
    """The README's table, from a report."""
    first = report["rows"][0]
    lines = [
        f"| {first['n']} images, {first['steps']} steps | threads | published loop | fastdiff | images/s | faster by "
        "| whole-loop difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *map(_line, report["rows"]),
        "",
        f"Median of {report['rounds']} interleaved rounds in one process (range in brackets); float32, "
        f"{report['machine']}; {report['versions']}; fastdiff {report['fastdiff']}; `{report['command']}`; "
        f"[report](bench/results/{report['file']}).",
    ]
    return "\n".join(lines)


def put_into_readme(text: str, report: dict[str, Any]) -> str:
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{table(report)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastdiff.bench.sampling", description=__doc__)
    parser.add_argument("-n", type=int, default=64, help="images (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default 1 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--output", type=Path, help="another file for the report; the README then stays as it is")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    with ieee_float32():
        cases = [annotated_case(given.n, device), context_case(given.n, device)]
        rows = [measure(case, threads, given.rounds) for threads in given.threads for case in cases]
    report = {
        "file": "sampling-cpu.json" if given.output is None else given.output.name,
        "machine": machine(device) if device.type != "cpu" else f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": versions(),
        "fastdiff": source_version(),
        "command": shlex.join(["python", "-m", "fastdiff.bench.sampling", *(arguments or sys.argv[1:])]),
        "rounds": given.rounds,
        "rows": rows,
    }
    path = given.output or RESULTS / str(report["file"])
    write_atomically(path, lambda p: p.write_text(json.dumps(report, indent=1) + "\n"))
    print(f"wrote {path}")
    if given.output is not None:
        return
    readme = ROOT / "README.md"
    text = put_into_readme(readme.read_text(), report)
    write_atomically(readme, lambda p: p.write_text(text))
    print("put its table into README.md")


if __name__ == "__main__":
    main()
