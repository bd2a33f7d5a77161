"""ONNX files: the network, the sampling loop, their noise, what checks them and what runs them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

import fastdiff
from fastdiff import AnnotatedUnet, ContextUnet, InputError, Model, make_schedule, make_table
from fastdiff.cli.main import main
from fastdiff.export import OnnxSampler, assemble, export_network, export_sampler, philox, verify, write
from fastdiff.export.assemble import Face, network_model, sampler_model
from fastdiff.export.graph import FLOAT, INT64, Graph, finish_model, value
from fastdiff.export.steady import steady_norms
from fastdiff.export.trace import _DenoisePart, _takes_other_sizes, trace
from fastdiff.export.web import FILES, RUNTIME
from fastdiff.images import to_uint8
from fastdiff.kernels import philox as reference
from fastdiff.samplers.samplers import SAMPLERS

CPU = torch.device("cpu")


class Own(nn.Module):
    """A user's network: nothing of it is known but that it takes (x, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x, t):
        return self.last(torch.tanh(self.first(x) + 0.01 * t.to(x.dtype)[:, None, None, None]))


class Unsupported(Own):
    def forward(self, x, t):
        return super().forward(torch.linalg.svdvals(x)[..., None] + x, t)


@pytest.fixture(scope="module")
def models(randomised):
    names = ("monster", "player", "item", "spell", "dungeon")
    return {
        "A": Model(
            randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2))).eval(),
            make_schedule("linear", 200),
            image_shape=(1, 8, 8),
        ),
        "B": Model(
            randomised(ContextUnet(3, 8, 5, 16)).eval(),
            make_schedule("course", 250),
            image_shape=(3, 16, 16),
            time="fraction",
            class_names=names,
        ),
        "own": Model(Own(), make_schedule("cosine", 50), "v_prediction", image_shape=(2, 5, 7)),
    }


@pytest.fixture(scope="module")
def parts(models):
    """name → the traced network, made when first asked for; "B16" with its weights stored in half."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = trace(models["B"], weights="float16") if name == "B16" else trace(models[name])
        return made[name]

    return get


@pytest.fixture
def make(parts, tmp_path):
    """(name, face) → the sampler's file, run by ONNX Runtime."""
    count = iter(range(100))

    def build(name, face):
        path = tmp_path / f"{next(count)}.onnx"
        path.write_bytes(sampler_model(parts(name), face).SerializeToString())
        return OnnxSampler(path, threads=1)

    return build


def table_of(model, sampler="ddim", steps=25, **options):
    return make_table(sampler, model.schedule, steps, prediction_type=model.prediction_type, time=model.time, **options)


def apart(images, expected) -> float:
    """In units of max(1, max|x|)."""
    return float(np.abs(np.asarray(images) - np.asarray(expected)).max() / max(1, np.abs(np.asarray(expected)).max()))


def context_for(model, n):
    return torch.rand(n, 5) if model.class_names else None


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["A", "B"])
def test_every_sampler_gives_torchs_images_from_one_file_in_batches_of_1_3_and_64(models, make, name, sampler):
    model = models[name]
    table = table_of(model, sampler)
    file = make(name, Face(table))
    for n in (1, 3, 64):
        context = context_for(model, n)
        for scale in (None, 2.5) if context is not None and n == 3 else (None,):
            asked = dict(seed=2**40 + n, first=2**33 + 1, context=context, guidance_scale=scale)
            images = file.sample(n, **asked)
            assert images.shape == (n, *model.image_shape) and images.dtype == np.float32
            assert apart(images, fastdiff.sample(model, n, table, form="eager", **asked)) < 1e-4


@pytest.mark.parametrize(("name", "sampler"), [("A", "ddpm"), ("B", "ddpm_large")])
def test_200_stochastic_steps(models, make, name, sampler):
    model = models[name]
    table = table_of(model, sampler, 200)
    context = context_for(model, 3)
    images = make(name, Face(table)).sample(3, seed=5, context=context)
    assert apart(images, fastdiff.sample(model, 3, table, seed=5, context=context, form="eager")) < 1e-4


def test_a_network_of_the_users_own(models, make):
    model = models["own"]
    table = table_of(model, "dpmpp_2m_sde", 10)
    images = make("own", Face(table)).sample(3, seed=1)
    assert apart(images, fastdiff.sample(model, 3, table, seed=1, form="eager")) < 1e-4


