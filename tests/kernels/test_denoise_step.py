"""denoise_step in Triton against float64, and its noise against kernels.philox."""

import pytest
import torch

from fastdiff.kernels import philox
from fastdiff.kernels.denoise_step import denoise_step, denoise_step_reference, x0_bound

ROWS = torch.tensor(  # p, q, a, b, c, s: a first row, a middle one, a last one
    [[1.25, -0.75, 0.5, 0.4, 0.0, 0.3], [1.1, -0.4, 0.6, 0.7, -0.2, 0.2], [1.02, -0.2, 0.1, 0.9, -0.05, 0.0]]
)
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


def expected(given):
    """float64 throughout, of the same inputs."""
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    return denoise_step_reference(x0_prev=wide.pop("x0", None), **wide)


def stepped(given):
    """The next x and x0, the arguments left as they are."""
    mine = {k: v.clone() if k in ("x", "x0") else v for k, v in given.items()}
    denoise_step(**mine)
    return mine["x"], mine.get("x0")


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
    given = arguments(triton_device, shape, dtype, guided, x0=torch.randn(shape, device=triton_device))
    x_exact, x0_exact = expected(given)
    for x in layouts(given["x"]).values():
        for out in layouts(given["out"]).values():
            following, x0 = stepped({**given, "x": x, "out": out})
            agrees(following, x_exact)
            agrees(x0, x0_exact)


@pytest.mark.parametrize("clip", ["limit", "sample"])
def test_clipping(triton_device, agrees, clip):
    bound = 0.6 if clip == "limit" else torch.tensor([1.0, 1.3, 0.5], device=triton_device)
    shape = (3, 3, 8, 8)
    given = arguments(triton_device, shape, clip=bound, x0=torch.randn(shape, device=triton_device))
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
    rows = torch.tensor([[0.0] * 6, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], device=device)
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
    given = arguments(triton_device, shape, noise=noise, x0=previous)
    agrees(stepped(given)[0], expected(given)[0])


def test_the_first_row_does_not_read_what_is_not_there_yet(triton_device, agrees):
    """While c is 0, x0 may be uninitialised memory, as in a captured graph's first step."""
    nothing = torch.full((2, 1, 6, 6), float("nan"), device=triton_device)
    given = arguments(triton_device, (2, 1, 6, 6), x0=nothing, index=torch.tensor([0], device=triton_device))
    agrees(stepped(given)[0], expected({**given, "x0": None})[0])


def test_a_row_without_noise_adds_none(triton_device, agrees):
    key = torch.tensor([3, 5], device=triton_device)
    given = arguments(triton_device, (2, 1, 6, 6), index=torch.tensor(2, dtype=torch.int32, device=triton_device))
    agrees(stepped({**given, "key": key})[0], expected(given)[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "crop"])
def test_memory_of_any_layout_is_overwritten(triton_device, agrees, layouts, layout):
    given = arguments(triton_device, (2, 3, 8, 8))
    x, x0 = layouts(given["x"])[layout], layouts(torch.randn(2, 3, 8, 8, device=triton_device))[layout]
    given = {**given, "x": x, "x0": x0}
    x_exact, x0_exact = expected(given)
    denoise_step(**given)
    agrees(x, x_exact)
    agrees(x0, x0_exact)


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
        (dict(rows=torch.zeros(3, 5)), r"rows has shape \(3, 5\)"),
        (dict(index=torch.tensor(0.0)), "index is torch.float32"),
        (dict(index=torch.tensor([0, 1])), "index has shape"),
        (dict(key=torch.zeros(2, dtype=torch.int32)), "key is torch.int32"),
        (dict(key=torch.zeros(2, dtype=torch.int64, device="meta")), "key is on meta"),
        (dict(key=torch.zeros(2, dtype=torch.int64), noise=torch.zeros(SHAPE)), "both noise and key"),
        (dict(clip=0.0), "clip = 0.0"),
        (dict(clip=torch.ones(3)), "clip has shape"),
        (dict(x0=torch.zeros(2, 1, 4, 5)), "x0 has shape"),
        (dict(rows=torch.zeros(3, 6, device="meta")), "rows is on meta"),
    ],
)
def test_what_it_cannot_take_is_named(change, message):
    given = {**arguments("cpu", SHAPE), **change}
    with pytest.raises(ValueError, match=message):
        denoise_step(**given)


@pytest.mark.parametrize("name", ["x", "rows", "x0", "noise", "guidance_scale", "clip"])
def test_only_float32_is_stepped(triton_device, name):
    given = arguments(triton_device, SHAPE, guided=name == "guidance_scale")
    zeros = torch.zeros(SHAPE, device=triton_device)
    given = {**given, **dict(x0=zeros, noise=zeros, clip=torch.ones(2, device=triton_device))}
    with pytest.raises(ValueError, match=f"{name} is torch.bfloat16; accepted: float32"):
        denoise_step(**{**given, name: given[name].bfloat16()})


def test_the_gradient_is_that_of_the_reference(triton_device):
    """With respect to the prediction, as a guide that acts on the samples asks for it."""
    given = arguments(triton_device, SHAPE, clip=0.7)
    grads = []
    for step in (lambda **given: stepped(given), denoise_step_reference):
        out = given["out"].clone().requires_grad_()
        step(**{**given, "out": out})[0].square().sum().backward()
        grads.append(out.grad)
    assert torch.equal(*grads) and grads[0].abs().max() > 0
