"""The engine's contract: a sample's pixels depend on the configuration and on nothing else that is asked for."""

import dataclasses
import gc
import json
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import AnnotatedUnet, ContextUnet, Engine, InputError, Model, PhiloxNoise, load, make_schedule, make_table
from fastdiff.engine.cpu import step
from fastdiff.engine.evaluation import Given, Network, eager
from fastdiff.engine.forms import FORMS
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.engine.prediction import Prediction
from fastdiff.engine.step import State, advance
from fastdiff.sampling import sample

CPU = torch.device("cpu")
HERE = [f.name for f in FORMS.values() if not f.captured and f.build_error(CPU, torch.float32) is None]
SYSTEMS = ("annotated", "sprites")


def system(name: str, rand, timesteps: int = 40) -> Model:
    if name == "annotated":
        network = rand(AnnotatedUnet(dim=8, dim_mults=(1, 2)))
        return Model(network, make_schedule("linear", timesteps), image_shape=(1, 8, 8))
    network = rand(ContextUnet(3, 8, 5, 16))
    return Model(network, make_schedule("course", timesteps), image_shape=(3, 16, 16), time="fraction")


def table_of(model: Model, name: str = "dpmpp_2m_sde", steps: int = 3, **options):
    return make_table(name, model.schedule, steps, prediction_type=model.prediction_type, time=model.time, **options)


class Own(torch.nn.Module):
    """A user's network; `look` runs in each call."""

    def __init__(self, look=lambda x, t: None):
        super().__init__()
        self.look, self.scale = look, torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t, context=None):
        self.look(x, t)
        out = self.scale * x
        return out if context is None else out + context.sum(dim=1).view(-1, 1, 1, 1)


def own(look=lambda x, t: None) -> Model:
    return Model(Own(look), make_schedule("linear", 30), image_shape=(2, 3, 5))


# --- the same bits ----------------------------------------------------------------------------------------------


def contexts(first: int, count: int) -> torch.Tensor:
    """A context of each sample's own."""
    return torch.stack([torch.sin(torch.arange(1.0, 6) * ((first + r) % 97)) * 9 for r in range(count)])


