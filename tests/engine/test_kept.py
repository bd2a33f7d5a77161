"""What was prepared is found again by the content of a network alone; it is bounded, and can be released."""

import collections
import functools
import gc
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import Engine, Model, make_schedule, sample
from fastdiff.engine import evaluation, kept
from fastdiff.engine.evaluation import PREPARED, Network
from fastdiff.engine.kept import KEPT, Kept
from fastdiff.engine.memory import held_bytes
from fastdiff.kernels.cpu import compiled

CPU = torch.device("cpu")


class Net(nn.Module):
    n_cfeat = 3

    def __init__(self, width=32):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width)
        self.batch, self.last = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=1)
        self.plain, self.gain = torch.linspace(0.5, 1, width).view(-1, 1, 1), 1.0

    def forward(self, x, t, context=None):
        h = self.norm(self.first(x)) * self.plain.to(x.dtype) + (t.view(-1, 1, 1, 1) / 20).to(x.dtype)
        h = h if context is None else h + context.mean(1).view(-1, 1, 1, 1).to(x.dtype)
        return self.last(self.batch(h).relu()) * self.gain


def model_of(network, size=8):
    return Model(network, make_schedule("linear", 20), image_shape=(3, size, size))


def made(seed=0):
    torch.manual_seed(seed)
    return model_of(Net())


def images(model, **options):
    """Two images; a warning, of what is not captured, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sample(model, 2, steps=3, device="cpu", **options)


@pytest.fixture
def captures(monkeypatch):
    """The calls of `capture`, in a list that grows."""
    calls = []
    right = evaluation.capture
    monkeypatch.setattr(evaluation, "capture", lambda *given: (calls.append(1), right(*given))[1])
    return calls


@pytest.fixture
def checks(monkeypatch):
    """The batches of each preparation that came to its check."""
    calls = []
    right = evaluation.evaluated
    monkeypatch.setattr(evaluation, "evaluated", lambda *given: (calls.append(len(given[1]["x"])), right(*given))[1])
    return calls


def test_an_equal_network_is_not_captured_again(captures, checks):
    model = made()
    first = images(model)
    assert (len(captures), checks) == (1, [2])
    assert torch.equal(images(model), first) and torch.equal(images(made()), first)
    assert torch.equal(Engine(model, model.table(steps=3), batch_size=2, device="cpu").sample(2), first)
    assert (len(captures), checks) == (1, [2])
    sample(model, 3, steps=3, device="cpu")  # another batch: lowered anew from the same graphs
    assert (len(captures), checks) == (1, [2, 3])


def test_a_shipped_model_by_name_is_captured_once(captures):
    first = images("sprites")
    assert torch.equal(images("sprites"), first) and len(captures) == 1


def test_engines_made_before_either_has_run_capture_once(captures):
    model = made()
    engines = [Engine(model, model.table(steps=3), batch_size=2, device="cpu") for _ in range(2)]
    assert torch.equal(*(engine.sample(2) for engine in engines)) and len(captures) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda model: images(model, context=[0.1, 0.2, 0.3]),
        lambda model: images(model_of(model.network, size=12)),
        lambda model: images(Model(model.network, model.schedule, image_shape=(3, 8, 8), time="fraction")),
        lambda model: images(model, dtype=torch.bfloat16, form="eager"),
    ],
    ids=["context", "size", "time", "dtype"],
)
def test_another_request_finds_nothing_that_does_not_fit(other, rel):
    model = made()
    alone = other(model)
    kept.release()
    images(model)
    assert torch.equal(other(model), alone)


def stepped(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(2, 3, 8, 8), torch.ones(2)).sum().backward()
    optimizer.step()


def swapped(network):
    flat = network.first.weight.data.view(-1)
    flat[[0, 1]] = flat[[1, 0]]


def without_gradient(change):
    def run(network):
        with torch.no_grad():
            change(network)

    return run


def in_inference_mode(network):
    with torch.inference_mode():
        network.first.weight.mul_(2)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


CHANGES = {
    "optimizer": stepped,
    "load_state_dict": lambda net: net.load_state_dict(made(seed=1).network.state_dict()),
    "load_state_dict, assigned": lambda net: net.load_state_dict(made(seed=1).network.state_dict(), assign=True),
    "data set": lambda net: setattr(net.first.weight, "data", torch.randn(32, 3, 3, 3)),
    "data.add_": lambda net: net.first.weight.data.add_(torch.randn(32, 3, 3, 3)),
    "no_grad": without_gradient(lambda net: net.last.weight.mul_(2)),
    "set_": without_gradient(lambda net: net.first.weight.set_(torch.randn(32, 3, 3, 3))),
    "inference_mode": in_inference_mode,
    "numpy": lambda net: net.first.weight.detach().numpy().fill(0.1),
    "two weights swapped": swapped,
    "running statistics": lambda net: net.train()(torch.randn(2, 3, 8, 8), torch.ones(2)),
    "a module's number": lambda net: setattr(net.norm, "eps", 1.0),
    "number": lambda net: setattr(net, "gain", 0.5),
    "plain tensor": lambda net: net.plain.mul_(2),
    "a module replaced": lambda net: setattr(net, "first", nn.Conv2d(3, 32, 5, padding=2)),
    "a module without weights": lambda net: setattr(net, "norm", nn.Identity()),
    "hook": lambda net: net.norm.register_forward_hook(lambda module, given, out: 2 * out),
    "forward": lambda net: setattr(net.norm, "forward", lambda x: 2 * x),
    "tied": lambda net: setattr(net.batch, "weight", nn.Parameter(net.norm.weight.data + 1)),
    "parametrization": lambda net: nn.utils.parametrize.register_parametrization(net.last, "weight", Doubled()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_network_gives_its_own_images(change, captures, rel):
    model = made()
    before = images(model)
    change(model.network)
    after = images(model)
    assert len(captures) == 2
    assert rel(after, images(model, form="eager")) < 1e-5
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_that_were_rounded_are_kept_exactly(dtype, rel):
    """What is folded is folded from the weights at the time of the copy, whatever has become of them since."""
    given = evaluation.Given(2, (3, 8, 8), None, torch.arange(1, 20), CPU, dtype)
    expected, model = (evaluation.captured(Network(made().network, CPU, dtype), given), made())
    network = Network(model.network, CPU, dtype)
    model.network.first.weight.data.zero_()
    model.network.batch.running_mean.fill_(5)
    inputs = given.example(2)
    inputs["x"] = inputs["x"].to(dtype)
    assert torch.equal(
        evaluation.evaluated(evaluation.captured(network, given), inputs), evaluation.evaluated(expected, inputs)
    )


def test_an_engine_keeps_what_it_was_made_of(captures):
    model = made()
    first = Engine(model, model.table(steps=3), batch_size=2, device="cpu")
    expected = first.sample(2)
    second = Engine(model, model.table(steps=3), batch_size=2, device="cpu")
    model.network.first.weight.data.zero_()
    with_context = second.sample(2, context=[0.0, 0.0, 0.0])
    assert torch.equal(second.sample(2), expected)
    assert torch.equal(with_context, images(made(), context=[0.0, 0.0, 0.0]))


def test_a_network_without_a_content_is_captured_each_time(captures):
    model = made()
    model.network.table = collections.defaultdict(int)  # whose factory may do anything
    first = images(model)
    assert torch.equal(images(model), first) and len(captures) == 2


class Counting(nn.Module):
    """Its second evaluation is another than its first."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x, t):
        self.count += 1
        return x * (1 + 0.1 * self.count)


