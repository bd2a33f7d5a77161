"""The CPU kernels in C against float64, on odd shapes, and what happens where they cannot be had."""

import itertools
import os
import platform
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from fastdiff import AnnotatedUnet, ContextUnet, Engine, InputError, Model, make_schedule, make_table, sample
from fastdiff.engine.forms import FORMS, choose_form
from fastdiff.engine.native import NativeAttention, NativeConv, NativeConvNext, NativeDepthwise, NativeNorm, make_native
from fastdiff.engine.prepared import prepare_network
from fastdiff.kernels.attention_block import attention_block_reference
from fastdiff.kernels.cpu import attention as native_attention
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.cpu import operators as native
from fastdiff.kernels.folded_attention import fold
from fastdiff.kernels.group_norm import group_norm_reference

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))


@pytest.fixture(autouse=True)
def poisoned():
    """Uninitialised memory is NaN, so that an element that no kernel wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def test_a_compiler_that_is_there_compiles():
    """The suite must not pass by skipping what it is about."""
    assert compiled.build_error() in (None, "no C compiler (cc, gcc or clang) was found")


CONVOLUTIONS = [
    # batch, in, out, height, width: one pixel, a whole tile, one row more, odd, wide; widths with every kind of tail
    (1, 16, 16, 1, 1),
    (2, 17, 19, 4, 4),
    (3, 28, 56, 5, 4),
    (1, 56, 28, 7, 7),
    (2, 33, 16, 3, 11),
    (5, 24, 40, 14, 14),
    (1, 112, 224, 7, 7),
    (2, 64, 64, 16, 16),
    (70, 16, 18, 2, 3),
]


# Relative, of one convolution: m = 4 has factors from 1/24 to 8 in its transforms, m = 2 from 1/2 to 1.
BOUNDS = {2: 1e-6, 4: 5e-6}


@needs_compiler
@pytest.mark.parametrize("b, c, o, h, w", CONVOLUTIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop", "half of a concatenation"])
@pytest.mark.parametrize("m", BOUNDS)
def test_the_convolution(b, c, o, h, w, layout, m, layouts, rel):
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / (3 * c**0.5), torch.randn(o)
    packed = native.winograd_weight(weight, m)
    ours = native.winograd(layouts(x)[layout], packed, bias, o)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert ours.shape == expected.shape and ours.is_contiguous(memory_format=torch.channels_last)
    assert rel(ours, expected) < BOUNDS[m]
    without = native.winograd(layouts(x)[layout], packed, None, o)
    assert rel(without, expected - bias.double().view(-1, 1, 1)) < BOUNDS[m]


ACTIVATIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups, normed, added", [(1, True, True), (4, True, False), (1, False, True)])
@pytest.mark.parametrize("m", BOUNDS)
def test_what_the_convolution_takes_along(activation, groups, normed, added, m, rel):
    b, c, o, h, w = 3, 20, 24, 6, 7
    x, weight, bias = 2 + 3 * torch.randn(b, c, h, w), torch.randn(o, c, 3, 3) / 10, torch.randn(o)
    gain, shift, residual = torch.randn(c), torch.randn(c), torch.randn(b, o, h, w)
    ours = native.winograd(
        x,
        native.winograd_weight(weight, m),
        bias,
        o,
        activation,
        residual if added else None,
        (groups, gain, shift, 1e-5) if normed else None,
    )
    given = F.group_norm(x.double(), groups, gain.double(), shift.double()) if normed else x.double()
    expected = ACTIVATIONS[activation](F.conv2d(given, weight.double(), bias.double(), padding=1))
    assert rel(ours, expected + residual.double() if added else expected) < 5e-6


@needs_compiler
@pytest.mark.parametrize(
    "b, c, groups, h, w", [(1, 16, 1, 1, 2), (2, 24, 8, 5, 3), (3, 28, 1, 28, 28), (2, 18, 3, 2, 9)]
)
@pytest.mark.parametrize("after", ACTIVATIONS)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_norm(b, c, groups, h, w, after, mean, rel):
    x, weight, bias = mean + torch.randn(b, c, h, w), torch.randn(c), torch.randn(c)
    expected = group_norm_reference(x.double(), groups, weight.double(), bias.double(), after=after)
    assert rel(native.group_norm(x, groups, weight, bias, after=after), expected) < (2e-6 if mean == 0 else 1e-4)


@needs_compiler
@pytest.mark.parametrize("b, c, h, w", [(1, 16, 1, 1), (3, 28, 28, 28), (2, 18, 3, 13), (2, 40, 7, 7), (5, 112, 14, 4)])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop"])
def test_the_depthwise_convolution(b, c, h, w, size, layout, layouts, rel):
    x, weight, bias = torch.randn(b, c, h, w), torch.randn(c, 1, size, size), torch.randn(c)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=size // 2, groups=c)
    packed = native.depthwise_weight(weight)
    assert rel(native.depthwise(layouts(x)[layout], packed, bias), expected) < 2e-6
    without = native.depthwise(layouts(x)[layout], packed, None)
    assert rel(without, expected - bias.double().view(-1, 1, 1)) < 2e-6


@needs_compiler
def test_the_tile_is_small_where_reading_the_weights_takes_the_time():
    assert native.winograd_tile(1, 7, 7) == 2 and native.winograd_tile(16, 7, 7) == 4
    assert native.winograd_tile(1, 28, 28) == native.winograd_tile(64, 14, 14) == 4


@needs_compiler
@pytest.mark.parametrize("c", [16, 28, 40, 112])
@pytest.mark.parametrize("h, w", [(1, 1), (3, 5), (7, 7), (13, 9)])
@pytest.mark.parametrize("gain, divide", [(True, True), (False, False)])
def test_the_attention_block(c, h, w, gain, divide, rel):
    heads, d = 4, 32
    weights = dict(
        norm_weight=torch.randn(c),
        norm_bias=torch.randn(c),
        w_qkv=torch.randn(3 * heads * d, c) / c**0.5,
        w_out=torch.randn(c, heads * d) / 10,
        b_out=torch.randn(c),
        gain=torch.randn(1, c, 1, 1) if gain else None,
    )
    x = torch.randn(3, c, h, w)
    ours = native_attention.attention_block(x, native_attention.pack(fold(**weights, heads=heads, divide_by_n=divide)))
    exact = {k: None if v is None else v.double() for k, v in weights.items()}
    expected = attention_block_reference(x.double(), fold(**exact, heads=heads, divide_by_n=divide))
    assert rel(ours, expected) < 5e-6


@needs_compiler
def test_logits_of_hundreds_do_not_overflow(rel):
    c = 16
    weights = dict(
        norm_weight=torch.ones(c),
        norm_bias=torch.zeros(c),
        w_qkv=60 * torch.randn(384, c),
        w_out=torch.randn(c, 128) / 10,
        b_out=torch.randn(c),
        gain=torch.ones(1, c, 1, 1),
    )
    x = torch.randn(2, c, 4, 4)
    ours = native_attention.attention_block(x, native_attention.pack(fold(**weights, heads=4, divide_by_n=True)))
    exact = fold(**{k: v.double() for k, v in weights.items()}, heads=4, divide_by_n=True)
    assert rel(ours, attention_block_reference(x.double(), exact)) < 1e-4


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value):
    x, c = torch.randn(2, 16, 4, 4), 16
    x[1, 3, 2, 2] = value
    weight = native.winograd_weight(torch.randn(c, c, 3, 3), 4)
    for activation in ACTIVATIONS:
        out = native.winograd(x, weight, None, c, activation)
        assert torch.isfinite(out[0]).all() and not torch.isfinite(out[1]).all()
    out = native.group_norm(x, 1, torch.ones(c), torch.zeros(c))
    assert torch.isfinite(out[0]).all() and not torch.isfinite(out[1]).any()


@needs_compiler
def test_bits_depend_neither_on_threads_nor_on_the_place_in_a_batch():
    x, c, o = torch.randn(37, 24, 7, 7), 24, 40
    weights, bias = [native.winograd_weight(torch.randn(o, c, 3, 3), m) for m in (2, 4)], torch.randn(o)
    deep = native.depthwise_weight(torch.randn(c, 1, 7, 7))
    folded = native_attention.pack(
        fold(
            torch.randn(c),
            torch.randn(c),
            torch.randn(384, c),
            torch.randn(c, 128),
            torch.randn(c),
            torch.randn(1, c, 1, 1),
            4,
            True,
        )
    )
    gain, shift = torch.randn(2, c)

    def outputs(x):
        norm = (4, gain, shift, 1e-5)
        return (
            *(native.winograd(x, weight, bias, o, "gelu", norm=norm) for weight in weights),
            native.group_norm(x, 4, gain, shift),
            native.depthwise(x, deep, shift),
            native_attention.attention_block(x, folded),
        )

    whole = outputs(x)
    for threads, part in itertools.product((1, 2, 3, 5), (slice(0, 37), slice(5, 6), slice(11, 30))):
        torch.set_num_threads(threads)
        for ours, expected in zip(outputs(x[part]), whole, strict=True):
            assert torch.equal(ours, expected[part])


@needs_compiler
@pytest.mark.parametrize(
    "make, kinds",
    [
        (lambda: AnnotatedUnet(28), {NativeConvNext: 13, NativeAttention: 5}),
        (lambda: AnnotatedUnet(16, edition="mindspore"), {NativeAttention: 5}),
        (lambda: AnnotatedUnet(32, edition="hf-2022", block="resnet"), {NativeAttention: 5, NativeConv: 26}),
        (lambda: ContextUnet(3, 32, 5, 16, shortcut=True), {NativeConv: 18}),
        (lambda: ContextUnet(1, 8, 3, 28), {}),
    ],
)
def test_networks_in_the_form(make, kinds, randomised, rel):
    network = randomised(make()).eval()
    plain = prepare_network(network, CPU, torch.float64)
    ours = make_native(prepare_network(network, CPU, torch.float32))
    for kind, count in kinds.items():
        assert sum(type(module) is kind for module in ours.modules()) == count, kind
    size = 16 if isinstance(network, AnnotatedUnet) else network.height
    x = torch.randn(3, getattr(network, "channels", None) or network.in_channels, size, size)
    t = torch.tensor([3]) if isinstance(network, AnnotatedUnet) else torch.tensor([0.3])
    with torch.no_grad():
        assert rel(ours(x, t), plain(x.double(), t)) < 1e-5


class Own(torch.nn.Module):
    """A network of the user's own that does with its modules what one may."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.GroupNorm(4, 32)
        self.tail = torch.nn.Sequential(
            torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.GELU()
        )
        self.strided = torch.nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.bare = torch.nn.GroupNorm(2, 32)
        self.bare.bias = None
        self.scaled = torch.nn.utils.weight_norm(torch.nn.Conv2d(32, 32, 3, padding=1))
        self.deep = torch.nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.last = torch.nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x, t):
        h = self.tail(self.norm(self.first(x))) * self.tail[0].weight.mean()  # reads a weight from outside
        h = h + self.tail[0](h) + self.bare(self.strided(h)).mean()  # calls a part of a sequence, and one twice
        h = torch.stack([self.first(image) for image in x]) + self.deep(self.scaled(h))  # without a batch
        with torch.enable_grad():  # an energy's gradient
            at = h.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.norm(self.deep(self.tail[0](at))).square().sum(), at)
        return self.last(h + slope.tanh())