@pytest.fixture(scope="module")
def engines(randomised):
    """(form, system, batch size) → an engine, made once."""

    @cache
    def made(form: str, name: str, size: int) -> Engine:
        model = system(name, randomised)
        return Engine(model, table_of(model), batch_size=size, device=CPU, form=form)

    return made


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("form", HERE)
@settings(max_examples=12)
@given(data=st.data())
def test_size_position_and_splits_of_a_request_do_not_change_a_bit(form, name, data, engines):
    engine = engines(form, name, data.draw(st.integers(1, 6), "batch_size"))
    n, first = data.draw(st.integers(1, 9), "n"), data.draw(st.integers(0, 12) | st.integers(2**62, 2**62 + 5), "first")
    options = dict(seed=data.draw(st.integers(0, 2**63 - 1), "seed"))
    if name == "sprites":
        options.update(context=contexts, guidance_scale=data.draw(st.sampled_from([None, 2.5]), "guidance_scale"))
    whole = engine.sample(n, first=first, **options)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3), "cuts")})
    parts = [engine.sample(b - a, first=first + a, **options) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert torch.equal(torch.cat(parts), whole)
    if name == "sprites":  # the same contexts as rows
        assert torch.equal(engine.sample(n, first=first, **{**options, "context": contexts(first, n)}), whole)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("form", HERE)
def test_a_new_engine_goes_on_where_another_stopped(form, name, randomised):
    model = system(name, randomised)
    table = table_of(model, "ddpm", 4)
    whole = Engine(model, table, batch_size=4, device=CPU, form=form).sample(11, seed=5, first=1)
    stream = Engine(model, table, batch_size=4, device=CPU, form=form).stream(11, seed=5, first=1)
    done = [next(stream)]
    at = sum(map(len, done))
    rest = Engine(model, table, batch_size=4, device=CPU, form=form).sample(11 - at, seed=5, first=1 + at)
    assert torch.equal(torch.cat((*done, rest)), whole)


@pytest.mark.parametrize("form", HERE)
def test_what_ran_before_does_not_matter(form, randomised):
    """Tables, contexts and guidance leave nothing behind in the buffers, nor do two streams taken in turns."""
    model = system("sprites", randomised)
    engine = Engine(model, table_of(model), batch_size=3, device=CPU, form=form)
    requests = [
        dict(n=5, table=table_of(model, "dpmpp_2m", 4)),
        dict(n=4, context=contexts, guidance_scale=3.0, seed=2),
        dict(n=7, first=1, context=[0.0, 5, 0, 0, 0], table=table_of(model, "ddim", 2, eta=1.0)),
        dict(n=2, noise=PhiloxNoise(9)),
    ]
    alone = [
        torch.cat(list(Engine(model, engine.table, batch_size=3, device=CPU, form=form).stream(**r))) for r in requests
    ]
    for k in (0, 1, 2, 3, 2, 1, 0, 0):
        assert torch.equal(torch.cat(list(engine.stream(**requests[k]))), alone[k])
    streams, taken = [engine.stream(**r) for r in requests], [[] for _ in requests]
    while any(streams):
        for k, stream in enumerate(streams):
            images = None if stream is None else next(stream, None)
            if images is None:
                streams[k] = None
            else:
                taken[k].append(images)
    assert all(torch.equal(torch.cat(t), a) for t, a in zip(taken, alone, strict=True))


def test_the_noise_is_the_same_bits_in_batches_of_any_size():
    """The network predicts nothing, so that an image is a sum of its own noise."""
    model = Model(_Nothing(), make_schedule("linear", 30), image_shape=(3, 5, 7))
    table = table_of(model, "ddpm", 5)
    expected = Engine(model, table, batch_size=1, device=CPU, form="eager").sample(20, seed=2**50, first=2**40)
    for size in (2, 3, 7, 20, 64):
        for form in HERE:
            assert torch.equal(
                Engine(model, table, batch_size=size, device=CPU, form=form).sample(20, seed=2**50, first=2**40),
                expected,
            )


class _Nothing(torch.nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


def test_a_noise_source_is_asked_for_what_is_wanted_and_no_more(randomised):
    model = system("annotated", randomised)
    asked = []

    def spy(draw, first, shape):
        asked.append((draw, first, shape[0]))
        return PhiloxNoise(4)(draw, first, shape)

    engine = Engine(model, table_of(model, "ddpm", 3), batch_size=4, device=CPU)
    images = torch.cat(list(engine.stream(6, first=3, noise=spy)))
    # Samples 3, then 4..7, then 8, in the batches 0..3, 4..7, 8..11; the last row adds no noise.
    assert asked == [(draw, *batch) for batch in ((3, 1), (4, 4), (8, 1)) for draw in (0, 1, 2)]
    torch.testing.assert_close(images, engine.sample(6, seed=4, first=3), atol=1e-5, rtol=0)


# --- the same images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_sample_is_the_engine(name, randomised):
    model = system(name, randomised)
    options = dict(seed=3, first=5, context=None if name == "annotated" else contexts)
    for form in (None, *HERE):
        engine = Engine(model, table_of(model, "ddpm", 4), batch_size=4, device=CPU, form=form)
        ours = sample(model, 6, "ddpm", steps=4, batch_size=4, device="cpu", form=form, **options)
        assert torch.equal(ours, engine.sample(6, **options))
        assert ours.shape == (6, *model.image_shape) and ours.dtype == torch.float32 and ours.is_contiguous()


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_sde"])
def test_float32_forms_agree(name, sampler, randomised):
    model = system(name, randomised)
    table = table_of(model, sampler, 25)
    images = [Engine(model, table, batch_size=4, device=CPU, form=form).sample(5) for form in HERE]
    assert all(float((other - images[0]).abs().max()) < 1e-3 for other in images)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_loop_of_advance_is_the_engine(sampler, guided, randomised):
    model = system("sprites", randomised)
    table = table_of(model, sampler, 6)
    engine = Engine(model, table, batch_size=3, device=CPU, form="eager", clip=2.0)
    context = contexts(4, 1)[0]
    evaluations = Given(3, model.image_shape, None, torch.arange(500), CPU, torch.float32)
    parts = eager(Network(model.network, CPU, torch.float32), evaluations)
    prediction = Prediction(parts, CPU, torch.float32, whole=False, guided=guided)
    x = PhiloxNoise(7)(0, 0, (3, *model.image_shape)).contiguous(memory_format=torch.channels_last)
    state = State(
        x,
        torch.from_numpy(table.rows).float(),
        torch.tensor(0),
        torch.tensor(0),
        key=torch.tensor([7, 0]),
        history=torch.empty_like(x)[None],
        guidance_scale=torch.tensor(2.5) if guided else None,
        clip=2.0,
    )
    with torch.no_grad(), fixed_numerics():
        prediction.load_table(table, len(table))
        prediction.load_context(context.expand(3, -1))
        for _ in range(len(table)):
            advance(state, prediction)
    assert torch.equal(x, engine.sample(3, seed=7, context=context, guidance_scale=2.5 if guided else None))
    assert int(state.index) == len(table)


@pytest.mark.parametrize(
    "dtype, steps",
    [
        (torch.float16, 250),
        pytest.param(torch.float16, 1000, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 1000, marks=pytest.mark.slow),
    ],
)
def test_a_full_run_in_16_bits_is_finite(dtype, steps, randomised):
    network = randomised(AnnotatedUnet(dim=8, dim_mults=(1,)))
    model = Model(network, make_schedule("linear", 1000), image_shape=(1, 4, 4))
    images = Engine(model, table_of(model, "ddpm", steps), batch_size=2, dtype=dtype, device=CPU).sample(2)
    assert images.dtype == torch.float32 and torch.isfinite(images).all()
    model = system("sprites", randomised, 100)
    assert torch.isfinite(
        Engine(model, table_of(model, "ddpm", 100), batch_size=2, dtype=dtype, device=CPU).sample(2)
    ).all()


# --- what it leaves alone, and what it needs --------------------------------------------------------------------


@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_users_network_is_left_as_it_was(form, name, randomised):
    model = system(name, randomised)
    network = model.network.train()
    hook = network.register_forward_pre_hook(lambda *_: None)
    modules = list(network.modules())
    before = {k: (v, v.clone(), v.stride(), v.data_ptr()) for k, v in network.state_dict(keep_vars=True).items()}
    Engine(model, table_of(model), batch_size=2, device=CPU, form=form).sample(3)
    assert network.training and list(network.modules()) == modules
    assert list(network._forward_pre_hooks) == [hook.id]
    for k, v in network.state_dict(keep_vars=True).items():
        same, value, stride, place = before[k]
        assert v is same and torch.equal(v, value) and (v.stride(), v.data_ptr()) == (stride, place)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("form", HERE)
def test_later_weights_do_not_show(form, randomised):
    model = system("annotated", randomised)
    engine = Engine(model, table_of(model), batch_size=2, device=CPU, form=form)
    before = engine.sample(2)
    with torch.no_grad():
        for p in model.network.parameters():
            p.mul_(1.5)
    assert torch.equal(engine.sample(2), before)
    assert not torch.allclose(
        Engine(model, table_of(model), batch_size=2, device=CPU, form=form).sample(2), before, atol=1e-2
    )


def test_memory_does_not_grow_with_the_request():
    engine = Engine(own(), table_of(own()), batch_size=2, device=CPU)
    alive = []
    for k, _ in enumerate(engine.stream(200, context=lambda first, count: torch.ones(count, 2), guidance_scale=2.0)):
        if k in (1, 2, 99):
            gc.collect()
            # Plain ones: tests that ran before in this process may have left tensors of unknown sizes, or sparse ones.
            plain = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
            plain = [t for t in plain if t.layout is torch.strided]
            tensors = {t.untyped_storage()._cdata: t for t in plain}
            alive.append((len(tensors), sum(t.untyped_storage().nbytes() for t in tensors.values())))
            del tensors, plain
    assert len(alive) == 3 and len(set(alive)) == 1


@pytest.mark.parametrize(
    "problem",
    [
        *(torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("x: can't allocate memory: you tried")),
        *(RuntimeError("could not create a primitive"), RuntimeError("Storage size calculation overflowed with sizes")),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(problem):
    largest, sizes = [100], []

    def look(x, t):
        sizes.append(len(x))
        if len(x) > largest[0]:
            raise problem

    model = own(look)
    table = table_of(model, "ddpm", 4)
    expected = Engine(model, table, batch_size=1, device=CPU, form="eager").sample(21, first=3)
    engine = Engine(model, table, batch_size=9, device=CPU, form="eager")
    stream = engine.stream(21, first=3)
    images = [next(stream)]  # 3..8
    largest[0], sizes[:] = 3, []
    with pytest.warns(UserWarning, match="a batch of .* did not fit in memory") as caught:
        images += list(stream)
    assert list(map(len, images)) == [6, 1, *[2] * 7]  # 9 alone: it ends a batch of two that begins at 8
    torch.testing.assert_close(torch.cat(images), expected, atol=1e-6, rtol=0)
    notes = [f"a batch of {a} did not fit in memory; batches of {b} from sample 9 on" for a, b in ((9, 4), (4, 2))]
    assert engine.notes == notes and [str(w.message) for w in caught] == notes
    assert engine.configuration()["batch_size"] == 2 and sizes[:3] == [9, 4, 2]
    assert torch.equal(
        torch.cat(images[1:]), Engine(model, table, batch_size=2, device=CPU, form="eager").sample(15, first=9)
    )
    largest[0] = 0
    with pytest.warns(UserWarning, match="a batch of 2"), pytest.raises(type(problem)):
        engine.sample(1)


def test_frames_of_a_batch_that_was_halved_on_its_way():
    calls = []

    def look(x, t):
        calls.append(len(x))
        if len(calls) == 3:  # in the batch's third step
            raise torch.OutOfMemoryError("full")

    model = own(look)
    with pytest.warns(UserWarning, match="a batch of 4"):
        images, frames = sample(model, 4, "ddim", steps=5, frames=1, batch_size=4, device="cpu")
    expected, others = sample(own(), 4, "ddim", steps=5, frames=1, batch_size=2, device="cpu")
    assert torch.equal(images, expected) and torch.equal(frames, others)


def test_another_error_is_the_callers():
    def look(x, t):
        raise RuntimeError("of the user's own")

    model = own(look)
    with pytest.raises(RuntimeError, match="of the user's own"):
        Engine(model, table_of(model), batch_size=4, device=CPU).sample(2)


def test_batches_of_a_stream(randomised, monkeypatch):
    model = system("annotated", randomised)
    engine = Engine(model, table_of(model), batch_size=4, device=CPU)
    assert [len(images) for images in engine.stream(9, first=2)] == [2, 4, 3]
    assert [len(images) for images in engine.stream(9, first=2, origin=1)] == [3, 4, 2]
    assert [len(images) for images in engine.stream(9, first=2, origin=2)] == [4, 4, 1]
    steps, seen = [], []

    def on_steps(done):
        steps.append(done)
        seen.append(engine.current())

    list(engine.stream(5, first=3, on_steps=on_steps))
    assert sum(steps) == 6  # those that take little time are run together
    steps.clear(), seen.clear()
    monkeypatch.setattr(step, "SECONDS", 0.0)
    batches = list(engine.stream(5, first=3, on_steps=on_steps))
    assert steps == [1] * 6 and [len(x) for x in seen] == [1] * 3 + [4] * 3
    assert torch.equal(seen[2], batches[0]) and torch.equal(seen[5], batches[1])
    assert batches[0].is_contiguous() and batches[0].data_ptr() != seen[2].data_ptr()


def test_the_configuration_is_plain(randomised):
    model = system("annotated", randomised)
    engine = Engine(
        model, table_of(model), batch_size=3, dtype=torch.bfloat16, device=CPU, clip=("dynamic", 0.9), form="eager"
    )
    told = engine.configuration()
    assert json.loads(json.dumps(told)) == told
    expected = dict(batch_size=3, dtype="bfloat16", form="eager", device="cpu", clip=["dynamic", 0.9], threads=1)
    assert expected.items() <= told.items() and torch.__version__ in told["versions"]
    assert Engine(model, engine.table, device=CPU).batch_size == 64
    assert Engine(Model(model.network, model.schedule, clip=0.5, image_shape=(1, 8, 8)), engine.table).clip == 0.5


BAD = [
    (dict(n=0), ["n = 0", "from 1 to"]),
    (dict(n=2.5), ["n = 2.5"]),
    (dict(n="3"), ["n = '3'"]),
    (dict(seed=-1), ["seed = -1", "from 0 to"]),
    (dict(seed=2**63), ["seed = "]),
    (dict(first=2**63 - 2), ["first = ", "from 0 to 2^63 - 3"]),
    (dict(first=-1), ["first = -1"]),
    (dict(first=3, origin=4), ["origin = 4", "from 0 to 3"]),
    (dict(table="ddim"), ["'ddim'", "StepTable"]),
    (dict(table=make_table("ddim", make_schedule("linear", 41), 3)), ["timesteps", "40", "0 to 39"]),
    (dict(context=[1.0]), ["takes no context"]),
    (dict(guidance_scale=2), ["guidance_scale = 2", "give a context"]),
    (dict(guidance_scale=float("nan")), ["guidance_scale = nan", "a number from"]),
]


@pytest.mark.parametrize("options, words", BAD)
def test_a_bad_request_is_named_at_the_call(options, words, randomised):
    model = system("annotated", randomised)
    with pytest.raises(InputError) as caught:
        Engine(model, table_of(model), device=CPU).stream(**{"n": 3, **options})  # and no batch is asked for
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(batch_size=0), ["batch_size = 0", "from 1 to"]),
        (dict(batch_size=True), ["batch_size = True"]),
        (dict(dtype=torch.float64), ["torch.float64", "torch.bfloat16"]),
        (dict(device="tpu"), ["'tpu'", "available: "]),
        (dict(clip=0), ["clip = 0"]),
        (dict(clip=("dynamic", 1.5)), ["('dynamic', 1.5)"]),
        (dict(form="egaer"), ["'egaer'", "accepted: ", "did you mean 'eager'"]),
        (dict(table="ddim"), ["table = 'ddim'", "StepTable"]),
        (
            dict(table=make_table("ddim", make_schedule("linear", 40), 3, prediction_type="sample")),
            ["'sample'", "'epsilon'"],
        ),
        (dict(table=make_table("ddim", make_schedule("linear", 40), 3, time="fraction")), ["time='index'"]),
    ],
)
def test_a_bad_engine_is_named(options, words, randomised):
    model = system("annotated", randomised)
    with pytest.raises(InputError) as caught:
        Engine(**{"model": model, "table": table_of(model), "device": CPU, **options})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def between(table, by=0.5):
    """The table with times that lie between timesteps."""
    return dataclasses.replace(table, timestep=table.timestep - by, time=table.time - by)


def test_times_between_timesteps_reach_the_network(randomised, rel):
    model = system("annotated", randomised)
    whole = table_of(model)
    options = dict(batch_size=2, device=CPU)
    engine, eager = Engine(model, whole, **options), Engine(model, whole, form="eager", **options)
    first = engine.sample(2)
    for table in (between(whole), whole, between(whole, 0.25)):  # one engine takes both kinds in turn
        assert rel(engine.sample(2, table=table), eager.sample(2, table=table)) < 1e-5
    assert torch.equal(engine.sample(2), first)
    assert rel(engine.sample(2, table=between(whole)), first) > 1e-4


def test_times_are_integers_where_all_of_a_tables_are():
    seen = []
    model = own(look=lambda x, t: seen.append(t.clone()))
    table = table_of(model, "ddim", 4)
    for one in (table, between(table)):
        Engine(model, one, batch_size=3, device=CPU, form="eager").sample(3)
    assert [t.dtype for t in seen] == [torch.int64] * 4 + [torch.float32] * 4
    assert [float(t[0]) for t in seen] == [*table.time, *(table.time - 0.5)]


def test_the_models_own_table_is_the_default(randomised):
    engine = Engine(system("annotated", randomised), device=CPU)
    assert (engine.table.sampler, len(engine.table)) == ("dpmpp_2m_sde", 25)


@pytest.mark.parametrize(
    "noise, words",
    [
        (lambda draw, first, shape: torch.zeros(shape[1:]), ["(1, 8, 8)", "(2, 1, 8, 8)"]),
        (lambda draw, first, shape: np.zeros((3, 3)), ["(3, 3)", "(2, 1, 8, 8)"]),
    ],
)
def test_bad_noise_is_named(noise, words, randomised):
    model = system("annotated", randomised)
    with pytest.raises(InputError) as caught:
        list(Engine(model, table_of(model), device=CPU).stream(2, noise=noise))
    assert all(word in str(caught.value) for word in words)


def test_a_shipped_model_at_its_own_size():
    """One batch of the real thing, cut in two."""
    model = load("sprites")
    engine = Engine(model, table_of(model, "ddim", 2), batch_size=3, device=CPU)
    assert torch.equal(torch.cat((engine.sample(1), engine.sample(2, first=1))), engine.sample(3))