def test_engines_that_run_the_networks_own_code_share_no_state():
    """Nor do they have any of the recording's."""
    model = model_of(Counting())
    with pytest.warns(UserWarning, match="cannot be captured"):
        found = [sample(model, 1, steps=3, device="cpu") for _ in range(2)]
    found.append(sample(model, 1, steps=3, device="cpu", form="eager"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and model.network.count == 0


class Reading(nn.Module):
    """A number of its images is read, with a context or without."""

    n_cfeat = 3

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x, t, context=None):
        return self.last(x) * float(x.mean())


def test_a_network_that_cannot_be_captured_is_recorded_and_warned_of_once(captures):
    model = model_of(Reading())
    with pytest.warns(UserWarning, match="a number is read from the images") as caught:
        first = sample(model, 2, steps=3, device="cpu")
    recorded = len(captures)
    for _ in range(2):
        assert torch.equal(images(model), first)  # in which a warning is an error
    engine = Engine(model, model.table(steps=3), batch_size=2, device="cpu")
    assert torch.equal(engine.sample(2), first) and (len(caught), len(captures)) == (1, recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.sample(2, context=[1.0, 0.0, 0.0], guidance_scale=2.0)  # of another kind, which is tried
    assert len(captures) > recorded
    with torch.no_grad():
        model.network.last.weight.mul_(2)
    with pytest.warns(UserWarning, match="a number is read from the images"):  # it is another network
        sample(model, 2, steps=3, device="cpu")
    fastdiff.release()
    with pytest.warns(UserWarning, match="a number is read from the images"):
        sample(model, 2, steps=3, device="cpu")


def test_an_engines_own_kinds_of_steps_warn_once():
    model = model_of(Reading())
    model.network.table = collections.defaultdict(int)  # without a content
    engine = Engine(model, model.table(steps=3), batch_size=2, device="cpu")
    with pytest.warns(UserWarning, match="a number is read from the images") as caught:
        engine.sample(2)
        engine.sample(2, context=[1.0, 0.0, 0.0])
        engine.sample(2, context=[1.0, 0.0, 0.0], guidance_scale=2.0)
    assert len(caught) == 1


def test_of_refusals_the_last_few_are_known(monkeypatch, captures):
    monkeypatch.setattr(kept, "REFUSED", 1)
    one, other = model_of(Reading()), model_of(Reading())
    for model, known in ((one, False), (one, True), (other, False), (one, False)):
        before = len(captures)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sample(model, 2, steps=3, device="cpu")
        assert (len(captures) == before) == known


def test_what_an_engine_shows_cannot_change_what_others_share():
    model = made()
    engine = Engine(model, model.table(steps=3), batch_size=2, device="cpu")
    engine.sample(2)
    shown = [value for name, value in vars(engine).items() if not name.startswith("_")]
    assert engine.table in shown and not any(isinstance(one, (nn.Module, Model, Network)) for one in shown)


def test_one_kind_of_step_that_is_not_captured_leaves_the_others_alone(captures):
    """With a context this network reads numbers, and keeps count."""

    class Mixed(Net):
        count = 0

        def forward(self, x, t, context=None):
            if context is not None:
                self.count += float(context.sum())
                return x * self.count
            return super().forward(x, t)

    model = model_of(Mixed())
    first = images(model)
    with pytest.warns(UserWarning, match="cannot be captured"):
        sample(model, 2, steps=3, context=[1.0, 1.0, 1.0], device="cpu")
    recorded = len(captures)
    network = KEPT.network(model.network, CPU, torch.float32)
    count = network.module.count
    expected = images(model, context=[1.0, 1.0, 1.0], form="eager")
    assert torch.equal(images(model, context=[1.0, 1.0, 1.0]), expected)  # by a copy of the engine's own
    assert network.module.count == count and len(captures) == recorded
    assert torch.equal(images(model), first)


def linear(width):
    """1000 bytes of weights for each number of the width."""
    layer = nn.Linear(width, 250, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


GIVEN = evaluation.Given(2, (3, 8, 8), None, torch.arange(1, 20), CPU, torch.float32)


def keep(store, width):
    network = store.network(linear(width), CPU, torch.float32)
    network.prepared(GIVEN, lambda network, given: evaluation.Parts(torch.cos, torch.cos, torch.cos))
    store.keep(network)
    return network


@pytest.mark.parametrize(
    "count, limit, widths, left",
    [
        (2, 10**6, [1, 2, 3], {2, 3}),
        (2, 10**6, [1, 2, 1, 3], {1, 3}),
        (9, 5000, [1, 2, 3], {2, 3}),
        (9, 5000, [1, 2, 6], {1, 2}),
        (9, 6000, [1, 2, 3], {1, 2, 3}),
    ],
)
def test_what_no_engine_uses_is_bounded_in_number_and_bytes(count, limit, widths, left):
    store = Kept(count, limit)
    held = {width: weakref.ref(keep(store, width)) for width in widths}
    assert {width for width, network in held.items() if network() is not None} == left
    for width, network in held.items():
        found = store.network(linear(width), CPU, torch.float32)
        assert (found is network()) == (width in left)


def test_what_an_engine_uses_is_found_however_large():
    store = Kept(1, 10)
    network = keep(store, 3)
    assert keep(store, 3) is network


def test_of_two_that_were_made_at_once_the_first_is_kept():
    store = Kept(9, 10**6)
    first, second = (store.network(linear(3), CPU, torch.float32) for _ in range(2))
    for one in (first, second):
        store.keep(one)
    assert first is not second and store.shared(second) is first
    assert store.network(linear(3), CPU, torch.float32) is first


def test_the_module_whose_weights_parts_use_is_never_run_as_code():
    """Nor that of a network which another was kept in the place of."""
    store, model = Kept(9, 10**6), made()
    first, second = (store.network(model.network, CPU, torch.float32) for _ in range(2))
    for one in (first, second):
        one.prepared(GIVEN, evaluation.captured)
        store.keep(one)
    for one in (first, second):
        own = store.own(one)
        weights = {value.data_ptr() for value in one.module.state_dict().values()}
        assert own.key is None and not weights & {value.data_ptr() for value in own.module.state_dict().values()}
    fresh = Network(model.network, CPU, torch.float32)
    assert store.own(fresh) is fresh


class Packed(nn.Module):
    """Of one convolution, whose weight is made into that of a C kernel for each batch."""

    def __init__(self):
        super().__init__()
        self.only = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x, t):
        return self.only(x)


@pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))
def test_the_bytes_are_those_of_all_that_was_prepared():
    network, made = Network(Packed(), CPU, torch.float32), []
    weights = 4 * (32 * 32 * 9 + 32)
    for batch in range(20, 21 + PREPARED):
        given = evaluation.Given(batch, (32, 8, 8), None, torch.arange(1, 20), CPU, torch.float32)
        parts = network.prepared(given, evaluation.captured)
        made.append(held_bytes(parts) - 4 * 32)  # the bias is the network's own
        assert network.bytes == weights + sum(made[-PREPARED:])
    assert made[0] >= 4 * 32 * 32 * 36  # Winograd's


