"""The sampler's step in C against plain torch."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.kernels import denoise_step as operator
from fastdiff.kernels.cpu import compiled
from fastdiff.kernels.cpu import denoise_step as native
from fastdiff.kernels.cpu.philox import key_view
from fastdiff.kernels.cpu.plan import Program, Table, View, assembled
from fastdiff.kernels.denoise_step import denoise_step_reference, x0_bound
from fastdiff.kernels.dispatch import using

pytestmark = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))

NAN = float("nan")
ROWS = torch.tensor(  # p, q, a, b, c, s: a first row, two middle ones, a last one
    [
        [1.25, -0.75, 0.5, 0.4, 0.0, 0.3],
        [1.1, -0.4, 0.6, 0.7, -0.2, 0.2],
        [1.3, -0.9, 0.55, 0.5, -0.1, 0.1],
        [1.02, -0.2, 0.1, 0.9, -0.05, 0.0],
    ]
)
DYNAMIC = ("dynamic", 0.9)
SHAPES = [
    (1, 1, 28, 28),
    (2, 3, 16, 16),
    (2, 3, 17, 19),  # more positions than are stepped at a time, a channel's first one at no multiple of 4
    (3, 2, 5, 7),
    (1, 40, 5, 53),  # many channels
    (2, 4, 1, 1),
]


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def inputs(shape, guided=False, clip=None, history=False, noise=None):
    n = shape[0]
    return dict(
        x=nhwc(torch.randn(shape)),
        out=nhwc(torch.randn(2 * n if guided else n, *shape[1:])),
        x0=nhwc(torch.randn(shape)) if history else None,
        noise=nhwc(torch.randn(shape)) if noise == "given" else None,
        key=torch.tensor([5 << 40, (7 << 33) + 1]) if noise == "key" else None,
        clip=torch.rand(n) + 0.5 if clip == "bounds" else clip,
        guidance_scale=torch.tensor(2.5) if guided else None,
    )


def view(x):
    return View.of(x) if isinstance(x, torch.Tensor) else x


def stepped(given, row=1, rows=ROWS, threads=1, ahead=0):
    """The next x and x0; the arguments are left as they are."""
    given = {**given, "x": given["x"].clone(), "x0": None if given["x0"] is None else given["x0"].clone()}
    views = {name: view(one) for name, one in given.items() if name != "key"}
    key = None if given["key"] is None else key_view(given["key"])
    call = native.denoise_step(row=View(Table(rows), (6,), (1,)), key=key, ahead=ahead, **views)
    assert Program([assembled([call])], threads)(row, row + 1) == row + 1
    return given["x"], given["x0"]


def expected(given, row=1, rows=ROWS):
    """The same in float64."""
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    x, out, clip, rows, index = wide["x"], wide["out"], wide["clip"], rows.double(), torch.tensor(row)
    if isinstance(clip, tuple):
        clip = x0_bound(x, out, rows, index, clip[1], wide["guidance_scale"])
    more = {name: wide[name] for name in ("noise", "key", "guidance_scale")}
    return denoise_step_reference(x, out, rows, index, wide["x0"], clip=clip, **more)


def check(given, rel, **more):
    following, x0 = stepped(given, **more)
    x_exact, x0_exact = expected(given, **more)
    assert rel(following, x_exact) < 1e-6
    assert x0 is None or rel(x0, x0_exact) < 1e-6


OPTIONS = list(itertools.product((False, True), (None, 0.7, DYNAMIC, "bounds"), (False, True), (None, "given", "key")))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_option(shape, rel):
    for guided, clip, history, noise in OPTIONS:
        check(inputs(shape, guided, clip, history, noise), rel)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 24), st.integers(1, 24)),
    options=st.sampled_from(OPTIONS),
    row=st.integers(0, len(ROWS) - 1),
    threads=st.integers(1, 4),
)
def test_any_shape(shape, options, row, threads):
    torch.manual_seed(0)
    given = inputs(shape, *options)
    following, x0 = stepped(given, row, threads=threads)
    x_exact, x0_exact = expected(given, row)
    torch.testing.assert_close(following.double(), x_exact, rtol=1e-5, atol=2e-6)
    if x0 is not None:
        torch.testing.assert_close(x0.double(), x0_exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("guided, clip, history, noise", OPTIONS[::5])
@pytest.mark.parametrize("shape", [(3, 3, 17, 19), (2, 1, 28, 28), (5, 2, 3, 3)])
def test_bits_depend_on_neither_threads_nor_the_batch(guided, clip, history, noise, shape):
    given = inputs(shape, guided, clip, history, noise)
    whole = stepped(given)[0]
    for threads in (2, 3, 5):
        assert torch.equal(stepped(given, threads=threads)[0], whole)
    n = shape[0]
    for sample in range(n):
        one = slice(sample, sample + 1)
        alone = {
            k: v[one] if isinstance(v, torch.Tensor) and k in ("x", "x0", "noise", "clip") else v
            for k, v in given.items()
        }
        # As a thread that has some of the samples sees the predictions: those of the others lie between.
        alone["out"] = given["out"][sample : sample + n + 1] if guided else given["out"][one]
        assert torch.equal(stepped(alone, ahead=sample)[0], whole[one])


@pytest.mark.parametrize("clip", [None, DYNAMIC])
@pytest.mark.parametrize("guided", [False, True])
def test_nothing_outside_of_the_views_is_read_or_written(clip, guided):
    given = inputs((2, 3, 17, 19), guided, clip, True, "given")
    whole = stepped(given)[0]
    wide = torch.full((len(given["out"]), 17, 19, 8), NAN)
    wide[..., 2:5] = given["out"].movedim(1, -1)
    around = {"out": wide.movedim(-1, 1)[:, 2:5]}
    for name in ("x", "x0", "noise"):
        memory = torch.full((4, 17, 19, 3), NAN)
        memory[1:3] = given[name].movedim(1, -1)
        around[name] = memory.movedim(-1, 1)[1:3]
    call = native.denoise_step(row=View.of(ROWS[1]), **{k: view(around.get(k, v)) for k, v in given.items()})
    Program([assembled([call])], 2)()
    assert torch.equal(around["x"], whole)
    for name in ("x", "x0"):
        outside = around[name]._base[[0, 3]]
        assert outside.isnan().all()


def test_x0_is_not_read_while_its_weight_is_0(rel):
    """It may be uninitialised; it is written."""
    given = inputs((2, 3, 5, 5), history=True)
    nothing = {**given, "x0": torch.full_like(given["x0"], NAN)}
    following, x0 = stepped(nothing, row=0)
    x_exact, x0_exact = expected(given, row=0)
    assert rel(following, x_exact) < 1e-6 and rel(x0, x0_exact) < 1e-6


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("clip", [None, 0.7, DYNAMIC, ("dynamic", 1.0), "bounds"])
def test_what_is_not_finite_is_as_in_plain_torch(clip, value):
    """NaN above all stays NaN: a network that diverges shows."""
    given = inputs((2, 1, 5, 5), False, clip, True)
    given["out"][1, 0, 2, 3] = value
    for mine, theirs in zip(stepped(given), expected(given), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not math.isnan(value) or stepped(given)[0].isnan().any()


def test_a_bound_that_is_nan():
    given = {**inputs((2, 1, 3, 3)), "clip": torch.tensor([0.7, NAN])}
    following = stepped(given)[0]
    assert following[0].isfinite().all() and following[1].isnan().all()


@settings(max_examples=60)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.5, 1.5, 3.0, -7.25, 1e-40, 3e38, math.inf, NAN]),
        min_size=1,
        max_size=40,
    ),
    quantile=st.floats(0, 1, exclude_min=True),
)
def test_the_dynamic_bound_is_that_of_a_sort(values, quantile):
    """Of values with many that are equal; x0 is out."""
    rows = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    out = torch.tensor(values).view(1, 1, 1, -1)
    given = dict(x=torch.zeros_like(out), out=out, x0=None, clip=("dynamic", quantile))
    mine = stepped({**given, "key": None}, 0, rows)[0]
    bound = x0_bound(given["x"], out, rows, torch.tensor(0), quantile)
    theirs = out.clamp(-bound, bound) / bound
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0, equal_nan=True)


# The registered operator.


@pytest.fixture
def steps(monkeypatch):
    """The calls that C was given."""
    seen, step = [], native.step
    monkeypatch.setattr(native, "step", lambda *args: seen.append(args) or step(*args))
    return seen


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 1)])
def test_the_operator_runs_in_c(shape, steps):
    for guided, clip, history, noise in OPTIONS:
        if clip == DYNAMIC:
            continue
        given = inputs(shape, guided, clip, history, noise)
        given = {k: v for k, v in given.items() if v is not None}
        results = []
        for backend in ("auto", "reference"):
            mine = {k: v.clone() if k in ("x", "x0") else v for k, v in given.items()}
            with using(backend):
                operator.denoise_step(rows=ROWS, index=torch.tensor([2]), **mine)
            results.append((mine["x"], mine.get("x0", mine["x"])))
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    assert len(steps) == len(OPTIONS) * 3 // 4


def test_the_operator_takes_a_slice_of_channels(steps):
    given = inputs((2, 3, 5, 5))
    whole = torch.full((2, 5, 5, 8), NAN)
    whole[..., 2:5] = given["out"].movedim(1, -1)
    x, index = given["x"].clone(), torch.tensor(1, dtype=torch.int32)
    operator.denoise_step(x, whole.movedim(-1, 1)[:, 2:5], ROWS, index)
    assert torch.equal(x, stepped(given)[0]) and len(steps) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda given: {"x": given["x"].contiguous()},
        lambda given: {"x0": given["x0"].contiguous()},
        lambda given: {"out": given["out"].contiguous()},
        lambda given: {"out": given["out"].bfloat16()},
        lambda given: {"x": given["x"].double()},
    ],
)
def test_what_c_does_not_take_runs_in_plain_torch(change, steps):
    given = inputs((2, 3, 5, 5), history=True)
    given = {**given, **change(given)}
    more = {k: v for k, v in given.items() if v is not None}
    operator.denoise_step(rows=ROWS, index=torch.tensor(1), **more)
    assert not steps


@pytest.mark.parametrize("index", [-1, 4])
def test_a_row_that_is_not_there_is_refused(index):
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(IndexError, match=f"denoise_step: index = {index}; accepted: 0 to 3"):
        operator.denoise_step(x, x, ROWS, torch.tensor(index))


def test_a_gradient_is_the_references(steps):
    x, out = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4, requires_grad=True)
    operator.denoise_step(x, out, ROWS, torch.tensor(1))
    x.sum().backward()
    assert out.grad is not None and not steps


X = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
OUT = X.clone()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=X.contiguous()), "x has shape"),
        (dict(x=OUT[:, :2], out=OUT[:, :2]), "x has strides"),
        (dict(out=X[:1]), "out has shape"),
        (dict(out=X.contiguous()), "out has shape"),
        (dict(guidance_scale=torch.ones(())), r"out has shape \(2, 3, 4, 4\); accepted: \(4, 3, 4, 4\)"),
        (dict(guidance_scale=torch.ones(2), out=torch.cat((X, X))), "guidance_scale has shape"),
        (dict(row=torch.zeros(5)), "row has shape"),
        (dict(x0=X[:1]), "x0 has shape"),
        (dict(noise=X.contiguous()), "noise has shape"),
        (dict(clip=0.0), "clip = 0.0"),
        (dict(clip=NAN), "clip = nan"),
        (dict(clip=("dynamic", 1.5)), "clip = "),
        (dict(clip=torch.ones(3)), "clip has shape"),
        (dict(ahead=-1), "ahead = -1"),
        (dict(noise=X, key=torch.ones(2)), "both noise and key"),
        (dict(key=torch.ones(3)), "key has shape"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {**dict(x=X, out=OUT, row=torch.zeros(6)), **change}
    with pytest.raises(ValueError, match=f"denoise_step: {message}"):
        native.denoise_step(**{name: view(one) for name, one in given.items()})
