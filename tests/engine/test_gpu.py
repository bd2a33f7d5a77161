"""On a CUDA device: the same noise, the same images as on the CPU, captured steps. `make gpu` runs these."""

import threading
import warnings
from contextlib import contextmanager

import pytest
import torch

from fastdiff import Engine, Model, PhiloxNoise, load, make_schedule, make_table, sample
from fastdiff.engine import graphs
from fastdiff.kernels import philox
from fastdiff.kernels.denoise_step import denoise_step, denoise_step_reference
from fastdiff.kernels.dispatch import use_triton
from fastdiff.networks.lucidrains import LucidrainsUnet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")

# Of the root of the mean square of two runs' differences, over images in [-1, 1]; single pixels may be 20 times as far
# apart, for a network amplifies the last bits of some images. A wrong seed, scale or context shows as 0.4 and more, 24
# steps of DDIM in place of 25 as 2e-3.
# Two implementations of float32 (native and eager on a CPU, 64 images, 25 steps): up to 9e-6.
FLOAT32 = 1e-4
# The same kernels, the last bit of the noise apart (eager on a CPU, the requests of
# test_captured_steps_are_the_eager_ones): up to 4.4e-6, 1.2e-2 and 6.5e-3.
ONE_BIT = {torch.float32: 5e-5, torch.bfloat16: 6e-2, torch.float16: 6e-2}


def rms(images, others) -> float:
    return float((images - others).double().square().mean().sqrt())


@contextmanager
def no_sync():
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this mode a prototype once in a process
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_integers_are_equal_and_the_normals_within_2e_6():
    seed, first = (5 << 33) + 3, (1 << 32) - 2
    for ours, theirs in zip(
        philox.words(seed, 3, first, 5, 1001, CUDA), philox.words(seed, 3, first, 5, 1001, CPU), strict=True
    ):
        assert torch.equal(ours.cpu(), theirs)
    difference = PhiloxNoise(1, CUDA)(2, 3, (64, 3, 32, 32)).cpu() - PhiloxNoise(1)(2, 3, (64, 3, 32, 32))
    assert float(difference.abs().max()) < 2e-6


@pytest.mark.parametrize(
    "name, sampler", [("fashion-mnist", "ddim"), ("fashion-mnist", "ddpm"), ("sprites", "dpmpp_2m_sde")]
)
def test_images_agree_with_the_cpu(name, sampler):
    model = load(name)
    there, here = (sample(model, 8, sampler, steps=25, seed=1, device=device) for device in (CUDA, CPU))
    assert rms(there, here) < FLOAT32


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_3m"])
def test_the_x0_before_is_the_networks_on_both(sampler, randomised):
    """Self-conditioning: the ring has one place, or three in turn."""
    network = randomised(LucidrainsUnet(16, dim_mults=(1, 2), self_condition=True))
    model = Model(network, make_schedule("linear", 100), image_shape=(3, 16, 16), clip=1.0)
    there, here = (sample(model, 8, sampler, steps=12, seed=1, device=device) for device in (CUDA, CPU))
    assert rms(there, here) < FLOAT32


def test_a_sample_does_not_depend_on_its_batch():
    model = load("fashion-mnist")
    whole = sample(model, 64, "ddpm", steps=25, device=CUDA)
    assert rms(sample(model, 1, "ddpm", steps=25, first=7, device=CUDA)[0], whole[7]) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_is_finite(dtype):
    assert torch.isfinite(sample(load("fashion-mnist"), 16, "ddpm", steps=200, dtype=dtype, device=CUDA)).all()


def test_kernels_are_what_runs_here():
    assert use_triton(torch.zeros(1, device=CUDA))


