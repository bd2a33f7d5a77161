"""What runs a sampler's file: ONNX Runtime alone, and OnnxSampler with its requests, files and providers."""

import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import InputError, NotFinite
from fastdiff.export import OnnxSampler, verify
from fastdiff.export.assemble import Face, network_model, sampler_model
from fastdiff.export.parts import capture
from fastdiff.images import to_uint8

ALONE = """
import sys
for name in ("torch", "onnx", "fastdiff"):
    sys.modules[name] = None
import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path!r})
about = json.loads(session.get_modelmeta().custom_metadata_map["fastdiff"])
n = 3
images, = session.run(None, {{
    "seed": np.array(2**35), "first": np.array(4), "n": np.array(n),
    "context": np.array([[1, 0, 0, 0.5, 0]], np.float32), "guidance_scale": np.array(2, np.float32),
}})
np.save({out!r}, images)
print(about["class_names"], about["range"], about["sampler"]["name"])
"""


def test_a_file_runs_with_numpy_and_onnxruntime_alone(models, make, tmp_path, table_of, apart):
    table = table_of(models["B"], "dpmpp_2m_sde")
    file = make("B", Face(table))
    code = ALONE.format(path=file.path, out=str(tmp_path / "out.npy"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'monster', 'player'" in done.stdout and "dpmpp_2m_sde" in done.stdout
    images = np.load(tmp_path / "out.npy")
    expected = fastdiff.sample(
        models["B"], 3, table, seed=2**35, first=4, context={"monster": 1, "spell": 0.5}, guidance_scale=2
    )
    assert apart(images, expected) < 1e-4
    pixels, theirs = to_uint8(torch.from_numpy(images)).int(), to_uint8(expected).int()
    assert (pixels - theirs).abs().max() <= 1


def test_the_documented_python_without_torch(models, make, monkeypatch, tmp_path, table_of, apart):
    monkeypatch.chdir(tmp_path)
    Path(make("B", Face(table_of(models["B"]))).path).rename("sampler.onnx")
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime.InferenceSession" in b)
    names = {}
    exec(block, names)
    assert names["images"].shape == (16, 3, 16, 16) and names["images"].dtype == np.float32
    expected = fastdiff.sample(models["B"], 16, "ddim", context={"item": 1}, guidance_scale=2, form="eager")
    assert apart(names["images"], expected) < 1e-4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(n=0), "n = 0"),
        (dict(n=2, seed=-1), "seed = -1"),
        (dict(n=2, context=[1, 2]), r"a context of shape \(2,\); accepted: \(5,\)"),
        (dict(n=2, context={"dragon": 1}), "unknown class 'dragon'"),
        (dict(n=2, guidance_scale=2), "guidance_scale = 2.0 without a context"),
        (dict(n=2, frames=1), "frames from"),
        (dict(n=2, noise=lambda *_: None), "--noise input"),
        (dict(n=2, noise=3), "noise = 3; accepted: x_T, or a callable"),
        (dict(n=2, batch_size=0), "batch_size = 0"),
    ],
)
def test_bad_requests_are_one_sentence(models, make, given, message, table_of):
    with pytest.raises(InputError, match=message):
        make("B", Face(table_of(models["B"]))).sample(**given)


def test_a_table_for_a_file_that_has_one_is_refused(models, make, table_of):
    file = make("B", Face(table_of(models["B"])))
    with pytest.raises(InputError, match="is ddim with 25 steps"):
        file.sample(1, table=table_of(models["B"]))


def test_what_is_no_sampler_says_what_it_lacks(parts, models, tmp_path, table_of):
    path = tmp_path / "file.onnx"
    with pytest.raises(InputError, match="no such file"):
        OnnxSampler(path)
    made = sampler_model(parts("own"), Face(table_of(models["own"])))
    whole = made.SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be loaded by ONNX Runtime"):
        OnnxSampler(path)
    path.write_bytes(network_model(parts("own")).SerializeToString())
    with pytest.raises(InputError, match="is a network without a sampling loop"):
        OnnxSampler(path)
    entry = made.metadata_props[0]
    about = json.loads(entry.value)
    for changed, message in (
        ({**about, "format": 99}, "format 99; this version reads 2"),
        ({**about, "format": 1}, "format 1; this version reads 2: export the model again"),
        ({k: v for k, v in about.items() if k != "noise"}, "the metadata of .* lacks noise"),
    ):
        entry.value = json.dumps(changed)
        path.write_bytes(made.SerializeToString())
        with pytest.raises(InputError, match=message):
            OnnxSampler(path)
    del made.metadata_props[:]
    path.write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match="lacks the metadata entry 'fastdiff'"):
        OnnxSampler(path)


def test_providers(models, make, monkeypatch, table_of):
    file = make("own", Face(table_of(models["own"], steps=2)))
    with pytest.raises(InputError, match="unknown provider 'cudda'.*did you mean 'cuda'"):
        OnnxSampler(file.path, "cudda")
    with pytest.raises(InputError, match=r"provider 'tensorrt' is not in this ONNX Runtime; available: .*cpu"):
        OnnxSampler(file.path, ["tensorrt", "cpu"])
    # A provider that is listed but cannot start is left out silently by ONNX Runtime.
    runtime = verify.onnxruntime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning), pytest.raises(InputError, match="could not start|cannot be loaded"):
        OnnxSampler(file.path, "cuda")


def test_without_onnx_runtime_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install '.\[onnx\]'"):
        OnnxSampler(tmp_path / "sampler.onnx")


def test_without_onnx_the_extra_is_named():
    code = (
        "import sys; sys.modules['onnx'] = None; import fastdiff.export as e\n"
        "try: e.export_network\nexcept ValueError as error: print(error)\ne.OnnxSampler"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "needs the package 'onnx'" in done.stdout, done.stderr


@pytest.mark.parametrize("stepwise", [False, True])
def test_nan_is_said_once(stepwise, models, make):
    model = models["A"]
    broken = dataclasses.replace(model, network=copy.deepcopy(model.network))
    with torch.no_grad():
        broken.network.final_conv[1].bias.fill_(float("inf"))
    sampler = make(capture(broken), Face(model.table("ddim", 3), stepwise=stepwise))
    with pytest.warns(NotFinite) as warned:
        images = sampler.sample(4, batch_size=2)
    where = ": first in step 1" if stepwise else ""
    said = f"images from sample 0 on hold NaN or infinity, by {sampler.path!r}{where}"
    assert [str(one.message) for one in warned] == [said] and not np.isfinite(images).all()
