"""The engine on a GPU, against the published loop and torch.compile: python -m fastdiff.bench.engine --device cuda.

The shipped network A, DDIM with 25 steps, from noise to images on the host. Contenders: the published network in an
eager float32 loop, with TF32 as torch has it by default; the engine in float32 (TF32 off), bf16 and fp16, eagerly and
by captured graphs of 1, 5 and 25 steps; torch.compile(mode="max-autotune") of the whole step in bf16 and channels_last,
time embeddings computed before, with its CUDA graphs. All start from the same noise. A contender is timed only after
its images have been compared with the published ones (made with TF32 off): float32 within 1e-3 everywhere, 16 bits
finite and within 0.2 RMS. Contenders take turns in rounds. The floor of a step is the larger of the bytes that
fastdiff.bench.traffic counts over the rate of a large copy and the operations over that of a large matrix product of
that dtype, both measured in the same run. Then: how far bf16 and fp16 images are from float32 ones, and whether a
full run of 1,000 steps stays finite. --smoke runs it all on a tiny network, on the CPU too; its times mean nothing.
Exits with 1 where a contender could not be measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fastdiff
from fastdiff import graphs
from fastdiff.bench import reporting
from fastdiff.bench.distance import distance, distance_table
from fastdiff.bench.loops import COMPILED, PUBLISHED, STEPS, ByEngine, Loop, by_publication, contenders
from fastdiff.bench.operators import copy_rate, ratio
from fastdiff.bench.profiling import matmul_rate
from fastdiff.bench.shapes import Network
from fastdiff.bench.traffic import network_flop, network_traffic
from fastdiff.placement import ieee_float32

BOUND, BOUND_16 = 1e-3, 0.2  # largest difference of float32 images; RMS of 16-bit ones
ROOFLINE_BYTES = 3.0e6  # of network A, an image and evaluation in 16 bits, were each block a few fused kernels
DTYPES = reporting.DTYPES


def make_model(smoke: bool) -> fastdiff.Model:
    if not smoke:
        return fastdiff.load("fashion-mnist")
    torch.manual_seed(0)
    network = fastdiff.AnnotatedUnet(8, dim_mults=(1,))
    return fastdiff.Model(network, fastdiff.make_schedule("linear", 40), image_shape=(1, 4, 4))


def timed(loop: Loop) -> float:
    """A loop ends with its images on the host, so the clock needs no further synchronisation."""
    began = time.perf_counter()
    loop()
    return time.perf_counter() - began


def measure(
    model: fastdiff.Model, n: int, device: torch.device, rates: dict[str, Any], rounds: int, compile: bool
) -> list[dict[str, Any]]:
    """A row for each contender."""
    with ieee_float32():
        expected = by_publication(model, n, device)()
    network = Network(lambda: type(model.network)(**model.network.options), model.image_shape)
    flop = network_flop(network, n)

    @cache
    def moved(dtype: torch.dtype, fused: bool) -> int:
        return network_traffic(network, dtype, fused, n).total

    rows: list[dict[str, Any]] = []
    loops: dict[tuple[str, str], Loop] = {}
    for (name, dtype), make in contenders(model, n, device, compile).items():
        row: dict[str, Any] = {"batch": n, "contender": name, "dtype": dtype}
        rows.append(row)
        try:
            held, first = graphs.POOL.bytes(), time.perf_counter()
            loop = make()
            with ieee_float32() if name == PUBLISHED else nullcontext():
                images = loop()
            row["first_seconds"] = time.perf_counter() - first  # prepares, compiles, captures
            row["largest"] = float((images - expected).abs().max())
            row["rms"] = float((images - expected).square().mean().sqrt())
            again = loop()
            if isinstance(loop, ByEngine):
                row.update(told=loop.told(), pool_bytes=graphs.POOL.bytes() - held)
            elif name == PUBLISHED:
                row["told"] = f"with torch's own settings its images move by {float((again - images).abs().max()):.1e}"
            near = row["largest"] <= BOUND if dtype == "float32" else row["rms"] <= BOUND_16
            if near and torch.isfinite(images).all():
                loops[name, dtype] = loop
            else:
                row["note"] = f"not timed: images differ by {row['largest']:.1e}, RMS {row['rms']:.1e}"
        except Exception as problem:  # a contender that fails is a row that says so
            row["note"] = reporting.failure(problem)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
    for turn in range(rounds):
        for key in list(loops)[:: 1 if turn % 2 == 0 else -1]:
            seconds[key].append(timed(loops[key]))
    for row in rows:
        key = row["contender"], row["dtype"]
        if key not in loops:
            continue
        median = statistics.median(seconds[key])
        row.update(seconds=median, images_per_second=n / median, milliseconds_a_step=median / STEPS * 1e3)
        for label, other in (("published", (PUBLISHED, "float32")), ("compiled", (COMPILED, "bfloat16"))):
            if other in loops:
                row[f"against_{label}"] = ratio(seconds[other], seconds[key])
        dtype, product = DTYPES[key[1]], flop / rates["matmul"][key[1]]
        if row["contender"] != COMPILED:  # whose kernels are not known
            fused = isinstance(loops[key], ByEngine) and device.type == "cuda"
            row["share_of_floor"] = max(moved(dtype, fused) / rates["copy"], product) * STEPS / median
        if dtype.itemsize == 2:
            row["share_of_roofline"] = max(ROOFLINE_BYTES * n / rates["copy"], product) * STEPS / median
    return rows


def _ratio(values: list[float] | None) -> str:
    return f"{values[0]:.2f}x ({values[1]:.2f} to {values[2]:.2f})" if values else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _line(row: dict[str, Any]) -> str:
    start = f"| {row['batch']} | {row['contender']} | {row['dtype']} |"
    if "seconds" not in row:
        return f"{start} {row['note']} | | | | | | | |"
    ratios = (_ratio(row.get(f"against_{other}")) for other in ("published", "compiled"))
    shares = (_share(row.get(f"share_of_{limit}")) for limit in ("floor", "roofline"))
    return (
        f"{start} {row['images_per_second']:.0f} | {row['milliseconds_a_step']:.3f} | {' | '.join(ratios)} | "
        f"{' | '.join(shares)} | {row['largest']:.1e} | {row['rms']:.1e} |"
    )


def table(report: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in report["rates"]["matmul"].items())
    lines = [
        reporting.heading(report),
        "",
        f"DDIM, {STEPS} steps, from noise to images on the host; median of {report['rounds']} interleaved rounds. Copy "
        f"{report['rates']['copy'] / 1e9:.0f} GB/s; matrix product, TFLOP/s: {rates}. {report['tf32']}{report['note']}",
        "",
        "| batch | contender | dtype | images/s | ms a step | faster than published | faster than compiled | "
        "share of floor | of the roofline | largest difference | RMS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_line, report["rows"]),
        "",
    ]
    for row in report["rows"]:
        if row.get("told"):
            held = f"; its graphs hold {row['pool_bytes'] / 1e6:.0f} MB" if row.get("pool_bytes") else ""
            first = f"; {row['first_seconds']:.1f} s to the first images" if "first_seconds" in row else ""
            lines.append(f"- batch {row['batch']}, {row['contender']}, {row['dtype']}: {row['told']}{held}{first}")
    lines += ["", *distance_table(report["distance"])]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 1024], help="default 1 64 1024")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, to see that the script runs")
    parser.add_argument("--output", type=Path, default=Path("engine.json"), help="the report; its table lies beside it")
    given = parser.parse_args(arguments)
    device, smoke = torch.device(given.device), given.smoke
    model = make_model(smoke)
    conv, matmul = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    with ieee_float32():
        rates: dict[str, Any] = {
            "copy": copy_rate(device, smoke),
            "matmul": {name: matmul_rate(device, dtype, smoke) for name, dtype in DTYPES.items()},
        }
    rows: list[dict[str, Any]] = []
    graphs.POOL.limit = 1 << 40  # contenders that take turns must not push each other out
    for n in given.batch:
        try:
            rows += measure(model, n, device, rates, given.rounds, not given.no_compile)
        except Exception as problem:  # one batch must not lose the others
            rows.append({"batch": n, "contender": "", "dtype": "", "note": reporting.failure(problem)})
    report = {
        **reporting.provenance("engine", device, arguments),
        "tf32": f"The published loop ran with torch's own precisions: convolutions {conv!r}, products {matmul!r}.",
        "rounds": given.rounds,
        "rates": rates,
        "rows": rows,
        "distance": distance(model, 8, 4, device, 50, 8) if smoke else distance(model, 1024, 1024, device),
    }
    reporting.save(report, table(report), given.output)
    sys.exit(1 if any("note" in row for row in [*rows, *report["distance"]]) else 0)


if __name__ == "__main__":
    main()
