"""On a CUDA device: the same noise, the same images as on the CPU. `make gpu` runs these."""

import pytest
import torch

from fastdiff import PhiloxNoise, load, sample
from fastdiff.kernels import philox
from fastdiff.kernels.denoise_step import denoise_step, denoise_step_reference
from fastdiff.kernels.dispatch import use_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_the_integers_are_equal_and_the_normals_within_2e_6():
    seed, first = (5 << 33) + 3, (1 << 32) - 2
    for ours, theirs in zip(
        philox.words(seed, 3, first, 5, 1001, CUDA), philox.words(seed, 3, first, 5, 1001, CPU), strict=True
    ):
        assert torch.equal(ours.cpu(), theirs)
    difference = PhiloxNoise(1, CUDA)(2, 3, (64, 3, 32, 32)).cpu() - PhiloxNoise(1)(2, 3, (64, 3, 32, 32))
    assert float(difference.abs().max()) < 2e-6


@pytest.mark.parametrize(
    "name, sampler", [("fashion-mnist", "ddim"), ("fashion-mnist", "ddpm"), ("sprites", "dpmpp_2m_sde")]
)
def test_images_agree_with_the_cpu(name, sampler):
    model = load(name)
    there, here = (sample(model, 8, sampler, 25, seed=1, device=device) for device in (CUDA, CPU))
    assert float((there - here).abs().max()) < 1e-3


def test_a_sample_does_not_depend_on_its_batch():
    model = load("fashion-mnist")
    whole = sample(model, 64, "ddpm", 25, device=CUDA)
    assert torch.allclose(sample(model, 1, "ddpm", 25, first=7, device=CUDA)[0], whole[7], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_is_finite(dtype):
    assert torch.isfinite(sample(load("fashion-mnist"), 16, "ddpm", 200, dtype=dtype, device=CUDA)).all()


def test_kernels_are_what_runs_here():
    assert use_triton(torch.zeros(1, device=CUDA))


def test_a_captured_step_obeys_what_lies_in_device_memory():
    """One graph: seed, table, row index and guidance scale change between replays, and the host reads none of them."""
    shape, steps = (3, 3, 8, 8), 4
    x, previous = torch.empty(2, *shape, device=CUDA)
    out = torch.empty(6, *shape[1:], device=CUDA, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    rows, index = torch.zeros(steps, 6, device=CUDA), torch.zeros((), dtype=torch.int64, device=CUDA)
    key, scale = torch.zeros(2, dtype=torch.int64, device=CUDA), torch.ones((), device=CUDA)

    def body():
        denoise_step(x, out, rows, index, previous, key=key, clip=1.5, guidance_scale=scale, keep_x0=True, inplace=True)
        index.add_(1)

    body()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            body()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for seed in (1, 2**40 + 3):
        table = torch.randn(steps, 6) * 0.5
        table[0, 4] = 0.0
        start, prediction = torch.randn(shape), torch.randn(out.shape).bfloat16()
        x.copy_(start)
        previous.fill_(float("nan"))  # the first row must not read it
        out.copy_(prediction), rows.copy_(table), index.zero_(), scale.fill_(1.5 + seed % 5)
        key.copy_(torch.tensor([seed, 7]))
        for _ in range(steps):
            graph.replay()
        expected, x0 = start, None
        for i in range(steps):
            expected, x0 = denoise_step_reference(
                expected, prediction, table, torch.tensor(i), x0, key=torch.tensor([seed, 7]), clip=1.5,
                guidance_scale=scale.cpu(),
            )  # fmt: skip
        torch.testing.assert_close(x.cpu(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(previous.cpu(), x0, atol=1e-4, rtol=1e-4)
