"""One evaluation of a network on the CPU, and the cold start: python -m fastdiff.bench.evaluation.

The shipped networks A and B. Contenders: the published network, called plainly in eager float32 (the eager
reference); our prepared network through an Engine, by each form that runs on the CPU; ONNX Runtime on the plainly
exported network, with its embeddings as inputs. Each contender's outputs are first compared with the published
network's at three rows of a sampler; what differs is not timed. The contenders, and a 1024^3 float32 matrix product,
then take turns in rounds in one process. A ratio is the published time over the contender's within a round, above 1
where the contender is faster. The cold start is that of fresh processes, from import to 64 images with 25 steps.
Writes bench/results/evaluation-cpu.json and its table beside it. Exits with 1 where a contender could not be measured.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff.bench import reporting
from fastdiff.bench.contenders import CPU, PUBLISHED, contenders
from fastdiff.bench.operators import ratio
from fastdiff.bench.shapes import Network
from fastdiff.bench.traffic import network_flop
from fastdiff.provenance import cpu_name

OUTPUT = Path(__file__).resolve().parent.parent / "bench" / "results" / "evaluation-cpu.json"
MODELS = {"A": "fashion-mnist", "B": "sprites"}
BOUND = 1e-5  # relative, of one float32 evaluation
ROWS = (0, 12, 24)
ROUND = 0.15  # seconds that a contender's turn takes at least
PAUSE = 0.02  # between turns: worker threads of the one before spin on for a while
PRODUCT = "matrix product"


def timed(call: Callable[[], Any], calls: int) -> tuple[float, float]:
    """Seconds and minor page faults of one call."""
    time.sleep(PAUSE)
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(calls):
        call()
    taken = time.perf_counter() - began
    return taken / calls, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / calls


def measure(letter: str, batch: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each contender."""
    torch.set_num_threads(threads)
    model = fastdiff.load(MODELS[letter])
    network = model.network
    flop = network_flop(Network(lambda: type(network)(**network.options), model.image_shape), batch)
    x, a, b = torch.randn(batch, *model.image_shape), *torch.randn(2, 1024, 1024)
    rows, calls, expected = [], {}, []
    for name, make in contenders(model, batch, threads).items():
        row: dict[str, Any] = {"network": letter, "batch": batch, "threads": threads, "contender": name}
        rows.append(row)
        try:
            call = make()
            outputs = [call(x, k).clone() for k in ROWS]
            if name == PUBLISHED:
                expected = outputs
            row["parity"] = max(float((o - e).norm() / e.norm()) for o, e in zip(outputs, expected, strict=True))
            if row["parity"] < BOUND:
                calls[name] = lambda call=call: call(x, ROWS[1])
            else:
                row["note"] = f"not timed: it differs by {row['parity']:.1e}, more than {BOUND:.0e}"
        except Exception as problem:  # a contender that fails is a row that says so
            row["note"] = reporting.failure(problem)
    calls[PRODUCT] = lambda: a @ b
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = math.ceil(ROUND / timed(call, 1)[0]) if rounds > 1 else 1
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            seen[name].append(timed(calls[name], repeats[name]))
    seconds = {name: [s for s, _ in taken] for name, taken in seen.items()}
    for row in rows:
        if row["contender"] in calls:
            name = row["contender"]
            median = statistics.median(seconds[name])
            row.update(
                milliseconds=median * 1e3,
                ratio=ratio(seconds[PUBLISHED], seconds[name]),
                gflops=flop / median / 1e9,
                product_gflops=2 * 1024**3 / statistics.median(seconds[PRODUCT]) / 1e9,
                page_faults=statistics.median(faults for _, faults in seen[name]),
            )
        print(_line(row), flush=True)
    return rows


