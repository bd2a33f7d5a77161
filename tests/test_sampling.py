"""sample(): against the published loops, and what it promises about seeds, batches, frames, contexts."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import (
    AnnotatedUnet,
    ContextUnet,
    Engine,
    InputError,
    Model,
    NotFinite,
    PhiloxNoise,
    make_schedule,
    make_table,
    sample,
    save,
)
from fastdiff.bench.peers.reference import AnnotatedLoop, AnnotatedReference, ContextReference, CourseLoop
from fastdiff.export import export_network

LOOP = 1e-4  # relative, on a whole loop: float32 rounding carried through up to 500 steps


def annotated(rand, timesteps=200, schedule="linear", **options) -> Model:
    network = rand(AnnotatedUnet(dim=12, dim_mults=(1, 2), **options))
    return Model(network, make_schedule(schedule, timesteps), image_shape=(1, 8, 8))


def context(rand, timesteps=500, **options) -> Model:
    network = rand(ContextUnet(3, 8, 5, 16, **options))
    return Model(
        network,
        make_schedule("course", timesteps),
        image_shape=(3, 16, 16),
        time="fraction",
        class_names=tuple("abcde"),
    )


def shared_noise(n, shape, seed=3):
    source = PhiloxNoise(seed)
    return lambda draw: source(draw, 0, (n, *shape))


@pytest.mark.parametrize("timesteps", [1, 2, 7, 50, 200])
@pytest.mark.parametrize("edition", ["mindspore", "mindspore-torch"])
def test_the_annotated_loop(timesteps, edition, rel, randomised):
    model = annotated(randomised, timesteps, edition=edition)
    theirs = AnnotatedReference(12, dim_mults=(1, 2), edition=edition).eval()
    theirs.load_state_dict(model.network.state_dict())
    loop = AnnotatedLoop(torch.linspace(1e-4, 0.02, timesteps) if timesteps > 1 else torch.tensor([1e-4]))
    frames = loop.p_sample_loop(theirs, shared_noise(2, (1, 8, 8)))
    images, ours = sample(model, 2, "ddpm", steps=timesteps, seed=3, frames=1, device="cpu")
    assert len(ours) == len(frames) == timesteps
    assert rel(images, frames[-1]) < LOOP
    assert rel(ours[0], frames[0]) < 1e-5  # a single step
    assert all(rel(a, b) < LOOP for a, b in zip(ours, frames, strict=True))


@pytest.mark.parametrize("shortcut, kind", [(False, "zero"), (True, "trained")])
@pytest.mark.parametrize("extra_noise", [True, False])
@pytest.mark.parametrize(
    "timesteps", [1, 10, pytest.param(500, marks=pytest.mark.slow)]
)  # test_models.py has whole loops
def test_the_course_ddpm_loop(shortcut, kind, extra_noise, timesteps, rel, randomised):
    model = context(randomised, timesteps, shortcut=shortcut)
    theirs = ContextReference(3, 8, 5, 16, shortcut=kind).eval()
    theirs.load_state_dict(model.network.state_dict())
    c = torch.tensor([1, 0, 0.6, 0, 0])
    expected = CourseLoop(timesteps).sample_ddpm(theirs, shared_noise(2, (3, 16, 16)), c.expand(2, -1), extra_noise)
    name = "ddpm_large" if extra_noise else "ddpm_no_noise"
    assert rel(sample(model, 2, name, steps=timesteps, seed=3, context=c, device="cpu"), expected) < LOOP


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 25, 50, 100, 125, 250, 500])
def test_the_course_ddim_loop(steps, rel, randomised):
    model = context(randomised)
    theirs = ContextReference(3, 8, 5, 16, shortcut="zero").eval()
    theirs.load_state_dict(model.network.state_dict())
    expected = CourseLoop(500).sample_ddim(theirs, shared_noise(2, (3, 16, 16)), steps)
    assert rel(sample(model, 2, "ddim", steps=steps, spacing="course", seed=3, device="cpu"), expected) < LOOP


@settings(max_examples=20)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**62), row=st.integers(0, 11), size=st.integers(1, 12))
def test_a_sample_depends_on_seed_and_index_alone(seed, first, row, size):
    """Bit for bit in its noise; the network may sum in another order for another batch, 1e-5."""
    model = Model(AnnotatedUnet(dim=8, dim_mults=(1, 2)), make_schedule("linear", 50), image_shape=(1, 8, 8))
    options = dict(sampler="ddpm", steps=4, seed=seed, device="cpu")
    whole = sample(model, 12, first=first, batch_size=size, **options)
    alone = sample(model, 1, first=first + row, **options)
    assert float((alone[0] - whole[row]).norm() / whole[row].norm()) < 1e-5


def test_the_noise_of_a_sample_is_the_same_bit_for_bit():
    drawn = {}

    def spy(draw, first, shape):
        values = PhiloxNoise(5)(draw, first, shape)
        for r in range(shape[0]):
            key = (draw, first + r)
            assert key not in drawn or torch.equal(drawn[key], values[r])
            drawn[key] = values[r]
        return values

    model = Model(AnnotatedUnet(dim=8, dim_mults=(1, 2)), make_schedule("linear", 50), image_shape=(1, 8, 8))
    for n, first, size in ((64, 0, 64), (64, 0, 10), (1, 7, 1), (9, 60, 4)):
        sample(model, n, "ddpm", steps=3, first=first, batch_size=size, noise=spy, device="cpu")
    assert len(drawn) == 3 * 69  # x_T and two noisy rows of samples 0..68; the last row adds none


def test_a_given_noise_is_what_the_seed_would_make(randomised):
    model = annotated(randomised)
    ours = sample(model, 3, "ddpm", steps=10, seed=11, first=4, device="cpu")
    assert torch.equal(ours, sample(model, 3, "ddpm", steps=10, noise=PhiloxNoise(11), first=4, device="cpu"))


def test_frames(randomised):
    model = annotated(randomised)
    images, every = sample(model, 5, steps=10, frames=1, batch_size=2, device="cpu")
    assert every.shape == (10, 5, 1, 8, 8) and torch.equal(every[-1], images)
    again, some = sample(model, 5, steps=10, frames=4, batch_size=2, device="cpu")
    assert torch.equal(again, images)
    assert torch.equal(some, every[[3, 7, 9]])  # every fourth, the last included
    assert torch.equal(
        sample(model, 5, steps=10, frames=5, device="cpu")[1],
        sample(model, 5, steps=10, frames=1, device="cpu")[1][[4, 9]],
    )


def test_contexts_for_all_and_for_each(rel, randomised):
    model = context(randomised)
    mixed = torch.tensor([[1, 0, 0.6, 0, 0], [0, 0, 0, 1, 0], [0.0] * 5])
    options = dict(steps=5, seed=2, device="cpu")
    rows = sample(model, 3, context=mixed, **options)
    for r in range(3):
        assert rel(sample(model, 1, first=r, context=mixed[r], **options)[0], rows[r]) < 1e-5
    assert rel(rows[2], sample(model, 3, **options)[2]) < 1e-5  # no context is the zero context
    assert rel(rows[0], rows[2]) > 1e-3  # and a context does something
    assert torch.equal(
        sample(model, 3, context={"a": 1, "c": 0.6}, **options), sample(model, 3, context=mixed[0], **options)
    )
    assert rel(sample(model, 3, context=mixed, batch_size=2, **options), rows) < 1e-5
    assert rel(sample(model, 3, context=mixed.numpy(), **options), rows) == 0


def test_guidance_is_its_formula(rel, randomised):
    model = context(randomised)
    c, g = torch.tensor([0.0, 20, 0, 0, 0]), 2.5  # large, for random weights hardly heed it

    class Guided(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(model.network).eval()

        def forward(self, x, t):
            t = t.view(-1, 1, 1, 1)
            unconditional = self.inner(x, t)
            return unconditional + g * (self.inner(x, t, c.expand(len(x), -1)) - unconditional)

    plain = Model(Guided(), model.schedule, image_shape=model.image_shape, time="fraction")
    options = dict(steps=6, seed=1, device="cpu")
    ours = sample(model, 2, context=c, guidance_scale=g, **options)
    assert rel(ours, sample(plain, 2, **options)) < 1e-5
    one = sample(model, 2, context=c, **options)
    assert torch.equal(sample(model, 2, context=c, guidance_scale=1, **options), one)
    assert rel(ours, one) > 1e-3


def test_guidance_of_1_is_one_evaluation(randomised):
    model, calls = context(randomised), []
    hook = model.network.init_conv.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    c = torch.ones(5)
    sample(model, 2, steps=3, context=c, guidance_scale=1, device="cpu", form="eager")
    assert calls == [2, 2, 2]
    calls.clear()
    sample(model, 2, steps=3, context=c, guidance_scale=3, device="cpu", form="eager")
    assert calls == [4, 4, 4]
    hook.remove()


def test_a_table_in_place_of_a_name(randomised):
    model = annotated(randomised)
    table = make_table("dpmpp_2m", model.schedule, 7)
    assert torch.equal(sample(model, 2, table, device="cpu"), sample(model, 2, "dpmpp_2m", steps=7, device="cpu"))


def test_the_users_network_is_left_as_it_was(randomised):
    model = annotated(randomised)
    model.network.train()
    before = {k: (v.clone(), v.stride()) for k, v in model.network.state_dict().items()}
    sample(model, 2, steps=2, device="cpu", dtype=torch.bfloat16)
    assert model.network.training and all(p.requires_grad for p in model.network.parameters())
    for k, v in model.network.state_dict().items():
        assert torch.equal(v, before[k][0]) and v.stride() == before[k][1] and v.dtype == torch.float32


def test_batchnorm_runs_on_its_saved_statistics(rel, randomised):
    model = context(randomised)
    model.network.train()
    options = dict(steps=3, device="cpu")
    assert rel(sample(model, 8, **options)[:1], sample(model, 1, **options)) < 1e-5


def test_a_network_of_the_users_own():
    class Own(torch.nn.Module):
        def forward(self, x, t, context=None):
            assert t.dtype == torch.int64 and t.shape == (len(x),)
            return 0.1 * x if context is None else 0.1 * x + context.sum(dim=1).view(-1, 1, 1, 1)

    model = Model(Own(), make_schedule("cosine", 30), prediction_type="v_prediction", image_shape=(2, 3, 5))
    plain = sample(model, 4, steps=30, device="cpu")
    assert plain.shape == (4, 2, 3, 5) and plain.dtype == torch.float32 and torch.isfinite(plain).all()
    steered = sample(model, 4, steps=30, context=[0.5, 0.5], guidance_scale=1.5, device="cpu")
    assert not torch.allclose(plain, steered)


def test_clip_defaults_to_the_models_own(randomised):
    network = randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2)))
    schedule = make_schedule("linear", 50)
    clipping = Model(network, schedule, image_shape=(1, 8, 8), clip=0.5)
    options = dict(n=2, steps=5, device="cpu")
    assert float(sample(clipping, **options).abs().max()) <= 0.5
    free = sample(Model(network, schedule, image_shape=(1, 8, 8)), **options)
    assert torch.equal(sample(clipping, clip=False, **options), free)
    assert float(free.abs().max()) > 0.5


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_reduced_precision_stays_near(dtype, bound, rel, randomised):
    model = annotated(randomised)
    options = dict(steps=10, device="cpu")
    low = sample(model, 2, dtype=dtype, **options)
    assert low.dtype == torch.float32
    assert 0 < rel(low, sample(model, 2, **options)) < bound


def test_no_grad_is_recorded(randomised):
    images = sample(annotated(randomised), 1, steps=1, device="cpu")
    assert not images.requires_grad and images.is_contiguous()


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(n=0), ["n = 0", "from 1 to 2^63 - 1"]),
        (dict(n=2.5), ["n = 2.5"]),
        (dict(steps=501), ["steps = 501", "1 to 500"]),
        (dict(sampler="dpmpp2m"), ["dpmpp2m", "did you mean 'dpmpp_2m'"]),
        (dict(seed=-1), ["seed = -1"]),
        (dict(first=2**63 - 1), ["first = "]),
        (dict(batch_size=0), ["batch_size = 0"]),
        (dict(frames=0), ["frames = 0"]),
        (dict(dtype=torch.int8), ["torch.int8", "torch.float32"]),
        (dict(device="cuda:77"), ["cuda:77", "available: "]),
        (dict(device="gpu"), ["'gpu'", "available: "]),
        (dict(clip=-1), ["clip = -1"]),
        (dict(clip=("dynamic", 2)), ["('dynamic', 2)"]),
        (dict(context=[1, 0]), ["(2,)", "(5,) or (2, 5)"]),
        (dict(context=np.zeros((3, 5))), ["(3, 5)", "(2, 5)"]),
        (dict(context=[float("nan")] * 5), ["NaN"]),
        (dict(context={"aa": 1}), ["'aa'", "did you mean 'a'"]),
        (dict(n=10**30), ["n = 1000000000000000000000000000000"]),
        (dict(sampler="ddim", eta="x"), ["eta = 'x'"]),
        (dict(sampler=["ddim"]), ["['ddim']"]),
        (dict(device="meta"), ["'meta'", "available: "]),
        (dict(context="item=1"), ["'item=1'"]),
        (dict(context=[[1, 2], [3]]), ["[[1, 2], [3]]"]),
        (dict(context={"a": 1e300}), ["1e+300"]),
        (dict(context=[1.0] * 5, guidance_scale="a"), ["guidance_scale = 'a'"]),
        (
            dict(steps=None, sampler=make_table("ddim", make_schedule("course", 1000), 5, time="fraction")),
            ["1000", "1 to 500"],
        ),
        (dict(guidance_scale=2.0), ["guidance_scale = 2.0 without a context"]),
        (dict(context=[1.0] * 5, guidance_scale=float("inf")), ["inf"]),
        (dict(noise=lambda draw, first, shape: torch.zeros(1)), ["(1,)", "(2, 3, 16, 16)"]),
        (dict(steps=None, sampler=make_table("ddim", make_schedule("course", 500), 5)), ["time='fraction'"]),
        (
            dict(steps=None, sampler=make_table("ddim", make_schedule("course", 500), 5, prediction_type="sample")),
            ["'sample'", "'epsilon'"],
        ),
    ],
)
def test_bad_input_is_named(options, words, randomised):
    with pytest.raises(InputError) as caught:
        sample(context(randomised), **{"n": 2, "device": "cpu", "steps": 2, **options})
    for word in words:
        assert word in str(caught.value)


def test_context_for_a_network_without_any(randomised):
    with pytest.raises(InputError, match="takes no context"):
        sample(annotated(randomised), 1, context=[1.0], device="cpu")


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(prediction_type="eps"), "epsilon"),
        (dict(time="seconds"), "seconds"),
        (dict(image_shape=(1, 0, 3)), "(1, 0, 3)"),
        (dict(clip="yes"), "'yes'"),
        (dict(value_range=(1, 0)), "value_range = (1, 0)"),
    ],
)
def test_bad_models_are_named(options, words):
    with pytest.raises(InputError) as caught:
        Model(torch.nn.Identity(), make_schedule("linear", 10), **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "network, schedule, words",
    [
        (torch.nn.Identity(), "cosine", "schedule = 'cosine'; accepted: a Schedule"),
        ("unet", make_schedule("linear", 10), "network = 'unet'; accepted: an nn.Module"),
    ],
)
def test_models_of_other_things_are_refused_at_once(network, schedule, words):
    with pytest.raises(InputError, match=words):
        Model(network, schedule)


def test_a_models_name_or_path_is_loaded(tmp_path, randomised):
    images = sample("sprites", 2, "ddim", steps=2, device="cpu")
    assert images.shape == (2, 3, 16, 16)
    model = context(randomised)
    save(model, tmp_path / "m.safetensors")
    again = sample(tmp_path / "m.safetensors", 2, "ddim", steps=2, device="cpu")
    assert torch.equal(again, sample(model, 2, "ddim", steps=2, device="cpu"))
    with pytest.raises(InputError, match="did you mean 'sprites'"):
        sample("sprite", 2)


@pytest.mark.parametrize(
    "use",
    [lambda m: sample(m, 2), Engine, lambda m: save(m, "m.safetensors"), lambda m: export_network(m, "m.onnx")],
    ids=["sample", "Engine", "save", "export"],
)
def test_a_network_in_a_models_place_is_refused_with_where_it_goes(use, randomised, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"an nn.Module, ContextUnet; accepted: fastdiff.Model\(network, schedule"):
        use(context(randomised).network)
    with pytest.raises(InputError, match="model = 3; accepted"):
        use(3)


def test_a_schedules_name_is_no_schedule():
    with pytest.raises(InputError, match="schedule = 'cosine'; accepted: a Schedule, see make_schedule"):
        make_table("ddim", "cosine", 5)


@pytest.mark.parametrize(
    "more", [dict(steps=2), dict(eta=1.0), dict(spacing="leading"), dict(sigmas="karras"), dict(timesteps=[3])]
)
def test_a_table_has_its_own_steps_and_spacing(more, randomised):
    model = context(randomised)
    with pytest.raises(InputError, match="with a StepTable, which has its own"):
        sample(model, 2, model.table("ddim", 4), **more)


def test_a_noise_source_is_callable(randomised):
    with pytest.raises(InputError, match="noise = 3; accepted: x_T, or a callable"):
        sample(context(randomised), 2, "ddim", steps=2, noise=3, device="cpu")


def test_a_model_says_in_a_few_lines_what_it_is(randomised):
    text = repr(context(randomised))
    assert "ContextUnet" in text and "'course', 500 timesteps" in text and "time 'fraction'" in text
    assert len(text) < 400 and text.count("\n") == 2


def test_numpy_numbers_are_numbers(randomised):
    model = annotated(randomised)
    ours = sample(model, np.int64(2), steps=np.int32(3), seed=np.uint8(5), clip=np.float32(1), device="cpu")
    assert torch.equal(ours, sample(model, 2, steps=3, seed=5, clip=1.0, device="cpu"))
    assert sample(model, 1, steps=1, first=2**63 - 1, device="cpu").shape == (1, 1, 8, 8)  # the last sample there is


def test_noise_from_numpy(randomised):
    images = sample(annotated(randomised), 2, steps=2, noise=lambda draw, first, shape: np.ones(shape), device="cpu")
    assert torch.equal(images[0], images[1])


def test_a_network_that_returns_another_shape_is_named():
    model = Model(AnnotatedUnet(8, channels=2, out_dim=1), make_schedule("linear", 10), image_shape=(2, 8, 8))
    with pytest.raises(InputError, match="returns a tensor of shape"):
        sample(model, 1, steps=2, device="cpu")


def test_a_network_of_the_users_own_in_bfloat16():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.time = torch.nn.Linear(1, 3)

        def forward(self, x, t):
            return x + self.time(t[:, None])[:, :, None, None]

    model = Model(Own(), make_schedule("course", 10), image_shape=(3, 4, 4), time="fraction")
    assert torch.isfinite(sample(model, 2, steps=5, dtype=torch.bfloat16, device="cpu")).all()


def test_class_names_that_do_not_fit_the_network_are_named():
    with pytest.raises(InputError, match="2 class names .* takes 3"):
        Model(ContextUnet(1, 8, 3, 16), make_schedule("linear", 10), class_names=("a", "b"))


def test_nan_is_said_once(randomised):
    model = annotated(randomised, 30)
    with torch.no_grad():
        model.network.final_conv[1].bias.fill_(float("inf"))
    with pytest.warns(UserWarning) as warned:
        images = sample(model, 4, steps=2, batch_size=2, device="cpu", form="eager")
    assert not images.isfinite().any()
    said = "images from sample 0 on hold NaN or infinity, computed in float32: first in "
    assert [str(one.message) for one in warned] == [f"{said}layer 'final_conv.1' (Conv2d) in step 1 of 2"]
    assert warned[0].filename == __file__ and warned[0].category is NotFinite


@pytest.mark.parametrize("form", ["eager", None])
def test_where_nan_begins_is_named(form, randomised):
    """In the network, or in the sampler's update, and in which step; for a sample that need not be the first."""
    model = annotated(randomised, 30)
    noise = torch.zeros(6, 1, 8, 8)
    noise[4] = 3e38  # in a later batch
    with pytest.warns(NotFinite, match="from sample 4 on .*: first in layer 'init_conv' .Conv2d. in step 1 of 3"):
        sample(model, 6, "ddim", steps=3, batch_size=2, noise=noise, clip=None, device="cpu", form=form)
    table = dataclasses.replace(model.table("ddim", 4), b=np.array([0, 0, 3e38, 0]), preserves_mean=False)
    with pytest.warns(NotFinite, match="from sample 0 on .*: first in the sampler's update in step 3 of 4"):
        sample(model, 2, table, clip=None, device="cpu", form=form)


def test_nan_can_be_an_error(randomised):
    model = annotated(randomised, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotFinite)
        with pytest.raises(NotFinite, match="hold NaN or infinity"):
            sample(model, 1, steps=2, noise=torch.full((1, 8, 8), 3e38), clip=None, device="cpu")
