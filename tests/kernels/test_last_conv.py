"""denoise_step_of in Triton: the prediction of a convolution in float64, and the update of it in float64."""

import pytest
import torch

from fastdiff.kernels import philox
from fastdiff.kernels.conv_weight import Window, pack
from fastdiff.kernels.denoise_step import denoise_step_reference
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.last_conv import LastConv, denoise_step_of

WINDOWS = {
    "1x1": Window((1, 1)),
    "3x3": Window((3, 3), padding=(1, 1)),
    "up": Window((3, 3), padding=(1, 1), nearest=2),
}
# p, q, a, b, c, s, o, d, e, u, v, S
ROWS = torch.tensor(
    [
        [1.25, -0.75, 0.5, 0.4, 0.2, 0.3, 0.0, 0.1, -0.2, 0.0, 1.0, 0.3],
        [1.3, -0.9, 0.55, 0.5, -0.1, 0.1, 0.35, 0.15, -0.25, 0.45, -0.8, 0.9],
        [1.02, -0.2, 0.1, 0.9, -0.05, 0.0, 0.0, 0.3, 0.1, 0.0, 1.0, 0.0],
    ]
)


def made(device, window, c, o, h, w, guided, dtype=torch.float32):
    n = 2
    small = h // window.nearest, w // window.nearest
    given = torch.randn((1 + guided) * n, c, *small, device=device).to(dtype, memory_format=torch.channels_last)
    weight = (torch.randn(o, c, *window.kernel, device=device) / c**0.5).to(dtype)
    bias = torch.randn(o, device=device).to(dtype)
    return LastConv(given, pack(weight, window), window, o, bias), convolved(given, weight, bias, window)


def convolved(given, weight, bias, window):
    x = given.double().repeat_interleave(window.nearest, 2).repeat_interleave(window.nearest, 3)
    return torch.nn.functional.conv2d(x, weight.double(), bias.double(), padding=window.padding)


CASES = [("1x1", 28, 1, 14, 14), ("3x3", 20, 3, 6, 10), ("3x3", 64, 3, 8, 10), ("up", 5, 4, 2, 2), ("up", 40, 3, 8, 6)]


@pytest.mark.parametrize("name, c, o, h, w", CASES)
@pytest.mark.parametrize(
    "guided, noise, depth, clip, row",
    [
        (False, "philox", 0, 1.0, 1),
        (True, "philox", 1, None, 0),
        (True, "given", 3, 0.7, 1),
        (False, "philox", 2, None, 2),
    ],
)
def test_the_update_of_a_prediction(triton_device, agrees, layouts, name, c, o, h, w, guided, noise, depth, clip, row):
    device, window = triton_device, WINDOWS[name]
    last, prediction = made(device, window, c, o, h, w, guided)
    assert LastConv.fits(window, o, h, w)
    shape = 2, o, h, w
    given = dict(index=torch.tensor(row, device=device), clip=clip, rows=ROWS.to(device))
    given["key"] = torch.tensor([7, 5], device=device) if noise == "philox" else None
    given["noise"] = torch.randn(shape, device=device) if noise == "given" else None
    given["guidance_scale"] = torch.tensor(2.5, device=device) if guided else None
    ring = torch.randn(max(1, depth), *shape, device=device)
    exact = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    for layout, x in layouts(torch.randn(shape, device=device)).items():
        history = layouts(ring.flatten(0, 1).clone())[layout].unflatten(0, ring.shape[:2]) if depth else None
        wide = None if history is None else history.double()
        following, remembered = denoise_step_reference(x.double(), prediction, history=wide, **exact)
        next_index = torch.tensor(-1, device=device)
        denoise_step_of(x, last, history=history, next_index=next_index, **given)
        agrees(x, following)
        assert int(next_index) == row + 1
        if depth:
            agrees(history[row % depth].contiguous(), remembered)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_prediction_is_not_rounded(triton_device, agrees, dtype):
    """To the network's dtype: the update is as near to the exact one as float32."""
    last, prediction = made(triton_device, WINDOWS["3x3"], 28, 1, 8, 8, False, dtype)
    x, index = torch.randn(2, 1, 8, 8, device=triton_device), torch.tensor(1, device=triton_device)
    rows = ROWS.to(triton_device)
    following, _ = denoise_step_reference(x.double(), prediction, rows.double(), index)
    denoise_step_of(x, last, rows, index)
    agrees(x, following)


def test_its_noise_is_that_of_philox(triton_device):
    """Where a prediction of zeros is scaled by nothing, the noise is all that is left, in any batch."""
    device, shape = triton_device, (2, 3, 6, 10)
    last, _ = made(device, WINDOWS["1x1"], 8, 3, 6, 10, False)
    rows = torch.zeros(3, 12, device=device)
    rows[2, 5] = 1.0
    index, key = torch.tensor(2, device=device), torch.tensor([9, 4], device=device)
    x = torch.zeros(shape, device=device)
    denoise_step_of(x, last, rows, index, key=key)
    torch.testing.assert_close(x, philox.normals(key, 3, shape), rtol=0, atol=4e-6)
    alone = torch.zeros(1, *shape[1:], device=device)
    second = last._replace(x=last.x[1:])
    denoise_step_of(alone, second, rows, index, key=key + torch.tensor([0, 1], device=device))
    assert torch.equal(alone[0], x[1])


def test_in_plain_torch_it_is_the_convolution_and_the_step(triton_device, agrees):
    last, prediction = made(triton_device, WINDOWS["3x3"], 6, 3, 5, 5, True)
    x, index = torch.randn(2, 3, 5, 5, device=triton_device), torch.tensor(0, device=triton_device)
    scale, rows = torch.tensor(1.5, device=triton_device), ROWS.to(triton_device)
    following, _ = denoise_step_reference(
        x.double(), prediction, rows.double(), index, guidance_scale=scale.double(), clip=1.0
    )
    with using("reference"):
        denoise_step_of(x, last, rows, index, guidance_scale=scale, clip=1.0)
    agrees(x, following)


def test_what_it_takes():
    plain = WINDOWS["3x3"]
    assert LastConv.fits(plain, 4, 2, 6)
    assert not LastConv.fits(plain, 5, 4, 4)  # channels
    assert not LastConv.fits(plain, 3, 5, 5)  # positions that four do not divide
    assert not LastConv.fits(Window((2, 2), stride=2, transposed=True), 3, 4, 4)
