"""What the exported sampling loop costs over its network, in ONNX Runtime: python -m fastdiff.bench.onnxloop.

The shipped networks A and B. For each: network.onnx alone, one evaluation; sampler files that run rows of a table, by
ddim (no noise), ddpm (noise made in the file) and ddpm with noise from outside; the stepwise file, a row a call; and
fastdiff's own engine on the CPU. Each file's images are first compared with fastdiff's; what differs is not timed. The
contenders take turns in rounds in one process, and a ratio is a step's time over the bare network's within a round.
Writes bench/results/onnx-cpu.json and its table beside it. Exits with 1 where a contender could not be measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastdiff
from fastdiff.bench import reporting
from fastdiff.bench.timing import ratio, timed
from fastdiff.export import OnnxSampler
from fastdiff.export.assemble import Face, network_model, sampler_model
from fastdiff.export.trace import trace
from fastdiff.provenance import hardware

OUTPUT = Path(__file__).resolve().parent.parent / "bench" / "results" / "onnx-cpu.json"
BOUND = 1e-3  # of max(1, max|x|): trained networks amplify float32's rounding on some samples (see export.verify)
BARE = "network.onnx, one evaluation"
CPU = torch.device("cpu")
MODELS = {"A": "fashion-mnist", "B": "sprites"}


def contenders(
    letter: str, batch: int, threads: int, steps: int, folder: Path
) -> tuple[dict[str, Any], dict[str, int]]:
    """Name → (what runs `steps` steps or one evaluation, images or None), and the files' sizes."""
    import onnxruntime

    model = fastdiff.load(MODELS[letter])
    parts = trace(model)
    sizes = {}

    def save(name: str, made: Any) -> Path:
        path = folder / f"{letter}-{name}.onnx"
        path.write_bytes(made.SerializeToString())
        sizes[name] = path.stat().st_size
        return path

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    path = save("network", network_model(parts))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {"sample": np.random.randn(batch, *model.image_shape).astype(np.float32)}
    given["timestep"] = np.full(batch, 40, np.int64 if model.time == "index" else np.float32)
    if parts.width:
        given["context"] = np.zeros((batch, parts.width), np.float32)
    made: dict[str, Any] = {BARE: (lambda: session.run(None, given), None, 1)}
    faces: dict[str, dict[str, Any]] = {
        "ddim": {}, "ddpm": {}, "ddpm, noise from outside": {"noise": "input"},
        "ddim, a row a call": {"stepwise": True},
    }  # fmt: skip
    for name, face in faces.items():
        table = fastdiff.make_table(name.split(",")[0], model.schedule, steps, time=model.time)
        file = OnnxSampler(save(name, sampler_model(parts, Face(table, **face))), threads=threads)
        expected = fastdiff.sample(model, batch, table)
        made[f"sampler.onnx, {name}"] = (lambda file=file: file.sample(batch), expected, steps)
    table = fastdiff.make_table("ddpm", model.schedule, steps, time=model.time)
    engine = fastdiff.Engine(model, table, batch_size=batch, device=CPU)
    made["fastdiff, ddpm"] = (lambda: engine.sample(batch), None, steps)
    return made, sizes


def measure(letter: str, batch: int, threads: int, steps: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each contender."""
    torch.set_num_threads(threads)
    made, sizes = contenders(letter, batch, threads, steps, folder)
    rows, calls = [], {}
    for name, (call, expected, count) in made.items():
        row: dict[str, Any] = {"network": letter, "batch": batch, "threads": threads, "contender": name}
        rows.append(row)
        try:
            images = call()
            if expected is not None:
                unit = max(1.0, float(expected.abs().max()))
                row["parity"] = float(np.abs(images - expected.numpy()).max()) / unit
                if not row["parity"] <= BOUND:
                    row["note"] = f"not timed: it differs by {row['parity']:.1e}, more than {BOUND:.0e}"
                    continue
            calls[name] = (call, count)
        except Exception as problem:  # a contender that fails is a row that says so
            row["note"] = reporting.failure(problem)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            call, count = calls[name]
            repeats = max(1, steps // count)  # of all contenders as many evaluations
            seconds[name].append(timed(call, repeats) / count)
    for row in rows:
        name = row["contender"]
        if name in seconds:
            row.update(milliseconds=statistics.median(seconds[name]) * 1e3, ratio=ratio(seconds[name], seconds[BARE]))
        row["bytes"] = sizes.get("network" if name == BARE else name.removeprefix("sampler.onnx, "))
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    start = f"| {row['network']} | {row['batch']} | {row['threads']} | {row['contender']} |"
    if "note" in row:
        return f"{start} {row['note']} | | | |"
    middle, low, high = row["ratio"]
    size = f"{row['bytes'] / 1e6:.2f} MB" if row["bytes"] else ""
    parity = f"{row['parity']:.0e}" if "parity" in row else ""
    return f"{start} {row['milliseconds']:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) | {size} | {parity} |"


def table(report: dict[str, Any]) -> str:
    return "\n".join([
        reporting.heading(report),
        "",
        f"A step of {report['steps']}, median of {report['rounds']} interleaved rounds (95% bootstrap interval). "
        f"ONNX Runtime {report['onnxruntime']}.",
        "",
        "| network | batch | threads | contender | ms a step | of the bare network's | file | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_line, report["rows"]),
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.onnxloop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=16, help="default 16")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default 1")
    parser.add_argument("--steps", type=int, default=10, help="rows of the tables (default 10)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--network", choices=MODELS, nargs="+", default=list(MODELS), help="default A B")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the report; its table lies beside it")
    given = parser.parse_args(arguments)
    import onnxruntime

    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for letter in given.network
            for threads in given.threads
            for row in measure(letter, given.batch, threads, given.steps, given.rounds, Path(folder))
        ]
    torch.set_num_threads(before)
    report = {
        **reporting.provenance("onnxloop", CPU, arguments),
        "machine": hardware("cpu"),
        "onnxruntime": onnxruntime.__version__,
        "steps": given.steps,
        "rounds": given.rounds,
        "rows": rows,
    }
    reporting.save(report, table(report), given.output)
    sys.exit(1 if any("note" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
