"""On a CUDA device: the same noise, the same images as on the CPU. `make gpu` runs these."""

import pytest
import torch

from fastdiff import PhiloxNoise, load, sample
from fastdiff.kernels import philox

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
