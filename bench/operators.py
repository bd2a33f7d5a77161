"""Operators against their plain forms, torch.compile and the bandwidth: python -m fastdiff.bench.operators.

On a CUDA device. The contenders of a row are timed in turn, in rounds, each as a captured graph over several sets of
inputs that together exceed the cache, so that neither launches nor cached data are measured. A row is timed only after
its result has been compared with the plain form in float64 on the same inputs; where that fails it says so instead. The
bytes of a row are those of its inputs, read once, and of its result, written once; its share is of a large copy in the
same run. With TRITON_INTERPRET=1 and --device cpu --smoke the whole script runs on tiny shapes without a GPU, to show
that it works; its times then mean nothing. Exits with 1 where a row could not be measured.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastdiff.bench import reporting
from fastdiff.bench.timing import ratio
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.engine.prepared import FoldedLinearAttention
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.conv import conv_add, conv_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention
from fastdiff.networks.blocks import EDITIONS, LinearAttention, PreNorm, Residual

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass
class Case:
    """A call of an operator: inputs(batch) → tensors, the first of them with a dimension of samples."""

    operator: str
    label: str
    inputs: Callable[[int], tuple[Any, ...]]
    call: Callable[..., Tensor]
    plain: Callable[..., Tensor] | None = None  # where it is not the same call through the references
    wide: bool = False  # the result is float32 whatever the dtype of the network


@dataclass
class Row:
    operator: str
    case: str
    dtype: str
    batch: int
    error: float
    megabytes: float
    microseconds: dict[str, float]  # median by contender; none where the error is out of bounds
    against_plain: list[float]  # timing.ratio's median, low, high
    against_compiled: list[float]
    share_of_copy: float | None
    note: str = ""


def cases(device: torch.device, dtype: torch.dtype, smoke: bool = False) -> Iterator[Case]:
    """The operators at the shapes of network A (dim 28, 28x28 pictures) and B (16x16), in the engine's layout."""
    levels = [(4, 4)] if smoke else [(28, 28), (56, 14), (112, 7)]

    def image(b: int, c: int, size: int) -> Tensor:
        return torch.randn(b, c, size, size, device=device).to(dtype, memory_format=torch.channels_last)

    def weight(*shape: int) -> Tensor:
        fan = math.prod(shape[1:]) or 1
        return (torch.randn(shape, device=device) / fan**0.5).to(dtype, memory_format=_layout(len(shape)))

    for c, size in levels:
        taps, bias = weight(c, 1, 7, 7), weight(c)
        yield Case(
            "depthwise_conv", f"{c} channels, {size}x{size}, bias and time bias",
            lambda b, c=c, size=size: (image(b, c, size), weight(1, c)),
            lambda x, time, taps=taps, bias=bias: depthwise_conv(x, taps.to(x.dtype), bias.to(x.dtype), time),
        )  # fmt: skip
    for c, size in levels:
        w, o = weight(c), weight(c)
        yield Case(
            "group_norm", f"{c} channels, {size}x{size}, one group",
            lambda b, c=c, size=size: (image(b, c, size),),
            lambda x, w=w, o=o: group_norm(x, 1, w.to(x.dtype), o.to(x.dtype)),
        )  # fmt: skip
    c, size = (8, 4) if smoke else (64, 16)
    yield Case(
        "group_norm", f"{c} channels, {size}x{size}, 8 groups, ReLU",
        lambda b, c=c, size=size: (image(b, c, size),), lambda x: group_norm(x, 8, after="relu"),
    )  # fmt: skip
    for c, size in levels:
        k, bias, w, o = weight(2 * c, c, 3, 3), weight(2 * c), weight(2 * c), weight(2 * c)
        yield Case(
            "conv_norm", f"3x3, {c} to {2 * c}, {size}x{size}, GELU, one group",
            lambda b, c=c, size=size: (image(b, c, size),),
            lambda x, k=k, bias=bias, w=w, o=o: conv_norm(
                x, k.to(x.dtype), bias.to(x.dtype), 1, w.to(x.dtype), o.to(x.dtype), before="gelu"
            ),
        )  # fmt: skip
    for c, size in levels:
        k, bias = weight(c, 2 * c, 3, 3), weight(c)
        yield Case(
            "conv_add", f"3x3, {2 * c} to {c}, {size}x{size}",
            lambda b, c=c, size=size: (image(b, 2 * c, size), image(b, c, size)),
            lambda x, r, k=k, bias=bias: conv_add(x, k.to(x.dtype), bias.to(x.dtype), r),
        )  # fmt: skip
    for c, size in levels:
        bias = weight(c)
        yield Case(
            "bias_add", f"{c} channels, {size}x{size}",
            lambda b, c=c, size=size: (image(b, c, size), image(b, c, size)),
            lambda x, r, bias=bias: bias_add(x, r, bias.to(x.dtype)),
        )  # fmt: skip
    for c, size in levels:
        gain = weight(1, c, 1, 1)
        yield Case(
            "channel_norm", f"{c} channels, {size}x{size}, residual",
            lambda b, c=c, size=size: (image(b, c, size), image(b, c, size)),
            lambda x, r, gain=gain: channel_norm(x, gain.to(x.dtype), r),
        )  # fmt: skip
    for _, size in levels:
        yield Case(
            "linear_attention", f"4 heads of 32, {size}x{size}",
            lambda b, size=size: (image(b, 384, size),), lambda qkv: linear_attention(qkv, 4, True),
        )  # fmt: skip
    for c, size in levels if dtype.itemsize == 2 else ():  # four bytes an element are left in their parts
        block = Residual(PreNorm(c, LinearAttention(c, edition=EDITIONS["mindspore-torch"])))
        block = block.to(device, dtype, memory_format=torch.channels_last).requires_grad_(False)
        wide = {torch.float64: _as(block, torch.float64), dtype: block}
        yield Case(
            "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}",
            lambda b, c=c, size=size: (image(b, c, size),), FoldedLinearAttention(block),
            lambda x, wide=wide: wide[x.dtype](x),
        )  # fmt: skip


