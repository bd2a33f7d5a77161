"""All columns of a table through whole runs, in each form, against a loop in float64 that remembers in a list."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdiff import Engine, InputError, Model, PhiloxNoise, make_schedule
from fastdiff.engine.forms import FORMS
from fastdiff.samplers.table import HISTORY

CPU = torch.device("cpu")
HERE = [f.name for f in FORMS.values() if not f.captured and f.build_error(CPU, torch.float32) is None]
FORMS_AND_STANDIN = [*HERE, "graph"]
STEPS, SHAPE, SEED = 7, (3, 5, 7), 3


class Net(torch.nn.Module):
    """C channels to C, or to C and a variance's C."""

    n_cfeat = 2

    def __init__(self, channels, outputs):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, outputs * channels, 3, padding=1)
        self.context = torch.nn.Linear(2, channels)

    def forward(self, x, t, context=None, x_self_cond=None):
        x = x + torch.sin(0.1 * t.to(x.dtype)).view(-1, 1, 1, 1)
        if x_self_cond is not None:
            x = x - torch.tanh(2 * x_self_cond)
        if context is not None:
            x = x + self.context(context)[:, :, None, None]
        return torch.tanh(self.conv(x))


def model(outputs=1, shape=SHAPE, **more):
    torch.manual_seed(5)
    schedule = make_schedule("linear", 20)
    return Model(Net(shape[0], outputs), schedule, image_shape=shape, learned_variance=outputs == 2, **more)


def table(depth, variance=False, **more):
    """Random coefficients; with a variance there is noise, without one a share of x in what is remembered."""
    dice = np.random.default_rng(depth)
    columns = {name: dice.uniform(-0.5, 0.5, STEPS) for name in ("a", "b", "o", *HISTORY)}
    for back, name in enumerate(HISTORY, start=1):
        columns[name][: back if back <= depth else STEPS] = 0.0
    if variance:
        columns |= {"s": dice.uniform(0.1, 0.5, STEPS), "S": dice.uniform(0.5, 0.9, STEPS)}
        columns["s"][-1] = 0.0
    else:
        columns |= {"u": dice.uniform(-0.5, 0.5, STEPS), "v": dice.uniform(0.5, 1.5, STEPS)}
    columns |= {"preserves_mean": False, "preserves_variance": False, **more}
    return replace(model().table("ddim", STEPS), **columns)


def by_hand(made, steps, n, *, guidance=None, clip=None, init=None):
    """The equations at the top of samplers/table.py, in float64."""
    network, noise = made.network.double(), PhiloxNoise(SEED)
    shape, memory = (n, *made.image_shape), []
    x = noise(0, 0, shape).double() * steps.init_noise_sigma
    if init is not None:
        x = steps.alpha[0] * init.double() + steps.sigma[0] * noise(0, 0, shape).double()
    context = torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(n, -1)
    c = made.image_shape[0]
    for i, (p, q, a, b, w1, s, o, w2, w3, u, v, largest) in enumerate(steps.rows.tolist()):
        t = torch.full((n,), int(steps.time[i]))
        before = {"x_self_cond": memory[-1] if memory else 0 * x} if made.self_condition else {}
        out = network(x, t, context, **before) if guidance is not None else network(x, t, **before)
        var = out[:, c:]
        if guidance is not None:
            plain = network(x, t, torch.zeros_like(context), **before)
            out = plain + guidance * (out - plain)
        out = out[:, :c]
        x0 = p * x + q * out
        if clip is not None:
            bound = torch.quantile(x0.abs().flatten(1), clip[1], dim=1).clamp(min=1.0).view(-1, 1, 1, 1)
            x0 = x0.clamp(-bound, bound) / bound
        m = u * x + v * x0
        x = a * x + b * x0 + o * out
        for back, weight in enumerate((w1, w2, w3), start=1):
            x = x + weight * memory[-back] if weight else x
        if s:
            f = (var + 1) / 2 if steps.learned_variance else 0.0
            x = x + s ** (1 - f) * largest**f * noise(i + 1, 0, shape).double()
        memory.append(m)
    network.float()
    return x.detach()


def engine(form, made, steps, request, **options):
    if form == "graph":
        request.getfixturevalue("pool")
    return Engine(made, steps, device=CPU, form=None if form == "graph" else form, **options)


CONTEXT = torch.tensor([0.5, -1.0])


@pytest.mark.parametrize("form", FORMS_AND_STANDIN)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_each_form_is_the_equations(form, depth, variance, guidance, request, rel):
    made, steps = model(1 + variance), table(depth, variance)
    asked = {} if guidance is None else dict(context=CONTEXT, guidance_scale=guidance)
    images = engine(form, made, steps, request, batch_size=3).sample(5, seed=SEED, **asked)
    with torch.no_grad():
        assert rel(images, by_hand(made, steps, 5, guidance=guidance)) < 1e-5