@pytest.mark.parametrize("clip", [0.7, ("dynamic", 0.9), ("dynamic", 1.0)])
def test_clipping(models, make, clip):
    model = models["A"]
    table = table_of(model, "dpmpp_2m")
    clipped, free = (fastdiff.sample(model, 3, table, clip=c, form="eager") for c in (clip, False))
    assert apart(make("A", Face(table, clip)).sample(3), clipped) < 1e-4
    assert apart(clipped, free) > 1e-2


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_sde"])
def test_25_calls_of_one_step_are_the_whole_bit_for_bit(models, make, sampler):
    table = table_of(models["B"], sampler)
    context = torch.rand(3, 5)
    whole = make("B", Face(table)).sample(3, seed=7, context=context, guidance_scale=2)
    stepwise = make("B", Face(table, stepwise=True))
    images, frames = stepwise.sample(3, seed=7, context=context, guidance_scale=2, frames=10)
    assert np.array_equal(images, whole)
    assert frames.shape == (3, 3, 3, 16, 16) and np.array_equal(frames[-1], whole)
    # and so are calls of several rows, with leftovers in x at the start, which is made anew there
    feed = {"seed": np.array(7), "first": np.array(0), "context": context.numpy(), "guidance_scale": np.float32([2])[0]}
    state = {"x": np.full((3, 3, 16, 16), np.nan, np.float32), "x0_prev": np.zeros((3, 3, 16, 16), np.float32)}
    for start, stop in ((0, 4), (4, 24), (24, 25)):
        given = {**feed, **state, "start": np.array(start), "stop": np.array(stop)}
        out = stepwise.session.run(None, {k: np.asarray(given[k]) for k in stepwise.inputs})
        state = dict(zip(("x", "x0_prev"), out, strict=False)) | {
            k: v for k, v in state.items() if len(out) == 1 and k != "x"
        }
    assert np.array_equal(state["x"], whole)


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_noise_from_outside(models, make, sampler, stepwise):
    table = table_of(models["A"], sampler, 6)
    inside, outside = make("A", Face(table)), make("A", Face(table, stepwise=stepwise, noise="input"))
    assert "seed" not in outside.inputs
    assert np.array_equal(outside.sample(3, seed=4, first=9), inside.sample(3, seed=4, first=9))

    def own(draw, first, shape):
        return torch.full(shape, 0.1 * (draw + 1))

    images = outside.sample(3, noise=own)
    assert apart(images, fastdiff.sample(models["A"], 3, table, noise=own, form="eager")) < 1e-4
    assert np.array_equal(images[0], images[2])


def test_a_file_whose_table_is_an_input_runs_every_sampler(models, make):
    file = make("B", Face(None, stepwise=True))
    for sampler in ("ddim", "dpmpp_2m_sde"):
        table = file.table(sampler, 12)
        alone = make("B", Face(table)).sample(3, seed=3, context={"player": 1})
        assert apart(file.sample(3, seed=3, context={"player": 1}, table=table), alone) < 1e-6
    with pytest.raises(InputError, match="no table for"):
        file.sample(1)


def test_pictures_are_those_of_to_uint8(models, make):
    table = table_of(models["B"])
    pictures = make("B", Face(table, pictures=True)).sample(5, seed=1)
    expected = to_uint8(torch.from_numpy(make("B", Face(table)).sample(5, seed=1))).permute(0, 2, 3, 1)
    assert pictures.dtype == np.uint8 and np.array_equal(pictures, expected.numpy())


def test_batches_and_places_leave_a_samples_noise_alone(models, make):
    file = make("A", Face(table_of(models["A"], "ddpm", 5)))
    images = file.sample(7, seed=2, first=10)
    assert apart(file.sample(7, seed=2, first=10, batch_size=3), images) < 1e-5
    assert apart(file.sample(1, seed=2, first=14), images[4:5]) < 1e-5
    assert apart(file.sample(7, seed=3, first=10), images) > 0.1


# The noise


def noise_session(samples_shape):
    g = Graph()
    stream = philox.streams(g, "seed", "first", "n")
    g.named(philox.normals(g, stream, "draw", samples_shape), "z")
    scalars = [value(name, INT64, ()) for name in ("seed", "first", "n", "draw")]
    made = finish_model(g.finish("z", scalars, [value("z", FLOAT, ("n", *samples_shape))]), {})
    session = verify.onnxruntime().InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda **given: session.run(None, {k: np.array(v) for k, v in given.items()})[0]


