"""Bytes moved and operations done per image and evaluation, from the shapes alone: python -m fastdiff.bench.traffic.

A network is evaluated on meta tensors. Each library operation counts the bytes of the tensors that it reads and writes,
views none; each Triton launch those of its arguments, each tensor once. That is what would move if every operation read
its inputs from device memory once, wrote its outputs once, and nothing stayed in the cache between two of them. The
operations are two for each multiply-add of convolutions, matrix products and attention, in the plain network.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff.bench.reporting import DTYPES
from fastdiff.bench.shapes import NETWORKS, Network, captured_step, evaluate, on_meta
from fastdiff.files import write_atomically
from fastdiff.kernels.dispatch import recording, using

BATCH = 1024  # weights then hardly count
INTRODUCTION = (
    "Counted from the shapes by `make traffic`, nothing measured: bytes that each operation of one evaluation reads "
    f"and writes, an image of a batch of {BATCH}."
)
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "_unsafe_view"}  # nothing moves


# The place of the first factor among the arguments; the second follows it.
PRODUCTS = {
    "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "_scaled_mm": 0, "_int_mm": 0,
    "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1, "_addmm_activation": 1,
}  # fmt: skip
CONVOLUTIONS = {"convolution", "_convolution", "convolution_overrideable"}  # x, weight, ..., transposed is the 7th
# Some of these are missing in torch's FlopCounterMode, the CPU's among them.
ATTENTIONS = {
    f"_scaled_dot_product_{kind}"
    for kind in (
        "flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention",
        "fused_attention_overrideable",
    )
}  # fmt: skip
# Products that no formula here counts: a call with one of them has no count rather than one that is too low.
UNCOUNTED = {
    "mkldnn_rnn_layer", "_cudnn_rnn", "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
    "_triton_multi_head_attention", "_trilinear", "convolution_backward", *(f"{name}_backward" for name in ATTENTIONS),
}  # fmt: skip


@dataclass
class Traffic:
    """Bytes, calls and the library's floating-point operations by operation, for a whole batch."""

    moved: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    flop: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, tensors: list[Any]) -> None:
        seen = {id(t): t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)}
        self.moved[name] += sum(seen.values())
        self.calls[name] += 1

    def record(self, kernel: Any, grid: Any, args: tuple[Any, ...], options: Any) -> None:
        """A Triton launch, as dispatch.recording hands it over."""
        self.add(kernel.__name__, list(args))

    @property
    def total(self) -> int:
        return sum(self.moved.values())


