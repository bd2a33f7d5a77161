"""Random small networks, as plain PyTorch code would write them, and their captured forms.

Tests reach this module by the fixture `networks`: with --import-mode=importlib they cannot import a neighbour by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdiff.capture.batch import at_batch, merged
from fastdiff.capture.graph import Graph
from fastdiff.capture.program import program
from fastdiff.capture.record import record
from fastdiff.capture.split import Split, split
from fastdiff.capture.tidy import fold_constants, normalise

Pass = Callable[[Graph], None]


class Example(NamedTuple):
    """What a network is evaluated on.

    Attributes:
        shape: (C, H, W) of x.
        integer: whether times are indices, 0 to 999, and not fractions.
        context: K of the contexts (B, K), or None.
    """

    shape: tuple[int, int, int]
    integer: bool = True
    context: int | None = None

    def times(self, n: int) -> Tensor:
        """(n,) times that differ."""
        return (torch.arange(n) * 37 + 11) % 1000 if self.integer else (torch.arange(n) * 0.37 + 0.11) % 1

    def inputs(self, n: int, dtype: torch.dtype = torch.float32, t: Tensor | None = None) -> dict[str, Tensor]:
        """A batch of n, with other values for every n."""
        generator = torch.Generator().manual_seed(n)
        t = self.times(n) if t is None else t
        given = {
            "x": torch.randn(n, *self.shape, generator=generator).to(dtype),
            "t": t if self.integer else t.to(dtype),
        }
        if self.context is not None:
            given["context"] = torch.randn(n, self.context, generator=generator).to(dtype)
        return given


def graph_of(network: Callable[..., Tensor], example: Example, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of every batch, normalised, its constants folded."""
    one, two = (record(network, example.inputs(n, dtype)) for n in (2, 3))
    graph = merged(one, two, (2, 3))
    normalise(graph)
    fold_constants(graph)
    return graph


class Captured:
    """The three graphs of a network as functions: rows of the time, then the context, then steps."""

    def __init__(self, parts: Split, step_passes: Sequence[Pass] = ()) -> None:
        self.parts, self.step_passes = parts, step_passes

    def step(self, inputs: dict[str, Tensor], rows: Tensor, row: int) -> Tensor:
        """The prediction at one row of a table of times, for all samples."""
        time = program(at_batch(self.parts.time, len(rows)))(rows)
        n = len(inputs["x"])
        context = program(at_batch(self.parts.context, n))(*([inputs["context"]] if "context" in inputs else []))
        of_row = [one[row : row + 1] for one in time]
        step = at_batch(self.parts.step, n)
        for change in self.step_passes:
            change(step)
        return program(step)(inputs["x"], *of_row, *context)[0]


def captured(
    network: Callable[..., Tensor],
    example: Example,
    passes: Sequence[Pass] = (),
    step_passes: Sequence[Pass] = (),
    dtype: torch.dtype = torch.float32,
) -> Captured:
    """The network recorded, merged, normalised, changed by the passes and split; step_passes change a batch's step."""
    graph = graph_of(network, example, dtype)
    for change in passes:
        change(graph)
    return Captured(split(graph), step_passes)


def largest_error(
    network: Callable[..., Tensor],
    example: Example,
    form: Captured,
    batches: Sequence[int] = (1, 4, 5),
    dtype: torch.dtype = torch.float32,
) -> float:
    """The captured form against the network itself, all samples at one time: the largest relative error, by norm."""
    rows = example.times(3)
    rows = rows if example.integer else rows.to(dtype)
    errors = []
    for place, n in enumerate(batches):
        row = place % len(rows)
        inputs = example.inputs(n, dtype, rows[row].repeat(n))
        with torch.no_grad():
            expected = network(*(value.clone() for value in inputs.values()))
            error = (form.step(inputs, rows, row) - expected).double().norm() / expected.double().norm()
        errors.append(float(error))
    return max(errors)


# Parts of networks. All take h (B, C, H, W), the time's embedding (B, E) and the context (B, K) or None.


