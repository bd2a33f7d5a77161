"""The exported loop serves all columns of the table, against an interpreter of the table's formula in float64."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fastdiff import InputError, Model, make_schedule, make_table
from fastdiff.export import OnnxSampler, export_network, export_sampler
from fastdiff.export.assemble import Face, sampler_model
from fastdiff.export.parts import capture

ROWS = 7
SHAPE = (2, 5, 7)


class Own(nn.Module):
    """A network of (x, t) that may give a variance too."""

    def __init__(self, channels=2):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, channels, 3, padding=1)

    def forward(self, x, t, x_self_cond=None):
        x = x if x_self_cond is None else x - torch.tanh(2 * x_self_cond)
        return self.last(torch.tanh(self.first(x) + 0.05 * t.to(x.dtype)[:, None, None, None]))


class Guided(Own):
    """Takes a context."""

    n_cfeat = 3

    def forward(self, x, t, c, **named):
        return super().forward(x + 0.3 * (c @ torch.tensor([[1.0], [-2.0], [0.5]]))[..., None, None], t, **named)


def model_of(network, **more):
    return Model(network.eval(), make_schedule("linear", 50), image_shape=SHAPE, **more)


@pytest.fixture(scope="module")
def networks():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return {"own": Own(), "guided": Guided(), "both": Own(4)}


def table_with(names, seed=0, steps=ROWS, **more):
    """ddim's table with random numbers in these columns, and 0 where no row has remembered anything yet."""
    dice = np.random.default_rng(seed)
    table = make_table("ddim", make_schedule("linear", 50), steps)
    columns = {name: dice.uniform(0.1, 0.4, len(table)) for name in names}
    columns.setdefault("S", columns.get("s"))  # without one of its own
    for back, name in enumerate("cde", start=1):
        if name in columns:
            columns[name][:back] = 0
    return replace(table, preserves_mean=False, preserves_variance=False, **columns, **more)


def interpreted(model, table, noise, clip=None, context=None, scale=1.0):
    """The images: draw 0 of `noise` is x_T's, and row r takes draw r + 1; the network alone is in float32."""
    x, past = table.init_noise_sigma * noise(0).double(), []

    def predicted(given, t):
        named = {"x_self_cond": past[0].float() if past else 0 * given} if model.self_condition else {}
        if context is None:
            return model.network(given, t, **named)
        without, within = (model.network(given, t, c, **named) for c in (torch.zeros_like(context), context))
        mixed = without + scale * (within - without)
        return torch.cat((mixed[:, : x.shape[1]], within[:, x.shape[1] :]), dim=1)

    integer = model.time == "index" and not (table.time % 1).any()
    for r in range(len(table)):
        k = {name: float(getattr(table, name)[r]) for name in "pqabcsodeuvS"}
        t = torch.full((len(x),), float(table.time[r]))
        with torch.no_grad():
            whole = predicted(x.float(), t.long() if integer else t).double()
        out, variance = whole[:, : x.shape[1]], whole[:, x.shape[1] :]
        x0 = k["p"] * x + k["q"] * out
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        remembered = k["u"] * x + k["v"] * x0
        x = k["a"] * x + k["b"] * x0 + k["o"] * out
        for weight, one in zip("cde", past, strict=False):
            x = x + k[weight] * one
        if k["s"]:
            share = (variance + 1) / 2 if table.learned_variance else 0.0
            x = x + k["s"] * (k["S"] / k["s"]) ** share * noise(r + 1)
        past = [remembered, *past][:3]
    return x


def drawn(number, first, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * number + first))


def file_of(model, face, folder, **options):
    path = folder / "sampler.onnx"
    path.write_bytes(sampler_model(capture(model, **options), face).SerializeToString())
    return OnnxSampler(path, threads=1)


@pytest.mark.parametrize("form", ["whole", "stepwise", "any"])
@pytest.mark.parametrize(
    ("names", "scale"), [("o", 1.0), ("cs", 3.0), ("cd", 1.0), ("ce", 1.0), ("cdeuvo", 0.5), ("cu", 1.0), ("dsv", 1.0)]
)
def test_each_column_is_the_formulas(networks, tmp_path, rel, form, names, scale):
    model, table = model_of(networks["own"]), table_with(names, init_noise_sigma=scale)
    face = Face(None if form == "any" else table, clip=0.9, stepwise=form != "whole", noise="input")
    given = table if form == "any" else None
    images = file_of(model, face, tmp_path).sample(3, noise=drawn, table=given)
    expected = interpreted(model, table, lambda number: drawn(number, 0, (3, *SHAPE)), clip=0.9)
    assert rel(images, expected) < 1e-5
    plain = table_with("", init_noise_sigma=scale)
    assert rel(interpreted(model, plain, lambda number: drawn(number, 0, (3, *SHAPE)), clip=0.9), expected) > 1e-2