def flop_of(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Operations of one call of torch.ops.aten.NAME from the shapes; products with a padding's zeros count as well.

    Raises NotImplementedError for an operation that holds products which are not counted.
    """
    name = name.removesuffix("_")  # in place
    if name in CONVOLUTIONS:
        x, weight, transposed = args[0], args[1], args[6]
        # Each output is a sum over a filter's taps; transposed, each input is spread over them.
        return 2 * (x if transposed else out).numel() * math.prod(weight.shape[1:])
    if name in PRODUCTS:
        a, b = args[PRODUCTS[name] :][:2]
        return 2 * a.numel() * (b.shape[-1] if b.ndim > 1 else 1)
    if name in ATTENTIONS:
        q, k, v = args[:3]  # (..., positions, features); q k^T, then its softmax times v, masked or not
        return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    if name in UNCOUNTED:
        raise NotImplementedError(f"aten.{name} holds products that are not counted; on meta tensors it may be apart")
    return 0


class _Count(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        with self:  # in inference mode compositions, such as linear, arrive whole
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and (flop := flop_of(name, args, out)):
            self.traffic.flop[name] += flop
        if not func.is_view and name not in FREE:
            self.traffic.add(name, [*tree_leaves((args, kwargs)), *tree_leaves(out)])
        if name == "convolution" and args[2] is not None:
            # torch runs cuDNN's convolution without the bias, and adds it in place with a kernel of its own.
            self.traffic.add("convolution's bias", [args[2], out, torch.empty_like(out)])
        return out


@contextmanager
def form(fused: bool, record: Callable[..., None] = lambda *_: None) -> Iterator[None]:
    """The operators through the Triton kernels, each launch handed to `record`, or through the references."""
    with recording(record) if fused else using("reference"):
        yield


def network_traffic(network: Network, dtype: torch.dtype, fused: bool, batch: int = BATCH) -> Traffic:
    """One evaluation of a batch, time embedding included (once for the batch, as the sampler has it)."""
    with form(fused, (traffic := Traffic()).record):
        module = on_meta(network, dtype)
        with _Count(traffic):
            evaluate(module, network.shape, batch, dtype)
    return traffic


def step_launches(network: Network, dtype: torch.dtype, batch: int) -> Counter[str]:
    """What the step that an engine captures launches on a GPU, by operation.

    A library's convolution and its attention count as one launch each, of which cuDNN may make more.
    """
    with form(True, (traffic := Traffic()).record):
        step = captured_step(network, dtype, batch)
        with _Count(traffic):
            step()
    return traffic.calls


def launches_table(dtype: torch.dtype = torch.bfloat16, batches: tuple[int, ...] = (1, 64, 1024)) -> str:
    """Launches a step of the main networks, in Markdown."""
    lines = [f"| launches a step, {str(dtype).removeprefix('torch.')} | {' | '.join(f'batch {b}' for b in batches)} |",
             f"| --- |{' --- |' * len(batches)}"]  # fmt: skip
    for name in (name for name, network in NETWORKS.items() if network.main):
        counts = [step_launches(NETWORKS[name], dtype, batch) for batch in batches]
        lines.append(f"| **{name}** | {' | '.join(f'**{c.total()}**' for c in counts)} |")
        names = sorted({key for c in counts for key in c}, key=lambda key: (-max(c[key] for c in counts), key))
        lines += [f"| {key} | {' | '.join(str(c[key]) for c in counts)} |" for key in names]
    return "\n".join(lines)


def network_flop(network: Network, batch: int = BATCH) -> int:
    """Operations of one evaluation of a batch, in the plain network."""
    with form(fused=False):
        module = on_meta(network, torch.float32)
        return count_flop(lambda: evaluate(module, network.shape, batch, torch.float32))


def count_flop(call: Callable[[], Any]) -> int:
    """Operations of what the call does through torch's library, forward, on any device, meta included.

    What runs past the library (Triton, C, compiled graphs) is not seen. Raises NotImplementedError for an operation
    that holds products which are not counted.
    """
    traffic, fast = Traffic(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention as one operation
    try:
        with _Count(traffic):
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return sum(traffic.flop.values())


def table(name: str, dtype: torch.dtype, batch: int = BATCH) -> str:
    network = NETWORKS[name]
    lines = [f"### {name}, {str(dtype).removeprefix('torch.')}", ""]
    flop = network_flop(network, batch) / batch
    forms = {name: network_traffic(network, dtype, name == "Triton", batch) for name in ("plain", "Triton")}
    totals = ", ".join(f"{name} {traffic.total / batch / 1e6:.2f} MB" for name, traffic in forms.items())
    lines += [f"Per image and evaluation: {flop / 1e9:.3f} GFLOP; moved: {totals}.", ""]
    for name, traffic in forms.items():
        lines += [f"| {name} | calls | kB an image | share |", "| --- | --- | --- | --- |"]
        for operation, moved in traffic.moved.most_common():
            share = moved / traffic.total
            if share >= 0.005:
                lines.append(f"| {operation} | {traffic.calls[operation]} | {moved / batch / 1e3:.1f} | {share:.0%} |")
        lines.append("")
    return "\n".join(lines)


def report(dtype: torch.dtype) -> str:
    names = [name for name, network in NETWORKS.items() if network.main or "64" in name]
    return "\n".join([INTRODUCTION, "", *(table(name, dtype) for name in names)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the network (default bfloat16)")
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables, which are printed anyway")
    given = parser.parse_args(arguments)
    text = report(DTYPES[given.dtype])
    print(text)
    if given.output is not None:
        write_atomically(given.output, lambda p: p.write_text(text))


if __name__ == "__main__":
    main()