def cold_start(letter: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Fresh processes in turn: the published loop; fastdiff with an empty and with a warm cache of kernels."""
    with tempfile.TemporaryDirectory() as folder:
        warm, empty = "fastdiff, warm cache", "fastdiff, empty cache"

        def seconds(name: str, turn: int) -> float:
            cache = Path(folder) / ("warm" if name == warm else f"empty-{turn}")
            environment = {**os.environ, "FASTDIFF_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}
            loop = name.split(",")[0]
            words = [sys.executable, "-m", "fastdiff.bench.coldstart", loop, MODELS[letter]]
            ended = subprocess.run(words, env=environment, capture_output=True, text=True)
            if ended.returncode:
                raise RuntimeError((ended.stderr.strip().splitlines() or ["it failed"])[-1])
            return float(ended.stdout.split()[-1])

        names = [PUBLISHED, warm, empty]
        taken: dict[str, list[float]] = {name: [] for name in names}
        rows = [{"network": letter, "threads": threads, "loop": name} for name in names]
        try:
            seconds(warm, -1)  # fills the cache, and the system's of files
            for turn in range(rounds):
                for name in names[:: 1 if turn % 2 == 0 else -1]:
                    taken[name].append(seconds(name, turn))
        except Exception as problem:
            return [{**row, "note": reporting.failure(problem)} for row in rows]
    return [
        {**row, "seconds": statistics.median(taken[name]), "ratio": ratio(taken[PUBLISHED], taken[name])}
        for row, name in zip(rows, names, strict=True)
    ]


def _ratio(values: list[float]) -> str:
    return f"{values[0]:.2f}x ({values[1]:.2f} to {values[2]:.2f})"


def _line(row: dict[str, Any]) -> str:
    start = f"| {row['network']} | {row['batch']} | {row['threads']} | {row['contender']} |"
    if "note" in row:
        return f"{start} {row['note']} | | | | | |"
    return (
        f"{start} {row['milliseconds']:.2f} | {_ratio(row['ratio'])} | {row['gflops']:.1f} | "
        f"{row['product_gflops']:.1f} | {row['page_faults']:.0f} | {row['parity']:.0e} |"
    )


def table(report: dict[str, Any]) -> str:
    lines = [
        reporting.heading(report),
        "",
        f"One float32 evaluation, median of {report['rounds']} interleaved rounds (lowest to highest ratio). The "
        "matrix product is of 1024^3, in the same rounds.",
        "",
        "| network | batch | threads | contender | ms | faster than published | GFLOP/s | matrix product | "
        "page faults a call | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_line, report["rows"]),
    ]
    if report["cold_start"]:
        lines += ["", f"Cold start: import to 64 images, 25 steps, in fresh processes in turn, median of "
                  f"{report['cold_rounds']}.", "", "| network | threads | loop | s | faster than published |",
                  "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in report["cold_start"]:
        told = row.get("note") or f"{row['seconds']:.2f} | {_ratio(row['ratio'])}"
        lines.append(f"| {row['network']} | {row['threads']} | {row['loop']} | {told} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], help="default 1 4 16 64")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--cold-rounds", type=int, default=5, help="of the cold start (default 5; 0 leaves it out)")
    parser.add_argument("--network", choices=MODELS, nargs="+", default=list(MODELS), help="default A B")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the report; its table lies beside it")
    given = parser.parse_args(arguments)
    before = torch.get_num_threads()
    with torch.no_grad():
        rows = [
            row
            for letter in given.network
            for threads in given.threads
            for batch in given.batch
            for row in measure(letter, batch, threads, given.rounds)
        ]
    torch.set_num_threads(before)
    threads = max(given.threads)
    networks = given.network if given.cold_rounds else []
    cold = [row for letter in networks for row in cold_start(letter, threads, given.cold_rounds)]
    report = {
        **reporting.provenance("evaluation", CPU, arguments),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "rounds": given.rounds,
        "cold_rounds": given.cold_rounds,
        "rows": rows,
        "cold_start": cold,
    }
    reporting.save(report, table(report), given.output)
    sys.exit(1 if any("note" in row for row in [*rows, *cold]) else 0)


if __name__ == "__main__":
    main()
