"""The models that ship: they draw what their pictures show, and agree with the published loops."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import fastdiff
from fastdiff.bench.peers.reference import AnnotatedLoop, AnnotatedReference, ContextReference, CourseLoop
from fastdiff.checkpoints.load import stored_info
from fastdiff.checkpoints.shipped import SHIPPED, shipped_models
from fastdiff.cli.main import main
from fastdiff.data.fashion import DEBIAN_FASHION
from fastdiff.data.load import load_data
from fastdiff.training.recipe import Recipe
from fastdiff.training.trainer import Trainer

# How each model's samples.png was drawn.
PICTURES = {
    "fashion-mnist": "sample fashion-mnist -n 64",
    "sprites": "sample sprites -n 40 --columns 8 --sampler ddpm_large --steps 100 --guidance-scale 2"
    + "".join(f" --context {name}" for name in "monster player item spell dungeon".split() for _ in range(8)),
}


@pytest.fixture(scope="module")
def garments():
    model = fastdiff.load("fashion-mnist")
    reference = AnnotatedReference(edition="mindspore-torch").eval()
    reference.load_state_dict(model.network.state_dict(), strict=True)
    return model, reference


@pytest.fixture(scope="module")
def sprites():
    model = fastdiff.load("sprites")
    reference = ContextReference(3, 64, 5, 16, shortcut="trained").eval()
    reference.load_state_dict(model.network.state_dict(), strict=True)
    return model, reference


@pytest.mark.parametrize("name", ["fashion-mnist", pytest.param("sprites", marks=pytest.mark.slow)])
def test_the_picture_is_what_the_command_draws(name, tmp_path):
    result = CliRunner().invoke(main, [*PICTURES[name].split(), "-o", str(tmp_path / "x.png")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "x.png") as ours, Image.open(SHIPPED / name / "samples.png") as shown:
        assert ours.size == shown.size and ours.mode == shown.mode
        difference = np.asarray(ours).astype(int) - np.asarray(shown).astype(int)
    # Another processor rounds otherwise; a pixel may fall on the other side of a half.
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_model_comes_with_its_card(name):
    folder = shipped_models()[name].parent
    card = (folder / "README.md").read_text()
    for word in ("fastdiff train", "commit", "loss at the end", "![loss](loss.png)", "![samples](samples.png)"):
        assert word in card
    assert (folder / "loss.png").is_file()
    assert stored_info(name)["trained with"] in card
    assert (folder / "model.safetensors").stat().st_size < 10e6


def test_the_garments_have_the_loss_of_their_card(garments):
    """The Huber loss, on test pictures that were never trained on."""
    if not DEBIAN_FASHION.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = load_data("fashion-mnist")
    few = dataclasses.replace(data, val_images=data.val_images[:500], val_labels=data.val_labels[:500])
    recipe = Recipe.preset("annotated").with_options({"beta_start": 5e-4, "beta_end": 0.1})
    trainer = Trainer(recipe, few, device="cpu")
    trainer.network.load_state_dict(garments[0].network.state_dict())
    card = re.search(r"held-out pictures \| ([0-9.]+)", (SHIPPED / "fashion-mnist" / "README.md").read_text())
    assert card and trainer.validate() == pytest.approx(float(card[1]), rel=0.1)  # 500 of the 2,000 pictures


@pytest.mark.parametrize("t", [0, 1, 20, 100, 199])
def test_garments_epsilon(t, garments, rel):
    model, reference = garments
    x, time = torch.randn(4, 1, 28, 28), torch.full((4,), t)
    with torch.no_grad():
        assert rel(model.network(x, time), reference(x, time)) < 1e-5


@pytest.mark.parametrize("t", [1, 2, 50, 250, 500])
def test_sprites_epsilon(t, sprites, rel):
    model, reference = sprites
    x, time, context = torch.randn(4, 3, 16, 16), torch.full((4,), t / 500), torch.rand(4, 5)
    with torch.no_grad():
        assert rel(model.network(x, time, context), reference(x, time, context)) < 1e-5


@pytest.mark.slow  # tests/test_sampling.py has this loop with random weights
def test_the_garments_loop(garments, rel):
    model, reference = garments
    noise = fastdiff.PhiloxNoise(4)
    betas = torch.linspace(5e-4, 0.1, 200)  # the card tells why not the tutorial's
    frames = AnnotatedLoop(betas).p_sample_loop(reference, lambda k: noise(k, 0, (2, 1, 28, 28)))
    images, ours = fastdiff.sample(model, 2, "ddpm", steps=200, seed=4, frames=1, device="cpu")
    assert rel(images, frames[-1]) < 1e-4
    assert max(rel(a, b) for a, b in zip(ours, frames, strict=True)) < 1e-4


@pytest.mark.parametrize(
    "steps", [1, 2, 5, 10, 25, 50, 100, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (250, 500))]
)
def test_the_sprites_ddim_loop(steps, sprites, rel):
    model, reference = sprites
    noise, context = fastdiff.PhiloxNoise(4), torch.tensor([1, 0, 0.6, 0, 0])
    expected = CourseLoop(500).sample_ddim(reference, lambda k: noise(k, 0, (1, 3, 16, 16)), steps, context[None])
    ours = fastdiff.sample(model, 1, "ddim", steps=steps, spacing="course", seed=4, context=context, device="cpu")
    assert rel(ours, expected) < 1e-4


@pytest.mark.slow  # tests/test_sampling.py has these loops with random weights
@pytest.mark.parametrize("sampler", ["ddpm_large", "ddpm_no_noise"])
def test_the_sprites_ddpm_loop(sampler, sprites, rel):
    model, reference = sprites
    noise = fastdiff.PhiloxNoise(4)
    loop = CourseLoop(500)
    expected = loop.sample_ddpm(reference, lambda k: noise(k, 0, (1, 3, 16, 16)), None, sampler == "ddpm_large")
    assert rel(fastdiff.sample(model, 1, sampler, steps=500, seed=4, device="cpu"), expected) < 1e-4


@pytest.mark.slow
def test_the_mode_without_extra_noise_collapses(sprites):
    """What the course shows: without the noise, samples lose their variety and contrast."""
    options = dict(n=8, steps=100, device="cpu")
    spread = {
        name: float(fastdiff.sample(sprites[0], sampler=name, **options).std())
        for name in ("ddpm_large", "ddpm_no_noise")
    }
    assert spread["ddpm_no_noise"] < 0.7 * spread["ddpm_large"]


def test_seven_of_sixty_four(garments, rel):
    model = garments[0]
    for sampler in ("ddim", "ddpm"):
        row = fastdiff.sample(model, 64, sampler, steps=5, seed=9, device="cpu")[7]
        assert rel(fastdiff.sample(model, 1, sampler, steps=5, seed=9, first=7, device="cpu")[0], row) < 1e-5


def test_no_path_of_a_machine_is_in_a_model_or_its_card():
    for path in Path(SHIPPED).rglob("*"):
        if path.suffix in (".md", ".safetensors"):
            content = path.read_bytes()
            assert not any(word in content for word in (b"/home/", b"/root/", b"/tmp/", b"/work/"))
