"""Bytes moved and operations done per image and evaluation, from the shapes alone.

A network is evaluated on meta tensors. Each library operation counts the bytes of the tensors that it reads and writes,
views none; each Triton launch those of its arguments, each tensor once. That is what would move if every operation read
its inputs from device memory once, wrote its outputs once, and nothing stayed in the cache between two of them. The
operations are torch's own count in the plain network: two for each multiply-add of convolutions, matrix products and
attention. Nothing is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fastdiff.bench.networks import NETWORKS, OTHERS, Network
from fastdiff.bench.static.shapes import captured_step, evaluate, on_meta
from fastdiff.engine.placement import DTYPES
from fastdiff.files import save_text
from fastdiff.kernels.dispatch import recording, using
from fastdiff.markdown import table
from fastdiff.terminal import show

BATCH = 1024  # weights then hardly count
INTRODUCTION = (
    "Counted from the shapes by `make traffic`, nothing measured: bytes that each operation of one evaluation reads "
    f"and writes, an image of a batch of {BATCH}."
)
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "_unsafe_view"}  # nothing moves
# What torch's counter lacks, and would count as nothing. Products: the place of the first factor among the arguments.
PRODUCTS = {"mv": 0, "dot": 0, "vdot": 0, "_int_mm": 0, "addmv": 1, "addmv_": 1, "addmm_": 1, "baddbmm_": 1}
PRODUCTS |= {"addbmm": 1, "addbmm_": 1, "_addmm_activation": 1}
ATTENTIONS = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable")
UNCOUNTED = (
    "mkldnn_rnn_layer",
    "_cudnn_rnn",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
    "_triton_multi_head_attention",
    "_trilinear",
    *(f"{name}_backward" for name in ATTENTIONS),
)


@dataclass
class Traffic:
    """Bytes and calls by operation, for a whole batch."""

    moved: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, tensors: Iterable[Any]) -> None:
        seen = {id(t): t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)}
        self.moved[name] += sum(seen.values())
        self.calls[name] += 1

    def record(self, kernel: Any, grid: Any, args: tuple[Any, ...], options: Any) -> None:
        """A Triton launch, as dispatch.recording hands it over."""
        self.add(kernel.__name__, args)

    def clear(self) -> None:
        self.moved.clear()
        self.calls.clear()

    @property
    def total(self) -> int:
        return sum(self.moved.values())


class _Count(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        with self:
            if func.namespace == "fastdiff":  # what it launches and calls counts, not itself
                return func._op_dk(torch._C.DispatchKey.Meta, *args, **(kwargs or {}))
            # In inference mode compositions, such as linear, arrive whole.
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.traffic.add(name, [*tree_leaves((args, kwargs)), *tree_leaves(out)])
        if name == "convolution" and args[2] is not None:
            # torch runs cuDNN's convolution without the bias, and adds it in place with a kernel of its own.
            self.traffic.add("convolution's bias", [args[2], out, torch.empty_like(out)])
        return out


def network_traffic(network: Network, dtype: torch.dtype, kernels: str, batch: int = BATCH) -> Traffic:
    """One evaluation of a batch, without what is computed before the loop, or of the network as it is ("reference")."""
    traffic = Traffic()
    captured = kernels != "reference"
    with recording(traffic.record, kernels) if captured else using(kernels):
        if captured:
            run = captured_step(network, dtype, batch)[0]
            traffic.clear()
        else:
            run = partial(evaluate, on_meta(network, dtype), network.image_shape, batch, dtype)
        with _Count(traffic):
            run()
    return traffic


def step_launches(network: Network, dtype: torch.dtype, batch: int, kernels: str = "triton") -> Counter[str]:
    """What the step that an engine captures launches on a GPU, by operation.

    A library's convolution and its attention count as one launch each, of which cuDNN may make more.
    """
    traffic = Traffic()
    with recording(traffic.record, kernels):
        _, step = captured_step(network, dtype, batch)
        traffic.clear()  # of what was computed before the loop
        with _Count(traffic):
            step()
    return traffic.calls


def launches_table(dtype: torch.dtype = torch.bfloat16, batches: tuple[int, ...] = (1, 64, 1024)) -> str:
    """Launches a step of the networks that ship and of others, in Markdown: the last column by FASTDIFF_KERNELS."""
    rows: list[list[str]] = []
    for network in (*(network for network in NETWORKS.values() if network.ships_as), *OTHERS):
        counts = [step_launches(network, dtype, batch) for batch in batches]
        counts.append(step_launches(network, dtype, 64, "library"))
        rows.append([f"**{network.title}**", *(f"**{c.total()}**" for c in counts)])
        names = sorted({key for c in counts for key in c}, key=lambda key: (-max(c[key] for c in counts), key))
        rows += [[key, *(str(c[key]) for c in counts)] for key in names]
    title = f"launches a step, {str(dtype).removeprefix('torch.')}"
    return "\n".join(table([title, *(f"batch {b}" for b in batches), "batch 64, library's convolutions"], rows))


def network_flop(network: Network, batch: int = BATCH) -> int:
    """Operations of one evaluation of a batch, in the plain network."""
    with using("reference"):
        module = on_meta(network, torch.float32)
        return count_flop(lambda: evaluate(module, network.image_shape, batch, torch.float32))


def count_flop(call: Callable[[], Any]) -> int:
    """Operations of what the call does through torch's library, on any device, meta included.

    What runs past the library (Triton, C, compiled graphs) is not seen. Raises NotImplementedError for an operation
    that holds products which are not counted.
    """
    own: dict[str, Callable[..., int]] = {
        **{name: partial(_product_flop, first) for name, first in PRODUCTS.items()},
        **dict.fromkeys(ATTENTIONS, _attention_flop),
        **{name: partial(_refuse, name) for name in UNCOUNTED},
    }
    aten, fast = torch.ops.aten, torch.backends.mha.get_fastpath_enabled()
    mapping = {getattr(aten, name): formula for name, formula in own.items() if hasattr(aten, name)}
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention as one operation
    try:
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def _product_flop(first: int, *shapes: Any, **options: Any) -> int:
    a, b = shapes[first : first + 2]
    return 2 * math.prod(a) * (b[-1] if len(b) > 1 else 1)


def _attention_flop(q: Any, k: Any, v: Any, *more: Any, **options: Any) -> int:
    return sdpa_flop_count(q, k, v)  # of their shapes


def _refuse(name: str, *shapes: Any, **options: Any) -> int:
    raise NotImplementedError(f"aten.{name} holds products that are not counted; on meta tensors it may be apart")


def network_report(network: Network, dtype: torch.dtype, batch: int = BATCH) -> str:
    lines = [f"### {network.title}, {str(dtype).removeprefix('torch.')}", ""]
    flop = network_flop(network, batch) / batch
    kinds = {"plain": "reference", "library's convolutions": "library", "Triton": "triton"}
    counts = {name: network_traffic(network, dtype, kernels, batch) for name, kernels in kinds.items()}
    totals = ", ".join(f"{name} {traffic.total / batch / 1e6:.2f} MB" for name, traffic in counts.items())
    lines += [f"Per image and evaluation: {flop / 1e9:.3f} GFLOP; moved: {totals}.", ""]
    for name, traffic in counts.items():
        shown = [one for one in traffic.moved.most_common() if one[1] / traffic.total >= 0.005]
        lines += table(
            [name, "calls", "kB an image", "share"],
            [
                [operation, traffic.calls[operation], f"{moved / batch / 1e3:.1f}", f"{moved / traffic.total:.0%}"]
                for operation, moved in shown
            ],
        )
        lines.append("")
    return "\n".join(lines)


def report(dtype: torch.dtype) -> str:
    """The tables of the networks that ship, of a wide one, and of other libraries'."""
    networks = [*(network for network in NETWORKS.values() if network.ships_as), NETWORKS["A64@32"], *OTHERS]
    return "\n".join([INTRODUCTION, "", *(network_report(network, dtype) for network in networks)])


@click.command(help=__doc__)
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the network.")
@click.option(
    "-o", "--output", type=Path, metavar="FILE", help="A Markdown file for the tables, which are printed anyway."
)
def command(dtype: str, output: Path | None) -> None:
    text = report(getattr(torch, dtype))
    show(text)
    if output is not None:
        save_text(text, output)