@pytest.mark.parametrize("form", ["whole", "stepwise", "any"])
def test_the_noise_of_the_seed_is_scaled_where_the_graph_makes_it(networks, tmp_path, rel, form):
    model, table = model_of(networks["own"]), table_with("cd", init_noise_sigma=2.5)
    inside = Face(None if form == "any" else table, stepwise=form != "whole")
    outside = Face(table, noise="input")
    given = table if form == "any" else None
    images = file_of(model, inside, tmp_path).sample(3, seed=7, first=2, table=given)
    assert rel(images, file_of(model, outside, tmp_path).sample(3, seed=7, first=2)) < 1e-6
    assert rel(images, file_of(model, Face(replace(table, init_noise_sigma=1.0)), tmp_path).sample(3, seed=7)) > 0.1


def test_calls_of_several_rows_with_history_are_the_whole(networks, tmp_path):
    model, table = model_of(networks["own"]), table_with("cdeuv")
    whole = file_of(model, Face(table), tmp_path).sample(3, seed=1)
    stepwise = file_of(model, Face(table, stepwise=True), tmp_path)
    x, history = np.full((3, *SHAPE), np.nan, np.float32), np.zeros((3, 3, *SHAPE), np.float32)
    for start, stop in ((0, 2), (2, 3), (3, ROWS)):
        given = dict(seed=1, first=0, start=start, stop=stop)
        feed = {name: np.array(value) for name, value in given.items()} | {"x": x, "history": history}
        x, history = stepwise.session.run(["next_x", "next_history"], feed)
    assert np.array_equal(x, whole)


def test_columns_that_a_table_does_not_use_have_no_operators(networks, tmp_path):
    parts = capture(model_of(networks["own"]))

    def size(table, **more):
        made = sampler_model(parts, Face(table, stepwise=True, **more))
        loop = next(node for node in made.graph.node if node.op_type == "Loop")
        return {one.name for one in made.graph.input}, len(loop.attribute[0].g.node)

    inputs, nodes = size(table_with(""))
    assert inputs == {"x", "start", "stop", "seed", "first"}
    for names, more in (("o", 2), ("c", 2), ("cu", 4), ("cd", 5), ("de", 6)):  # further states are handed on
        others, count = size(table_with(names))
        assert count == nodes + more, names
        assert others - inputs == (set() if names == "o" else {"history"})
    inputs, _ = size(None)
    assert inputs >= {"history", "rows", "times", "init_noise_sigma"}
    made = onnx.load(file_of(model_of(networks["own"]), Face(table_with("cd"), stepwise=True), tmp_path).path)
    history = next(one for one in made.graph.input if one.name == "history")
    assert history.type.tensor_type.shape.dim[0].dim_value == 2


def between(table):
    return replace(table, timestep=table.timestep - 0.375, time=table.time - 0.375)


def test_times_between_a_networks_whole_ones(networks, tmp_path, rel):
    model, table = model_of(networks["own"]), between(table_with("c"))
    file = file_of(model, Face(table, noise="input"), tmp_path, fractional=True)
    expected = interpreted(model, table, lambda number: drawn(number, 0, (3, *SHAPE)))
    assert rel(file.sample(3, noise=drawn), expected) < 1e-5
    assert file.description["sampler"]["timesteps"][0] == table.timestep[0] != int(table.timestep[0])
    whole = replace(table, time=np.floor(table.time))
    assert rel(interpreted(model, whole, lambda number: drawn(number, 0, (3, *SHAPE))), expected) > 1e-3


def test_times_between_are_refused_by_a_file_of_whole_ones(networks, tmp_path, monkeypatch):
    file = file_of(model_of(networks["own"]), Face(None, stepwise=True), tmp_path)
    monkeypatch.setattr("fastdiff.engine.request.check_table", lambda model, table: table)  # the file's own word
    with pytest.raises(InputError, match=r"a table with time 48.625 for .*takes whole timesteps"):
        file.sample(1, table=between(table_with("")))


