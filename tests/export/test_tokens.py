"""Exported networks whose context is tokens, (L, D) of a sample: the shape is said by the caller."""

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler

import fastdiff
from fastdiff import InputError, make_schedule
from fastdiff.cli.main import main
from fastdiff.export import OnnxSampler, export_network, export_sampler

LENGTH, WIDTH, SHAPE = 5, 12, (3, 8, 8)


@pytest.fixture
def model(conditional):
    return fastdiff.from_diffusers(conditional, DDIMScheduler())


@pytest.fixture
def tokens():
    return torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stepwise", [False, True])
def test_images_of_tokens(model, tokens, tmp_path, apart, stepwise):
    table, path = model.table(None, 5), tmp_path / "a.onnx"
    checks = export_sampler(model, path, table, stepwise=stepwise, context_shape=(LENGTH, WIDTH))
    assert len(checks) == 3
    file = OnnxSampler(path)
    for context, scale in ((tokens, None), (tokens, 2.5), (tokens[:1], None)):
        asked = dict(seed=5, context=context, guidance_scale=scale)
        expected = fastdiff.sample(model, 3, table, form="eager", device="cpu", **asked)
        assert apart(file.sample(3, **asked), expected) < 1e-4
    zeros = torch.zeros(1, LENGTH, WIDTH)
    assert np.array_equal(file.sample(2, seed=5), file.sample(2, seed=5, context=zeros))
    assert apart(file.sample(3, seed=5, context=tokens), file.sample(3, seed=5)) > 1e-3


def test_the_network_alone(model, tmp_path):
    path = tmp_path / "network.onnx"
    assert export_network(model, path, context_shape=(LENGTH, WIDTH))[0].distance < 1e-5
    dims = onnx.load(path).graph.input[2].type.tensor_type.shape.dim
    assert [one.dim_value or one.dim_param for one in dims] == ["batch", LENGTH, WIDTH]


def test_contexts_of_another_shape_are_refused(model, tokens, tmp_path):
    export_sampler(model, tmp_path / "a.onnx", model.table(None, 2), context_shape=(LENGTH, WIDTH))
    file = OnnxSampler(tmp_path / "a.onnx")
    for context in (tokens[:, :4], torch.zeros(3, WIDTH)):
        with pytest.raises(InputError, match=rf"a context of shape .* for .*a.onnx'; accepted: \({LENGTH}, {WIDTH}\)"):
            file.sample(3, context=context)


@pytest.mark.parametrize(
    ("of", "shape", "words"),
    [
        ("tokens", None, "takes 'encoder_hidden_states', of which the shape is not known; give context_shape"),
        ("tokens", (0, 12), "a size in context_shape = 0"),
        ("tokens", (), r"context_shape = \(\) for a model whose context is unknown"),
        ("classes", (5, 12), r"context_shape = \(5, 12\) for a model whose context is the number of a class"),
        ("B", (5,), r"context_shape = \(5,\) for a model whose context is 5; accepted: sizes such"),
        ("A", (5, 12), r"context_shape = \(5, 12\) for a model whose context is 0"),
    ],
)
def test_what_has_no_such_shape(of, shape, words, model, models, tmp_path):
    classes = fastdiff.Model(torch.nn.Identity(), make_schedule("linear", 9), image_shape=SHAPE, num_classes=3)
    chosen = {"tokens": model, "classes": classes}.get(of) or models[of]
    with pytest.raises(InputError, match=words):
        export_network(chosen, tmp_path / "a.onnx", context_shape=shape)
    assert not (tmp_path / "a.onnx").exists()


def test_the_command_takes_tokens_from_files(model, tokens, tmp_path, monkeypatch, apart):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        result = CliRunner().invoke(main, list(words), catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    fastdiff.save(model, "model.safetensors")
    for k in range(2):
        np.save(f"{k}.npy", tokens[k].numpy())
    export = ["export", "model.safetensors", "--sampler", "own", "--steps", "3", "-o", "a.onnx"]
    assert "--context-shape" in run(*export, code=2)
    assert "--context-shape '5,12'; accepted: sizes up to 1048576 with x" in run(
        *export, "--context-shape", "5,12", code=2
    )
    assert "--context-shape with --web" in run(
        "export", "model.safetensors", "--web", "page", "--context-shape", "5x12", code=2
    )
    run(*export, "--context-shape", "5x12")
    asked = ["-n", "3", "--context", "0.npy", "--context", "1.npy", "--seed", "4"]
    run("sample", "a.onnx", *asked, "--npy", "onnx.npy")
    run("sample", "model.safetensors", *asked, "--steps", "3", "--npy", "torch.npy")
    expected = fastdiff.sample(model, 3, steps=3, seed=4, context=tokens[[0, 1, 0]], device="cpu")
    assert apart(np.load("onnx.npy"), expected) < 1e-4 and apart(np.load("torch.npy"), expected) < 1e-6
    run("sample", "model.safetensors", *asked, "--steps", "3", "-o", "folder/", "--format", "npy")
    (shard,) = (tmp_path / "folder").glob("samples-*.npy")
    assert apart(np.load(shard), expected) < 1e-5
    np.save("2.npy", tokens[0, :4].numpy())
    said = run("sample", "model.safetensors", "--context", "0.npy", "--context", "2.npy", code=2)
    assert "--context '2.npy' has 4x12 numbers; accepted: 5x12" in said
    for found, words in (
        (tokens.numpy(), "holds float32 of shape (3, 5, 12); accepted: numbers, (L, D) or (K,)"),
        (np.array(["a"]), "holds <U1 of shape (1,)"),
        (np.zeros((5, 12), complex), "holds complex128 of shape (5, 12)"),
        (np.float32(1), "holds float32 of shape ()"),
    ):
        np.save("3.npy", found)
        assert words in run("sample", "model.safetensors", "--context", "3.npy", code=2)
    np.save("3.npy", tokens[0].numpy().astype(">f8"))
    run("sample", "model.safetensors", "-n", "1", "--steps", "2", "--context", "3.npy", "--npy", "swapped.npy")
    run("sample", "model.safetensors", "-n", "1", "--steps", "2", "--context", "0.npy", "--npy", "plain.npy")
    assert np.array_equal(np.load("swapped.npy"), np.load("plain.npy"))
    with open("3.npy", "wb") as file:
        np.savez(file, a=np.zeros(2))
    assert "it is no single array" in run("sample", "model.safetensors", "--context", "3.npy", code=2)
    said = run("sample", "model.safetensors", "-n", "1", code=2)
    assert "no context for a network that takes 'encoder_hidden_states'; give one, such as tokens (n, L, D)" in said
    assert "encoder_hidden_states, needed for each sample" in run("info", "model.safetensors")
    assert "'no.npy' cannot be read as an .npy file" in run(
        "sample", "model.safetensors", "--context", "no.npy", code=2
    )
