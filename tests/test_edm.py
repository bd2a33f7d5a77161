"""fastdiff.from_edm: a denoiser of (x0 + sigma noise, sigma) as a Model, against EDM's own loop written out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import InputError, from_edm
from fastdiff.bench.peers.edm import Precond, SongUNet
from fastdiff.edm import Preconditioned

STEPS, CLASSES = 6, 4


@pytest.fixture
def network(randomised):
    def make(label_dim=0):
        unet = SongUNet(8, in_channels=2, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
        return randomised(Precond(unet, 8, 2, label_dim)).eval().requires_grad_(False)

    return make


def heun(network, noise, labels=(), low=0.002, high=80.0, guidance=None):
    """Karras et al. 2022, algorithm 1 with their levels (eq. 5), in float64 but for the network."""
    levels = [(high ** (1 / 7) + i / (STEPS - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(STEPS)] + [
        0.0
    ]

    def slope(x, level):
        def denoised(*labels):
            return network(x.float(), torch.full((len(x),), level, dtype=torch.float32), *labels).double()

        out = denoised(*labels)
        if guidance is not None:
            without = denoised(torch.zeros_like(labels[0]))
            out = without + guidance * (out - without)
        return (x - out) / level

    x = levels[0] * noise.double()
    for now, after in zip(levels, levels[1:], strict=False):
        d = slope(x, now)
        end = x + (after - now) * d
        x = end if after == 0 else x + (after - now) * (d + slope(end, after)) / 2
    return x


@pytest.mark.parametrize("form", [None, "eager"])
def test_edms_loop(form, network, noise, rel):
    made = network()
    model = from_edm(made)
    images = fastdiff.sample(model, 3, "edm", steps=STEPS, noise=noise, device="cpu", form=form)
    assert rel(images, heun(made, noise(0, 0, (3, 2, 8, 8)))) < 1e-5
    assert model.prediction_type == "sample" and model.image_shape == (2, 8, 8) and model.context_width == 0


@pytest.mark.parametrize("guidance", [None, 1.7])
def test_classes_are_one_hot(guidance, network, noise, rel):
    made = network(CLASSES)
    model = from_edm(made, class_names=("ant", "bee", "cat", "dog"))
    context = {"context": {"cat": 1}, "guidance_scale": guidance}
    images = fastdiff.sample(model, 2, "edm", steps=STEPS, noise=noise, device="cpu", **context)
    labels, x = torch.eye(CLASSES)[[2, 2]], noise(0, 0, (2, 2, 8, 8))
    assert rel(images, heun(made, x, (labels,), guidance=guidance)) < 1e-5
    without = fastdiff.sample(model, 2, "edm", steps=STEPS, noise=noise, device="cpu")
    assert rel(without, heun(made, x, (0 * labels,))) < 1e-5 and rel(without, images) > 1e-3


def test_the_range_is_the_networks_own_at_most(network, noise, rel):
    made = network()
    made.sigma_min, made.sigma_max = 0.02, 50.0
    images = fastdiff.sample(from_edm(made, sigma_max=40), 2, "edm", steps=STEPS, noise=noise, device="cpu")
    assert rel(images, heun(made, noise(0, 0, (2, 2, 8, 8)), low=0.02, high=40.0)) < 1e-5


def test_between_timesteps_the_networks_level_is_the_tables():
    """What the network is told is what the table takes x for, whatever the sampler's nodes."""
    seen = []

    class Spy(nn.Module):
        img_channels, img_resolution, label_dim, sigma_min, sigma_max = 1, 4, 0, 0.0, math.inf

        def round_sigma(self, sigma):
            return sigma

        def forward(self, x, sigma):
            seen.append(float(sigma[0]))
            return x / (1 + sigma**2)[:, None, None, None]

    model = from_edm(Spy(), sigma_min=0.01, sigma_max=30)
    for sampler, options in (("edm", {}), ("ddim", {}), ("dpmpp_2m", {"sigmas": "karras"}), ("ddpm", {})):
        seen.clear()
        table = model.table(sampler, 7 if sampler != "ddpm" else None, **options)
        fastdiff.sample(model, 1, table, form="eager", device="cpu")
        np.testing.assert_allclose(seen, table.sigma / table.alpha, rtol=3e-6)
    assert model.schedule.alphas_cumprod[[0, -1]] == pytest.approx([1 / (1 + 0.01**2), 1 / (1 + 30**2)])


def test_its_loop_is_exported(network, tmp_path):
    pytest.importorskip("onnxruntime")
    from fastdiff.export import OnnxSampler, export_sampler

    model = from_edm(network(CLASSES))
    export_sampler(model, tmp_path / "edm.onnx", model.table("edm", STEPS))
    images = OnnxSampler(tmp_path / "edm.onnx").sample(2, seed=3, context=[0, 1, 0, 0])
    expected = fastdiff.sample(model, 2, "edm", steps=STEPS, seed=3, context=[0, 1, 0, 0], device="cpu")
    assert float((torch.from_numpy(images) - expected).abs().max()) < 1e-5 * max(1, float(expected.abs().max()))


class Rounding(Precond):
    def round_sigma(self, sigma):
        return torch.as_tensor(sigma).round()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: from_edm("edm.pkl"), "network = 'edm.pkl'; accepted: one of EDM's"),
        (
            lambda: from_edm(nn.Conv2d(1, 1, 1)),
            "a network of class Conv2d without img_channels, img_resolution, label_",
        ),
        (lambda: from_edm(Rounding(nn.Identity(), 8)), "a network of class Rounding, which rounds noise levels"),
        (
            lambda: from_edm(Precond(nn.Identity(), 8), sigma_min=2, sigma_max=1),
            "noise levels from 2 to 1; accepted: s",
        ),
        (lambda: from_edm(Precond(nn.Identity(), 8), sigma_min=0), "noise levels from 0 to 80"),
        (
            lambda: from_edm(Precond(nn.Identity(), 8), sigma_min=1e-9),
            "noise levels from 1e-09 to 80; accepted: sigma_",
        ),
        (lambda: Preconditioned(nn.Identity(), math.nan, 1.0), "sigma_data = nan"),
        (
            lambda: fastdiff.save(from_edm(Precond(nn.Identity(), 8)), "a.safetensors"),
            "a network of EDM cannot be saved",
        ),
        (lambda: from_edm(Precond(nn.Identity(), 8), sigma_max=math.inf), "sigma_max = inf"),
        (lambda: from_edm(Precond(nn.Identity(), 8), class_names=("a",)), "1 class names ['a']; the network takes 0"),
    ],
)
def test_what_is_not_accepted(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