def test_the_noises_integers_are_those_of_philox():
    assert verify.integers_check().distance == 0


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 4), (1, 1, 1)])
def test_the_normals_are_the_bits_of_kernels_philox(shape):
    normals = noise_session(shape)
    for seed, first, n, draw in ((0, 0, 500, 0), (2**63 - 1, 2**63 - 50, 7, 999), (2**31, 2**32 - 3, 500, 2**24 - 1)):
        made = normals(seed=seed, first=first, n=n, draw=draw)
        assert np.array_equal(made, reference.normals_reference(seed, draw, first, (n, *shape), CPU).numpy())


def test_the_logarithm_is_right_at_powers_of_two():
    odd = torch.tensor([1, 2**24 - 1, *(2**k + d for k in range(2, 24) for d in (-1, 1))])
    g = Graph()
    g.named(philox._log(g, "odd"), "log")
    made = finish_model(g.finish("log", [value("odd", INT64, ("n",))], [value("log", FLOAT, ("n",))]), {})
    session = verify.onnxruntime().InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    log = session.run(None, {"odd": odd.numpy()})[0]
    assert np.array_equal(log, reference._log(odd.float() * 2.0**-24).numpy())


def one_round_corrupted(g, stream, draw, elements):
    keys = [*stream.keys[:4], stream.keys[5], *stream.keys[5:]]
    return WORDS(g, replace(stream, keys=keys), draw, elements)


WORDS = philox.words


def test_a_corrupted_round_is_found():
    assert verify.integers_check(one_round_corrupted).distance > 0.9


