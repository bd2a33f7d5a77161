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
ROWS = torch.tensor(  # p, q, a, b, c, s, o, d, e, u, v, S: a first row, two middle ones, a last one; two of all columns
    [
        [1.25, -0.75, 0.5, 0.4, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 1.0, 0.3],
        [1.1, -0.4, 0.6, 0.7, -0.2, 0.2, 0.0, 0.0, 0.0, 0.0, 1.0, 0.2],
        [1.3, -0.9, 0.55, 0.5, -0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0, 0.9],
        [1.02, -0.2, 0.1, 0.9, -0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.5],
        [1.3, -0.9, 0.55, 0.5, -0.1, 0.1, 0.35, 0.15, -0.25, 0.45, -0.8, 0.9],
        [1.1, -0.5, 0.4, -0.3, 0.3, 0.4, -0.6, -0.35, 0.2, -0.7, 0.5, 0.7],
    ]
)
WHOLE = 4  # the first row of all columns
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


def rings(k, *shape):
    """A ring of k, of random images in NHWC."""
    return nhwc(torch.randn(k * shape[0], *shape[1:])).unflatten(0, (k, shape[0]))


def inputs(shape, guided=False, clip=None, history=0, noise=None, variance=False):
    """out is a network's output, or with a variance the first half of its channels."""
    n, c = shape[:2]
    whole = nhwc(torch.randn(2 * n if guided else n, c * (1 + variance), *shape[2:]))
    return dict(
        x=nhwc(torch.randn(shape)),
        out=whole[:, :c],
        history=rings(history, *shape) if history else None,
        noise=nhwc(torch.randn(shape)) if noise == "given" else None,
        key=torch.tensor([5 << 40, (7 << 33) + 1]) if noise == "key" else None,
        clip=torch.rand(n) + 0.5 if clip == "bounds" else clip,
        guidance_scale=torch.tensor(2.5) if guided else None,
        variance=whole[-n:, c:] if variance else None,
    )


def view(x):
    return View.of(x) if isinstance(x, torch.Tensor) else x


def stepped(given, row=1, rows=ROWS, threads=1, ahead=0):
    """The next x and what is remembered; the arguments are left as they are."""
    ring = None if given["history"] is None else given["history"].clone()
    given = {**given, "x": given["x"].clone(), "history": ring}
    views = {name: view(one) for name, one in given.items() if name != "key"}
    key = None if given["key"] is None else key_view(given["key"])
    call = native.denoise_step(row=View(Table(rows), (12,), (1,)), key=key, ahead=ahead, **views)
    assert Program([assembled([call])], threads)(row, row + 1) == row + 1
    return given["x"], None if ring is None else ring[row % len(ring)]


def expected(given, row=1, rows=ROWS):
    """The same in float64."""
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    x, out, clip, rows, index = wide["x"], wide["out"], wide["clip"], rows.double(), torch.tensor(row)
    if isinstance(clip, tuple):
        clip = x0_bound(x, out, rows, index, clip[1], wide["guidance_scale"])
    more = {name: wide.get(name) for name in ("noise", "key", "guidance_scale", "variance")}
    return denoise_step_reference(x, out, rows, index, wide["history"], clip=clip, **more)


def check(given, rel, **more):
    following, x0 = stepped(given, **more)
    x_exact, x0_exact = expected(given, **more)
    assert rel(following, x_exact) < 1e-6
    assert x0 is None or rel(x0, x0_exact) < 1e-6


OPTIONS = list(itertools.product((False, True), (None, 0.7, DYNAMIC, "bounds"), (0, 1), (None, "given", "key")))
# The same with a ring of 2 and a ring of 3, and a variance where there is noise.
MORE = [(guided, clip, 2 + history, noise, noise is not None) for guided, clip, history, noise in OPTIONS]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_option(shape, rel):
    for options in OPTIONS:
        check(inputs(shape, *options), rel)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_column(shape, rel):
    for options, row in zip(MORE, itertools.cycle((WHOLE, WHOLE + 1, 2, 3)), strict=False):
        check(inputs(shape, *options), rel, row=row)
    for guided in (False, True):  # a variance without a history, and a ring of one
        check(inputs(shape, guided, None, 0, "key", True), rel, row=WHOLE)
        check(inputs(shape, guided, 0.7, 1, "given", True), rel, row=WHOLE)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 24), st.integers(1, 24)),
    options=st.sampled_from([*OPTIONS, *MORE]),
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


