"""`fastdiff export`, and `fastdiff sample` and `info` of what it wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fastdiff
from fastdiff import InputError, make_schedule, make_table
from fastdiff.cli.main import main
from fastdiff.export import OnnxSampler, verify, web, write
from fastdiff.export.assemble import Face
from fastdiff.export.web import FILES, RUNTIME


@pytest.fixture
def run(tmp_path, monkeypatch, models, parts):
    """The command in a folder of its own, where `b` is model B; its network is not captured again."""
    monkeypatch.chdir(tmp_path)
    fastdiff.save(models["B"], "b.safetensors")
    monkeypatch.setattr(write, "capture", lambda *given, **options: parts("B"))

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def test_export_and_sample(run, apart):
    output = run(
        "export", "b.safetensors", "--sampler", "ddpm_large", "--steps", 20, "--stepwise", "-o", "sampler.onnx"
    )
    assert (
        "checked against torch: noise, its integers: off by 0" in output
        and "ddpm_large, 20 steps" in output
        and "wrote" in output
    )
    words = ("-n", 4, "--seed", 3, "--context", "monster=1,spell=0.5", "--guidance-scale", 2)
    output = run("info", "sampler.onnx")
    assert (
        "ONNX sampler" in output
        and "ddpm_large, 20 steps" in output
        and "start ()" in output
        and "monster, player" in output
    )
    output = run("sample", "sampler.onnx", *words, "-o", "a.png", "--npy", "a.npy", "--gif", "a.gif")
    assert "ddpm_large, 20 steps" in output and "ONNX Runtime, CPU, float32" in output
    run("sample", "b.safetensors", *words, "--sampler", "ddpm_large", "--steps", 20, "-o", "b.png", "--npy", "b.npy")
    assert apart(np.load("a.npy"), np.load("b.npy")) < 1e-4
    assert Path("a.gif").read_bytes()[:4] == b"GIF8"


def test_export_of_any_sampler_and_of_pictures(run, apart):
    run("export", "b.safetensors", "--sampler", "any", "-o", "any.onnx")
    run("sample", "any.onnx", "-n", 2, "--sampler", "dpmpp_2m", "--steps", 8, "-o", "a.png", "--npy", "a.npy")
    run("sample", "b.safetensors", "-n", 2, "--sampler", "dpmpp_2m", "--steps", 8, "-o", "b.png", "--npy", "b.npy")
    assert apart(np.load("a.npy"), np.load("b.npy")) < 1e-4
    run("export", "b.safetensors", "--sampler", "ddim", "--steps", 3, "--pictures", "-o", "pictures.onnx")
    run("sample", "pictures.onnx", "-n", 2, "-o", "c.png")
    assert Path("c.png").exists()


def test_the_page_is_written_whole_into_a_new_folder(run):
    output = run("export", "b.safetensors", "--web", "some/page")
    assert "python3 -m http.server -d some/page" in output
    page = json.loads(Path("some/page/model.json").read_text())
    assert page["name"] == "b" and page["model"] == ["b.safetensors"] and page["rounded"] is False
    assert page["class_names"][0] == "monster" and page["context_width"] == 5 and page["stepwise"]
    assert "25" in page["samplers"]["ddim"] and "250" in page["samplers"]["ddpm"]
    row = make_table("ddim", make_schedule("course", 250), 25, time="fraction").rows[3]
    assert np.array_equal(np.float32(page["samplers"]["ddim"]["25"]["rows"][3]), np.float32(row)) and len(row) == 12
    assert page["samplers"]["ddim"]["25"]["init_noise_sigma"] == 1.0
    assert set(FILES) | {"model.json", "model.onnx"} == {file.name for file in Path("some/page").iterdir()}
    assert OnnxSampler("some/page/model.onnx").description["sampler"] is None


def test_the_page_offers_no_table_that_the_model_refuses(models, monkeypatch):
    def refusing(model, table):
        if len(table) > 25 or table.sampler == "ddpm":
            raise InputError("refused")
        return table

    everything = web.choices(models["A"])
    assert list(everything["ddim"]) == ["5", "10", "15", "25", "50", "100", "200"] and "ddpm" in everything
    monkeypatch.setattr(web, "check_table", refusing)
    offered = web.choices(models["A"])
    assert list(offered["ddim"]) == ["5", "10", "15", "25"] and "ddpm" not in offered
    assert offered["ddim"]["25"] == everything["ddim"]["25"]


def test_the_page_fills_an_empty_folder_that_is_there(run, monkeypatch):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    run("export", "b.safetensors", "--web", "link")
    assert Path("link").is_symlink() and Path("real/index.html").exists()
    Path("here").mkdir()
    monkeypatch.chdir("here")
    run("export", "../b.safetensors", "--web", ".")
    assert Path("index.html").exists()


def test_a_failed_page_leaves_nothing(run, monkeypatch):
    monkeypatch.setattr(verify, "integers_check", lambda: verify.Check("made up", 1.0, 0.0))
    assert "differs from torch: made up" in run("export", "b.safetensors", "--web", "some/page", code=2)
    assert [file.name for file in Path().iterdir()] == ["b.safetensors"]


def test_a_damaged_runtime_is_found(run, monkeypatch):
    monkeypatch.setitem(RUNTIME, "ort.js", "0" * 64)
    assert "'ort.js' of this installation is damaged" in run("export", "b.safetensors", "--web", "page", code=2)
    assert sorted(file.name for file in Path().iterdir()) == ["b.safetensors"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "b.safetensors"], "needs -o FILE.onnx or --web DIR"),
        (["export", "b.safetensors", "-o", "a.onnx", "--web", "page"], "one of them"),
        (["export", "b.safetensors", "-o", "a.png"], "a name that ends in .onnx"),
        (["export", "b.safetensors", "-o", "a.onnx", "--steps", 3], "--steps with the network alone"),
        (["export", "b.safetensors", "-o", "a.onnx", "--sampler", "any", "--eta", 1], "--eta with --sampler any"),
        (["export", "b.safetensors", "--web", "page", "--sampler", "ddim"], "--sampler with --web"),
        (["export", "b.safetensors", "-o", "a.onnx", "--sampler", "dimm"], "unknown sampler 'dimm'"),
        (["export", "b.safetensors", "-o", "a.onnx", "--dtype", "bfloat16"], "unknown dtype 'bfloat16'"),
        (["export", "nosuch", "-o", "a.onnx"], "neither a file nor a shipped model"),
        (["export", "b.safetensors", "--web", "."], "accepted: a new or empty folder"),
        (["sample", "nosuch.onnx"], "no such file"),
        (["export", "nosuch.onnx", "-o", "a.onnx"], "is an ONNX file; accepted here: a shipped model's name"),
        (["sample", "whole.onnx", "--steps", 3], "--steps with 'whole.onnx', which has settled that"),
        (["sample", "whole.onnx", "--form", "eager"], "--form with"),
        (["sample", "whole.onnx", "--gif", "a.gif"], "accepted: a file made with --stepwise"),
        (["sample", "whole.onnx", "-o", "folder/"], "accepted for an .onnx file: a picture"),
        (["sample", "whole.onnx", "--device", "cuda"], "provider 'cuda' is not in this ONNX Runtime"),
        (["sample", "whole.onnx", "--device", "cuda:x"], "device 'cuda:x'"),
        (["sample", "whole.onnx", "-n", 0], "n = 0"),
    ],
)
def test_bad_commands_are_one_sentence(run, make, models, words, message, table_of):
    if "whole.onnx" in words:
        Path("whole.onnx").write_bytes(Path(make("B", Face(table_of(models["B"], steps=3))).path).read_bytes())
    before = sorted(Path().iterdir())
    output = run(*words, code=2)
    assert message in output and output.count("\n") == 1
    assert sorted(Path().iterdir()) == before
