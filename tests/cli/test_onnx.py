"""`fastdiff export`, and `fastdiff sample` from its file."""

import logging

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