def test_a_captured_step_obeys_what_lies_in_device_memory():
    """One graph: seed, table, row index and guidance scale change between replays, and the host reads none of them."""
    shape, steps = (3, 3, 8, 8), 4
    x, ring = torch.empty(shape, device=CUDA), torch.empty(3, *shape, device=CUDA)
    variance = torch.empty(shape, device=CUDA)
    out = torch.empty(6, *shape[1:], device=CUDA, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    rows, index = torch.zeros(steps, 12, device=CUDA), torch.zeros((), dtype=torch.int64, device=CUDA)
    key, scale = torch.zeros(2, dtype=torch.int64, device=CUDA), torch.ones((), device=CUDA)

    def body():
        denoise_step(x, out, rows, index, ring, key=key, clip=1.5, guidance_scale=scale, variance=variance)
        index.add_(1)

    body()  # compiles
    graph = torch.cuda.CUDAGraph()
    with no_sync(), torch.cuda.graph(graph):
        body()
    for seed in (1, 2**40 + 3):
        table = torch.randn(steps, 12) * 0.5
        for back, column in ((1, 4), (2, 7), (3, 8)):
            table[:back, column] = 0.0
        table[:, [5, 11]] = torch.rand(steps, 2) + 0.1  # s and S
        start, prediction, chosen = torch.randn(shape), torch.randn(out.shape).bfloat16(), torch.rand(shape) * 2 - 1
        x.copy_(start), variance.copy_(chosen)
        ring.fill_(float("nan"))  # the first rows must not read it
        out.copy_(prediction), rows.copy_(table), index.zero_(), scale.fill_(1.5 + seed % 5)
        key.copy_(torch.tensor([seed, 7]))
        for _ in range(steps):
            graph.replay()
        expected, kept = start, torch.full((3, *shape), float("nan"))
        for i in range(steps):
            expected, kept[i % 3] = denoise_step_reference(
                expected,
                prediction,
                table,
                torch.tensor(i),
                kept.clone(),
                key=torch.tensor([seed, 7]),
                clip=1.5,
                guidance_scale=scale.cpu(),
                variance=chosen,
            )
        torch.testing.assert_close(x.cpu(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ring.cpu(), kept, atol=1e-4, rtol=1e-4)


# --- the engine's graphs; test_graphs.py has the same by a stand-in --------------------------------------------


@pytest.fixture
def captures(monkeypatch):
    """The captures made, as a list; the pool is empty and the test's own."""
    made, capture = [], graphs.capture

    def counted(*given):
        graph = capture(*given)
        made.append(graph.bytes)
        return graph

    monkeypatch.setattr(graphs, "capture", counted)
    monkeypatch.setattr(graphs, "POOL", graphs.GraphPool())
    return made


@contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def table_of(model, name="ddim", steps=25, **options):
    return make_table(name, model.schedule, steps, prediction_type=model.prediction_type, time=model.time, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["fashion-mnist", "sprites"])
def test_captured_steps_are_the_eager_ones(name, dtype, captures):
    """One capture for every sampler, number of steps, seed and first; one more with guidance."""
    model = load(name)
    made = [table_of(model, *t) for t in (("ddim", 25), ("ddpm", 10), ("dpmpp_2m", 7), ("dpmpp_2m_sde", 12))]
    graph, eager = (
        Engine(model, made[0], batch_size=8, dtype=dtype, device=CUDA, form=form) for form in ("cuda", "eager")
    )
    requests = [dict(n=11, seed=2**40 + k, first=3 * k, table=table) for k, table in enumerate(made)]
    if name == "sprites":
        context = torch.randn(11, 5)
        requests = [dict(r, context=context, guidance_scale=g) for r in requests for g in (None, 2.0, 3.5)]
    # Adding no noise and adding noise times 0 are two kernels, and may differ in the last bit.
    for request in requests:
        assert rms(graph.sample(**request), eager.sample(**request)) < ONE_BIT[dtype]
    assert len(captures) == (2 if name == "sprites" else 1)
    assert all(run.status.startswith("capture is used") for _, run in graph.steps.values())


@pytest.mark.parametrize("form", ["cuda", "eager"])
@pytest.mark.parametrize("clip", [False, ("dynamic", 0.99)])
def test_nothing_synchronises_in_the_loop(form, clip):
    model = load("sprites")
    engine = Engine(
        model, table_of(model, "ddpm"), batch_size=16, dtype=torch.bfloat16, device=CUDA, clip=clip, form=form
    )
    engine.sample(16, context={"monster": 1}, guidance_scale=2.0)
    ((_, run),) = engine.steps.values()
    engine.index.zero_()
    with engine._settings(), no_sync():
        for _ in range(25):
            run()
    assert int(engine.index) == 25


def test_noise_from_outside_is_read_before_each_replay(captures):
    model = load("fashion-mnist")
    table = table_of(model, "ddpm", 27)
    expected = Engine(model, table, batch_size=8, device=CUDA, form="eager").sample(10, seed=3)
    engine = Engine(model, table, batch_size=8, device=CUDA, form="cuda")
    assert rms(torch.cat(list(engine.stream(10, noise=PhiloxNoise(3)))), expected) < FLOAT32
    assert rms(engine.sample(10, seed=3), expected) < FLOAT32 and len(captures) == 2


@pytest.mark.parametrize("form", ["cuda", "eager"])
def test_a_request_does_not_change_a_bit(form):
    model = load("sprites")
    engine = Engine(model, table_of(model, "ddpm", 10), batch_size=16, dtype=torch.bfloat16, device=CUDA, form=form)
    context = torch.randn(40, 5)
    whole = engine.sample(40, first=5, context=context, guidance_scale=2.0)
    parts = [
        engine.sample(b - a, first=5 + a, context=context[a:b], guidance_scale=2.0)
        for a, b in ((0, 1), (1, 14), (14, 40))
    ]
    assert torch.equal(torch.cat(parts), whole)
    again = Engine(model, engine.table, batch_size=16, dtype=torch.bfloat16, device=CUDA, form=form)
    assert torch.equal(again.sample(40, first=5, context=context, guidance_scale=2.0), whole)


@pytest.mark.parametrize("name", ["fashion-mnist", "sprites"])
def test_graphs_agree_with_the_cpu(name):
    model = load(name)
    there, here = (
        Engine(model, table_of(model), batch_size=8, device=device).sample(8, seed=1) for device in (CUDA, CPU)
    )
    assert rms(there, here) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_full_run_in_16_bits_is_finite(dtype):
    shipped = load("fashion-mnist")
    model = Model(shipped.network, make_schedule("linear", 1000))
    images = Engine(model, table_of(model, "ddpm", 1000), batch_size=16, dtype=dtype, device=CUDA).sample(16)
    assert torch.isfinite(images).all()


def test_graphs_are_dropped_and_made_again(captures):
    models = [load("fashion-mnist"), load("sprites")]
    engines = [Engine(model, table_of(model), batch_size=2, device=CUDA, form="cuda") for model in models]
    expected = [engine.sample(5) for engine in engines]
    assert len(captures) == len(graphs.POOL.held) == 2 and graphs.POOL.bytes() > 0
    for k in (0, 1, 0):
        graphs.POOL.forget(next(iter(graphs.POOL.held)))
        assert torch.equal(engines[k].sample(5), expected[k])
    for owner in list(graphs.POOL.held):
        graphs.POOL.forget(owner)
    assert torch.equal(engines[0].sample(5), expected[0]) and len(graphs.POOL.held) == 1
    del engines
    assert not graphs.POOL.held


class _Reads(torch.nn.Module):
    def forward(self, x, t):
        return x * float(x.abs().max().clamp(max=1)) * 0.1


def test_a_network_that_reads_the_device_runs_eagerly_and_harms_nothing(captures):
    model = Model(_Reads(), make_schedule("linear", 50), image_shape=(1, 8, 8))
    stream = torch.cuda.current_stream()
    engine = Engine(model, table_of(model, "ddpm", 10), batch_size=4, device=CUDA, form="cuda")
    with pytest.warns(UserWarning, match="could not be captured .* runs eagerly: aten._local_scalar_dense") as caught:
        images = engine.sample(6)
    assert len(caught) == 1 and not captures and torch.cuda.current_stream() == stream
    expected = Engine(model, engine.table, batch_size=4, device=CPU).sample(6)
    assert rms(images, expected) < FLOAT32
    with no_warnings():  # and the next engine captures
        shipped = load("fashion-mnist")
        assert torch.isfinite(
            Engine(shipped, table_of(shipped), batch_size=4, device=CUDA, form="cuda").sample(4)
        ).all()
    assert len(captures) == 1


class _Synchronises(torch.nn.Module):
    """What no operation tells of, so that the capture itself fails."""

    def forward(self, x, t):
        torch.cuda.current_stream().synchronize()
        return 0.1 * x


def test_a_capture_that_fails_leaves_stream_device_and_the_next_capture_alone(captures):
    model = Model(_Synchronises(), make_schedule("linear", 50), image_shape=(1, 8, 8))
    before = torch.cuda.current_stream(), torch.cuda.current_device()
    engine = Engine(model, table_of(model, "ddpm", 10), batch_size=4, device=CUDA, form="cuda")
    with pytest.warns(UserWarning, match="could not be captured"):
        images = engine.sample(6)
    assert before == (torch.cuda.current_stream(), torch.cuda.current_device()) and not captures
    assert rms(images, Engine(model, engine.table, batch_size=4, device=CPU).sample(6)) < FLOAT32
    shipped = load("fashion-mnist")
    with no_warnings():
        Engine(shipped, table_of(shipped), batch_size=4, device=CUDA, form="cuda").sample(4)
    assert len(captures) == 1


def test_sampling_warns_of_nothing_and_leaves_torchs_settings_alone():
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places], torch.backends.cudnn.deterministic
    model = load("sprites")
    for form in ("cuda", "eager"):
        with no_warnings():
            engine = Engine(model, table_of(model, "ddpm"), batch_size=4, dtype=torch.bfloat16, device=CUDA, form=form)
            engine.sample(5, context={"item": 1}, guidance_scale=2.0)
        told = engine.configuration()
        assert told["cudnn"] == torch.backends.cudnn.version() and "deterministic" in told["cudnn_algorithms"]
    assert before == ([place.fp32_precision for place in places], torch.backends.cudnn.deterministic)
    assert torch.cuda.get_sync_debug_mode() == 0


def test_engines_in_two_threads_capture_and_give_the_bits_of_one_after_the_other(captures):
    models = [load("fashion-mnist"), load("sprites")]

    def images(model):
        return Engine(model, table_of(model, "ddpm", 20), batch_size=8, device=CUDA, form="cuda").sample(20, seed=1)

    expected, found = [images(model) for model in models], {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: images(models[k])})) for k in (0, 1)]
    with no_warnings():
        [thread.start() for thread in threads]
        [thread.join(200) for thread in threads]
    assert len(captures) == 4 and all(torch.equal(found[k], expected[k]) for k in (0, 1))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_second_device_of_the_process_captures_too(captures):
    model = load("fashion-mnist")
    one, two = (Engine(model, table_of(model), batch_size=8, device=f"cuda:{k}", form="cuda") for k in (0, 1))
    assert (one.device.index, two.device.index) == (0, 1)
    assert torch.equal(one.sample(8), two.sample(8)) and len(captures) == 2


def test_a_device_comes_with_its_index_and_images_leave_pinned_memory():
    model = load("sprites")
    engine = Engine(model, table_of(model), batch_size=4, device="cuda")
    assert engine.device == torch.device("cuda", torch.cuda.current_device())
    first, second = engine.stream(7)
    assert first.shape[0] == 4 and second.shape[0] == 3 and not first.is_pinned()
    assert first.data_ptr() != second.data_ptr() and engine.landing.is_pinned()
    assert torch.equal(torch.cat((first, second)), engine.sample(7))


def test_kernels_are_compiled_when_an_engine_is_made(captures, monkeypatch):
    """So that the first batch, whatever asks for it, finds nearly all of them: a guided step adds its own update."""
    from triton import knobs

    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **told: compiled.append(told["fn"].name))
    shipped = load("fashion-mnist")
    model = Model(shipped.network, shipped.schedule, image_shape=(1, 36, 36))  # a size of no other test
    engine = Engine(model, table_of(model), batch_size=8, dtype=torch.bfloat16, device=CUDA)
    made = len(compiled)
    engine.sample(8)
    assert made > 5 and len(compiled) == made
