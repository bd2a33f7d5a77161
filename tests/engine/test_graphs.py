"""Captured steps, by the stand-in for torch.cuda of tests/standin.py: what is frozen, what is data, what is kept."""

import dataclasses
import gc
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch

from fastdiff import AnnotatedUnet, ContextUnet, Engine, InputError, Model, PhiloxNoise, make_schedule, make_table
from fastdiff.engine import graphs as graphs_module
from fastdiff.engine.forms import FORMS
from fastdiff.engine.graphs import CannotCapture, CapturedStep, GraphPool
from fastdiff.kernels.denoise_step import denoise_step

CPU = torch.device("cpu")
SAMPLERS = [("ddim", 3, 0.0), ("ddim", 5, 1.0), ("ddpm", 4, 0.0), ("dpmpp_2m", 4, 0.0), ("dpmpp_2m_sde", 6, 0.0)]
CONTEXT = torch.tensor([0.0, 20, 0, 0, 5])  # large, for random weights hardly heed it


def annotated(rand) -> Model:
    network = rand(AnnotatedUnet(dim=8, dim_mults=(1, 2)))
    return Model(network, make_schedule("linear", 40), image_shape=(1, 8, 8))


def sprites(rand) -> Model:
    network = rand(ContextUnet(3, 8, 5, 16))
    return Model(network, make_schedule("course", 40), image_shape=(3, 16, 16), time="fraction")


class Own(torch.nn.Module):
    """A user's network that takes contexts of any width, or none; `look` runs in each call."""

    def __init__(self, look=lambda x, t: None):
        super().__init__()
        self.look, self.scale = look, torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t, context=None):
        self.look(x, t)
        out = self.scale * x + 0.01 * t.view(-1, 1, 1, 1)
        return out if context is None else out + context.sum(dim=1).view(-1, 1, 1, 1)


def own(look=lambda x, t: None) -> Model:
    return Model(Own(look), make_schedule("cosine", 30), image_shape=(2, 3, 5))


def tables(model: Model) -> list:
    return [
        make_table(name, model.schedule, steps, eta=eta, time=model.time, prediction_type=model.prediction_type)
        for name, steps, eta in SAMPLERS
    ]


def both(model: Model, *args, **options) -> tuple[Engine, Engine]:
    """The captured engine, and the eager one."""
    return Engine(model, *args, device=CPU, **options), Engine(model, *args, device=CPU, form="eager", **options)


# --- the stand-in itself ----------------------------------------------------------------------------------------


def replayed(make, times: int = 6) -> bool:
    """Whether replaying the body that make(x) returns does to x what running it does."""
    seen = []
    for captured in (False, True):
        x, index = torch.zeros(3), torch.zeros((), dtype=torch.int64)
        run = make(x)
        if captured:

            def body(run=run, index=index):
                run()
                index.add_(1)

            run = graphs_module.capture(body, index, CPU).replay
        x.zero_()
        for _ in range(times):
            run()
        seen.append(x.clone())
    return torch.equal(*seen)


def test_a_body_that_writes_into_its_tensors_is_replayed_rightly(cuda):
    def views_and_places(x):
        def body():
            part = x[1:].view(2)
            part.add_(1)  # seen through x
            x.copy_((x * 2).clamp(max=50) + torch.cat((part, part[:1])))

        return body

    assert replayed(views_and_places)


