"""Each operator alone, in the form that users get: Triton on CUDA; on the CPU the C kernels, torch for the others."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.bench.operators import BOUNDS, Case, cases, plain, size_of, step_cases
from fastdiff.bench.traffic import count_flop
from fastdiff.engine.native import NativeAttention
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.cpu import operators as native
from fastdiff.kernels.dispatch import triton_for
from fastdiff.networks.blocks import EDITIONS, LinearAttention, PreNorm, Residual

CPU = torch.device("cpu")
# Batches of the operators and of the sampler's step, as in the reports.
BATCHES = {"cpu": (64, 64), "cuda": (1024, 32768)}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
# In a network of the native form these run as the C kernels, or within them.
REPLACED = {"depthwise_conv", "group_norm", "conv_norm", "conv_add", "attention_block"}


def native_cases() -> Iterator[Case]:
    """The C kernels at the shapes of networks A (dim 28, 28x28) and B (16x16), as fastdiff.engine.native calls them."""

    def image(b: int, c: int, size: int) -> Tensor:
        return torch.randn(b, c, size, size).to(memory_format=torch.channels_last)

    def convolution(label: str, c: int, o: int, size: int, *, norm: bool = True, gelu: bool, added: bool) -> Case:
        weight, bias, gain, offset = torch.randn(o, c, 3, 3) / (3 * c**0.5), torch.randn(o), *torch.randn(2, c)
        packed = {m: native.winograd_weight(weight, m) for m in (2, 4)}
        given = (1, gain, offset, 1e-5) if norm else None

        def call(x: Tensor, *residual: Tensor) -> Tensor:
            weights = packed[native.winograd_tile(x.shape[0], size, size)]
            return native.winograd(x, weights, bias, o, "gelu" if gelu else None, *(residual or (None,)), norm=given)

        def as_published(x: Tensor, *residual: Tensor) -> Tensor:
            y = F.group_norm(x, 1, gain.to(x.dtype), offset.to(x.dtype)) if norm else x
            y = F.conv2d(y, weight.to(x.dtype), bias.to(x.dtype), padding=1)
            return sum(residual, F.gelu(y) if gelu else y)

        def inputs(b: int) -> tuple[Tensor, ...]:
            return (image(b, c, size), image(b, o, size)) if added else (image(b, c, size),)

        return Case("winograd", f"3x3, {c} to {o}, {size}x{size}, {label}", inputs, call, as_published)

    for c, size in ((28, 28), (56, 14), (112, 7)):
        yield convolution("normed, GELU", c, 2 * c, size, gelu=True, added=False)
        yield convolution("normed, added", 2 * c, c, size, gelu=False, added=True)
    yield convolution("GELU", 64, 64, 16, norm=False, gelu=True, added=False)
    for c, size in ((28, 28), (56, 14), (112, 7)):
        taps, bias = torch.randn(c, 1, 7, 7) / 7, torch.randn(c)
        packed = native.depthwise_weight(taps)
        yield Case(
            "depthwise", f"7x7, {c} channels, {size}x{size}", lambda b, c=c, size=size: (image(b, c, size),),
            lambda x, taps=packed, bias=bias: native.depthwise(x, taps, bias),
            lambda x, taps=taps, bias=bias: F.conv2d(
                x, taps.to(x.dtype), bias.to(x.dtype), padding=3, groups=x.shape[1]
            ),
        )  # fmt: skip
    for c, size, groups, after in ((28, 28, 1, None), (56, 14, 1, None), (112, 7, 1, None), (64, 16, 8, "relu")):
        gain, offset = torch.randn(2, c)
        yield Case(
            "group_norm", f"{c} channels, {size}x{size}, groups: {groups}, after: {after}",
            lambda b, c=c, size=size: (image(b, c, size),),
            lambda x, n=groups, w=gain, o=offset, after=after: native.group_norm(x, n, w, o, after=after),
            lambda x, n=groups, w=gain, o=offset, after=after: (F.relu if after else torch.clone)(
                F.group_norm(x, n, w.to(x.dtype), o.to(x.dtype))
            ),
        )  # fmt: skip
    for c, size in ((28, 28), (56, 14), (112, 7)):
        block = Residual(PreNorm(c, LinearAttention(c, edition=EDITIONS["mindspore-torch"]))).requires_grad_(False)
        wide = {torch.float32: block, torch.float64: copy.deepcopy(block).double()}
        yield Case(
            "attention_block", f"{c} channels, 4 heads of 32, {size}x{size}",
            lambda b, c=c, size=size: (image(b, c, size),), NativeAttention(block),
            lambda x, wide=wide: wide[x.dtype](x),
        )  # fmt: skip


def chosen(device: torch.device) -> Iterator[tuple[str, Case, torch.dtype, int]]:
    """(form, case, dtype, batch)"""
    batch, steps = BATCHES[device.type]
    in_c = device.type == "cpu" and compiled.build_error() is None
    if in_c:
        yield from (("native", case, torch.float32, batch) for case in native_cases())
    for dtype in DTYPES[device.type]:
        form = "triton" if triton_for(device, dtype) else "reference"
        for case in cases(device, dtype):
            if not (in_c and case.operator in REPLACED):
                yield form, case, dtype, batch
        yield from ((form, case, dtype, steps) for case in step_cases(device, dtype))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = torch.device(metafunc.config.getoption("--suite-device"))
    torch.manual_seed(0)
    given = list(chosen(device))
    names = [f"{form}, {case.operator}, {case.label}, {str(dtype)[6:]}" for form, case, dtype, _ in given]
    metafunc.parametrize(("form", "case", "dtype", "batch"), given, ids=names)


def test_operator(form: str, case: Case, dtype: torch.dtype, batch: int, measure: Callable[..., None]) -> None:
    inputs = case.inputs(batch)
    out, exact = case.call(*inputs), plain(case)(*(t.double() for t in inputs))
    error = float((out - exact).norm() / exact.norm())
    assert error < BOUNDS[torch.float32 if case.wide else dtype]
    flop = count_flop(lambda: plain(case)(*inputs))
    measure(
        lambda: case.call(*inputs), case.operator, form=form, dtype=str(dtype)[6:], batch=batch, error=error,
        megabytes=size_of([*inputs, out]) / 1e6, gflop=flop / 1e9,
    )  # fmt: skip
