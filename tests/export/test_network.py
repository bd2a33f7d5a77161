"""Exported networks: the same outputs as torch's, and one sentence about what cannot be exported."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

import fastdiff
from fastdiff import InputError
from fastdiff.export import OnnxSampler, export_network, export_sampler, verify, write
from fastdiff.export.assemble import network_model
from fastdiff.export.parts import capture


@pytest.mark.parametrize("name", ["A", "B", "own"])
def test_the_network_within_1e_5_for_any_batch(models, parts, tmp_path, rel, name):
    model, path = models[name], tmp_path / "network.onnx"
    path.write_bytes(network_model(parts(name)).SerializeToString())
    session = verify.onnxruntime().InferenceSession(str(path))
    for n in (1, 3, 64):
        given = [torch.randn(n, *model.image_shape), torch.randint(1, 40, (n,))]
        given[1] = given[1] / 250 if model.time == "fraction" else given[1]
        given += [torch.rand(n, 5)] if model.class_names else []
        names = ("sample", "timestep", "context")
        out = session.run(["prediction"], {k: v.numpy() for k, v in zip(names, given, strict=False)})[0]
        with torch.no_grad():
            assert rel(out, model.network(*given)) < 1e-5


def test_the_plain_network(models, parts, tmp_path):
    checks = export_network(models["A"], tmp_path / "network.onnx", prepared=False)
    assert checks[0].distance < 1e-5
    made = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version >= 18 and not made.functions
    about = json.loads({p.key: p.value for p in made.metadata_props}["fastdiff"])
    assert about["kind"] == "network" and about["image_shape"] == [1, 8, 8] and not about["prepared"]
    assert about["schedule"] == models["A"].schedule.config() and about["prediction_type"] == "epsilon"
    # The prepared one has other operators: its linear attention is folded.
    prepared = network_model(parts("A"))
    plain, folded = ([node.op_type for node in one.graph.node] for one in (made, prepared))
    assert parts("A").prepared and plain.count("Conv") > folded.count("Conv")


def test_steady_norms_are_the_same_norms(parts, apart):
    steady = replace(parts("A"), steady=True)
    files = [network_model(made) for made in (parts("A"), steady)]
    operators = [{node.op_type for node in made.graph.node} for made in files]
    assert "InstanceNormalization" in operators[0] and "InstanceNormalization" not in operators[1]
    given = {"sample": torch.randn(3, 1, 8, 8).numpy() + 2, "timestep": np.array([0, 9, 199])}
    outs = [verify.onnxruntime().InferenceSession(made.SerializeToString()).run(None, given)[0] for made in files]
    assert 0 < apart(outs[1], outs[0]) < 1e-5


def test_float16(models, parts, tmp_path, monkeypatch, table_of):
    model, half = models["own"], capture(models["own"], torch.float16)
    monkeypatch.setattr(write, "capture", lambda *given, **options: half)
    assert 1e-6 < export_network(model, tmp_path / "half.onnx", dtype=torch.float16)[0].distance < 3e-3
    checks = export_sampler(model, tmp_path / "a.onnx", table_of(model, steps=5), dtype=torch.float16)
    assert 1e-6 < checks[-1].distance < 1e-2
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in onnx.load(tmp_path / "half.onnx").graph.initializer)


def test_networks_that_cannot_be_exported_are_refused_in_one_sentence(models, tmp_path, capfd, own_networks):
    with pytest.raises(
        InputError, match="cannot be exported: a number is read from the images.* in conftest.py, line .*x.mean"
    ) as refused:
        export_network(replace(models["own"], network=own_networks["branching"]), tmp_path / "network.onnx")
    assert "\n" not in str(refused.value) and capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match="takes 'label', of which the shape is not known; give context_shape"):
        export_network(replace(models["own"], network=own_networks["needs context"]), tmp_path / "network.onnx")
    with pytest.raises(InputError, match="weights = 'float32' with dtype = torch.float16"):
        export_network(models["own"], tmp_path / "network.onnx", dtype=torch.float16, weights="float32")
    assert not list(tmp_path.iterdir())


def test_a_context_left_out_is_told_at_the_callers_line(models, tmp_path, own_networks):
    model = replace(models["own"], network=own_networks["takes context"])
    with pytest.warns(UserWarning, match="exported without the network's 'label'") as caught:
        export_network(model, tmp_path / "network.onnx")
    assert [one.filename for one in caught if "label" in str(one.message)] == [__file__]


def test_what_cannot_be_exported_is_named(models, tmp_path, own_networks):
    model = replace(models["own"], network=own_networks["unsupported"])
    with pytest.raises(
        InputError, match="no translation to ONNX for aten._linalg_svd.default, in conftest.py, .*svdvals"
    ):
        export_network(model, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mnist", "sprites"])
def test_the_shipped_models(name, tmp_path, table_of, apart):
    model = fastdiff.load(name)
    network, file = tmp_path / "network.onnx", tmp_path / "sampler.onnx"
    assert export_network(model, network)[0].distance < 1e-5
    assert export_network(model, tmp_path / "half.onnx", dtype=torch.float16)[0].distance < 3e-3
    for sampler, steps in (("ddpm", 200), ("dpmpp_2m_sde", 25)):
        export_sampler(model, file, table_of(model, sampler, steps))  # checks itself
        assert file.stat().st_size < 1.1 * network.stat().st_size
    table = table_of(model)
    export_sampler(model, file, table)
    expected = fastdiff.sample(model, 64, table, form="eager")
    assert apart(OnnxSampler(file).sample(64), expected) < 1e-3  # some samples amplify float32's rounding