@pytest.mark.parametrize("form", FORMS_AND_STANDIN)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_self_conditioning_is_the_x0_before(form, depth, guidance, request, rel):
    made, steps = model(2, self_condition=True), table(depth, True)
    asked = {} if guidance is None else dict(context=CONTEXT, guidance_scale=guidance)
    one = engine(form, made, steps, request, batch_size=3)
    images = one.sample(5, seed=SEED, **asked)
    with torch.no_grad():
        assert rel(images, by_hand(made, steps, 5, guidance=guidance)) < 1e-5
    assert torch.equal(one.sample(5, seed=SEED, **asked), images)  # nothing is left of the batch before
    without = engine(form, model(2), steps, request, batch_size=3).sample(5, seed=SEED, **asked)
    assert rel(without, images) > 1e-2


@pytest.mark.parametrize("form", FORMS_AND_STANDIN)
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_dynamic_clipping_with_a_variance(form, guidance, request, rel):
    made, steps, clip = model(2, self_condition=True), table(2, True), ("dynamic", 0.8)
    asked = {} if guidance is None else dict(context=CONTEXT, guidance_scale=guidance)
    images = engine(form, made, steps, request, batch_size=2, clip=clip).sample(3, seed=SEED, **asked)
    with torch.no_grad():
        assert rel(images, by_hand(made, steps, 3, guidance=guidance, clip=clip)) < 1e-5


@pytest.mark.parametrize("form", FORMS_AND_STANDIN)
def test_the_noise_to_begin_with_is_scaled_but_not_under_pictures(form, request, rel):
    made, steps = model(), table(1, init_noise_sigma=2.5)
    init = torch.rand(3, *SHAPE) * 2 - 1
    one = engine(form, made, steps, request, batch_size=3)
    with torch.no_grad():
        assert rel(one.sample(3, seed=SEED), by_hand(made, steps, 3)) < 1e-5
        assert rel(one.sample(3, seed=SEED, init=init), by_hand(made, steps, 3, init=init)) < 1e-5


@pytest.mark.parametrize("form", FORMS_AND_STANDIN)
def test_a_variance_that_the_sampler_does_not_ask_for_is_ignored(form, request, rel):
    """The prediction is the first half of the channels; ddim's noise, with eta, has one standard deviation."""
    made = model(2)
    first = model()
    with torch.no_grad():
        for ours, theirs in zip(first.network.conv.parameters(), made.network.conv.parameters(), strict=True):
            ours.copy_(theirs[: SHAPE[0]])
        first.network.context.load_state_dict(made.network.context.state_dict())
    steps = made.table("ddim", 4, eta=0.5)
    assert not steps.learned_variance
    images = engine(form, made, steps, request, batch_size=2).sample(3, seed=SEED)
    assert rel(images, engine(form, first, steps, request, batch_size=2).sample(3, seed=SEED)) < 1e-6


@pytest.mark.parametrize("form", FORMS_AND_STANDIN)
def test_the_ring_is_as_long_as_the_longest_table_needs(form, request):
    made, short, none, long = model(), table(1), table(0), table(3)
    one = engine(form, made, short, request, batch_size=2)

    def held():
        return one.holds()["buffers"] - sum(prediction.bytes() for prediction, _ in one.steps.values())

    before, images = held(), one.sample(3, seed=1)
    assert one.sample(3, seed=1, table=none).isfinite().all()
    assert held() == before == 3 * one.x.nbytes + one.rows.nbytes
    deep = one.sample(3, seed=1, table=long)
    assert one.history.shape == (3, *one.x.shape) and held() == before + 2 * one.x.nbytes
    assert torch.equal(one.sample(3, seed=1), images)  # by one of the three alone
    assert torch.equal(engine(form, made, long, request, batch_size=2).sample(3, seed=1), deep)


def test_one_capture_serves_tables_of_up_to_one_row_back(pool, cuda):
    one = Engine(model(2), batch_size=2, device=CPU)
    tables = [table(0), table(1), one._model.table("ddim", 3), one._model.table("dpmpp_2m", 3)]
    for steps in tables:
        one.sample(2, table=steps)
    assert cuda.captures == 1
    for steps, captures in ((table(2), 2), (table(0, True), 3), (table(1), 4)):  # the longer ring made the first stale
        one.sample(2, table=steps)
        assert cuda.captures == captures


