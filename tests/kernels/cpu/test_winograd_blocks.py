"""Winograd's convolution in C: the tiles at a picture's edges, and blocks of every size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.kernels.cpu.compiled import vector_width
from fastdiff.kernels.cpu.ending import Ending
from fastdiff.kernels.cpu.operands import Operands
from fastdiff.kernels.cpu.plan import View, run
from fastdiff.kernels.cpu.winograd import WINDOW, winograd, winograd_weight


def surrounded(values: Tensor) -> Tensor:
    """The pictures as channels of a wider NHWC buffer with a margin of pictures, all else NaN."""
    b, c, h, w = values.shape
    buffer = torch.full((b + 2, h, w, c + 7), torch.nan).permute(0, 3, 1, 2)
    buffer[1:-1, 3 : 3 + c] = values
    return buffer[1:-1, 3 : 3 + c]


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("h, w", [(1, 1), (3, 6), (4, 4), (5, 13), (12, 12), (14, 17), (125, 127)])
def test_edges(h: int, w: int, normed: bool) -> None:
    """A tile of 6 x 6 that lies inside of the picture is read in another way than one that it cuts off."""
    b, c, o = 2, vector_width() + 3, 2 * vector_width() + 5
    x, weight, bias = surrounded(torch.randn(b, c, h, w)), torch.randn(o, c, 3, 3), torch.randn(b, o)
    norm = torch.randn(b, 2, c) if normed else None
    residual, out = surrounded(torch.randn(b, o, h, w)), surrounded(torch.zeros(b, o, h, w))
    ending, numbers = Ending(View.of(bias), "relu", View.of(residual)), None if norm is None else View.of(norm)
    given = Operands(View.of(x), View.of(out), WINDOW, ending, numbers)
    run([winograd(given, View.of(winograd_weight(weight)))])
    scale, shift = torch.ones(2, b, c) if norm is None else norm.unbind(1)
    if norm is None:
        shift = torch.zeros(b, c)
    read = x.double() * scale[:, :, None, None] + shift[:, :, None, None]
    exact = F.relu(F.conv2d(read, weight.double(), padding=1) + bias[:, :, None, None]) + residual
    assert relative_error(out, exact) < 3e-6
    around = out._base
    assert around is not None and int(around.isnan().sum()) == around.numel() - out.numel()


def test_blocks_of_every_size() -> None:
    """1 to 40 tiles: the product's blocks have every height. A tile's bits do not depend on the others."""
    c, o, most = vector_width() + 1, 3 * vector_width(), 40
    x, weight = torch.randn(most, c, 4, 4), torch.randn(o, c, 3, 3)
    packed = View.of(winograd_weight(weight))

    def convolved(pictures: Tensor, threads: int) -> Tensor:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        out = torch.full((len(pictures), o, 4, 4), torch.nan).contiguous(memory_format=torch.channels_last)
        run([winograd(Operands(View.of(pictures), View.of(out), WINDOW), packed)], threads)
        return out

    whole = convolved(x, 1)
    assert relative_error(whole, F.conv2d(x.double(), weight.double(), padding=1)) < 3e-6
    for n in range(1, most):
        assert torch.equal(convolved(x[:n], 1), whole[:n]), n
    for threads in (2, 3, 5):
        assert torch.equal(convolved(x, threads), whole)


def test_gelu() -> None:
    """Over its whole range, as the bias of a convolution by 0. No error grows with x."""
    v, o = vector_width(), 512 * vector_width()
    x = torch.cat([torch.linspace(-8, 8, o), torch.linspace(-1e-2, 1e-2, o), torch.linspace(-1e4, 1e4, o)]).view(3, o)
    zeros, out = torch.zeros(3, v, 1, 1), torch.empty(3, o, 1, 1)
    weight = View.of(torch.zeros(36, v * o))
    run([winograd(Operands(View.of(zeros), View.of(out), WINDOW, Ending(View.of(x), "gelu")), weight)])
    exact = F.gelu(x.double())
    assert float((out.view(3, o) - exact).abs().div(exact.abs().clamp(min=8)).max()) < 1e-7
