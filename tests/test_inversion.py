"""DDIM backwards: the noise of images, from which DDIM makes them again."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff import InputError, Model, PhiloxNoise, invert, load, make_schedule, sample
from fastdiff.cli.main import main
from fastdiff.samplers.inversion import inversion_table

MEAN, STD = 0.4, 0.5


class Gaussian(torch.nn.Module):
    """The best prediction of epsilon for pixels drawn from N(MEAN, STD^2)."""

    def __init__(self, schedule):
        super().__init__()
        self.register_buffer("abar", torch.tensor(schedule.alphas_cumprod))

    def forward(self, x, t):
        abar = self.abar[t].view(-1, 1, 1, 1)
        return ((1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar)).float()


def test_of_a_gaussian():
    """The flow keeps how many standard deviations a pixel is from the mean; the error is of order 1."""
    schedule = make_schedule("linear", 1000)
    model = Model(Gaussian(schedule), schedule, image_shape=(1, 4, 5))
    images = MEAN + STD * torch.randn(3, 1, 4, 5)
    abar = schedule.alphas_cumprod[-1]
    exact = abar**0.5 * MEAN + (images - MEAN) / STD * (abar * STD**2 + 1 - abar) ** 0.5
    errors = [float((invert(model, images, steps=n, device="cpu") - exact).abs().max()) for n in (50, 100, 200)]
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2] and errors[2] < 0.02


def test_back_again():
    model = load("sprites")
    images = sample(model, 4, "ddim", steps=50, context={"monster": 1}, seed=3, device="cpu")
    far = []
    for steps in (25, 50, 100):
        noise = invert(model, images, steps=steps, context={"monster": 1}, device="cpu")
        options = dict(steps=steps, context={"monster": 1}, clip=None, device="cpu")
        again = sample(model, 4, "ddim", noise=noise, **options)
        far.append(float((again - images).square().mean().sqrt()))
        assert torch.allclose(again[1:2], sample(model, 1, "ddim", noise=noise[1], **options), atol=1e-4)
    assert far[0] > 1.5 * far[1] > 1.5**2 * far[2] and far[2] < 0.05
    alone = invert(model, images[2], steps=25, context={"monster": 1}, device="cpu")
    together = invert(model, images, steps=25, context={"monster": 1}, device="cpu", batch_size=3)
    assert torch.allclose(alone[0], together[2], atol=1e-4)


@pytest.mark.parametrize("name, time", [("linear", "index"), ("course", "fraction"), ("cosine", "index")])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_table(name, time, kind):
    schedule = make_schedule(name, 40)
    table = inversion_table(schedule, 8, prediction_type=kind, time=time)
    assert len(table) == 7 and (np.diff(table.timestep) > 0).all() and (table.sigma_next > table.sigma).all()
    assert table.alpha_next[-1] ** 2 == pytest.approx(schedule.alphas_cumprod[-1])


def test_a_given_start(rel):
    """x_T alone is given; what a sampler draws besides is of the seed."""
    options = dict(steps=5, device="cpu", seed=9, first=4)
    free = sample("sprites", 2, "ddpm", **options)
    given = sample("sprites", 2, "ddpm", noise=torch.randn(2, 3, 16, 16).numpy(), **options)
    assert rel(given, free) > 0.1
    same = PhiloxNoise(9)(0, 4, (2, 3, 16, 16))
    assert rel(sample("sprites", 2, "ddpm", noise=same, **options), free) < 1e-5


def test_bad_input_is_named():
    model, black = load("sprites"), torch.zeros(3, 16, 16)
    for images, options, words in (
        (torch.zeros(2, 1, 16, 16), {}, r"images of shape \(2, 1, 16, 16\); accepted: \(3, 16, 16\)"),
        (black, dict(steps=1), "steps = 1; accepted: a whole number from 2 to 500"),
        (torch.full((3, 16, 16), torch.nan), {}, "holds NaN"),
        (black.byte(), {}, "holds torch.uint8; accepted: floats"),
        (black, dict(spacing="none"), "'none'"),
    ):
        with pytest.raises(InputError, match=words):
            invert(model, images, **options)
    with pytest.raises(InputError, match=r"noise of shape \(3, 3, 16, 16\); accepted: .*\(2, 3, 16, 16\)"):
        sample(model, 2, noise=torch.zeros(3, 3, 16, 16))
    pure = make_schedule("linear", 40, rescale_zero_snr=True)
    with pytest.raises(InputError, match="alphas_cumprod = 0 with prediction type 'epsilon'"):
        inversion_table(pure, 8)
    inversion_table(pure, 8, prediction_type="v_prediction")


def test_in_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == code, done.output
        return done.output

    options = ("-n", 1, "--sampler", "ddim", "--steps", 50, "--scale", 1, "--columns", 1, "--context", "item")
    run("sample", "sprites", *options, "-o", "a.png", "--npy", "a.npy")
    grid = Image.open("a.png")
    edge = (grid.width - 16) // 2
    grid.crop((edge, edge, edge + 16, edge + 16)).save("b.png")
    out = run("invert", "sprites", "b.png", "--steps", 100, "--context", "item")
    again = out.strip().splitlines()[-1].removeprefix("back again: fastdiff ").split()
    run(*again, "--npy", "again.npy")
    assert np.sqrt(np.mean((np.load("again.npy") - np.load("a.npy")) ** 2)) < 0.06
    assert "ends in .npy" in run("invert", "sprites", "b.png", "-o", "a.png", code=2)
    assert "nope.npy' cannot be read" in run("sample", "sprites", "--noise", "nope.npy", code=2)
    assert "noise of shape (1, 3, 16, 16)" in run("sample", "fashion-mnist", "--noise", "noise.npy", code=2)