def own_model():
    with warnings.catch_warnings(), torch.no_grad():  # else weight_norm's weight could not be copied
        warnings.simplefilter("ignore")  # its deprecation
        network = Own().eval()
    with torch.no_grad():
        network.scaled.weight_g.mul_(3)  # after the weight was made of it
        network.tail[1].running_mean.normal_()
        network.tail[1].running_var.uniform_(0.5, 2)
    return Model(network, make_schedule("linear", 20), image_shape=(3, 8, 8))


@needs_compiler
def test_a_network_of_the_users_own_computes_what_it_did(rel):
    seen, model = [], own_model()
    model.network.norm.register_forward_hook(lambda *_: seen.append(1))
    model.network.tail[0].register_forward_hook(lambda module, given, out: 2 * out)
    model.network.tail[2].register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 3])
    ours = make_native(prepare_network(model.network, CPU, torch.float32))
    kinds = [type(module) for module in ours.modules()]
    assert kinds.count(NativeConv) == 2 and kinds.count(NativeNorm) == kinds.count(NativeDepthwise) == 1
    with torch.no_grad():
        assert rel(ours(x, t), model.network(x, t)) < 1e-5 and seen == [1] * 4
    options = dict(steps=4, device="cpu")
    assert rel(*(sample(model, 2, form=form, **options) for form in ("native", "eager"))) < 1e-5


