"""denoise_step in Triton against float64, and its noise against kernels.philox."""

import pytest
import torch

from fastdiff.kernels import philox
from fastdiff.kernels.denoise_step import denoise_step, denoise_step_reference, x0_bound
from fastdiff.kernels.dispatch import using

ROWS = torch.tensor(  # p, q, a, b, c, s, o, d, e, u, v, S: a first row, a middle one, a last one; two of all columns
    [
        [1.25, -0.75, 0.5, 0.4, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 1.0, 0.3],
        [1.1, -0.4, 0.6, 0.7, -0.2, 0.2, 0.0, 0.0, 0.0, 0.0, 1.0, 0.2],
        [1.02, -0.2, 0.1, 0.9, -0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        [1.3, -0.9, 0.55, 0.5, -0.1, 0.1, 0.35, 0.15, -0.25, 0.45, -0.8, 0.9],
        [1.1, -0.5, 0.4, -0.3, 0.3, 0.4, -0.6, -0.35, 0.2, -0.7, 0.5, 0.7],
    ]
)
WHOLE = 3  # the first row of all columns
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments(device, shape, dtype=torch.float32, guided=False, **more):
    given = dict(
        x=torch.randn(shape, device=device),
        out=torch.randn((2 * shape[0] if guided else shape[0], *shape[1:]), device=device).to(dtype),
        rows=ROWS.to(device),
        index=torch.tensor(1, device=device),
        guidance_scale=torch.tensor(2.5, device=device) if guided else None,
    )
    return {**given, **more}


def relative(value, exact):
    return float((value.cpu().double() - exact).norm() / exact.norm())


def expected(given):
    """float64 throughout, of the same inputs."""
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    return denoise_step_reference(**wide)


def stepped(given):
    """The next x and what is remembered, the arguments left as they are."""
    mine = {k: v.clone() if k in ("x", "history") and v is not None else v for k, v in given.items()}
    denoise_step(**mine)
    ring = mine.get("history")
    return mine["x"], None if ring is None else ring[int(given["index"]) % len(ring)]


def in_layouts(layouts, ring):
    """A ring of each layout, by the layouts of its images."""
    made = layouts(ring.flatten(0, 1))
    return {name: images.unflatten(0, ring.shape[:2]) for name, images in made.items()}


SHAPES = [
    (3, 1, 28, 28),  # the shipped models' images
    (2, 3, 16, 16),
    (2, 3, 6, 6),  # positions divide by 4 but not by 8
    (3, 2, 5, 7),  # elements divide by neither
    (2, 3, 7, 7),
    (1, 1, 1, 1),
    (2, 4, 2, 3),  # elements divide by 8, positions do not
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guided", [False, True])
def test_every_shape_in_every_layout(triton_device, agrees, layouts, shape, dtype, guided):
    given = arguments(triton_device, shape, dtype, guided, history=torch.randn(1, *shape, device=triton_device))
    x_exact, x0_exact = expected(given)
    for x in layouts(given["x"]).values():
        for out in layouts(given["out"]).values():
            following, x0 = stepped({**given, "x": x, "out": out})
            agrees(following, x_exact)
            agrees(x0, x0_exact)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("guided, noise", [(False, "given"), (True, "philox"), (True, "off")])
def test_every_column_in_every_layout(triton_device, agrees, layouts, shape, depth, guided, noise):
    """The network's output is the prediction and a variance, side by side in channels."""
    (n, c, *_), device = shape, triton_device
    net = torch.randn((1 + guided) * n, 2 * c, *shape[2:], device=device)
    ring = torch.randn(max(depth, 1), *shape, device=device)
    given = arguments(device, shape, guided=guided, index=torch.tensor(WHOLE, device=device))
    given["noise"] = torch.randn(shape, device=device) if noise == "given" else None
    given["key"] = torch.tensor([3, 4], device=device) if noise == "philox" else None
    rings = in_layouts(layouts, ring)
    for layout, whole in layouts(net).items():
        parts = dict(out=whole[:, :c], variance=whole[-n:, c:], history=rings[layout] if depth else None)
        for x in (given["x"], layouts(given["x"])[layout]):
            following, remembered = stepped({**given, "x": x, **parts})
            x_exact, exact = expected({**given, **parts})
            agrees(following, x_exact)
            if depth:
                agrees(remembered, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variance_of_its_own_dtype_and_strides(triton_device, agrees, layouts, dtype):
    device, shape = triton_device, (2, 4, 6, 8)
    noise = torch.randn(shape, device=device)
    given = arguments(device, shape, torch.bfloat16, noise=noise, index=torch.tensor(WHOLE, device=device))
    for variance in layouts((torch.rand(shape, device=device) * 2 - 1).to(dtype)).values():
        agrees(stepped({**given, "variance": variance})[0], expected({**given, "variance": variance})[0])


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_run_is_the_equations_with_all_that_was_remembered(triton_device, backend, depth):
    """Row after row, in float64, with a list in place of the ring, which begins as NaN."""
    device, shape, count = triton_device, (2, 3, 5, 3), 7
    dice = torch.Generator().manual_seed(1)
    rows = torch.rand(count, 12, generator=dice) - 0.5
    rows[:, [5, 11]] = torch.rand(count, 2, generator=dice) + 0.1  # s and S
    rows[-1, 5] = 0.0
    for back, column in enumerate((4, 7, 8), start=1):
        rows[: back if back <= depth else count, column] = 0.0
    x = torch.randn(shape, generator=dice)
    ring = torch.full((depth, *shape), float("nan"), device=device)
    mine, theirs, memory = x.to(device), x.double(), []
    with using(backend):
        for i, (p, q, a, b, c, s, o, d, e, u, v, largest) in enumerate(rows.double().tolist()):
            out, noise, var = torch.randn(3, *shape, generator=dice)
            x0 = (p * theirs + q * out).clamp(-0.5, 0.5)
            f, m = (var.double() + 1) / 2, u * theirs + v * x0
            std = s ** (1 - f) * largest**f if s else 0.0
            theirs = a * theirs + b * x0 + o * out + std * noise
            theirs = theirs + sum(w * memory[-k] for k, w in ((1, c), (2, d), (3, e)) if w)
            memory.append(m)
            more = {name: one.to(device) for name, one in (("out", out), ("noise", noise), ("variance", var))}
            more |= {"rows": rows.to(device), "index": torch.tensor(i, device=device)}
            denoise_step(mine, history=ring, clip=0.5, **more)
            assert relative(mine, theirs) < 1e-6
    for back in range(1, depth + 1):
        assert relative(ring[(count - back) % depth], memory[-back]) < 1e-6


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("name", ["c", "d", "e"])
def test_what_has_no_weight_is_not_read(triton_device, backend, name):
    column, back = {"c": (4, 1), "d": (7, 2), "e": (8, 3)}[name]
    device = triton_device
    rows = ROWS.to(device).clone()
    given = arguments(device, (2, 3, 5, 5), rows=rows, index=torch.tensor(WHOLE, device=device))
    ring = torch.randn(3, 2, 3, 5, 5, device=device)
    ring[(WHOLE - back) % 3] = float("nan")
    with using(backend):
        assert stepped({**given, "history": ring})[0].isnan().all()
        rows[WHOLE, column] = 0.0
        assert stepped({**given, "history": ring})[0].isfinite().all()


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_where_s_is_0_there_is_no_noise_whatever_the_variance(triton_device, backend, agrees):
    device, shape = triton_device, (2, 3, 5, 5)
    for more in (dict(noise=torch.randn(shape, device=device)), dict(key=torch.tensor([1, 2], device=device))):
        given = arguments(device, shape, index=torch.tensor(2, device=device))
        with using(backend):
            variance = torch.full(shape, float("nan"), device=device)
            agrees(stepped({**given, **more, "variance": variance})[0], expected(given)[0])


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_prediction_that_is_infinite_is_clipped(triton_device, backend):
    """A column that is 0 does not make NaN of it."""
    device = triton_device
    given = arguments(device, (2, 3, 5, 5), clip=1.0, history=torch.zeros(1, 2, 3, 5, 5, device=device))
    given["out"][0, 0, 1] = float("inf")
    with using(backend):
        following, remembered = stepped(given)
    assert following.isfinite().all() and remembered.abs().max() <= 1


@pytest.mark.parametrize("clip", ["limit", "sample"])
def test_clipping(triton_device, agrees, clip):
    bound = 0.6 if clip == "limit" else torch.tensor([1.0, 1.3, 0.5], device=triton_device)
    shape = (3, 3, 8, 8)
    given = arguments(triton_device, shape, clip=bound, history=torch.randn(1, *shape, device=triton_device))
    following, x0 = stepped(given)
    x_exact, x0_exact = expected(given)
    agrees(following, x_exact)
    agrees(x0, x0_exact)
    limit = torch.tensor([0.6, 0.6, 0.6]) if clip == "limit" else torch.ones(3)
    assert (x0.abs().amax((1, 2, 3)).cpu() <= limit).all()


@pytest.mark.parametrize("seed, first", [(0, 0), (2**63 - 1, 2**63 - 9), ((5 << 33) + 3, (1 << 32) - 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_noise_is_that_of_philox(triton_device, shape, seed, first, layouts):
    """Draw index + 1 of samples first, first + 1, ..., within 2e-6, in every layout."""
    device = triton_device
    key = torch.tensor([seed, first], device=device)
    rows = torch.zeros(2, 12, device=device)
    rows[1, [5, 11]] = 1.0
    exact = philox.normals_reference(key.cpu(), 2, shape)
    for x in layouts(torch.randn(shape, device=device)).values():
        for dtype in (torch.float32, torch.bfloat16):
            given = dict(x=x, out=x.to(dtype), rows=rows, index=torch.tensor(1, device=device), key=key)
            assert float((stepped(given)[0].cpu() - exact).abs().max()) < 2e-6


def test_normals_of_many_samples(triton_device):
    """The kernel that draws x_T."""
    key = philox.key_of(7, 2**40, triton_device)
    for shape in [(70, 1, 28, 28), (3, 3, 5, 5), (1, 1), (0, 3)]:
        ours = philox.normals(key, 0, shape).cpu()
        torch.testing.assert_close(ours, philox.normals_reference(key.cpu(), 0, shape), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "key, message",
    [
        (torch.zeros(2), "normals: key is torch.float32; accepted: int64"),
        (torch.zeros(3, dtype=torch.int64), r"normals: key has shape \(3,\); accepted: \(2,\)"),
    ],
)
def test_a_key_that_is_none_is_named(key, message):
    with pytest.raises(ValueError, match=message):
        philox.normals(key, 0, (2, 3))


def test_given_noise_and_history(triton_device, agrees):
    shape = (2, 1, 6, 6)
    noise, previous = torch.randn(2, *shape, device=triton_device)
    given = arguments(triton_device, shape, noise=noise, history=previous[None])
    agrees(stepped(given)[0], expected(given)[0])


def test_the_first_row_does_not_read_what_is_not_there_yet(triton_device, agrees):
    """While c is 0, history may be uninitialised memory, as in a captured graph's first step."""
    nothing = torch.full((1, 2, 1, 6, 6), float("nan"), device=triton_device)
    given = arguments(triton_device, (2, 1, 6, 6), history=nothing, index=torch.tensor([0], device=triton_device))
    agrees(stepped(given)[0], expected({**given, "history": None})[0])


def test_a_row_without_noise_adds_none(triton_device, agrees):
    key = torch.tensor([3, 5], device=triton_device)
    given = arguments(triton_device, (2, 1, 6, 6), index=torch.tensor(2, dtype=torch.int32, device=triton_device))
    agrees(stepped({**given, "key": key})[0], expected(given)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop"])
def test_memory_of_any_layout_is_overwritten(triton_device, agrees, layouts, layout):
    given = arguments(triton_device, (2, 3, 8, 8))
    x, ring = layouts(given["x"])[layout], in_layouts(layouts, torch.randn(2, 2, 3, 8, 8, device=triton_device))[layout]
    given, before = {**given, "x": x, "history": ring}, ring.clone()
    x_exact, x0_exact = expected(given)
    denoise_step(**given)
    agrees(x, x_exact)
    agrees(ring[1], x0_exact)
    assert torch.equal(ring[0], before[0])


def test_a_sample_does_not_depend_on_its_batch(triton_device):
    device = triton_device
    given = arguments(device, (5, 1, 7, 7), key=torch.tensor([1, 10], device=device))
    third = dict(x=given["x"][3:4], out=given["out"][3:4], key=torch.tensor([1, 13], device=device))
    assert torch.equal(stepped(given)[0][3:4], stepped({**given, **third})[0])


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_the_dynamic_bound_is_the_quantile(quantile):
    given = arguments("cpu", (3, 3, 9, 5), guided=True)
    x0 = denoise_step_reference(**given)[1]
    theirs = torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp(min=1.0)
    given.pop("index"), given.pop("rows")
    ours = x0_bound(given["x"], given["out"], ROWS, torch.tensor(1), quantile, given["guidance_scale"])
    torch.testing.assert_close(ours, theirs)


SHAPE = (2, 1, 4, 4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.zeros(SHAPE, dtype=torch.int32)), "x is torch.int32"),
        (dict(out=torch.zeros(2, 1, 4, 5)), "out has shape"),
        (dict(guidance_scale=torch.tensor(2.0)), r"out has shape \(2, 1, 4, 4\); accepted: \(4, 1, 4, 4\)"),
        (dict(guidance_scale=2.0), "guidance_scale is float"),
        (dict(rows=torch.zeros(3, 6)), r"rows has shape \(3, 6\); accepted: \(R, 12\)"),
        (dict(index=torch.tensor(0.0)), "index is torch.float32"),
        (dict(index=torch.tensor([0, 1])), "index has shape"),
        (dict(key=torch.zeros(2, dtype=torch.int32)), "key is torch.int32"),
        (dict(key=torch.zeros(2, dtype=torch.int64, device="meta")), "key is on meta"),
        (dict(key=torch.zeros(2, dtype=torch.int64), noise=torch.zeros(SHAPE)), "both noise and key"),
        (dict(clip=0.0), "clip = 0.0"),
        (dict(clip=torch.ones(3)), "clip has shape"),
        (dict(history=torch.zeros(1, 2, 1, 4, 5)), "history has shape"),
        (dict(history=torch.zeros(SHAPE)), r"history has shape \(2, 1, 4, 4\); accepted: \(1, 2, 1, 4, 4\) or \(2, 2"),
        (dict(history=torch.zeros(4, *SHAPE)), r"history has shape \(4, 2, 1, 4, 4\)"),
        (dict(variance=torch.zeros(4, 1, 4, 4)), r"variance has shape \(4, 1, 4, 4\); accepted: \(2, 1, 4, 4\)"),
        (dict(variance=torch.zeros(SHAPE, dtype=torch.int32)), "variance is torch.int32"),
        (dict(rows=torch.zeros(3, 12, device="meta")), "rows is on meta"),
    ],
)
def test_what_it_cannot_take_is_named(change, message):
    given = {**arguments("cpu", SHAPE), **change}
    with pytest.raises(ValueError, match=message):
        denoise_step(**given)


@pytest.mark.parametrize("name", ["x", "rows", "history", "noise", "guidance_scale", "clip"])
def test_only_float32_is_stepped(triton_device, name):
    given = arguments(triton_device, SHAPE, guided=name == "guidance_scale")
    zeros = torch.zeros(SHAPE, device=triton_device)
    given = {**given, **dict(history=zeros[None], noise=zeros, clip=torch.ones(2, device=triton_device))}
    with pytest.raises(ValueError, match=f"{name} is torch.bfloat16; accepted: float32"):
        denoise_step(**{**given, name: given[name].bfloat16()})


def test_the_gradient_is_that_of_the_reference(triton_device):
    """With respect to the prediction and the variance, as a guide that acts on the samples asks for it."""
    given = arguments(triton_device, SHAPE, clip=0.7, noise=torch.randn(SHAPE, device=triton_device))
    for row in (2, WHOLE):  # s is 0 in the former
        grads = []
        for step in (lambda **given: stepped(given), denoise_step_reference):
            out = torch.cat((given["out"], given["out"].cos()), 1).requires_grad_()
            index = torch.tensor(row, device=triton_device)
            parts = dict(out=out[:, :1], variance=out[:, 1:], index=index)
            step(**{**given, **parts})[0].square().sum().backward()
            grads.append(out.grad)
        assert torch.equal(*grads) and grads[0].isfinite().all() and grads[0][:, 0].abs().max() > 0
        assert bool(grads[0][:, 1].any()) == (row == WHOLE)