def test_an_export_with_a_corrupted_round_fails_and_leaves_no_file(models, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(philox, "words", one_round_corrupted)
    monkeypatch.setattr(write, "trace", lambda *given, **options: parts("A"))
    monkeypatch.setattr(verify, "integers_check", lambda: verify.Check("left out", 0.0, 0.0))  # the loop finds it too
    with pytest.raises(InputError, match="differs from torch: images by ddim"):
        export_sampler(models["A"], tmp_path / "sampler.onnx", table_of(models["A"], steps=3))
    assert not list(tmp_path.iterdir())


# What checks a file


@pytest.mark.parametrize("kind", ["network", "sampler"])
def test_a_wrong_weight_is_found(models, parts, tmp_path, monkeypatch, kind):
    def spoiled(build):
        def made(*given):
            model = build(*given)
            bodies = [a.g for node in model.graph.node for a in node.attribute if a.name == "body"]
            for tensor in (t for graph in (model.graph, *bodies) for t in graph.initializer):
                if tensor.name.endswith("init_conv.weight"):
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
                    return model
            raise AssertionError("no such weight")

        return made

    monkeypatch.setattr(write, "trace", lambda *given, **options: parts("A"))
    monkeypatch.setattr(write, f"{kind}_model", spoiled(getattr(assemble, f"{kind}_model")))
    with pytest.raises(InputError, match="the exported file differs from torch"):
        if kind == "network":
            export_network(models["A"], tmp_path / "a.onnx")
        else:
            export_sampler(models["A"], tmp_path / "a.onnx", table_of(models["A"], steps=5))
    assert not list(tmp_path.iterdir())


def test_what_amplifies_float32_is_judged_by_float64(models):
    run = verify.Run(models["A"], table_of(models["A"], steps=5), 3, 1, 2, None, None, None)
    good = fastdiff.sample(models["A"], 3, run.table, seed=1, first=2, form="eager").numpy()
    rounded = (good * (1 + 6e-8 * np.sign(np.random.randn(*good.shape)))).astype(np.float32)
    assert run.distance(rounded, 1e-4)[0] < 1e-5
    tight, note = run.distance(rounded, 1e-9)  # a bound that no float32 meets, torch's own not either
    assert tight < 1e-9 and "from float64" in note
    assert run.distance(good + 1e-2, 1e-4)[0] > 1e-3


def test_nan_is_no_agreement():
    with pytest.raises(InputError, match="differs from torch"):
        verify.checked([verify.Check("images", float("nan"), 1e-4)])


# The network's file


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


def test_the_plain_network_of_any_size(models, parts, tmp_path, rel, monkeypatch):
    traced = []
    monkeypatch.setattr(write, "trace", lambda *given, **options: traced.append(trace(*given, **options)) or traced[0])
    checks = export_network(models["A"], tmp_path / "network.onnx", prepared=False)
    assert checks[0].distance < 1e-5
    made = onnx.load(tmp_path / "network.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version >= 18 and not made.functions
    x, t = torch.randn(2, 1, 12, 20), torch.tensor([3, 150])
    out = (
        verify.onnxruntime()
        .InferenceSession(str(tmp_path / "network.onnx"))
        .run(None, {"sample": x.numpy(), "timestep": t.numpy()})[0]
    )
    with torch.no_grad():
        assert rel(out, models["A"].network(x, t)) < 1e-5
    about = json.loads({p.key: p.value for p in made.metadata_props}["fastdiff"])
    assert about["kind"] == "network" and about["image_shape"] == [1, 8, 8] and not about["prepared"]
    assert about["free_size"] and [d.dim_param for d in made.graph.input[0].type.tensor_type.shape.dim[2:]] == [
        "height",
        "width",
    ]
    assert about["schedule"] == models["A"].schedule.config() and about["prediction_type"] == "epsilon"
    # The prepared one has other operators: its linear attention is folded.
    plain, prepared = (sorted(node.op_type for node in p.denoise.node) for p in (traced[0], parts("A")))
    assert parts("A").prepared and plain.count("MatMul") != prepared.count("MatMul")


def test_steady_norms_are_the_same_norms(parts, tmp_path):
    steady = replace(parts("A"), denoise=steady_norms(parts("A").denoise))
    kinds = [{node.op_type for node in p.denoise.node} for p in (parts("A"), steady)]
    assert "InstanceNormalization" in kinds[0] and "InstanceNormalization" not in kinds[1]
    given = {"sample": torch.randn(3, 1, 8, 8).numpy() + 2, "timestep": np.array([0, 9, 199])}
    outs = []
    for made in (parts("A"), steady):
        data = network_model(made).SerializeToString()
        outs.append(verify.onnxruntime().InferenceSession(data).run(None, given)[0])
    assert 0 < apart(outs[1], outs[0]) < 1e-5


def test_float16(models, parts, tmp_path, monkeypatch):
    model, half = models["own"], trace(models["own"], torch.float16)
    monkeypatch.setattr(write, "trace", lambda *given, **options: half)
    assert 1e-6 < export_network(model, tmp_path / "half.onnx", dtype=torch.float16)[0].distance < 3e-3
    checks = export_sampler(model, tmp_path / "a.onnx", table_of(model, steps=5), dtype=torch.float16)
    assert 1e-6 < checks[-1].distance < 1e-2
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in onnx.load(tmp_path / "half.onnx").graph.initializer)


def test_weights_stored_in_half_lose_nothing_where_they_are_halves(models, make, parts):
    model = parts("B16").model
    table = table_of(model, "ddpm_large")
    sizes = [len(sampler_model(parts(name), Face(table)).SerializeToString()) for name in ("B", "B16")]
    assert sizes[1] < 0.85 * sizes[0]
    images = make("B16", Face(table)).sample(3, context={"dungeon": 1}, guidance_scale=3)
    asked = dict(context={"dungeon": 1}, guidance_scale=3, form="eager")
    assert apart(images, fastdiff.sample(model, 3, table, **asked)) < 1e-5
    assert apart(images, fastdiff.sample(models["B"], 3, table, **asked)) > 1e-4


def test_the_weights_are_initializers_of_the_loops_body_and_the_table_one_outside(parts, models):
    made = sampler_model(parts("A"), Face(table_of(models["A"])))
    onnx.checker.check_model(made, full_check=True)
    assert "RandomNormal" not in str(made) and {o.domain for o in made.opset_import} == {""}
    loop = next(node for node in made.graph.node if node.op_type == "Loop")
    assert any(t.name.endswith("init_conv.weight") for t in loop.attribute[0].g.initializer)
    rows = [numpy_helper.to_array(t) for t in made.graph.initializer if list(t.dims) == [25, 6]]
    assert len(rows) == 1 and np.allclose(rows[0], table_of(models["A"]).rows)
    weights = sum(t.numel() for t in models["A"].network.parameters()) * 4
    assert len(made.SerializeToString()) < weights + 300_000


# The runner

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


def test_a_file_runs_with_numpy_and_onnxruntime_alone(models, make, tmp_path):
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


def test_the_readmes_python_without_torch(models, make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(make("B", Face(table_of(models["B"]))).path).rename("sampler.onnx")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime.InferenceSession" in b
    )
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
        (dict(n=2, batch_size=0), "batch_size = 0"),
    ],
)
def test_bad_requests_are_one_sentence(models, make, given, message):
    with pytest.raises(InputError, match=message):
        make("B", Face(table_of(models["B"]))).sample(**given)


