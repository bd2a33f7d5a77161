"""Engines in several threads and processes at once, and what stops one."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiff import AnnotatedUnet, ContextUnet, Engine, InputError, Model, make_schedule
from fastdiff.engine.cpu import step


def annotated(randomise, seed=0):
    network = randomise(AnnotatedUnet(8, dim_mults=(1, 2), channels=1), seed)
    return Model(network, make_schedule("linear", 40), image_shape=(1, 8, 8))


def context(randomise):
    network = randomise(ContextUnet(3, 8, 5, 16))
    return Model(network, make_schedule("course", 40), image_shape=(3, 16, 16), time="fraction")


def samples(model, size, n=6, **options):
    return Engine(model, model.table("ddpm", 6), batch_size=size, device="cpu", form="cpu").sample(n, **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_engines_of_one_and_of_several_models_run_at_once(threads, randomised, with_threads):
    one, other, third = annotated(randomised), annotated(randomised, seed=1), context(randomised)
    guided = dict(context=[1.0, 0, 0, 0, 0], guidance_scale=2.0)
    asked = [(one, 3, {}), (one, 3, dict(seed=1)), (one, 2, {}), (other, 3, {}), (third, 3, {}), (third, 3, guided)]
    with with_threads(threads):
        expected = [samples(model, size, **options) for model, size, options in asked]

        def run(k):
            torch.set_num_threads(threads)  # a thread has its own number
            model, size, options = asked[k % len(asked)]
            return torch.equal(samples(model, size, **options), expected[k % len(asked)])

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(run, range(4 * len(asked))))


def test_engines_that_were_made_before_run_at_once(randomised):
    """They share the packed weights, and nothing that is written."""
    model = annotated(randomised)
    engines = [Engine(model, model.table("ddpm", 10), batch_size=4, device="cpu") for _ in range(4)]
    expected = [engines[0].sample(8, seed=seed) for seed in range(4)]
    barrier = threading.Barrier(4)

    def run(k):
        torch.set_num_threads(1)
        barrier.wait()
        return all(torch.equal(engines[k].sample(8, seed=k), expected[k]) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


def test_while_c_runs_another_thread_goes_on(randomised, monkeypatch):
    """Python's lock is free: the other thread counts all the while, and is never held up for a whole call."""
    monkeypatch.setattr(step, "SECONDS", 0.5)
    model = annotated(randomised)
    engine = Engine(model, model.table("ddpm", 40), batch_size=400, device="cpu")
    engine.step_once()
    calls, gaps, done = [], [], threading.Event()

    def count():
        last = time.perf_counter()
        while not done.is_set():
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    other = threading.Thread(target=count)
    run = engine.steps[next(iter(engine.steps))][1]
    other.start()
    for _ in range(2):
        engine.index.zero_()
        begun = time.perf_counter()
        run(40)
        calls.append(time.perf_counter() - begun)
    done.set()
    other.join()
    assert min(calls) > 0.1 and max(gaps) < max(calls) / 2 and len(gaps) > 1000


def test_rows_stop_after_their_time(randomised, monkeypatch):
    model = annotated(randomised)
    engine = Engine(model, model.table("ddpm", 40), batch_size=64, device="cpu")
    engine.step_once()
    run = engine.steps[next(iter(engine.steps))][1]
    for seconds in (0.0, 0.02):
        monkeypatch.setattr(step, "SECONDS", seconds)
        engine.index.zero_()
        done = 0
        while done < 40:
            now = run(40 - done)
            assert now >= 1 and (now == 1 or seconds)
            done += now
            assert int(engine.index) == done


SCRIPT = """
import os, sys, threading, time
import torch
from fastdiff import AnnotatedUnet, Engine, Model, make_schedule
torch.manual_seed(0)
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
model = Model(AnnotatedUnet(8, dim_mults=(1, 2), channels=1), make_schedule("linear", 1000), image_shape=(1, 28, 28))
def engine(size, steps, form="cpu"):
    return Engine(model, model.table("ddpm", steps), batch_size=size, device="cpu", form=form)
"""


def script(rest, threads):
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    code = SCRIPT + textwrap.dedent(rest)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)


@pytest.mark.parametrize("threads, form", [(1, "cpu"), (2, "cpu"), (2, "eager")])
def test_a_process_that_was_forked_after_use_samples_the_same(threads, form):
    """torch's own threads are lost in a fork, and would be waited for; those of a plan live no longer than a call."""
    process = script(
        f"""
        one, large = engine(4, 3, "{form}"), engine(64, 3, "{form}")
        expected, more = one.sample(4), large.sample(64)
        child = os.fork()
        if not child:
            pairs = [(one.sample(4), expected), (large.sample(64), more), (engine(4, 3, "{form}").sample(4), expected)]
            worst = max(float((got - then).norm() / then.norm()) for got, then in pairs)
            os._exit(0 if worst <= {0 if form == "cpu" else 1e-4} else 3)  # torch's bits depend on its threads
        _, status = os.waitpid(child, 0)
        assert torch.equal(one.sample(4), expected)
        print("child", os.waitstatus_to_exitcode(status))
        """,
        threads,
    )
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        for pid in children.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        process.kill()
        pytest.fail("the forked process hangs")
    assert process.returncode == 0 and out.strip() == "child 0", err


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_interrupt_stops_a_long_run_within_a_second(threads):
    process = script(
        """
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
        one = engine(16, 1000)
        one.sample(16, table=model.table("ddpm", 2))
        print("begins", flush=True)
        one.sample(10**6)
        """,
        threads,
    )
    try:
        assert process.stdout.readline().strip() == "begins"
        time.sleep(0.5)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        # The interpreter's own end, with torch, takes some of it.
        assert "KeyboardInterrupt" in err and process.returncode != 0 and time.monotonic() - begun < 2.0
    finally:
        process.kill()


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_threads_share_an_engine(form, randomised):
    """One waits while another runs a batch: they would write to the same buffers."""
    model = annotated(randomised)
    engine = Engine(model, model.table("ddpm", 6), batch_size=3, device="cpu", form=form)
    other = model.table("dpmpp_2m", 5)
    asked = [dict(seed=k, table=other if k % 2 else None) for k in range(8)]
    expected = [engine.sample(4, **options) for options in asked]
    barrier = threading.Barrier(8)

    def run(k):
        torch.set_num_threads(1)
        barrier.wait()
        return all(torch.equal(engine.sample(4, **asked[k]), expected[k]) for _ in range(4))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))


def test_an_engine_cannot_be_asked_by_what_it_calls(randomised):
    model = annotated(randomised)
    engine = Engine(model, model.table("ddpm", 3), batch_size=2, device="cpu")
    with pytest.raises(InputError, match="asked for images by what it calls itself"):
        list(engine.stream(2, on_steps=lambda count: engine.sample(1)))
    assert torch.equal(engine.sample(2), samples(model, 2, 2, table=engine.table))
