"""`fastdiff export`, and `fastdiff sample` from its file."""

import logging

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff import AnnotatedUnet, Model, make_schedule, save
from fastdiff.cli.main import main

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)


def test_stages_of_an_export_and_frames_from_its_file(tmp_path, monkeypatch, caplog):
    torch.manual_seed(0)
    model = Model(AnnotatedUnet(dim=8, dim_mults=(1,)), make_schedule("linear", 12), image_shape=(1, 8, 8))
    save(model, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fastdiff.export")

    def run(*words, code=0):
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    run("export", "a.safetensors", "--sampler", "any", "-o", "a.onnx")
    assert caplog.messages == ["capturing the network", "writing the file", "checking it against torch"]
    for given, frames in (([], 12), (["--gif-frames", "5"], 4), (["--gif-frames", "all"], 12)):
        run("sample", "a.onnx", "-n", "1", "--steps", "12", "--gif", "a.gif", *given)
        with Image.open("a.gif") as gif:
            assert gif.n_frames == frames
    assert "--gif-frames '0'" in run("sample", "a.onnx", "--gif", "a.gif", "--gif-frames", "0", code=2)
    assert "takes no context" in run("sample", "a.onnx", "--context", "x=1", code=2)
    assert "classes          none" in run("info", "a.onnx")


def test_images_are_written_in_the_values_of_the_data(tmp_path, monkeypatch):
    torch.manual_seed(0)
    schedule = make_schedule("linear", 12)
    model = Model(AnnotatedUnet(dim=8, dim_mults=(1,)), schedule, image_shape=(1, 8, 8), value_range=(0, 4095))
    save(model, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    for words in (
        "export a.safetensors --sampler ddim --steps 2 -o a.onnx",
        "sample a.onnx -n 2 --npy onnx.npy",
        "sample a.safetensors -n 2 --sampler ddim --steps 2 --npy torch.npy",
    ):
        result = CliRunner().invoke(main, words.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert np.load("torch.npy").std() > 500  # in thousands, not in [-1, 1]
    assert np.allclose(np.load("onnx.npy"), np.load("torch.npy"), rtol=0, atol=4096 * 1e-3)