def test_a_table_for_a_file_that_has_one_is_refused(models, make):
    file = make("B", Face(table_of(models["B"])))
    with pytest.raises(InputError, match="is ddim with 25 steps"):
        file.sample(1, table=table_of(models["B"]))


def test_what_is_no_sampler_says_what_it_lacks(parts, models, tmp_path):
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
        ({**about, "format": 99}, "format 99; this version reads 1"),
        ({k: v for k, v in about.items() if k != "noise"}, "lacks noise in its metadata"),
    ):
        entry.value = json.dumps(changed)
        path.write_bytes(made.SerializeToString())
        with pytest.raises(InputError, match=message):
            OnnxSampler(path)
    del made.metadata_props[:]
    path.write_bytes(made.SerializeToString())
    with pytest.raises(InputError, match="lacks the metadata entry 'fastdiff'"):
        OnnxSampler(path)


def test_providers(models, make, monkeypatch):
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
    with pytest.raises(InputError, match=r"fastdiff-engine\[onnx\]"):
        OnnxSampler(tmp_path / "sampler.onnx")


def test_without_onnx_the_extra_is_named():
    code = (
        "import sys; sys.modules['onnx'] = None; import fastdiff.export as e\n"
        "try: e.export_network\nexcept ValueError as error: print(error)\ne.OnnxSampler"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "needs the package 'onnx'" in done.stdout, done.stderr


# Bad exports


def test_a_network_of_one_size_says_so(models, parts):
    denoise = _DenoisePart(models["B"].network, torch.float32, False)
    given = (torch.zeros(2, 3, 16, 16), torch.zeros(2, 24), torch.zeros(2, 24))
    assert denoise(*given).shape == (2, 3, 16, 16) and not _takes_other_sizes(denoise, given)
    sample = network_model(parts("B")).graph.input[0]
    assert [d.dim_value for d in sample.type.tensor_type.shape.dim[1:]] == [3, 16, 16]


class Cond(Own):
    """Branches on values in the way that can be exported."""

    def forward(self, x, t):
        return super().forward(torch.cond(x.mean() > 0, lambda a: a * 2, lambda a: a + 1, (x,)), t)


def test_a_branch_of_the_network_is_kept(models, tmp_path, rel):
    model = replace(models["own"], network=Cond())
    export_network(model, tmp_path / "network.onnx")
    session = verify.onnxruntime().InferenceSession(str(tmp_path / "network.onnx"))
    for shift in (-1, 1):
        x, t = torch.randn(3, 2, 5, 7) + shift, torch.tensor([0, 3, 9])
        out = session.run(None, {"sample": x.numpy(), "timestep": t.numpy()})[0]
        with torch.no_grad():
            assert rel(out, model.network(x, t)) < 1e-5


class Branching(Own):
    def forward(self, x, t):
        return super().forward(x * 2 if x.mean() > 0 else x, t)


class NeedsContext(Own):
    def forward(self, x, t, label):
        return super().forward(x, t) + label.mean()


def test_networks_that_stand_in_the_way_are_told_of_in_one_sentence(models, tmp_path, capfd):
    with pytest.raises(InputError, match="(?s)denoise part cannot be exported.*x.mean") as told:
        export_network(replace(models["own"], network=Branching()), tmp_path / "network.onnx")
    assert "\n" not in str(told.value) and capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match="takes 'label', of which the width is not known; give the Model class_names"):
        export_network(replace(models["own"], network=NeedsContext()), tmp_path / "network.onnx")
    with pytest.raises(InputError, match="weights = 'float32' with dtype = torch.float16"):
        export_network(models["own"], tmp_path / "network.onnx", torch.float16, "float32")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_named(models, tmp_path):
    model = replace(models["own"], network=Unsupported())
    with pytest.raises(InputError, match="denoise part cannot be exported: .*svd"):
        export_network(model, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


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
def test_bad_options_are_refused_before_the_network_is_traced(models, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("fastdiff.export.trace._export", lambda *given: pytest.fail("it was traced"))
    with pytest.raises(InputError, match=message):
        export_sampler(models["A"], tmp_path / "sampler.onnx", table_of(models["A"]), **options)
    assert not list(tmp_path.iterdir())


def test_a_table_of_another_model_is_refused(models, tmp_path):
    with pytest.raises(InputError, match="timesteps"):
        export_sampler(
            models["own"], tmp_path / "s.onnx", table_of(replace(models["A"], prediction_type="v_prediction"))
        )


# The commands


@pytest.fixture
def run(tmp_path, monkeypatch, models, parts):
    """The command in a folder of its own, where `b` is model B; its network is not traced again."""
    monkeypatch.chdir(tmp_path)
    fastdiff.save(models["B"], "b.safetensors")
    monkeypatch.setattr(write, "trace", lambda *given, **options: parts("B"))

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def test_export_and_sample(run):
    told = run("export", "b.safetensors", "--sampler", "ddpm_large", "--steps", 20, "--stepwise", "-o", "sampler.onnx")
    assert (
        "checked against torch: noise, its integers: off by 0" in told
        and "ddpm_large, 20 steps" in told
        and "wrote" in told
    )
    words = ("-n", 4, "--seed", 3, "--context", "monster=1,spell=0.5", "--guidance-scale", 2)
    told = run("info", "sampler.onnx")
    assert (
        "ONNX sampler" in told and "ddpm_large, 20 steps" in told and "start ()" in told and "monster, player" in told
    )
    told = run("sample", "sampler.onnx", *words, "-o", "a.png", "--npy", "a.npy", "--gif", "a.gif")
    assert "ddpm_large, 20 steps" in told and "ONNX Runtime, CPU, float32" in told
    run("sample", "b.safetensors", *words, "--sampler", "ddpm_large", "--steps", 20, "-o", "b.png", "--npy", "b.npy")
    assert apart(np.load("a.npy"), np.load("b.npy")) < 1e-4
    assert Path("a.gif").read_bytes()[:4] == b"GIF8"


def test_export_of_any_sampler_and_of_pictures(run):
    run("export", "b.safetensors", "--sampler", "any", "-o", "any.onnx")
    run("sample", "any.onnx", "-n", 2, "--sampler", "dpmpp_2m", "--steps", 8, "-o", "a.png", "--npy", "a.npy")
    run("sample", "b.safetensors", "-n", 2, "--sampler", "dpmpp_2m", "--steps", 8, "-o", "b.png", "--npy", "b.npy")
    assert apart(np.load("a.npy"), np.load("b.npy")) < 1e-4
    run("export", "b.safetensors", "--sampler", "ddim", "--steps", 3, "--pictures", "-o", "pictures.onnx")
    run("sample", "pictures.onnx", "-n", 2, "-o", "c.png")
    assert Path("c.png").exists()


def test_the_page_is_written_whole_into_a_new_folder(run):
    told = run("export", "b.safetensors", "--web", "some/page")
    assert "python3 -m http.server -d some/page" in told
    page = json.loads(Path("some/page/model.json").read_text())
    assert page["name"] == "b" and page["model"] == ["b.safetensors"] and page["rounded"] is False
    assert page["class_names"][0] == "monster" and page["context_width"] == 5 and page["stepwise"]
    assert "25" in page["samplers"]["ddim"] and "250" in page["samplers"]["ddpm"]
    row = make_table("ddim", make_schedule("course", 250), 25, time="fraction").rows[3]
    assert np.array_equal(np.float32(page["samplers"]["ddim"]["25"]["rows"][3]), np.float32(row))
    assert set(FILES) | {"model.json", "model.onnx"} == {file.name for file in Path("some/page").iterdir()}
    assert OnnxSampler("some/page/model.onnx").description["sampler"] is None


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
def test_bad_commands_are_one_sentence(run, make, models, words, message):
    if "whole.onnx" in words:
        Path("whole.onnx").write_bytes(Path(make("B", Face(table_of(models["B"], steps=3))).path).read_bytes())
    before = sorted(Path().iterdir())
    told = run(*words, code=2)
    assert message in told and told.count("\n") == 1
    assert sorted(Path().iterdir()) == before


# The shipped models


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mnist", "sprites"])
def test_the_shipped_models(name, tmp_path):
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
