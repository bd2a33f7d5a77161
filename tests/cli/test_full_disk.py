"""Full disks: one sentence, and what was whole stays whole."""

import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff import ContextUnet, InputError, Model, animation, grid, make_schedule, save, save_picture
from fastdiff.cli.main import main
from fastdiff.files import save_json, save_npy

SPACE = 4096
NOISE = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@contextmanager
def full_disk():
    """No file grows beyond SPACE bytes within the context."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SPACE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomised):
    """With a small model and pictures to train on."""
    folder = tmp_path_factory.mktemp("inputs")
    network = randomised(ContextUnet(3, 8, 5, 16))
    save(
        Model(network, make_schedule("course", 30), image_shape=(3, 16, 16), time="fraction"), folder / "m.safetensors"
    )
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    return folder


COMMANDS = {
    "picture": ["sample", "m.safetensors", "-n", 40, "--steps", 1, "-o", "out.png"],
    "animation": ["sample", "m.safetensors", "-n", 4, "--steps", 3, "--scale", 1, "-o", "out.png", "--gif", "out.gif"],
    "numbers": ["sample", "m.safetensors", "-n", 4, "--steps", 1, "--scale", 1, "-o", "out.png", "--npy", "out.npy"],
    "manifest": ["sample", "m.safetensors", "-n", 40, "--steps", 1, "-o", "out/", *["--context", "1,2,3,4,5"] * 300],
    "shards": ["sample", "m.safetensors", "-n", 40, "--steps", 1, "-o", "out/"],
    "shards of numbers": ["sample", "m.safetensors", "-n", 4, "--steps", 1, "-o", "out/", "--format", "npy"],
    "network": ["export", "m.safetensors", "-o", "out.onnx"],
    "page": ["export", "m.safetensors", "--web", "out"],
    "training": ["train", "--preset", "course", "--data", "x.npy", "--n-feat", 8, "--epochs", 1, "-o", "out"],
    "noise": ["noise", "x.png", "-o", "out.png"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_commands_say_it_in_a_sentence(what, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("m.safetensors", "x.npy"):
        os.symlink(folder / name, name)
    save_picture(grid(NOISE), "x.png")
    words = [str(word) for word in COMMANDS[what]]
    with full_disk():
        result = CliRunner().invoke(main, words, catch_exceptions=False)
    error = result.output.strip().splitlines()[-1]
    assert result.exit_code == 2 and error.startswith("Error: cannot write ") and "File too large" in error, (
        result.output
    )
    assert not [name for _, folders, files in os.walk(".") for name in folders + files if name.startswith(".fastdiff")]


WRITERS = {
    "picture": lambda path: save_picture(grid(NOISE), path / "kept.png"),
    "animation": lambda path: animation(NOISE[None].repeat(2, 1, 1, 1, 1)).save(path / "kept.gif"),
    "numbers": lambda path: save_npy(NOISE.numpy(), path / "kept.npy"),
    "JSON": lambda path: save_json(list(range(9999)), path / "kept.json"),
    "model": lambda path: save(Model(ContextUnet(3, 8, 5, 16), make_schedule("course", 9)), path / "kept.safetensors"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_what_was_whole_stays_whole(what, tmp_path):
    WRITERS[what](tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.read_bytes()
    with full_disk(), pytest.raises(InputError, match=f"cannot write '.*{kept.name}'"):
        WRITERS[what](tmp_path)
    assert kept.read_bytes() == before and list(tmp_path.iterdir()) == [kept]