class Residual(nn.Module):
    def __init__(self, c: int, out: int, e: int, groups: int, act: str, scale: bool, kernel: int, bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(math.gcd(groups, c), c), nn.GroupNorm(math.gcd(groups, out), out)
        self.conv1 = nn.Conv2d(c, out, kernel, padding=kernel // 2, bias=bias)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=bias)
        self.time = nn.Linear(e, 2 * out if scale else out)
        self.shortcut = nn.Conv2d(c, out, 1) if c != out else nn.Identity()
        self.act, self.scale, self.dropout = ACTIVATIONS[act], scale, nn.Dropout(0.1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        y = self.conv1(self.act(self.norm1(h)))
        time = self.time(self.act(emb))[:, :, None, None]
        if self.scale:
            scale, shift = time.chunk(2, dim=1)
            y = self.norm2(y) * (1 + scale) + shift
        else:
            y = self.norm2(y + time)
        return self.shortcut(h) + self.conv2(self.dropout(self.act(y)))


class ConvBatchNorm(nn.Module):
    def __init__(self, c: int, out: int, bias: bool, inplace: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(c, out, 3, 1, 1, bias=bias), nn.BatchNorm2d(out), nn.ReLU(inplace=inplace))

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.net(h)


class ConvNext(nn.Module):
    """A depthwise convolution, a norm over the channels, and two 1x1 ones; the norm written out, or LayerNorm."""

    def __init__(self, c: int, e: int, written: bool, approximate: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.time, self.norm, self.written = nn.Linear(e, c), nn.LayerNorm(c), written
        self.net = nn.Sequential(nn.Conv2d(c, 2 * c, 1), nn.GELU(approximate), nn.Conv2d(2 * c, c, 1, bias=False))

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        y = self.depthwise(h) + self.time(F.gelu(emb)).unsqueeze(-1).unsqueeze(-1)
        if self.written:
            var, mean = y.var(dim=1, unbiased=False, keepdim=True), y.mean(dim=1, keepdim=True)
            y = (y - mean) / (var + 1e-5).sqrt() * self.norm.weight.view(1, -1, 1, 1)
        else:
            y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return h + self.net(y)


class Attention(nn.Module):
    def __init__(self, c: int, kind: str) -> None:
        super().__init__()
        self.kind, self.heads, self.width = kind, 2, 4
        self.norm = nn.GroupNorm(1, c)
        self.qkv, self.out = nn.Conv2d(c, 24, 1, bias=False), nn.Conv2d(8, c, 1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        b, _, height, width = h.shape
        qkv = self.qkv(self.norm(h)).chunk(3, dim=1)
        q, k, v = (one.reshape(b, self.heads, self.width, height * width) for one in qkv)
        if self.kind == "sdpa":
            q, k, v = (one.transpose(-1, -2).contiguous() for one in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        elif self.kind == "bmm":
            q, k, v = (one.flatten(0, 1) for one in (q, k, v))
            y = torch.bmm(v, (torch.bmm(q.transpose(1, 2), k) * self.width**-0.5).softmax(-1).transpose(1, 2))
        elif self.kind == "einsum":
            weights = torch.einsum("bhdi,bhdj->bhij", q * self.width**-0.5, k)
            weights = (weights - weights.amax(dim=-1, keepdim=True)).softmax(dim=-1)
            y = torch.einsum("bhij,bhdj->bhdi", weights, v)
        else:
            q, k = q.softmax(dim=-2), k.softmax(dim=-1)
            y = torch.einsum("bhde,bhdn->bhen", torch.einsum("bhdn,bhen->bhde", k, v), q)
        return h + self.out(y.reshape(b, -1, height, width))


class Contextual(nn.Module):
    """The context added or modulating; nothing where there is none."""

    def __init__(self, c: int, k: int, modulating: bool) -> None:
        super().__init__()
        self.project, self.modulating = nn.Linear(k, c), modulating

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        if context is None:
            return h
        c = self.project(context).view(len(context), -1, 1, 1)
        return h * (1 + c) if self.modulating else h + F.silu(c)


class InPlace(nn.Module):
    """Writes to a copy, to views of it and to what a convolution has returned."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        y = self.conv(h).mul_(0.5)
        y[:, :1] += h[:, 1:2]
        first, *_ = y.split(2, dim=1)
        first.relu_()
        y.flatten(2).transpose(1, 2)[:, 0] = 0.25
        return y.add_(h, alpha=0.5).tanh_()


class Shared(nn.Module):
    """One module twice, and one tensor several times."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        y = self.conv(F.silu(self.conv(h)))
        return y * y.sigmoid() + h + y


class Level(nn.Module):
    """Parts at half the resolution, and the way back, by concatenation or by addition."""

    def __init__(self, c: int, inner: int, parts: list[nn.Module], up: str, joined: bool, pooled: bool) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(c, inner, 1)) if pooled else None
        self.strided = None if pooled else nn.Conv2d(c, inner, 3, stride=2, padding=1)
        self.parts, self.how, self.joined = nn.ModuleList(parts), up, joined
        self.up = nn.ConvTranspose2d(inner, c, 2, stride=2) if up == "transposed" else nn.Conv2d(inner, c, 3, padding=1)
        self.join = nn.Conv2d(2 * c, c, 1) if joined else None

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        y = self.strided(h) if self.down is None else self.down(h)
        for part in self.parts:
            y = part(y, emb, context)
        if self.how == "transposed":
            y = self.up(y)[:, :, : h.shape[2], : h.shape[3]]
        elif self.how == "nearest":
            y = self.up(F.interpolate(y, size=h.shape[-2:], mode="nearest"))
        else:
            y = self.up(F.interpolate(y, size=h.shape[-2:], mode="bilinear", align_corners=False))
        return self.join(torch.cat((y, h), dim=1)) if self.joined else y + h


class Embedding(nn.Module):
    """(B,) times → (B, E), in the ways in which code does it."""

    def __init__(self, kind: str, e: int) -> None:
        super().__init__()
        self.kind, self.e = kind, e
        self.table, self.first, self.second = nn.Embedding(1000, e), nn.Linear(1, e), nn.Linear(e, e)

    def forward(self, t: Tensor) -> Tensor:
        if self.kind == "table":
            emb = self.table(t)
        elif self.kind == "fraction":
            emb = torch.sin(self.first((t / 1000 if not t.is_floating_point() else t).to(self.dtype)[:, None]))
        else:
            half = self.e // 2
            rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
            angles = (t.to(self.dtype) * torch.ones(t.shape[0], dtype=self.dtype))[:, None] * rates[None]
            emb = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return self.second(F.silu(emb.to(self.dtype)))

    @property
    def dtype(self) -> torch.dtype:
        return self.second.weight.dtype


class Network(nn.Module):
    def __init__(self, channels: int, width: int, out: int, parts: list[nn.Module], time: Embedding) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(out, channels, 1)
        self.parts, self.time = nn.ModuleList(parts), time

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        emb = self.time(t)
        h = self.stem(x)
        for part in self.parts:
            h = part(h, emb, context)
        return self.head(h)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}
E = 8  # the time's embedding
WIDTHS = st.sampled_from([8, 16, 24, 32, 5, 7, 12])


@st.composite
def a_part(draw: st.DrawFn, c: int, context: int, deep: bool) -> tuple[nn.Module, int]:
    """A part for c channels, and how many it returns."""
    kinds = ["residual", "batch norm", "convnext", "attention", "context", "in place", "shared"]
    kind = draw(st.sampled_from(kinds + (["level"] * 2 if deep else [])))
    flag = st.booleans()
    if kind == "residual":
        out = draw(WIDTHS)
        options = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from(sorted(ACTIVATIONS))), draw(flag)
        return Residual(c, out, E, *options, kernel=draw(st.sampled_from([1, 3])), bias=draw(flag)), out
    if kind == "batch norm":
        out = draw(WIDTHS)
        return ConvBatchNorm(c, out, bias=draw(flag), inplace=draw(flag)), out
    if kind == "convnext":
        return ConvNext(c, E, written=draw(flag), approximate=draw(st.sampled_from(["none", "tanh"]))), c
    if kind == "attention":
        return Attention(c, draw(st.sampled_from(["sdpa", "bmm", "einsum", "linear"]))), c
    if kind == "context":
        return Contextual(c, context, modulating=draw(flag)), c
    if kind == "level":
        inner = draw(WIDTHS)
        parts, out = draw(some_parts(inner, context, deep=False))
        back = nn.Identity() if out == inner else ConvBatchNorm(out, inner, bias=False, inplace=True)
        parts = parts if out == inner else [*parts, back]
        up = draw(st.sampled_from(["transposed", "nearest", "bilinear"]))
        return Level(c, inner, parts, up, joined=draw(flag), pooled=draw(flag)), c
    return (InPlace(c) if kind == "in place" else Shared(c)), c


@st.composite
def some_parts(draw: st.DrawFn, c: int, context: int, deep: bool) -> tuple[list[nn.Module], int]:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        part, c = draw(a_part(c, context, deep))
        parts.append(part)
    return parts, c


@st.composite
def random_networks(draw: st.DrawFn, randomise: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, Example]:
    """A network in eval mode with weights as training leaves them, and what it takes."""
    integer, context = draw(st.booleans()), draw(st.sampled_from([None, 1, 5]))
    size = draw(st.sampled_from([(8, 8), (7, 9), (5, 5), (4, 6)]))
    channels, width = draw(st.sampled_from([1, 3])), draw(WIDTHS)
    kinds = ["fraction", "sines"] + (["table"] if integer else [])
    torch.manual_seed(0)
    parts, out = draw(some_parts(width, context or 1, deep=True))
    network = Network(channels, width, out, parts, Embedding(draw(st.sampled_from(kinds)), E))
    return randomise(network).eval(), Example((channels, *size), integer, context)