def test_bytes_that_are_held():
    x, y, z = torch.zeros(1000), torch.zeros(100), torch.zeros(10)
    names = {"k0": z}
    exec("def run(): return k0", names)

    class Holds:
        x = torch.zeros(10**6)  # which all objects share

    one = Holds()
    one.y = [y, {"again": y[5:]}]
    assert held_bytes(x) == held_bytes([x, x[::2], x.view(10, 100)]) == 4000
    assert held_bytes(one) == 400 and held_bytes(functools.partial(print, x)) == 4000
    assert held_bytes(lambda: x) == held_bytes(lambda a=x: a) == held_bytes(lambda *, a=x: a) == 4000
    assert held_bytes(names["run"], one) == 440
    assert held_bytes(torch, Holds, test_bytes_that_are_held, None) == 0


def test_batches_are_bounded(checks):
    model = made()
    for n in range(1, PREPARED + 2):
        sample(model, n, steps=1, device="cpu")
    checks.clear()
    sample(model, PREPARED + 1, steps=1, device="cpu")
    assert checks == []
    sample(model, 1, steps=1, device="cpu")
    assert checks == [1]


def test_release_frees_the_weights(captures):
    model = made()
    images(model)
    weights = weakref.ref(KEPT.network(model.network, CPU, torch.float32).module.first.weight)
    gc.collect()
    assert weights() is not None
    fastdiff.release()
    gc.collect()
    assert weights() is None
    images(model)
    assert len(captures) == 2