@needs_compiler
@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.inference_mode(),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.enable_grad(),
        lambda: default_dtype(torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: torch.device("meta"),
    ],
)
@pytest.mark.parametrize("form", ["native", "eager"])
def test_settings_of_the_callers_change_nothing(around, form, randomised):
    model = Model(randomised(AnnotatedUnet(16, dim_mults=(1, 2))), make_schedule("linear", 20), image_shape=(1, 8, 8))
    options = dict(sampler="ddpm", steps=3, device="cpu", form=form)
    expected = sample(model, 2, **options)
    engine = Engine(model, make_table("ddpm", model.schedule, 3), batch_size=2, device="cpu", form=form)
    with around():
        assert torch.equal(sample(model, 2, **options), expected) and torch.equal(engine.sample(2), expected)
        made = Engine(model, make_table("ddpm", model.schedule, 3), batch_size=2, device="cpu", form=form)
    assert torch.equal(made.sample(2), expected) and expected.dtype == torch.float32


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@needs_compiler
@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: native.winograd(torch.zeros(1, 2, 4, 4), torch.zeros(36, 2 * 16), None, 16), "2 channels"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4), torch.zeros(36, 15 * 16), None, 16), "weight has shape"),
        (lambda: native.winograd(torch.zeros(16, 4, 4), torch.zeros(36, 256), None, 16), "x has shape"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4).double(), torch.zeros(36, 256), None, 16), "float64"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4), torch.zeros(36, 256), None, 16, "tanh"), "'tanh'"),
        (lambda: native.winograd(torch.zeros(1, 16, 4, 4), torch.zeros(36, 256), torch.zeros(15), 16), "bias has"),
        (
            lambda: native.winograd(
                torch.zeros(1, 16, 4, 4), torch.zeros(36, 256), None, 16, None, torch.zeros(1, 16, 4, 5)
            ),
            "residual has",
        ),
        (lambda: native.group_norm(torch.zeros(1, 16, 4, 4), 3, torch.ones(16), torch.ones(16)), "groups = 3"),
        (lambda: native.group_norm(torch.zeros(1, 16, 4, 4), 1, torch.ones(32)[::2], torch.ones(16)), "contiguous"),
        (lambda: native.depthwise(torch.zeros(1, 16, 4, 4), torch.zeros(2, 2, 16), None), "odd size"),
        (lambda: native.depthwise(torch.zeros(1, 16, 4, 4), torch.zeros(3, 3, 17), None), "weight has shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


CHOICE = """
import torch
from fastdiff.engine.forms import choose_form
from fastdiff.kernels.cpu import compiled
print(choose_form(None, torch.device("cpu"), torch.float32).name, compiled.build_error())
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Names the compiler, as a new process would find it, with an empty cache; at the end that of before is back."""

    def choose(words: str) -> None:
        monkeypatch.setenv("CC", words)
        monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path))
        compiled._load.cache_clear()

    yield choose
    monkeypatch.undo()
    compiled._load.cache_clear()


