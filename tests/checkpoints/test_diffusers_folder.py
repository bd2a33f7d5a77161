"""Folders that diffusers saved: loaded without running code, or refused with a sentence that says what they are."""

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

from fastdiff import InputError, from_diffusers, load, make_schedule, sample
from fastdiff.cli.main import main

WEIGHTS = "diffusion_pytorch_model"
OPTIONS = dict(steps=4, device="cpu")


@pytest.fixture
def pipe(unet):
    return DDPMPipeline(unet=unet(), scheduler=DDPMScheduler(num_train_timesteps=100))


@pytest.fixture
def folder(pipe, tmp_path):
    """A pipeline's folder."""
    pipe.save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_a_pipelines_folder(pipe, folder):
    model = load(folder)
    assert torch.equal(sample(model, 2, **OPTIONS), sample(from_diffusers(pipe), 2, **OPTIONS))
    assert (model.scheduler.name, model.default_steps(), model.image_shape) == ("DDPMScheduler", 100, (3, 8, 8))


def test_its_default_steps_are_the_pipelines(unet, tmp_path):
    DDIMPipeline(unet=unet(), scheduler=DDIMScheduler()).save_pretrained(tmp_path)
    assert load(tmp_path).default_steps() == 50


def test_averaged_weights_come_first(folder, unet):
    """As diffusers' own training script leaves them in its checkpoints."""
    averaged = unet()
    with torch.no_grad():
        averaged.conv_out.bias.add_(1)
    averaged.save_pretrained(folder / "unet_ema")
    (folder / "model_index.json").unlink()
    assert torch.equal(load(folder).network.conv_out.bias, averaged.conv_out.bias)


def test_a_network_alone(folder, pipe):
    assert load(folder / "unet").scheduler.name == "DDPMScheduler", "its scheduler lies beside it"
    shutil.rmtree(folder / "scheduler")
    with pytest.warns(UserWarning, match="does not say the schedule of its model; assumed: DDPMScheduler"):
        assumed = load(folder / "unet")
    assert assumed.schedule.num_timesteps == 1000 and assumed.prediction_type == "epsilon"
    given = load(folder / "unet", make_schedule("linear", 100))
    assert given.default_steps() == 100
    assert torch.allclose(sample(given, 1, **OPTIONS), sample(from_diffusers(pipe), 1, **OPTIONS), atol=1e-4)


def test_weights_in_other_files(folder, pipe):
    unet, expected = folder / "unet", sample(load(folder), 1, **OPTIONS)
    tensors = load_file(unet / f"{WEIGHTS}.safetensors")
    (unet / f"{WEIGHTS}.safetensors").unlink()
    torch.save(tensors, unet / f"{WEIGHTS}.bin")
    assert torch.equal(sample(load(folder), 1, **OPTIONS), expected)
    (unet / f"{WEIGHTS}.bin").unlink()
    pipe.unet.save_pretrained(unet, max_shard_size="20kB")
    assert len(list(unet.glob("*.safetensors"))) > 1
    assert torch.equal(sample(load(folder), 1, **OPTIONS), expected)
    for file in unet.glob(f"{WEIGHTS}*"):
        file.unlink()
    save_file({name: value.half() for name, value in tensors.items()}, unet / f"{WEIGHTS}.fp16.safetensors")
    halves = load(folder)
    assert next(halves.network.parameters()).dtype == torch.float32
    assert torch.allclose(sample(halves, 1, **OPTIONS), expected, atol=0.1)


