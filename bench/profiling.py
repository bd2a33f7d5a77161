"""Where the time of one evaluation goes, and the floor: python -m fastdiff.bench.profiling.

Network A on a CUDA device, in the sampler's layout and dtype, in three forms: through the operators' references
("plain"), through the Triton kernels ("fused"), and the plain form compiled. Each is timed as a captured graph, in
interleaved rounds, after its output has been compared with the plain one; plain and fused are then profiled, and their
kernels listed by time. The floor is the larger of the bytes that fastdiff.bench.traffic counts over the rate of a large
copy and the operations over that of a large matrix product, both measured in the same run. With TRITON_INTERPRET=1 and
--device cpu --smoke the script runs on a tiny network without a GPU, to show that it works.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.operators import DTYPES, Timer, copy_rate, interpreted_note, ratio
from fastdiff.bench.shapes import NETWORKS, Network
from fastdiff.bench.traffic import network_flop, network_traffic
from fastdiff.files import write_atomically
from fastdiff.kernels.dispatch import using
from fastdiff.networks import AnnotatedUnet
from fastdiff.prepared import ieee_float32, prepare_network
from fastdiff.runlog import machine, source_version, versions

BOUND = 3e-2  # relative, between two 16-bit evaluations of some 60 layers
SMOKE = Network(lambda: AnnotatedUnet(8, dim_mults=(1,)), (1, 4, 4))


def forms(network: Network, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """x → one evaluation, by form; the same weights, the time embedding computed before, as the sampler has it."""
    torch.manual_seed(0)
    module = network.make()
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, form in (("plain", "reference"), ("fused", "triton")):
        with using(form), torch.inference_mode():
            prepared: Any = prepare_network(module, device, dtype)
            time = prepared.embed_time(torch.full((1,), 7, device=device))

        def call(x: Tensor, prepared: Any = prepared, time: Any = time, form: str = form) -> Tensor:
            with using(form):
                return prepared.denoise(x, time, ())

        made[name] = call
        if name == "plain":
            made["compiled"] = torch.compile(lambda x, p=prepared, t=time: p.denoise(x, t, ()), dynamic=False)
    return made


def matmul_rate(device: torch.device, dtype: torch.dtype, smoke: bool) -> float:
    """Operations per second of a large matrix product on random data."""
    size = 256 if smoke else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timer = Timer(lambda a, b: a @ b, [(a, b)], device)
    return 2 * size**3 / statistics.median(timer() for _ in range(9))


def kernel_times(call: Callable[[Tensor], Tensor], x: Tensor, device: torch.device, repeats: int = 5) -> list[dict]:
    """Microseconds for each kernel (or CPU operation) of one evaluation, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        call(x)
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            for _ in range(repeats):
                call(x)
            if on_gpu:
                torch.cuda.synchronize()
    rows = []
    for event in profiler.key_averages():
        total = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if total:
            rows.append({"kernel": event.key, "calls": event.count / repeats, "microseconds": total / repeats})
    return sorted(rows, key=lambda r: -r["microseconds"])