def step_cases(device: torch.device, dtype: torch.dtype, smoke: bool = False) -> Iterator[Case]:
    """The sampler's step on pictures of both systems: x in float32, the prediction in `dtype` and channels_last."""
    rows = torch.tensor([[1.2, -0.7, 0.5, 0.4, -0.1, 0.3]], device=device)
    index = torch.zeros((), dtype=torch.int64, device=device)
    key = torch.tensor([1, 0], device=device)
    scale = torch.tensor(2.0, device=device)
    for c, size in [(1, 4), (3, 4)] if smoke else [(1, 28), (3, 32)]:

        def tensors(b: int, times: int = 1, c: int = c, size: int = size) -> tuple[Tensor, Tensor]:
            out = torch.randn(times * b, c, size, size, device=device)
            return torch.randn(b, c, size, size, device=device), out.to(dtype, memory_format=torch.channels_last)

        def step(x: Tensor, out: Tensor, **options: Any) -> Tensor:
            return denoise_step(x, out, rows.to(x.dtype), index, **options)[0]

        for label, inputs, call in (
            ("no noise", tensors, step),
            ("Philox noise", tensors, lambda x, out, step=step: step(x, out, key=key)),
            ("history", lambda b, t=tensors: (*t(b), t(b)[0]),
             lambda x, out, prev, step=step: step(x, out, x0_prev=prev)),
            ("guided, clipped, noise", lambda b, t=tensors: t(b, 2),
             lambda x, out, step=step: step(x, out, guidance_scale=scale.to(x.dtype), clip=1.0, key=key)),
        ):  # fmt: skip
            yield Case("denoise_step", f"{c}x{size}x{size}, {label}", inputs, call, wide=True)


def _layout(ndim: int) -> torch.memory_format:
    return torch.channels_last if ndim == 4 else torch.contiguous_format


def _as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(module).to(dtype)


def fused(case: Case) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        with using("triton"):
            return case.call(*inputs)

    return run


def plain(case: Case) -> Callable[..., Tensor]:
    def run(*inputs: Any) -> Tensor:
        with using("reference"):
            return (case.plain or case.call)(*inputs)

    return run


def parity(case: Case, inputs: tuple[Any, ...]) -> float:
    """Relative error of the fused form on these inputs against the plain one in float64.

    On all of them, since for fewer samples other kernels may be chosen than those that are timed.
    """
    mine = fused(case)(*inputs).double()
    exact = plain(case)(*(t.double() for t in inputs))
    return float((mine - exact).norm() / exact.norm())


class Timer:
    """Seconds per call over rotating inputs: on CUDA a captured graph timed by events, else the clock."""

    def __init__(self, call: Callable[..., Tensor], sets: list[tuple[Any, ...]], device: torch.device) -> None:
        self.call, self.sets, self.device = call, sets, device
        self.graph: Any = None
        with torch.no_grad():  # not inference_mode: a graph's own tensors are written to at its replay, outside of it
            for given in sets[:2]:
                call(*given)  # compiles, chooses algorithms
            if device.type == "cuda":
                torch.cuda.synchronize()
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.kept = [call(*given) for given in sets]

    def __call__(self) -> float:
        if self.graph is None:
            began = time.perf_counter()
            with torch.no_grad():
                for given in self.sets:
                    self.call(*given)
            return (time.perf_counter() - began) / len(self.sets)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(self.sets)