def test_what_the_ring_held_before_does_not_show(pool):
    made, steps = model(), table(3)
    one = Engine(made, steps, batch_size=2, device=CPU)
    images = one.sample(2, seed=1)
    one.history.fill_(float("nan"))
    assert torch.equal(one.sample(2, seed=1), images)


@pytest.mark.skipif("cpu" not in HERE, reason="no C kernels here")
def test_the_bits_are_those_of_every_batch_and_number_of_threads(monkeypatch):
    made, steps = model(2, self_condition=True), table(3, True)
    expected = Engine(made, steps, batch_size=1, device=CPU, form="cpu").sample(19, seed=SEED)
    for threads, size in ((1, 7), (2, 19), (3, 2), (2, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(Engine(made, steps, batch_size=size, device=CPU, form="cpu").sample(19, seed=SEED), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_variance_in_16_bits(dtype, rel):
    made, steps = model(2, self_condition=True), table(2, True)
    images = Engine(made, steps, batch_size=2, device=CPU, dtype=dtype).sample(2, seed=SEED)
    with torch.no_grad():
        assert rel(images, by_hand(made, steps, 2)) < 3e-2


def test_a_learned_variance_is_of_models_that_have_one():
    made, steps = model(), table(1, True)
    said = r"a table of 'ddim' with a learned variance .* for a model without one; accepted: .*learned_variance=True"
    with pytest.raises(InputError, match=said):
        Engine(made, steps, device=CPU)
    with pytest.raises(InputError, match=said):
        Engine(made, device=CPU).sample(1, table=steps)


@pytest.mark.parametrize("form", HERE)
def test_a_network_without_the_second_half_is_refused(form):
    made = replace(model(), learned_variance=True)
    with pytest.raises(InputError, match=r"shape \(\d+, 3, 5, 7\); accepted with learned_variance: \(batch, 6, height"):
        Engine(made, device=CPU, form=form).sample(1)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_learned_variance_is_a_bool(value):
    with pytest.raises(InputError, match=f"learned_variance = {value!r}; accepted: True or False"):
        replace(model(), learned_variance=value)


def test_ddpm_alone_asks_for_the_variance():
    made = model(2)
    steps = made.table("ddpm")
    largest = np.sqrt(made.schedule.betas[steps.timestep.astype(int)])
    assert steps.learned_variance and np.allclose(steps.S[:-1], largest[:-1]) and steps.S[-1] == 0
    assert (steps.s <= steps.S).all() and not made.table("ddpm_large").learned_variance
    assert not replace(made, learned_variance=False).table("ddpm").learned_variance
    assert "epsilon and a variance" in repr(made)


def test_self_conditioning_is_a_bool_of_networks_that_take_it():
    class Own(torch.nn.Module):
        self_condition = True

        def forward(self, x, t, x_self_cond=None):
            return x

    class Any(torch.nn.Module):
        def forward(self, x, **named):
            return x

    schedule = make_schedule("linear", 20)
    assert Model(Own(), schedule).self_condition is True and "with self-conditioning" in repr(Model(Own(), schedule))
    assert Model(Own(), schedule, self_condition=False).self_condition is False
    assert Model(Any(), schedule).self_condition is False and Model(Any(), schedule, self_condition=True)
    wrapped = Any()
    wrapped.self_condition = True
    assert Model(wrapped, schedule).self_condition is True
    with pytest.raises(InputError, match="self_condition = 1; accepted: True or False"):
        model(self_condition=1)
    with pytest.raises(InputError, match="self_condition with a network whose forward takes input; accepted: one that"):
        Model(torch.nn.Conv2d(1, 1, 3), schedule, self_condition=True)


@pytest.mark.parametrize("columns", [{"u": 0.1}, {"v": 0.5}])
def test_self_conditioning_takes_tables_that_remember_x0(columns):
    made = model(self_condition=True)
    steps = replace(made.table("ddim", 4), **columns)
    with pytest.raises(InputError, match="a table of 'ddim', which remembers something else than x0, with self"):
        Engine(made, steps, device=CPU)


def test_a_denoised_picture_is_no_x0_before(rel):
    """A run that begins with a picture has no x0 before its first row."""
    made = model(self_condition=True)
    init = torch.rand(2, *SHAPE) * 2 - 1
    steps = made.table("ddim", 10, strength=0.5)
    images = Engine(made, steps, batch_size=2, device=CPU).sample(2, seed=SEED, init=init)
    with torch.no_grad():
        assert rel(images, by_hand(made, steps, 2, init=init)) < 1e-5


def test_the_x0_before_is_no_context():
    class Both(torch.nn.Module):
        def forward(self, x, t, x_self_cond, label):
            return x

    schedule = make_schedule("linear", 20)
    assert Model(Both(), schedule).needs_context == "label" and model(self_condition=True).needs_context is None
