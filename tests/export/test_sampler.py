"""Exported sampling loops give torch's images: samplers, clipping, single steps, noise, tables, batches."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import fastdiff
from fastdiff import InputError
from fastdiff.export.assemble import Face, sampler_model
from fastdiff.images import to_uint8
from fastdiff.samplers.samplers import SAMPLERS

TWO = ("ddpm_large", "dpmpp_2m_sde")


# Samplers differ in the numbers of a table alone: all of them with one network, two with the other in `make test`.
@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        pytest.param(name, sampler, marks=[pytest.mark.slow] if name == "B" and sampler not in TWO else [])
        for name in ("A", "B")
        for sampler in SAMPLERS
    ],
)
def test_every_sampler_gives_torchs_images_from_one_file_in_batches_of_1_3_and_64(
    models, make, name, sampler, table_of, apart, context_for
):
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
def test_200_stochastic_steps(models, make, name, sampler, table_of, apart, context_for):
    model = models[name]
    table = table_of(model, sampler, 200)
    context = context_for(model, 3)
    images = make(name, Face(table)).sample(3, seed=5, context=context)
    assert apart(images, fastdiff.sample(model, 3, table, seed=5, context=context, form="eager")) < 1e-4


def test_a_network_of_the_users_own(models, make, table_of, apart):
    model = models["own"]
    table = table_of(model, "dpmpp_2m_sde", 10)
    images = make("own", Face(table)).sample(3, seed=1)
    assert apart(images, fastdiff.sample(model, 3, table, seed=1, form="eager")) < 1e-4


@pytest.mark.parametrize("clip", [0.7, ("dynamic", 0.9), ("dynamic", 1.0)])
def test_clipping(models, make, clip, table_of, apart):
    model = models["A"]
    table = table_of(model, "dpmpp_2m")
    clipped, free = (fastdiff.sample(model, 3, table, clip=c, form="eager") for c in (clip, False))
    assert apart(make("A", Face(table, clip)).sample(3), clipped) < 1e-4
    assert apart(clipped, free) > 1e-2


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_sde"])
def test_25_calls_of_one_step_are_the_whole_bit_for_bit(models, make, sampler, table_of):
    table = table_of(models["B"], sampler)
    context = torch.rand(3, 5)
    whole = make("B", Face(table)).sample(3, seed=7, context=context, guidance_scale=2)
    stepwise = make("B", Face(table, stepwise=True))
    images, frames = stepwise.sample(3, seed=7, context=context, guidance_scale=2, frames=10)
    assert np.array_equal(images, whole)
    assert frames.shape == (3, 3, 3, 16, 16) and np.array_equal(frames[-1], whole)
    again = stepwise.sample(3, seed=7, context=context, guidance_scale=2, frames=10, batch_size=2)[1]
    assert np.allclose(again, frames, atol=1e-4)
    # and so are calls of several rows, with leftovers in x at the start, which is made anew there
    feed = {"seed": np.array(7), "first": np.array(0), "context": context.numpy(), "guidance_scale": np.float32([2])[0]}
    state = {"x": np.full((3, 3, 16, 16), np.nan, np.float32), "history": np.zeros((1, 3, 3, 16, 16), np.float32)}
    for start, stop in ((0, 4), (4, 24), (24, 25)):
        given = {**feed, **state, "start": np.array(start), "stop": np.array(stop)}
        out = stepwise.session.run(None, {k: np.asarray(given[k]) for k in stepwise.inputs})
        state = dict(zip(("x", "history"), out, strict=False)) | {
            k: v for k, v in state.items() if len(out) == 1 and k != "x"
        }
    assert np.array_equal(state["x"], whole)


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_noise_from_outside(models, make, sampler, stepwise, table_of, apart):
    table = table_of(models["A"], sampler, 6)
    inside, outside = make("A", Face(table)), make("A", Face(table, stepwise=stepwise, noise="input"))
    assert "seed" not in outside.inputs
    assert np.array_equal(outside.sample(3, seed=4, first=9), inside.sample(3, seed=4, first=9))

    def own(draw, first, shape):
        return torch.full(shape, 0.1 * (draw + 1))

    images = outside.sample(3, noise=own)
    assert apart(images, fastdiff.sample(models["A"], 3, table, noise=own, form="eager")) < 1e-4
    assert np.array_equal(images[0], images[2])


def test_a_file_whose_table_is_an_input_runs_every_sampler(models, make, apart):
    file = make("B", Face(None, stepwise=True))
    for sampler in ("ddim", "dpmpp_2m_sde"):
        table = file.table(sampler, 12)
        alone = make("B", Face(table)).sample(3, seed=3, context={"player": 1})
        assert apart(file.sample(3, seed=3, context={"player": 1}, table=table), alone) < 1e-6
    with pytest.raises(InputError, match="no table for"):
        file.sample(1)


def test_pictures_are_those_of_to_uint8(models, make, table_of):
    table = table_of(models["B"])
    pictures = make("B", Face(table, pictures=True)).sample(5, seed=1)
    expected = to_uint8(torch.from_numpy(make("B", Face(table)).sample(5, seed=1))).permute(0, 2, 3, 1)
    assert pictures.dtype == np.uint8 and np.array_equal(pictures, expected.numpy())


def test_batches_and_places_leave_a_samples_noise_alone(models, make, table_of, apart):
    file = make("A", Face(table_of(models["A"], "ddpm", 5)))
    images = file.sample(7, seed=2, first=10)
    assert apart(file.sample(7, seed=2, first=10, batch_size=3), images) < 1e-5
    assert apart(file.sample(1, seed=2, first=14), images[4:5]) < 1e-5
    assert apart(file.sample(7, seed=3, first=10), images) > 0.1


def test_weights_stored_in_half_lose_nothing_where_they_are_halves(models, make, parts, table_of, apart):
    model = parts("B16").model
    table = table_of(model, "ddpm_large")
    sizes = [len(sampler_model(parts(name), Face(table)).SerializeToString()) for name in ("B", "B16")]
    assert sizes[1] < 0.85 * sizes[0]
    images = make("B16", Face(table)).sample(3, context={"dungeon": 1}, guidance_scale=3)
    asked = dict(context={"dungeon": 1}, guidance_scale=3, form="eager")
    assert apart(images, fastdiff.sample(model, 3, table, **asked)) < 1e-5
    assert apart(images, fastdiff.sample(models["B"], 3, table, **asked)) > 1e-4


def test_the_weights_are_initializers_of_the_loops_body_and_the_table_one_outside(parts, models, table_of):
    made = sampler_model(parts("A"), Face(table_of(models["A"])))
    onnx.checker.check_model(made, full_check=True)
    assert "RandomNormal" not in str(made) and {o.domain for o in made.opset_import} == {""}
    loop = next(node for node in made.graph.node if node.op_type == "Loop")
    held = {t.numel() for t in models["A"].network.parameters()}
    assert held & {math.prod(t.dims) for t in loop.attribute[0].g.initializer}
    assert sum(math.prod(t.dims) for t in made.graph.initializer) < 20_000  # the table, and what makes its times' rows
    rows = [numpy_helper.to_array(t) for t in made.graph.initializer if list(t.dims) == [25, 4]]
    assert len(rows) == 1 and np.allclose(rows[0], table_of(models["A"]).rows[:, :4])  # p, q, a, b: what ddim uses
    weights = sum(t.numel() for t in models["A"].network.parameters()) * 4
    assert len(made.SerializeToString()) < weights + 300_000