@pytest.mark.parametrize(
    "words, reason", [("/bin/false", "does not run"), ("nosuchcompiler", "does not run"), ("cc '", "not a command")]
)
def test_without_a_compiler_the_network_runs_in_torch(words, reason, compiler):
    compiler(words)
    with pytest.warns(UserWarning, match=f"runs in plain torch.*{reason}"):
        assert choose_form(None, CPU, torch.float32).name == "eager"
    assert reason in compiled.build_error()
    with pytest.raises(InputError, match="form = 'native' cannot be used here"):
        choose_form("native", CPU, torch.float32)


@needs_compiler
def test_the_library_is_kept_and_a_broken_one_is_made_anew(tmp_path):
    assert run(CHOICE, FASTDIFF_CACHE=str(tmp_path)).stdout == "native None\n"
    (kept,) = tmp_path.iterdir()
    size, made = kept.stat().st_size, kept.stat().st_mtime_ns
    assert run(CHOICE, FASTDIFF_CACHE=str(tmp_path)).stdout == "native None\n"
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(kept.read_bytes()[:1000])
    assert run(CHOICE, FASTDIFF_CACHE=str(tmp_path)).stdout == "native None\n"
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [size]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(CHOICE, FASTDIFF_CACHE=str(tmp_path / "file" / "cache"))
    assert done.stdout == "native None\n", done.stderr


def test_preparing_takes_no_time_to_speak_of():
    """The kernels are compiled; issue: under 3 s for network A on two cores."""
    model = Model(AnnotatedUnet(28), make_schedule("linear", 200))
    table = make_table("ddim", model.schedule, 25)
    compiled.build_error()
    began = time.perf_counter()
    next(Engine(model, table, batch_size=1, device=CPU).stream(1))
    assert time.perf_counter() - began < 3


def test_forms_are_named():
    with pytest.raises(InputError, match="unknown form 'nativ'; accepted: .* did you mean 'native'"):
        choose_form("nativ", CPU, torch.float32)
    with pytest.raises(InputError, match="'native' cannot be used here: .*bfloat16"):
        choose_form("native", CPU, torch.bfloat16)
    with pytest.raises(InputError, match="'graph' cannot be used here: .*cpu"):
        choose_form("graph", CPU, torch.float32)
    assert list(FORMS) == ["graph", "native", "eager"]


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("without, width", [("-mno-avx512f", 8), pytest.param("-mno-avx", 4, marks=pytest.mark.slow)])
def test_narrower_vectors(without, width):
    """What other processors run, here: its own copies of every loop, with tails of their own."""
    if width >= compiled.vector_width():
        pytest.skip("this processor's own width")
    chosen = "bits_depend or takes_along or the_norm or the_depthwise or (the_convolution and crop)"
    code = (
        "import sys, pytest; from fastdiff.kernels.cpu.compiled import vector_width; "
        f"assert vector_width() == {width}; sys.exit(pytest.main({['-q', '-p', 'no:xdist', __file__, '-k', chosen]}))"
    )
    done = run(code, CC=f"cc {without}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