def test_the_users_network_is_not_kept_alive():
    model = made()
    images(model)
    network, weight = weakref.ref(model.network), weakref.ref(model.network.first.weight)
    del model
    gc.collect()
    assert network() is None and weight() is None


def test_engines_in_threads_share_what_is_prepared(captures):
    model, results = made(), {}
    expected = {seed: images(model, seed=seed) for seed in range(4)}
    kept.release()
    captures.clear()
    engines = [Engine(model, model.table(steps=3), batch_size=2, device="cpu") for _ in range(4)]
    engines[0].sample(2)

    def run(seed):
        for _ in range(5):
            results.setdefault(seed, []).append(engines[seed].sample(2, seed=seed))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(captures) == 1
    for seed, value in expected.items():
        assert len(results[seed]) == 5 and all(torch.equal(one, value) for one in results[seed])


class Helper:
    def __init__(self):
        self.scale = 1.0

    def embed(self, t):
        return self.scale * t.view(-1, 1, 1, 1) / 20


HELPER, EMBEDDING = Helper(), nn.Conv2d(3, 3, 1).requires_grad_(False)


class Naming(nn.Module):
    """All that it computes with is behind names."""

    settings = Helper()

    def forward(self, x, t):
        return EMBEDDING(x) * self.settings.scale + HELPER.embed(t)


BEHIND_NAMES = {
    "a class's object": lambda: setattr(Naming.settings, "scale", 2.0),
    "an object's state": lambda: setattr(HELPER, "scale", 2.0),
    "a module's weights": lambda: EMBEDDING.weight.mul_(2),
}


@pytest.mark.parametrize("change", BEHIND_NAMES.values(), ids=BEHIND_NAMES)
def test_a_change_of_what_the_networks_code_names_shows(change, rel):
    Naming.settings.scale = HELPER.scale = 1.0
    model = model_of(Naming())
    before = images(model)
    change()
    after = images(model)
    assert rel(after, images(model, form="eager")) < 1e-5 and rel(after, before) > 1e-3