def test_what_a_graph_freezes_shows(cuda):
    def counts(x):
        at = [0]

        def body():
            at[0] += 1
            x.add_(at[0])

        return body

    def rebinds(x):
        state = [x]

        def body():
            state[0] = state[0] + 1
            x.copy_(state[0])

        return body

    def branches(x):
        seen = []

        def body():
            x.add_(1 if len(seen) % 2 else 2)
            seen.append(0)

        return body

    def keeps(x):
        """Reads in one step what another made in memory of the graph's."""
        kept = [torch.ones(3)]

        def body():
            before, kept[0] = kept[0], x + 1
            x.copy_(before)

        return body

    for make in (counts, rebinds, branches, keeps):
        assert not replayed(make), make.__name__


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[0].item(),
        lambda x: bool(x.any()),
        lambda x: float(x.mean()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: torch.allclose(x, x),
        lambda x: f"{x[0]:.2f}",
        lambda x: x[torch.zeros((), dtype=torch.int64)],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x + torch.from_numpy(np.ones(3)),
        lambda x: x + torch.as_tensor(np.ones(3)),
        lambda x: x.__setitem__(x > 0, 1.0),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_what_no_graph_can_hold_is_named_before_the_capture(look, cuda):
    x, index = torch.ones(3), torch.zeros((), dtype=torch.int64)
    began = []
    cuda.begin_capture = began.append
    with pytest.raises(CannotCapture, match="^aten.* which a graph cannot hold"):
        graphs_module.capture(lambda: look(x), index, CPU)
    assert not began


def test_data_of_the_host_is_refused_and_a_number_is_not():
    """With the meta device as the device."""
    meta = torch.device("meta")
    x, number, data = torch.ones(3, device=meta), torch.tensor(2.0), torch.tensor([0, 1])
    with graphs_module._Capturable(meta):
        assert (x * number + 1).device == meta and int(number) == 2 and data[data > 0].tolist() == [1]
        for look in (lambda: data.to(meta), lambda: x.copy_(number), lambda: x[data], lambda: number.to(meta)):
            with pytest.raises(CannotCapture, match="copies data between host and device"):
                look()


@pytest.mark.parametrize(
    "look",
    [lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: np.asarray(x), lambda x: torch.randn(3)],
)
def test_what_torch_tells_nothing_of_on_a_cpu_is_refused_by_the_stand_in(look, cuda, standin):
    x = torch.ones(3)
    with pytest.raises(standin.NotInAGraph):
        graphs_module.capture(lambda: look(x), torch.zeros((), dtype=torch.int64), CPU)


# --- one capture --------------------------------------------------------------------------------------------------

ONE, TWO = (torch.device("cuda", k) for k in range(2))


def step_and_index(look=lambda: None):
    """A step on a tensor of its own: (the tensor, the body, its index)."""
    x, index = torch.zeros(2), torch.zeros((), dtype=torch.int64)

    def body():
        look()
        x.add_(1)
        index.add_(1)

    return x, body, index


def test_each_device_captures_on_a_stream_of_its_own(cuda):
    """torch's default is one stream for all: what the second device launches would not be captured."""
    before = cuda.current
    for device in (ONE, TWO, ONE):
        cuda.home = device
        x, body, index = step_and_index()
        replay = graphs_module.capture(body, index, device).replay
        x.zero_()
        replay(), replay()
        assert x.tolist() == [2, 2] and int(index) == 2
    assert cuda.capture_stream is None and cuda.current == before
    assert graphs_module._stream.cache_info().currsize == 2  # as many streams as devices


def test_a_graph_that_recorded_nothing_is_a_failure_and_the_step_runs_eagerly(cuda):
    cuda.home = TWO  # while the engine's device is another
    x, body, index = step_and_index()
    step = CapturedStep(body, index, ONE, GraphPool())
    with pytest.warns(UserWarning, match="could not be captured .* runs eagerly: the graph is empty") as caught:
        step.ready()
        step.ready()
    x.zero_()
    step(), step()
    assert len(caught) == 1 and x.tolist() == [2, 2] and step.bytes() == 0 and not step.pool.held


def test_what_was_current_is_current_again_after_a_capture_that_failed(cuda):
    before = cuda.current
    _, body, index = step_and_index(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        graphs_module.capture(body, index, CPU)
    assert cuda.current == before


@pytest.mark.parametrize("look", [lambda: torch.ones(1).numpy(), lambda: 1 / 0])
def test_after_a_capture_that_failed_the_next_one_succeeds(cuda, look):
    """One that CUDA ended, and one that ended well before an error was raised."""
    _, body, index = step_and_index(lambda: look() if cuda.captures_under_way else None)
    failed = CapturedStep(body, index, CPU, GraphPool())
    with pytest.warns(UserWarning, match="could not be captured"):
        failed.ready()
    assert not cuda.allocating
    x, body, index = step_and_index()
    step = CapturedStep(body, index, CPU, GraphPool())
    step.ready()
    x.zero_()
    step()
    assert x.tolist() == [1, 1] and cuda.captures == 1


def test_a_warning_turned_into_an_error_leaves_the_step_eager(cuda):
    cuda.home = TWO
    x, body, index = step_and_index()
    step = CapturedStep(body, index, ONE, GraphPool())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="could not be captured"):
            step.ready()
        step.ready()
    x.zero_()
    step()
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("slower, used", [(0.1, True), (1.0, True), (1.5, False)])
def test_a_replay_is_used_unless_it_is_slower(cuda, slower, used):
    cuda.slower = slower
    _, body, index = step_and_index()
    step = CapturedStep(body, index, CPU, GraphPool())
    step.ready()
    before = cuda.replays
    step()
    assert cuda.replays - before == used and bool(step.pool.held) == used
    verb = "is used" if used else "is slower and not used"
    assert step.status == f"capture {verb}: {slower:.3f} ms a step replayed, 1.000 ms launched"
    gc.collect()
    assert used or cuda.reserved == 0  # what is not used is given back


# --- several threads and engines ------------------------------------------------------------------------------------


def in_thread(call):
    """Start call() in a thread; returns what waits for its result."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()

    def wait():
        thread.join(60)
        assert not thread.is_alive() and result, "the thread waits for ever, or raised an error"
        return result[0]

    return wait


def test_captures_of_two_threads_wait_for_each_other(pool, cuda):
    """The second engine begins to sample while the first one captures, and replays go on meanwhile."""
    capturing, go_on = threading.Event(), threading.Event()

    def look(x, t):
        if cuda.captures_under_way and not capturing.is_set():
            capturing.set()
            assert go_on.wait(30)

    replaying = own()
    ready = Engine(replaying, tables(replaying)[1], batch_size=2, device=CPU)
    expected = ready.sample(3)
    models = [own(look), own()]
    engines = [both(model, tables(model)[1], batch_size=2) for model in models]
    first = in_thread(lambda: engines[0][0].sample(3))
    assert capturing.wait(30)
    second = in_thread(lambda: engines[1][0].sample(3))
    assert torch.equal(ready.sample(3), expected)  # which captures nothing, and so waits for nothing
    assert cuda.captures == 1
    go_on.set()
    images = [first(), second()]
    assert cuda.captures == 3 and len(pool.held) == 3
    for (_, eager), made in zip(engines, images, strict=True):
        assert torch.equal(made, eager.sample(3))


def test_an_engine_dropped_during_a_capture_is_released_after_it(pool, cuda):
    dropped = [Engine(own(), tables(own())[0], batch_size=2, device=CPU)]
    dropped[0].sample(1)
    held = cuda.reserved
    seen = []

    def look(x, t):
        if cuda.captures_under_way and dropped:
            del dropped[:]
            gc.collect()
            seen.append((len(pool.held), cuda.reserved))

    model = own(look)
    captured, eager = both(model, tables(model)[0], batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a capture that was ended would warn
        assert torch.equal(captured.sample(3), eager.sample(3))
    assert seen == [(1, held)] and len(pool.held) == 1 and cuda.captures == 2
    assert cuda.reserved == pool.bytes()


def test_a_network_that_samples_by_another_engine_runs_eagerly(pool):
    inner = Engine(own(), tables(own())[0], batch_size=2, device=CPU)
    model = own(lambda x, t: inner.sample(1))
    captured, eager = both(model, tables(model)[0], batch_size=2)
    with pytest.warns(UserWarning, match="could not be captured"):
        assert torch.equal(captured.sample(2), eager.sample(2))


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_two_engines_in_two_threads_give_the_bits_of_one_after_the_other(form, randomised):
    if form == "cpu" and FORMS["cpu"].build_error(CPU, torch.float32):
        pytest.skip("no C compiler")
    models = [annotated(randomised), sprites(randomised)]
    engines = [Engine(model, tables(model)[4], batch_size=3, device=CPU, form=form) for model in models]
    expected = [engine.sample(20, seed=1) for engine in engines]
    for _ in range(3):
        waits = [in_thread(lambda engine=engine: engine.sample(20, seed=1)) for engine in engines]
        for wait, alone in zip(waits, expected, strict=True):
            assert torch.equal(wait(), alone)


# --- the engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [False, 0.5, ("dynamic", 0.9)])
def test_sampler_steps_seed_and_first_are_data_of_one_capture(clip, pool, randomised, cuda):
    model = annotated(randomised)
    made = tables(model)
    captured, eager = both(model, made[0], batch_size=3, clip=clip)
    seen = []
    for k, table in enumerate([*made, made[1]]):
        request = dict(n=4, seed=2**40 * k + 1, first=5 * k, table=table)
        seen.append(captured.sample(**request))
        assert torch.equal(seen[-1], eager.sample(**request)), table.sampler
    assert cuda.captures == 1 and cuda.replays >= 2 * sum(map(len, made))
    assert len({float(images.double().sum()) for images in seen}) == len(seen)  # they do differ
    assert "is used" in next(iter(captured.steps.values()))[1].status


def test_guidance_and_contexts_are_data_of_two_captures(pool, randomised, cuda):
    model = sprites(randomised)
    made = tables(model)
    captured, eager = both(model, made[0], batch_size=2)
    each = torch.randn(3, 5) * 10
    seen = []
    for table in (made[0], made[4]):
        for context in (CONTEXT, each, lambda first, n: torch.arange(first, first + n)[:, None] * torch.ones(5)):
            for scale in (None, 1, 2.5, -1.0):
                request = dict(n=3, first=1, context=context, guidance_scale=scale, table=table)
                seen.append(captured.sample(**request))
                assert torch.equal(seen[-1], eager.sample(**request))
    assert cuda.captures == 2  # guided and not
    assert len({float(images.double().sum()) for images in seen}) == 2 * 3 * 3  # None and 1 are the same
    assert torch.equal(captured.sample(3), eager.sample(3))
    assert cuda.captures == 3  # and without a context


def test_contexts_of_another_width_are_not_read_where_the_first_lay(pool):
    model = own()
    captured, eager = both(model, tables(model)[0], batch_size=2)
    for width in (2, 3, 2):
        context = torch.arange(1.0, width + 1)
        assert torch.equal(captured.sample(2, context=context), eager.sample(2, context=context))


@pytest.mark.parametrize("noise", [PhiloxNoise(3), lambda draw, first, shape: np.full(shape, draw + first * 0.5)])
def test_a_noise_source_is_read_before_each_replay(noise, pool, randomised, cuda):
    model = annotated(randomised)
    captured, eager = both(model, tables(model)[0], batch_size=2)
    for table in tables(model):
        ours, theirs = (torch.cat(list(e.stream(3, first=1, table=table, noise=noise))) for e in (captured, eager))
        assert torch.equal(ours, theirs)
    assert cuda.captures == 1


def test_between_replays_nothing_is_launched_allocated_or_read(pool, randomised, cuda):
    """Nothing but replays from the first to the last of a batch, so no synchronisation either."""
    for model, request in ((annotated(randomised), {}), (sprites(randomised), dict(context=CONTEXT, guidance_scale=3))):
        table = tables(model)[4]
        engine = Engine(model, table, batch_size=2, device=CPU, clip=("dynamic", 0.99))
        engine.sample(1, **request)
        with cuda.watched() as observer:
            engine.sample(6, **request)
        at = [k for k, name in enumerate(observer.seen) if name == "replay"]
        assert len(at) == 3 * len(table)
        gaps = [b - a - 1 for a, b in zip(at, at[1:], strict=False)]
        between_batches = [gap for gap in gaps if gap]
        assert len(between_batches) == 2 and max(between_batches) < 400  # and a batch's preparation is a few operations
        assert "normal_" not in observer.seen


def test_a_network_that_reads_the_device_runs_eagerly_and_one_warning_says_why(pool, cuda):
    model = own(lambda x, t: float(x.mean()))
    made = tables(model)
    captured, eager = both(model, made[0], batch_size=2)
    with pytest.warns(UserWarning, match="could not be captured .* runs eagerly: .*_local_scalar_dense") as caught:
        ours = [captured.sample(5, seed=k, table=table) for k, table in enumerate(made)]
    assert [one.filename for one in caught] == [__file__]  # the caller's line
    assert cuda.captures == 0 and pool.bytes() == 0
    for k, table in enumerate(made):
        assert torch.equal(ours[k], eager.sample(5, seed=k, table=table))
    assert "_local_scalar_dense" in next(iter(captured.steps.values()))[1].status


def test_the_least_recently_used_graphs_go_first_and_come_back(pool, randomised, cuda):
    models = [annotated(randomised), sprites(randomised), own()]
    engines = [both(model, tables(model)[1], batch_size=2) for model in models]
    expected = [eager.sample(3) for _, eager in engines]

    def runs(k: int) -> int:
        """Captures that engine k's sampling takes."""
        before = cuda.captures
        assert torch.equal(engines[k][0].sample(3), expected[k])
        return cuda.captures - before

    assert [runs(k) for k in (0, 1, 2, 0, 1, 2)] == [1, 1, 1, 0, 0, 0]
    sizes = [graph.bytes for graph in pool.held.values()]
    assert pool.bytes() == sum(sizes) and min(sizes) > 0
    pool.limit = sum(sizes) - 1  # not all three together
    assert [runs(k) for k in (2, 0)] == [0, 0]  # nothing is dropped before something is added
    model = models[2]
    extra = Engine(model, tables(model)[0], batch_size=2, device=CPU)
    extra.sample(1)  # engine 1 has waited longest
    assert pool.bytes() <= pool.limit and [runs(k) for k in (0, 2, 1)] == [0, 0, 1]
    pool.limit = 1
    assert [runs(k) for k in (0, 1, 0, 1)].count(1) >= 3 and len(pool.held) == 1


def test_a_cap_below_one_engines_graphs_still_samples_rightly(pool, randomised):
    pool.limit = 1
    model = annotated(randomised)
    table = make_table("ddpm", model.schedule, 7)
    expected = Engine(model, table, batch_size=2, device=CPU, form="eager").sample(4)
    engine = Engine(model, table, batch_size=2, device=CPU)
    assert torch.equal(engine.sample(4), expected) and len(pool.held) == 1


def test_a_dropped_engine_frees_its_graphs(pool, randomised, cuda):
    model = annotated(randomised)
    kept, dropped = (Engine(model, tables(model)[0], batch_size=2, device=CPU) for _ in range(2))
    kept.sample(1)
    size = pool.bytes()
    dropped.sample(1)
    assert pool.bytes() == cuda.reserved == 2 * size and len(pool.held) == 2
    x = weakref.ref(dropped.x)
    gc.disable()  # at once: memory of a device does not wait for the collector
    try:
        del dropped
        assert pool.bytes() == cuda.reserved == size and len(pool.held) == 1 and x() is None
    finally:
        gc.enable()
    del kept
    assert not pool.held


def test_a_table_longer_than_the_schedule_takes_a_new_capture(pool, randomised, cuda):
    """A table may come back to a node; the buffers then grow, and what was captured no longer reads them."""
    model = annotated(randomised)
    short = tables(model)[2]
    captured, eager = both(model, short, batch_size=2)
    captured.sample(1)
    columns = [f.name for f in dataclasses.fields(short) if isinstance(getattr(short, f.name), np.ndarray)]
    long = dataclasses.replace(short, **{name: np.tile(getattr(short, name), 11) for name in columns})
    assert len(long) > model.schedule.num_timesteps
    for table in (long, short):
        assert torch.equal(captured.sample(3, table=table), eager.sample(3, table=table))
    assert cuda.captures == 2 and len(pool.held) == 1


def test_out_of_memory_while_capturing_halves_the_batch(pool, monkeypatch, randomised):
    model = annotated(randomised)
    captured, eager = both(model, tables(model)[2], batch_size=4)
    capture, asked = graphs_module.capture, []

    def full(*given):
        asked.append(captured.batch_size)
        if captured.batch_size > 2:
            raise torch.OutOfMemoryError("out of memory")
        return capture(*given)

    monkeypatch.setattr(graphs_module, "capture", full)
    with pytest.warns(UserWarning, match="a batch of 4 did not fit in memory; batches of 2"):
        images = captured.sample(5)
    assert asked == [4, 2]
    torch.testing.assert_close(images, eager.sample(5), atol=1e-5, rtol=0)


def test_cuda_graphs_need_a_cuda_device():
    model = own()
    with pytest.raises(InputError, match="form = 'cuda' cannot be used here: .* need a CUDA device, this is cpu"):
        Engine(model, tables(model)[0], device=CPU, form="cuda")


def test_one_kernel_call_per_step_is_all_that_changes_x(cuda):
    """The kernel's arguments that a capture must not freeze: row, key and scale are read at replay."""
    x, out = torch.randn(2, 1, 4, 4), torch.randn(4, 1, 4, 4)
    rows, index = torch.randn(3, 12), torch.zeros((), dtype=torch.int64)
    key, scale = torch.tensor([1, 0]), torch.ones(())
    start = x.clone()

    row = torch.zeros((), dtype=torch.int64)

    def body():
        denoise_step(x, out, rows, row, key=key, guidance_scale=scale)
        index.add_(1)

    replay = graphs_module.capture(body, index, CPU).replay
    for at, seed, g in ((0, 1, 1.0), (2, 1, 1.0), (2, 2**50, 1.0), (2, 2**50, 4.0)):
        row.fill_(at), key[0].fill_(seed), scale.fill_(g), x.copy_(start)
        replay()
        expected = start.clone()
        denoise_step(expected, out, rows, row, key=key, guidance_scale=scale)
        assert torch.equal(x, expected)