def size_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def measure(
    case: Case, batch: int, device: torch.device, dtype: torch.dtype, copy_rate: float, rounds: int, compile: bool
) -> Row:
    inputs = case.inputs(batch)
    error = parity(case, inputs)
    name = str(dtype).removeprefix("torch.")
    with torch.no_grad():
        moved = size_of(inputs) + size_of([fused(case)(*inputs)])
    row = Row(case.operator, case.label, name, batch, error, moved / 1e6, {}, [], [], None)
    bound = BOUNDS[torch.float32 if case.wide else dtype]
    if not error <= bound:
        row.note = f"not timed: the error exceeds {bound:.0e}"
        return row
    cache = 4 * 2**26 if device.type == "cuda" else 0  # four times the largest L2 of the kinds that are known
    count = max(2, min(16, -(-cache // moved)))
    sets = [inputs, *(case.inputs(batch) for _ in range(count - 1))]
    contenders = {"plain": plain(case), "fused": fused(case)}
    if compile:
        torch._dynamo.reset()
        # Under torch.compile an operator is its plain form by itself.
        contenders["compiled"] = torch.compile(case.plain or case.call, dynamic=False, fullgraph=True)
    timers = {}
    for contender, call in contenders.items():
        try:
            timers[contender] = Timer(call, sets, device)
        except Exception as problem:  # a contender that fails is a row that says so
            row.note = f"{contender}: {reporting.failure(problem)}"
    times: dict[str, list[float]] = {contender: [] for contender in timers}
    for turn in range(rounds):
        for contender in sorted(timers, reverse=turn % 2 == 1):
            times[contender].append(timers[contender]())
    row.microseconds = {k: round(statistics.median(v) * 1e6, 2) for k, v in times.items()}
    if "fused" in times:
        row.against_plain = ratio(times["plain"], times["fused"]) if "plain" in times else []
        row.against_compiled = ratio(times["compiled"], times["fused"]) if "compiled" in times else []
        row.share_of_copy = round(moved / statistics.median(times["fused"]) / copy_rate, 3)
    return row


def copy_rate(device: torch.device, smoke: bool) -> float:
    """Bytes per second, read plus written, of a large copy on the device."""
    source = torch.randn(2**20 if smoke else 2**29, device=device)
    timer = Timer(lambda a, b: a.copy_(b), [(torch.empty_like(source), source)], device)
    return 2 * size_of([source]) / statistics.median(timer() for _ in range(9))


def table(report: dict[str, Any]) -> str:
    lines = [
        reporting.heading(report),
        "",
        f"Copy: {report['copy_gigabytes_per_second']:.0f} GB/s read plus written. Median of {report['rounds']} rounds "
        f"(95% bootstrap interval of the ratios).{report['note']}",
        "",
        "| operator | case | dtype | batch | plain µs | compiled µs | fused µs | against compiled | share of copy "
        "| error | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        times = [str(row["microseconds"].get(k, "")) for k in ("plain", "compiled", "fused")]
        against = row["against_compiled"]
        text = f"{against[0]:.2f}x ({against[1]:.2f} to {against[2]:.2f})" if against else ""
        share = "" if row["share_of_copy"] is None else f"{row['share_of_copy']:.0%}"
        verdict = row["note"] or ("loses" if against and against[0] < 1 else "")
        lines.append(
            f"| {row['operator']} | {row['case']} | {row['dtype']} | {row['batch']} | {' | '.join(times)} | {text} | "
            f"{share} | {row['error']:.1e} | {verdict} |"
        )
    won = [row["against_compiled"][0] for row in report["rows"] if row["against_compiled"]]
    if won:
        lines += ["", f"Geometric mean against compiled: {math.exp(statistics.mean(map(math.log, won))):.2f}x"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = reporting.parser("operators", __doc__, "operators.json")
    parser.add_argument("--batch", type=int, default=1024, help="samples of a row (default 1024)")
    parser.add_argument("--step-batch", type=int, default=32768, help="samples of a sampler's step (default 32768)")
    parser.add_argument("--only", nargs="+", default=(), metavar="OPERATOR", help="these operators (default all)")
    given = parser.parse_args(arguments)
    device, dtype = torch.device(given.device), reporting.DTYPES[given.dtype]
    torch.manual_seed(0)
    chosen = [(case, given.batch) for case in cases(device, dtype, given.smoke)]
    chosen += [(case, given.step_batch) for case in step_cases(device, dtype, given.smoke)]
    names = {case.operator for case, _ in chosen}
    if unknown := set(given.only) - names:
        parser.error(f"no operator {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    rows: list[Row] = []
    with fixed_numerics(), (stopped := reporting.Stopped()):
        rate = copy_rate(device, given.smoke)
        for case, batch in tqdm([c for c in chosen if not given.only or c[0].operator in given.only], unit="case"):
            try:
                row = measure(case, batch, device, dtype, rate, given.rounds, not given.no_compile)
            except Exception as problem:  # one case must not lose the others
                note = reporting.failure(problem)
                row = Row(case.operator, case.label, given.dtype, batch, math.nan, 0.0, {}, [], [], None, note)
            rows.append(row)
    if not rows:
        sys.exit(stopped.status(failed=True))
    report: dict[str, Any] = {
        **reporting.provenance("operators", device, arguments),
        "rounds": given.rounds,
        "copy_gigabytes_per_second": rate / 1e9,
        "rows": [asdict(row) for row in rows],
    }
    report["note"] += stopped.note
    reporting.save(report, table(report), given.output)
    sys.exit(stopped.status(failed=any(row.note for row in rows)))


if __name__ == "__main__":
    main()
