"""What checks a file before it gets its name: wrong files are found, and no file is left."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import fastdiff
from fastdiff import InputError
from fastdiff.export import OnnxSampler, assemble, export_network, export_sampler, philox, verify, write
from fastdiff.export.expected import Run


@pytest.mark.parametrize("kind", ["network", "sampler"])
def test_a_wrong_weight_is_found(models, parts, tmp_path, monkeypatch, kind, table_of):
    def spoiled(build):
        def made(*given):
            model = build(*given)
            bodies = [a.g for node in model.graph.node for a in node.attribute if a.name == "body"]
            for tensor in (t for graph in (model.graph, *bodies) for t in graph.initializer):
                if list(tensor.dims) == list(models["A"].network.init_conv.weight.shape):
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
                    return model
            raise AssertionError("no such weight")

        return made

    monkeypatch.setattr(write, "capture", lambda *given, **options: parts("A"))
    monkeypatch.setattr(write, f"{kind}_model", spoiled(getattr(assemble, f"{kind}_model")))
    with pytest.raises(InputError, match="the exported file differs from torch"):
        if kind == "network":
            export_network(models["A"], tmp_path / "a.onnx")
        else:
            export_sampler(models["A"], tmp_path / "a.onnx", table_of(models["A"], steps=5))
    assert not list(tmp_path.iterdir())


def test_what_amplifies_float32_is_judged_by_how_far_the_forms_are_apart(models, table_of):
    run = Run(models["A"], table_of(models["A"], steps=5), 3, 1, 2, None, None, None)
    good, other = (
        fastdiff.sample(models["A"], 3, run.table, seed=1, first=2, form=form, device="cpu").numpy()
        for form in ("eager", None)
    )
    assert run.distance(other, 1e-4)[0] < 1e-5
    tight, note = run.distance(other, 1e-9)  # a bound that no float32 meets
    assert 0 < tight < 1e-9 and "forms are up to" in note
    assert run.distance(good + 1e-2, 1e-4)[0] > 1e-4
    assert np.isnan(run.distance(np.full_like(good, np.nan), 1e-4)[0])
    half = fastdiff.sample(models["A"], 3, run.table, seed=1, first=2, dtype=torch.float16, device="cpu").numpy()
    in_half = replace(run, dtype=torch.float16)  # a file's that computes in it
    assert in_half.distance(half, 1e-9)[0] < 1e-9 < run.distance(half, 1e-9)[0]


class Amplifying(nn.Module):
    """Of which a loop amplifies rounding: its gain is far above 1."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x, t):
        return self.last(torch.sin(60 * self.first(x) + 0.01 * t.to(x.dtype)[:, None, None, None]))


@pytest.mark.parametrize("pictures", [False, True])
def test_a_loop_that_amplifies_rounding_is_exported(tmp_path, pictures, models):
    torch.manual_seed(0)
    model = replace(models["own"], network=Amplifying().eval(), prediction_type="sample")
    checks = export_sampler(model, tmp_path / "a.onnx", model.table("ddim", 12), pictures=pictures)
    assert any("where fastdiff's forms are up to" in str(check) for check in checks)
    if not pictures:
        sampler = OnnxSampler(tmp_path / "a.onnx")
        expected = fastdiff.sample(model, 8, model.table("ddim", 12), form="eager", device="cpu")
        assert np.abs(sampler.sample(8) - expected.numpy()).max() > 1e-3  # beyond any bound but that


def test_noise_of_another_draw_is_found(models, parts, tmp_path, monkeypatch, table_of):
    normals = philox.normals

    def of_the_next_draw(g, stream, draw, shape):
        return normals(g, stream, g("Add", draw, g.constant(1)), shape)

    monkeypatch.setattr(write, "capture", lambda *given, **options: parts("A"))
    monkeypatch.setattr(philox, "normals", of_the_next_draw)
    with pytest.raises(InputError, match="differs from torch: images by ddpm"):
        export_sampler(models["A"], tmp_path / "a.onnx", table_of(models["A"], "ddpm", 5))
    assert not list(tmp_path.iterdir())


def test_a_coefficient_that_is_a_hundredth_off_is_found(models, parts, tmp_path, monkeypatch, table_of):
    table = table_of(models["A"], "ddpm", 5)
    wrong, a = copy.copy(table), table.a.copy()
    a[2] *= 1.01
    object.__setattr__(wrong, "a", a)
    monkeypatch.setattr(write, "capture", lambda *given, **options: parts("A"))
    monkeypatch.setattr(
        write, "sampler_model", lambda parts, face: assemble.sampler_model(parts, replace(face, table=wrong))
    )
    with pytest.raises(InputError, match="differs from torch: images by ddpm"):
        export_sampler(models["A"], tmp_path / "a.onnx", table)
    assert not list(tmp_path.iterdir())


def test_nan_is_no_agreement():
    with pytest.raises(InputError, match="differs from torch"):
        verify.checked([verify.Check("images", float("nan"), 1e-4)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(noise="pink"), "noise = 'pink'; accepted: philox, input"),
        (dict(weights="int8"), "unknown weights 'int8'; accepted: float32, float16"),
        (dict(pictures=True, stepwise=True), "uint8 pictures from a stepwise sampler"),
        (dict(dtype=torch.bfloat16), "dtype = torch.bfloat16; accepted"),
        (dict(clip="hard"), "clip = 'hard'"),
    ],
)
def test_bad_options_are_refused_before_the_network_is_captured(
    models, tmp_path, monkeypatch, options, message, table_of
):
    monkeypatch.setattr("fastdiff.export.parts.Network", lambda *given: pytest.fail("it was captured"))
    with pytest.raises(InputError, match=message):
        export_sampler(models["A"], tmp_path / "sampler.onnx", table_of(models["A"]), **options)
    assert not list(tmp_path.iterdir())


def test_a_table_of_another_model_is_refused(models, tmp_path, table_of):
    with pytest.raises(InputError, match="timesteps"):
        export_sampler(
            models["own"], tmp_path / "s.onnx", table_of(replace(models["A"], prediction_type="v_prediction"))
        )