@pytest.mark.parametrize("options, row", [*((o, 1) for o in OPTIONS[::5]), *((o, WHOLE) for o in MORE[::5])])
@pytest.mark.parametrize("shape", [(3, 3, 17, 19), (2, 1, 28, 28), (5, 2, 3, 3)])
def test_bits_depend_on_neither_threads_nor_the_batch(options, row, shape):
    given, guided = inputs(shape, *options), options[0]
    whole, kept = stepped(given, row)
    for threads in (2, 3, 5):
        again = stepped(given, row, threads=threads)
        assert torch.equal(again[0], whole) and (kept is None or torch.equal(again[1], kept))
    n = shape[0]
    for sample in range(n):
        one = slice(sample, sample + 1)
        alone = {
            k: v[one] if isinstance(v, torch.Tensor) and k in ("x", "noise", "clip", "variance") else v
            for k, v in given.items()
        }
        if kept is not None:
            alone["history"] = given["history"][:, one]
        # As a thread that has some of the samples sees the predictions: those of the others lie between.
        alone["out"] = given["out"][sample : sample + n + 1] if guided else given["out"][one]
        mine = stepped(alone, row, ahead=sample)
        assert torch.equal(mine[0], whole[one]) and (kept is None or torch.equal(mine[1], kept[one]))


@pytest.mark.parametrize("clip", [None, DYNAMIC])
@pytest.mark.parametrize("guided", [False, True])
def test_nothing_outside_of_the_views_is_read_or_written(clip, guided):
    given = inputs((2, 3, 17, 19), guided, clip, 3, "given", True)
    whole, kept = stepped(given, 0, ROWS[WHOLE:])
    around = {}
    for name in ("out", "variance"):
        wide = torch.full((len(given[name]), 17, 19, 8), NAN)
        wide[..., 2:5] = given[name].movedim(1, -1)
        around[name] = wide.movedim(-1, 1)[:, 2:5]
    for name in ("x", "history", "noise"):
        memory = torch.full((*given[name].shape[:-4], 4, 17, 19, 3), NAN)
        memory[..., 1:3, :, :, :] = given[name].movedim(-3, -1)
        around[name] = memory.movedim(-1, -3)[..., 1:3, :, :, :]
    call = native.denoise_step(row=View.of(ROWS[WHOLE]), **{k: view(around.get(k, v)) for k, v in given.items()})
    Program([assembled([call])], 2)()
    assert torch.equal(around["x"], whole) and torch.equal(around["history"][0], kept)
    assert torch.equal(around["history"][1:], given["history"][1:])
    for name in ("x", "history"):
        outside = around[name]._base[..., [0, 3], :, :, :]
        assert outside.isnan().all()


def test_what_has_no_weight_is_not_read(rel):
    """It may be uninitialised; one of the ring is written."""
    given = inputs((2, 3, 5, 5), history=3)
    nothing = {**given, "history": torch.full_like(given["history"], NAN)}
    following, remembered = stepped(nothing, row=0)
    x_exact, exact = expected(given, row=0)
    assert rel(following, x_exact) < 1e-6 and rel(remembered, exact) < 1e-6
    for back, column in ((1, 4), (2, 7), (3, 8)):
        rows, ring = ROWS.clone(), given["history"].clone()
        ring[(WHOLE - back) % 3] = NAN
        assert stepped({**given, "history": ring}, WHOLE)[0].isnan().all()
        rows[WHOLE, column] = 0
        assert rel(stepped({**given, "history": ring}, WHOLE, rows)[0], expected(given, WHOLE, rows)[0]) < 1e-6


def test_a_run_of_rows_turns_the_ring(rel):
    """Several rows in one call of C, by a ring that begins as NaN."""
    rows = ROWS[[0, WHOLE, WHOLE + 1, WHOLE, 2, 3]].clone()
    rows[:2, 7], rows[:3, 8] = 0, 0
    for depth in (1, 2, 3):
        for back, column in enumerate((4, 7, 8), start=1):
            rows[:, column] *= back <= depth
        given = {**inputs((2, 3, 17, 19), False, 0.7, depth, "key", True)}
        given["history"].fill_(NAN)
        mine = {**given, "x": given["x"].clone(), "history": given["history"].clone()}
        views = {name: view(one) for name, one in mine.items() if name != "key"}
        call = native.denoise_step(row=View(Table(rows), (12,), (1,)), key=key_view(given["key"]), **views)
        assert Program([assembled([call])], 2)(0, len(rows)) == len(rows)
        x, ring = given["x"].double(), given["history"].double()
        for row in range(len(rows)):
            x, ring[row % depth] = expected({**given, "x": x, "history": ring.clone()}, row, rows)
        assert rel(mine["x"], x) < 1e-5 and rel(mine["history"], ring) < 1e-5