def measure(
    network: Network,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    rates: dict[str, float],
    rounds: int,
    compile: bool,
) -> dict[str, Any]:
    calls = forms(network, device, dtype)
    if not compile:
        del calls["compiled"]
    x = torch.randn(batch, *network.shape, device=device).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        plain, fused = calls["plain"](x).double(), calls["fused"](x).double()
    row: dict[str, Any] = {"batch": batch, "error": float((plain - fused).norm() / plain.norm()), "milliseconds": {}}
    if not row["error"] <= BOUND:
        return {**row, "note": f"not timed: the error exceeds {BOUND:.0e}"}
    timers = {}
    for name, call in calls.items():
        try:
            timers[name] = Timer(call, [(x,)], device)
        except Exception as problem:  # a contender that fails is a row that says so
            row["note"] = f"{name}: {type(problem).__name__}: {str(problem).splitlines()[0][:120]}"
    times: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds):
        for name in sorted(timers, reverse=turn % 2 == 1):
            times[name].append(timers[name]())
    row["milliseconds"] = {name: statistics.median(t) * 1e3 for name, t in times.items()}
    row["fused_against"] = {n: ratio(t, times["fused"]) for n, t in times.items() if n != "fused"}
    moved = {f: network_traffic(network, dtype, f == "fused", batch).total for f in ("plain", "fused")}
    flop = network_flop(network, batch)
    row["floor_milliseconds"] = {
        **{f: max(m / rates["copy"], flop / rates["matmul"]) * 1e3 for f, m in moved.items()},
        "operations": flop / rates["matmul"] * 1e3,
    }
    row["kernels"] = {name: kernel_times(calls[name], x, device)[:25] for name in ("plain", "fused")}
    return row


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['machine']}; {report['versions']}; fastdiff {report['fastdiff']}; `{report['command']}`",
        "",
        f"{report['network']}, {report['dtype']}. Copy {report['rates']['copy'] / 1e9:.0f} GB/s, matrix product "
        f"{report['rates']['matmul'] / 1e12:.1f} TFLOP/s.{report['note']}",
        "",
        "| batch | form | ms an evaluation | floor of its bytes and operations | share | fused against it | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        for name, time in row["milliseconds"].items():
            floor = row["floor_milliseconds"].get(name)
            against = row["fused_against"].get(name)
            lines.append(
                f"| {row['batch']} | {name} | {time:.3f} | {'' if floor is None else f'{floor:.3f}'} | "
                f"{'' if floor is None else f'{floor / time:.0%}'} | "
                f"{f'{against[0]:.2f}x ({against[1]:.2f} to {against[2]:.2f})' if against else ''} | "
                f"{row['error']:.1e} |"
            )
        if "note" in row:
            lines.append(f"| {row['batch']} | {row['note']} | | | | | {row['error']:.1e} |")
    for row in report["rows"]:
        for name, kernels in row.get("kernels", {}).items():
            total = sum(k["microseconds"] for k in kernels)
            lines += ["", f"Batch {row['batch']}, {name}: kernels by time", "", "| kernel | calls | µs | share |",
                      "| --- | --- | --- | --- |"]  # fmt: skip
            for k in kernels[:12]:
                label = k["kernel"].replace("|", "/")[:90]
                lines.append(
                    f"| {label} | {k['calls']:g} | {k['microseconds']:.1f} | {k['microseconds'] / total:.0%} |"
                )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.profiling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu in Triton's interpreter")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the network (default bfloat16)")
    parser.add_argument("--network", choices=[n for n in NETWORKS if n[0] == "A"], default="A, dim 28, 28x28")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 1024], help="default 64 1024")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, to see that the script runs")
    parser.add_argument(
        "--output", type=Path, default=Path("profile.json"), help="the report; its table lies beside it"
    )
    given = parser.parse_args(arguments)
    device, dtype = torch.device(given.device), DTYPES[given.dtype]
    torch.backends.cudnn.benchmark = True
    network = SMOKE if given.smoke else NETWORKS[given.network]
    with ieee_float32() if dtype == torch.float32 else nullcontext():
        rates = {"copy": copy_rate(device, given.smoke), "matmul": matmul_rate(device, dtype, given.smoke)}
        rows = [
            measure(network, batch, device, dtype, rates, given.rounds, not given.no_compile) for batch in given.batch
        ]
    report = {
        "machine": machine(device),
        "versions": versions(),
        "fastdiff": source_version(),
        "command": shlex.join(["python", "-m", "fastdiff.bench.profiling", *(arguments or sys.argv[1:])]),
        "note": interpreted_note(),
        "network": "a tiny network" if given.smoke else given.network,
        "dtype": given.dtype,
        "rates": rates,
        "rows": rows,
    }
    text = table(report)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output, lambda p: p.write_text(json.dumps(report, indent=1) + "\n"))
    write_atomically(given.output.with_suffix(".md"), lambda p: p.write_text(text + "\n"))
    print(text)
    print(f"wrote {given.output} and {given.output.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