@pytest.mark.parametrize("form", ["whole", "stepwise", "any"])
def test_a_learned_variance(networks, tmp_path, rel, form):
    model = model_of(networks["both"], learned_variance=True)
    table = table_with("csS")
    face = Face(None if form == "any" else table, stepwise=form != "whole", noise="input")
    given = table if form == "any" else None
    images = file_of(model, face, tmp_path).sample(3, noise=drawn, table=given)

    def expected(table):
        return interpreted(model, table, lambda number: drawn(number, 0, (3, *SHAPE)))

    assert rel(images, expected(table)) < 1e-5
    assert rel(expected(replace(table, S=table.s)), expected(table)) > 1e-2


def test_a_learned_variance_under_guidance_is_the_conditional_halfs(tmp_path, rel):
    torch.manual_seed(4)
    model, table = model_of(Guided(4), learned_variance=True), table_with("sS")
    context = torch.rand(3, 3)
    images = file_of(model, Face(table, noise="input"), tmp_path).sample(
        3, noise=drawn, context=context, guidance_scale=2.5
    )
    noise = [drawn(number, 0, (3, *SHAPE)) for number in range(ROWS + 1)]
    assert rel(images, interpreted(model, table, noise.__getitem__, context=context, scale=2.5)) < 1e-5


def test_the_network_of_a_learned_variance_gives_both(networks, tmp_path, rel):
    model, path = model_of(networks["both"], learned_variance=True), tmp_path / "network.onnx"
    assert export_network(model, path)[0].distance < 1e-5
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4
    assert export_sampler(model, tmp_path / "sampler.onnx", table_with("csS"))[-1].distance < 1e-4


@pytest.mark.parametrize(("names", "form"), [("cdeuvo", "whole"), ("cds", "any")])
def test_the_export_checks_tables_of_all_columns(networks, tmp_path, names, form):
    table = table_with(names, init_noise_sigma=2.0)
    checks = export_sampler(model_of(networks["own"]), tmp_path / "a.onnx", None if form == "any" else table)
    assert checks[-1].distance < 1e-4


@pytest.mark.parametrize("form", ["whole", "stepwise", "any"])
@pytest.mark.parametrize("names", ["", "c", "cd"])
def test_self_conditioning(networks, tmp_path, rel, form, names):
    model, table = model_of(networks["own"], self_condition=True), table_with(names)
    face = Face(None if form == "any" else table, clip=0.9, stepwise=form != "whole", noise="input")
    given = table if form == "any" else None
    file = file_of(model, face, tmp_path)
    images = file.sample(3, noise=drawn, table=given)

    def expected(model):
        return interpreted(model, table, lambda number: drawn(number, 0, (3, *SHAPE)), clip=0.9)

    assert file.self_condition and rel(images, expected(model)) < 1e-5
    assert rel(expected(model_of(networks["own"])), expected(model)) > 1e-2


def test_self_conditioning_under_guidance(tmp_path, rel):
    torch.manual_seed(4)
    model, table, context = model_of(Guided(), self_condition=True), table_with("c"), torch.rand(3, 3)
    images = file_of(model, Face(table, noise="input"), tmp_path).sample(
        3, noise=drawn, context=context, guidance_scale=2.5
    )
    noise = [drawn(number, 0, (3, *SHAPE)) for number in range(ROWS + 1)]
    assert rel(images, interpreted(model, table, noise.__getitem__, context=context, scale=2.5)) < 1e-5


def test_files_of_networks_with_self_conditioning_are_checked(networks, tmp_path):
    model, path = model_of(networks["own"], self_condition=True), tmp_path / "network.onnx"
    assert export_network(model, path)[0].distance < 1e-5
    assert [one.name for one in onnx.load(path).graph.input] == ["sample", "timestep", "x_self_cond"]
    assert all(check.distance < 1e-4 for check in export_sampler(model, tmp_path / "any.onnx", None))
    assert export_sampler(model, tmp_path / "sampler.onnx", table_with("cs"))[-1].distance < 1e-4
    with pytest.raises(InputError, match="remembers something else than x0"):
        export_sampler(model, tmp_path / "no.onnx", table_with("cu"))
    with pytest.raises(InputError, match="remembers something else than x0"):
        OnnxSampler(tmp_path / "any.onnx").sample(1, table=table_with("cv"))
    assert not (tmp_path / "no.onnx").exists()