def changed(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda d: changed(d / "model_index.json", vae=["diffusers", "AutoencoderKL"]), "has a vae, so it denoises"),
        (
            lambda d: changed(d / "model_index.json", unet=["mine", "Net"]),
            "the unet mine.Net, which is code of its own",
        ),
        (lambda d: changed(d / "unet/config.json", _class_name="Transformer2DModel"), "'Transformer2DModel'"),
        (lambda d: changed(d / "unet/config.json", block_out_channels=[8]), "makes no network"),
        (lambda d: changed(d / "unet/config.json", layers_per_block=2), "does not match UNet2DModel"),
        (lambda d: changed(d / "scheduler/scheduler_config.json", _class_name="system"), "scheduler 'system'"),
        (lambda d: (d / "unet/config.json").write_text("{"), "config.json' is not whole JSON"),
        (lambda d: (d / "unet/config.json").write_text("[]"), "holds a list"),
        (lambda d: (d / f"unet/{WEIGHTS}.safetensors").unlink(), "holds no weights; looked for"),
        (lambda d: (d / f"unet/{WEIGHTS}.safetensors").write_bytes(b"abc"), "is not a whole safetensors file"),
        (
            lambda d: (d / f"unet/{WEIGHTS}.safetensors.index.json").write_text('{"weight_map": {"a": "../../x"}}'),
            "names the file '../../x', which does not lie beside it",
        ),
    ],
)
def test_what_is_damaged_or_foreign_is_named(spoil, words, folder):
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert words in str(caught.value), str(caught.value)


def test_what_it_says_itself_is_not_said_again(folder):
    with pytest.raises(InputError, match="states its own schedule and prediction type; leave them out"):
        load(folder, make_schedule("linear", 100))


def test_without_diffusers(folder, monkeypatch):
    def gone(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(InputError, match="UNet2DModel is of diffusers, which is not installed: pip install"):
        load(folder)


def test_its_loop_is_exported_by_one_command(unet, tmp_path, monkeypatch, noise, their_loop):
    """With diffusers' DDIM and its default clip, to 1e-3 of its images."""
    pytest.importorskip("onnxruntime")
    from fastdiff.export import OnnxSampler

    monkeypatch.chdir(tmp_path)
    network = unet()
    DDIMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained("ddim")
    words = ["export", "ddim", "--sampler", "own", "--steps", "20", "--noise", "input", "-o", "a.onnx"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(20)
    theirs = their_loop(scheduler, lambda x, t: network(x, t).sample, (2, 3, 8, 8))
    assert np.abs(OnnxSampler("a.onnx").sample(2, noise=noise) - theirs.numpy()).max() < 1e-3
    refused = CliRunner().invoke(main, ["export", "sprites", "--sampler", "own", "-o", "b.onnx"])
    assert refused.exit_code == 2 and "--sampler own for a model without a scheduler" in refused.output


def test_in_the_command(folder, unet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0, done.output
        return done.output

    assert "sampled by       DDPMScheduler of diffusers, 100 steps" in run("info", folder)
    out = run("sample", folder, "-n", 3, "--steps", 4, "-o", "a.png", "--npy", "a.npy")
    assert "3 images, DDPMScheduler, 4 steps" in out
    assert np.array_equal(np.load("a.npy"), sample(load(folder), 3, **OPTIONS).numpy())
    assert "3 images, DDPMScheduler, 4 steps" in run("sample", folder, "-n", 3, "--steps", 4, "-o", "out/")
    assert "nothing left to do" in run("sample", folder, "-n", 3, "--steps", 4, "-o", "out/")
    assert "3 images, ddim, 4 steps" in run("sample", folder, "-n", 3, "--sampler", "ddim", "--steps", 4)
    DDIMPipeline(unet=unet(num_class_embeds=4), scheduler=DDIMScheduler()).save_pretrained("classes")
    names = ("--class-names", "a,b,c,d")
    run("sample", "classes", "-n", 2, "--steps", 2, *names, "--context", "c", "--npy", "c.npy")
    run("sample", "classes", "-n", 2, "--steps", 2, "--context", "2", "--npy", "2.npy")
    assert np.array_equal(np.load("c.npy"), np.load("2.npy"))
    run("sample", "classes", "-n", 3, "--steps", 2, "--context", 1, "--context", 2, "-o", "turns/")
    assert json.loads((tmp_path / "turns/manifest.json").read_text())["samples"]["contexts"] == [1, 2]
    refused = CliRunner().invoke(main, ["sample", "classes", "--context", "4"])
    assert refused.exit_code == 2 and "class '4'; accepted: one number, 0 to 3" in refused.output
