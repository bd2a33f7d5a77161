"""Where the time of one evaluation goes, and the floor: python -m fastdiff.bench.profiling.

Network A on a CUDA device, in the sampler's layout and dtype, in three forms: through the operators' references
("plain"), through the Triton kernels ("fused"), and the plain form compiled. Each is timed as a captured graph, in
interleaved rounds, after its output has been compared with the plain one; plain and fused are then profiled, and their
kernels listed by time. The floor is the larger of the bytes that fastdiff.bench.traffic counts over the rate of a large
copy and the operations over that of a large matrix product, both measured in the same run. With TRITON_INTERPRET=1 and
--device cpu --smoke the script runs on a tiny network without a GPU, to show that it works. A training step's forward
and backward pass is timed too, by the clock.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench import reporting
from fastdiff.bench.operators import Timer, copy_rate
from fastdiff.bench.shapes import NETWORKS, Network
from fastdiff.bench.timing import ratio
from fastdiff.bench.traffic import network_flop, network_traffic
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.engine.prepared import prepare_network
from fastdiff.kernels.dispatch import using
from fastdiff.networks.annotated import AnnotatedUnet

BOUND = 3e-2  # relative, between two 16-bit evaluations of some 60 layers
TRAINING_BOUND = 6e-2  # of all gradients together, each form rounding to 16 bits at its own places
SMOKE = Network(lambda: AnnotatedUnet(8, dim_mults=(1,)), (1, 4, 4))


def forms(network: Network, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """x → one evaluation, by form; the same weights, the time embedding computed before, as the sampler has it."""
    torch.manual_seed(0)
    module = network.make()
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, form in (("plain", "reference"), ("fused", "triton")):
        with using(form), torch.no_grad():
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
    with torch.no_grad():
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
    with torch.no_grad():
        plain, fused = calls["plain"](x).double(), calls["fused"](x).double()
    row: dict[str, Any] = {"batch": batch, "error": float((plain - fused).norm() / plain.norm()), "milliseconds": {}}
    if not row["error"] <= BOUND:
        return {**row, "note": f"not timed: the error exceeds {BOUND:.0e}"}
    timers = {}
    for name, call in calls.items():
        try:
            timers[name] = Timer(call, [(x,)], device)
        except Exception as problem:  # a contender that fails is a row that says so
            row["note"] = f"{name}: {reporting.failure(problem)}"
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


def measure_training(
    network: Network, batch: int, device: torch.device, dtype: torch.dtype, rounds: int, compile: bool
) -> dict[str, Any]:
    """Forward and backward of a training step under autocast: milliseconds by form, gradients compared first."""
    torch.manual_seed(0)
    start = network.make().to(device, memory_format=torch.channels_last).train()
    x = torch.randn(batch, *network.shape, device=device).contiguous(memory_format=torch.channels_last)
    t = torch.arange(batch, device=device) % 200
    steps: dict[str, Callable[[], list[Tensor]]] = {}
    contenders = [("plain", "reference", False), ("fused", "triton", False), ("compiled", "reference", True)]
    for name, form, compiled in contenders[: 3 if compile else 2]:
        module: Any = copy.deepcopy(start)
        parameters = list(module.parameters())
        run = torch.compile(module, dynamic=False) if compiled else module

        def step(run: Any = run, parameters: Any = parameters, form: str = form) -> list[Tensor]:
            with using(form), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = (run(x, t).float() - x).square().mean()
            return list(torch.autograd.grad(loss, parameters))

        steps[name] = step
    plain, fused = (torch.cat([g.flatten().double() for g in steps[name]()]) for name in ("plain", "fused"))
    row: dict[str, Any] = {"batch": batch, "error": float((plain - fused).norm() / plain.norm()), "milliseconds": {}}
    if not row["error"] <= TRAINING_BOUND:
        return {**row, "note": f"not timed: the gradients' error exceeds {TRAINING_BOUND:.0e}"}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, rounds):  # two to warm up
        for name in sorted(steps, reverse=turn % 2 == 1):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            steps[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - began)
    row["milliseconds"] = {name: statistics.median(taken) * 1e3 for name, taken in times.items()}
    row["fused_against"] = {n: ratio(taken, times["fused"]) for n, taken in times.items() if n != "fused"}
    return row


def _failed(batch: int, problem: Exception) -> dict[str, Any]:
    return {"batch": batch, "error": math.nan, "milliseconds": {}, "note": reporting.failure(problem)}


def table(report: dict[str, Any]) -> str:
    lines = [
        reporting.heading(report),
        "",
        f"{report['network']}, {report['dtype']}. Copy {report['rates']['copy'] / 1e9:.0f} GB/s, matrix product "
        f"{report['rates']['matmul'] / 1e12:.1f} TFLOP/s.{report['note']}",
        "",
        "| batch | form | ms an evaluation | floor of its bytes and operations | share | fused against it | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        for name, taken in row["milliseconds"].items():
            floor = row["floor_milliseconds"].get(name)
            against = row["fused_against"].get(name)
            lines.append(
                f"| {row['batch']} | {name} | {taken:.3f} | {'' if floor is None else f'{floor:.3f}'} | "
                f"{'' if floor is None else f'{floor / taken:.0%}'} | "
                f"{f'{against[0]:.2f}x ({against[1]:.2f} to {against[2]:.2f})' if against else ''} | "
                f"{row['error']:.1e} |"
            )
        if "note" in row:
            lines.append(f"| {row['batch']} | {row['note']} | | | | | {row['error']:.1e} |")
    lines += _training_table(report["training"])
    for row in report["rows"]:
        for name, kernels in row.get("kernels", {}).items():
            lines += _kernels_table(f"Batch {row['batch']}, {name}: kernels by time", kernels)
    return "\n".join(lines)


def _training_table(training: dict[str, Any] | None) -> list[str]:
    if training is None:
        return []
    lines = ["", f"Forward and backward of a training step, batch {training['batch']}, under autocast; gradients "
              f"{training['error']:.1e} apart. {training.get('note', '')}", "",
              "| form | ms | fused against it |", "| --- | --- | --- |"]  # fmt: skip
    for name, taken in training["milliseconds"].items():
        against = training["fused_against"].get(name)
        lines.append(f"| {name} | {taken:.2f} | {f'{against[0]:.2f}x' if against else ''} |")
    return lines


def _kernels_table(title: str, kernels: list[dict[str, Any]]) -> list[str]:
    total = sum(k["microseconds"] for k in kernels)
    lines = ["", title, "", "| kernel | calls | µs | share |", "| --- | --- | --- | --- |"]
    for k in kernels[:12]:
        label = k["kernel"].replace("|", "/")[:90]
        lines.append(f"| {label} | {k['calls']:g} | {k['microseconds']:.1f} | {k['microseconds'] / total:.0%} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = reporting.parser("profiling", __doc__, "profile.json")
    names = [name for name in NETWORKS if name.startswith("A")]
    parser.add_argument("--network", choices=names, default=names[0], metavar="NAME", help=f"one of {names}")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 1024], help="default 1 64 1024")
    given = parser.parse_args(arguments)
    device, dtype = torch.device(given.device), reporting.DTYPES[given.dtype]
    network = SMOKE if given.smoke else NETWORKS[given.network]
    rows: list[dict[str, Any]] = []
    training = None
    with fixed_numerics(), (stopped := reporting.Stopped()):
        rates = {"copy": copy_rate(device, given.smoke), "matmul": matmul_rate(device, dtype, given.smoke)}
        for batch in given.batch:
            try:
                rows.append(measure(network, batch, device, dtype, rates, given.rounds, not given.no_compile))
            except Exception as problem:  # one batch must not lose the others
                rows.append(_failed(batch, problem))
        batch = 2 if given.smoke else 128
        try:
            training = measure_training(network, batch, device, dtype, given.rounds, not given.no_compile)
        except Exception as problem:
            training = _failed(batch, problem)
    if not rows:
        sys.exit(stopped.status(failed=True))
    report: dict[str, Any] = {
        **reporting.provenance("profiling", device, arguments),
        "network": "a tiny network" if given.smoke else given.network,
        "dtype": given.dtype,
        "rates": rates,
        "rows": rows,
        "training": training,
    }
    report["note"] += stopped.note
    reporting.save(report, table(report), given.output)
    sys.exit(stopped.status(failed=any("note" in row for row in [*rows, *filter(None, [training])])))


if __name__ == "__main__":
    main()