@pytest.mark.parametrize("noise", ["given", "key"])
def test_where_s_is_0_there_is_no_noise_whatever_the_variance(noise, rel):
    given = inputs((2, 3, 5, 5), noise=noise, variance=True)
    given["variance"] = torch.full_like(given["x"], NAN)
    assert rel(stepped(given, 3)[0], expected({**given, "noise": None, "key": None, "variance": None}, 3)[0]) < 1e-6


def test_a_variance_that_is_nan_shows():
    given = inputs((2, 3, 5, 5), noise="key", variance=True)
    given["variance"][1, 2, 3, 4] = NAN
    following = stepped(given, WHOLE)[0]
    assert following[1, 2, 3, 4].isnan() and int(following.isnan().sum()) == 1


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("clip", [None, 0.7, DYNAMIC, ("dynamic", 1.0), "bounds"])
def test_what_is_not_finite_is_as_in_plain_torch(clip, value):
    """NaN above all stays NaN: a network that diverges shows."""
    given = inputs((2, 1, 5, 5), False, clip, 1)
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
    rows = torch.tensor([[0.0, 1.0, 0.0, 1.0, *[0.0] * 6, 1.0, 0.0]])
    out = torch.tensor(values).view(1, 1, 1, -1)
    given = dict(x=torch.zeros_like(out), out=out, history=None, clip=("dynamic", quantile))
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
    for options, row in [*((o, 2) for o in OPTIONS), *((o, WHOLE) for o in MORE)]:
        if options[1] == DYNAMIC:
            continue
        given = {k: v for k, v in inputs(shape, *options).items() if v is not None}
        results = []
        for backend in ("auto", "reference"):
            mine = {k: v.clone() if k in ("x", "history") else v for k, v in given.items()}
            with using(backend):
                operator.denoise_step(rows=ROWS, index=torch.tensor([row]), **mine)
            results.append((mine["x"], mine.get("history", mine["x"])))
        torch.testing.assert_close(*results, rtol=1e-6, atol=2e-6)
    assert len(steps) == 2 * len(OPTIONS) * 3 // 4


def test_the_operator_takes_a_ring_of_some_of_the_samples(steps):
    """As a ring of the whole batch, of which a thread has some."""
    given = {k: v for k, v in inputs((2, 3, 5, 5), history=3).items() if v is not None}
    ring = rings(3, 5, 3, 5, 5)
    ring[:, 1:3] = given["history"]
    kept, index = ring.clone(), torch.tensor(WHOLE)
    operator.denoise_step(rows=ROWS, index=index, **{**given, "x": given["x"].clone(), "history": kept[:, 1:3]})
    exact = expected({**inputs((2, 3, 5, 5)), **given}, WHOLE)[1]
    torch.testing.assert_close(kept[1, 1:3].double(), exact, rtol=1e-6, atol=2e-6)
    ring[1, 1:3] = kept[1, 1:3]
    assert torch.equal(kept, ring) and len(steps) == 1


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
        lambda given: {"history": given["history"].contiguous()},
        lambda given: {"out": given["out"].contiguous()},
        lambda given: {"variance": given["x"].contiguous()},
        lambda given: {"variance": given["x"].half()},
        lambda given: {"out": given["out"].bfloat16()},
        lambda given: {"x": given["x"].double()},
    ],
)
def test_what_c_does_not_take_runs_in_plain_torch(change, steps):
    given = inputs((2, 3, 5, 5), history=2)
    given = {**given, **change(given)}
    more = {k: v for k, v in given.items() if v is not None}
    operator.denoise_step(rows=ROWS, index=torch.tensor(1), **more)
    assert not steps


@pytest.mark.parametrize("index", [-1, 6])
def test_a_row_that_is_not_there_is_refused(index):
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(IndexError, match=f"denoise_step: index = {index}; accepted: 0 to 5"):
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
        (dict(row=torch.zeros(6)), r"row has shape \(6,\); accepted: \(12,\)"),
        (dict(history=X), "history has shape"),
        (dict(history=X[None, :1]), "history has shape"),
        (dict(history=torch.zeros(4, *X.shape)), "history has shape"),
        (dict(history=X.contiguous()[None]), "history has shape"),
        (dict(variance=X[:1]), "variance has shape"),
        (dict(variance=X.contiguous()), "variance has shape"),
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
    given = {**dict(x=X, out=OUT, row=torch.zeros(12)), **change}
    with pytest.raises(ValueError, match=f"denoise_step: {message}"):
        native.denoise_step(**{name: view(one) for name, one in given.items()})
