"""fastdiff train on data of every kind, and fastdiff sample back in its values."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import InputError, load, sample
from fastdiff.cli import training
from fastdiff.images import from_unit, to_uint8

TINY = "--epochs 1 --batch-size 4 --dim 8 --dim-mults 1,2 --timesteps 4 --threads 1 -o r".split()
DRAW = ["sample", "r", "-n", 3, "--steps", 2]


@pytest.fixture
def scans(tmp_path):
    """Gray pictures of 12 bits, as files."""
    (tmp_path / "scans").mkdir()
    for k in range(6):
        array = np.random.default_rng(k).integers(3, 4000, (8, 8), dtype=np.uint16)
        Image.fromarray(array).save(tmp_path / "scans" / f"{k}.png")
    return tmp_path / "scans"


def test_scans_of_twelve_bits_come_back_as_such(run, scans):
    said = run("train", "--data", "scans", "--range", "0,4095", *TINY)
    assert "scans: 5 pictures 1x8x8, 1 held out, values 0 to 4095;" in said
    model = load("r")
    assert model.value_range == (0, 4095) and load("r/checkpoint.safetensors").value_range == (0, 4095)
    assert "-1 and 1 are 0 and 4095 of the data" in run("info", "r")
    images = sample(model, 3, steps=2, batch_size=3)
    assert torch.equal(model.values(images), from_unit(images, (0, 4095)))
    run(*DRAW, "--npy", "s.npy", "-o", "s.png")
    assert np.array_equal(np.load("s.npy"), model.values(images).numpy())
    with Image.open("s.png") as picture:
        assert picture.mode == "L"  # a view
    run(*DRAW, "--format", "npy", "-o", "floats/")
    (shard,) = Path("floats").glob("*.npy")
    assert np.array_equal(np.load(shard), model.values(images).numpy())
    run(*DRAW, "--format", "png", "-o", "pictures/")
    for image, path in zip(images, sorted(Path("pictures").glob("*/*.png")), strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "I;16"
            expected = model.values(image[0].clamp(-1, 1)).double().round()
            assert np.array_equal(np.asarray(picture), expected.numpy())
    run(*DRAW, "-o", "views/")
    (shard,) = Path("views").glob("*.npz")
    assert np.array_equal(np.load(shard)["arr_0"], to_uint8(images).permute(0, 2, 3, 1).numpy())
    values = json.loads(Path("floats/manifest.json").read_text())["model"]["value_range"]
    assert values == [0, 4095]
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save("white.png")
    run(*DRAW, "--init", "white.png", "--strength", 0.5, "-o", "begun.png")


def test_a_run_on_scans_is_resumed_with_their_range(run, scans, refused):
    run("train", "--data", "scans", *TINY)
    low, high = load("r").value_range
    assert 3 <= low < high < 4000  # their own
    kept = load("r/checkpoint.safetensors")
    run("train", "--resume", "r")
    assert load("r").value_range == kept.value_range
    Image.fromarray(np.full((8, 8), 4001, np.uint16)).save("scans/0.png")
    refused(run("train", "--resume", "r", code=2), "has changed")


def test_bad_data_options(run, scans, refused):
    np.save("x.npy", np.zeros((4, 8, 8), np.uint8))
    (scans / "bad.png").write_bytes(b"no picture")
    for words, message in (
        (["scans", "--range", "0"], ["--range '0'", "such as 0,4095"]),
        (["scans", "--range", "0,x"], ["--range '0,x'"]),
        (["scans", "--range", "5,0"], ["value_range", "low < high"]),
        (["scans", "--range", "0,100", "--skip-corrupt"], ["of 384 values", "0 to 100"]),
        (["scans"], ["bad.png", "--skip-corrupt"]),
        (["scans", "--size", "8by8"], ["'8by8'", "48x32"]),
        (["scans", "--labels", "none.csv"], ["none.csv"]),
        (["x.npy", "--skip-corrupt"], ["skip_corrupt = True", "a .zip of pictures"]),
    ):
        refused(run("train", "--data", *words, *TINY, code=2), *message)
    assert not os.path.exists("r")
    said = run("train", "--data", "scans", "--skip-corrupt", "--size", "12x8", "--range", "-1,4095", *TINY)
    assert "1 corrupt file left out: bad.png" in said and load("r").image_shape == (1, 8, 12)


def test_usual_pictures_have_no_range(run):
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8))
    assert "values" not in run("train", "--data", "x.npy", *TINY)
    model = load("r")
    assert model.value_range is None
    images = sample(model, 3, steps=2)
    assert model.values(images) is images
    run(*DRAW, "--npy", "s.npy")
    assert np.array_equal(np.load("s.npy"), images.numpy()) and "values" not in run("info", "r")


def test_what_is_shown_of_other_channels_is_said(run):
    np.save("x.npy", np.random.default_rng(0).normal(size=(6, 8, 12, 5)).astype(np.float32))
    run("train", "--data", "x.npy", *TINY)
    assert "note: the 5 channels of an image are shown side by side, in gray" in run(*DRAW, "--scale", 1, "-o", "s.png")
    with Image.open("s.png") as picture:
        assert picture.size == (2 * (5 * 12 + 1) + 1, 2 * 9 + 1)
    run(*DRAW, "--npy", "s.npy")
    assert np.load("s.npy").shape == (3, 5, 8, 12)


# --- classes that are not used ---


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], ["the classes (cat, dog) are not used, for AnnotatedUnet takes no classes; --preset course does"]),
        (["--class-names", "a,b"], ["the classes (a, b) are not used", "--class-names a,b has no effect"]),
        (["--context-dropout", "0.2"], ["(cat, dog) are not used", "--context-dropout 0.2 has no effect"]),
        (["--preset", "course"], []),
    ],
)
def test_classes_that_are_not_used_are_said_before_it_starts(words, expected, run, tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "d" / kind).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(tmp_path / "d" / kind / f"{k}.png")
    network = ["--n-feat", "8"] if "course" in words else ["--dim", "8", "--dim-mults", "1,2"]
    said = run("train", "--data", "d", *words, *network, "--epochs", 1, "--timesteps", 4, "-o", "r")
    notes = said[: said.index("parameters")]
    assert all(text in notes for text in expected) and notes.count("note:") == len(expected)


def test_without_classes_what_belongs_to_them_has_no_effect(run):
    np.save("x.npy", np.zeros((6, 8, 8), np.uint8))
    words = "train --data x.npy --preset course --n-feat 8 --context-dropout 0.2 --epochs 1 --timesteps 4 -o r"
    assert "note: --context-dropout 0.2 has no effect, for the data has no classes" in run(*words.split())


def test_the_bar_of_reading_is_asked_for(run, scans, monkeypatch):
    asked = []

    def read(**source):
        asked.append(source)
        raise InputError("enough")

    monkeypatch.setattr(training, "load_data", read)
    run("train", "--data", "scans", "--size", "48x32", "--range", "-1,1", "--alpha", *TINY, code=2)
    (source,) = asked
    assert source["progress"] and source["size"] == "48x32" and source["value_range"] == [-1, 1] and source["alpha"]
