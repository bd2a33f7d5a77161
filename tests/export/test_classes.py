"""Exported networks that take class numbers: guidance by the null class, the runner, the command and the page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fastdiff
from fastdiff import InputError, Model, make_schedule
from fastdiff.cli.main import main
from fastdiff.export import OnnxSampler, export_network, export_page, export_sampler
from fastdiff.export.assemble import Face
from fastdiff.export.parts import capture

CLASSES, SHAPE = 5, (2, 5, 7)


class Labelled(nn.Module):
    """A network that is given a class number."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
        self.label = nn.Embedding(CLASSES, 6)

    def forward(self, x, t, label):
        h = self.first(x) + self.label(label)[..., None, None] + 0.01 * t.to(x.dtype)[:, None, None, None]
        return self.last(torch.tanh(h))


@pytest.fixture(scope="module")
def labelled():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Labelled().eval()
    return Model(network, make_schedule("linear", 50), image_shape=SHAPE, num_classes=CLASSES, null_class=CLASSES - 1)


@pytest.fixture(scope="module")
def caught(labelled):
    return capture(labelled)


@pytest.mark.parametrize("stepwise", [False, True])
def test_images_of_class_numbers(labelled, caught, make, apart, stepwise):
    table = labelled.table("dpmpp_2m_sde", 8)
    file = make(caught, Face(table, stepwise=stepwise))
    assert file.num_classes == CLASSES and file.null_class == CLASSES - 1 and file.context_width is None
    for context, scale in ((3, None), ([0, 4, 2], None), ([0, 1, 2], 2.5)):
        asked = dict(seed=5, context=context, guidance_scale=scale)
        expected = fastdiff.sample(labelled, 3, table, form="eager", device="cpu", **asked)
        assert apart(file.sample(3, **asked), expected) < 1e-5
    assert apart(file.sample(3, seed=5, context=[0, 1, 2]), expected) > 1e-3  # guidance does something
    assert np.array_equal(file.sample(3, seed=5), file.sample(3, seed=5, context=4))  # no context is the null class


def test_guidance_begins_from_the_null_class(labelled, caught, make, apart):
    table = labelled.table("ddim", 8)
    asked = dict(seed=5, context=[0, 1, 2], guidance_scale=2.5)
    images = make(caught, Face(table)).sample(3, **asked)
    other = fastdiff.sample(replace(labelled, null_class=0), 3, table, form="eager", device="cpu", **asked)
    assert apart(images, other) > 1e-3


def test_without_a_null_class_there_is_no_guidance_and_a_context_is_needed(labelled, make, apart):
    model = replace(labelled, null_class=None)
    table = model.table("ddim", 8)
    file = make(capture(model), Face(table))
    assert "guidance_scale" not in file.inputs
    expected = fastdiff.sample(model, 3, table, context=[0, 4, 2], form="eager", device="cpu")
    assert apart(file.sample(3, context=[0, 4, 2]), expected) < 1e-5
    with pytest.raises(InputError, match="no context for a model that takes the number of a class; give one, 0 to 4"):
        file.sample(1)
    with pytest.raises(InputError, match="give the Model its null_class"):
        file.sample(1, context=2, guidance_scale=2)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (5, "class 5 as a context; accepted: 0 to 4"),
        ([0, 1], r"classes of shape \(2,\)"),
        (0.5, "other than whole numbers"),
    ],
)
def test_bad_classes_are_one_sentence(labelled, caught, make, context, message):
    with pytest.raises(InputError, match=message):
        make(caught, Face(labelled.table("ddim", 3))).sample(3, context=context)


@pytest.mark.parametrize("null", [CLASSES - 1, None])
def test_what_is_written_is_checked_and_described(labelled, tmp_path, null):
    model = replace(labelled, null_class=null)
    assert export_network(model, tmp_path / "network.onnx")[0].distance < 1e-5
    given = onnx.load(tmp_path / "network.onnx").graph.input[2]
    assert given.name == "context" and given.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert len(given.type.tensor_type.shape.dim) == 1
    assert export_sampler(model, tmp_path / "a.onnx", model.table("ddpm", 5))[-1].distance < 1e-4
    about = OnnxSampler(tmp_path / "a.onnx").description
    assert (about["num_classes"], about["null_class"], about["class_names"]) == (CLASSES, null, [])


def test_diffusers_network_of_class_labels(randomised, tmp_path, apart):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=CLASSES,
    )
    model = Model(
        randomised(network).eval(),
        make_schedule("linear", 50),
        image_shape=(3, 8, 8),
        num_classes=CLASSES,
        null_class=0,
    )
    table = model.table("ddim", 6)
    export_sampler(model, tmp_path / "a.onnx", table)
    asked = dict(seed=1, context=[4, 2], guidance_scale=3)
    expected = fastdiff.sample(model, 2, table, form="eager", device="cpu", **asked)
    assert apart(OnnxSampler(tmp_path / "a.onnx").sample(2, **asked), expected) < 1e-4


def test_the_command_samples_from_class_numbers(labelled, tmp_path, monkeypatch, apart):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    table = labelled.table("ddim", 4)
    export_sampler(labelled, "a.onnx", table)
    assert "a context is a number from 0 to 4" in run("info", "a.onnx")
    words = ("sample", "a.onnx", "-n", 3)
    run(*words, "--context", 3, "--context", 1, "--guidance-scale", 2, "-o", "a.png", "--npy", "a.npy")
    asked = dict(context=[3, 1, 3], guidance_scale=2, form="eager", device="cpu")
    assert apart(np.load("a.npy"), fastdiff.sample(labelled, 3, table, **asked)) < 1e-4
    run(*words, "--context", 2, "-o", "b.png", "--npy", "b.npy")
    assert apart(np.load("b.npy"), fastdiff.sample(labelled, 3, table, context=2, form="eager", device="cpu")) < 1e-4
    for bad in ("5", "-1", "0.5", "cat"):
        said = run(*words, "--context", bad, "-o", "c.png", code=2)
        assert f"class {bad!r}; accepted: one number, 0 to 4" in said


def test_the_page_is_told_of_the_classes(labelled, tmp_path):
    export_page(labelled, tmp_path / "page", "tiny")
    page = json.loads((tmp_path / "page" / "model.json").read_text())
    assert (page["num_classes"], page["null_class"], page["class_names"]) == (CLASSES, CLASSES - 1, [])
    assert OnnxSampler(Path(tmp_path / "page" / "model.onnx")).num_classes == CLASSES
