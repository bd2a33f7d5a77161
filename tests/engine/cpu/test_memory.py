"""Engines leave no memory behind."""

import gc
import os
from pathlib import Path

import pytest
import torch

from fastdiff import AnnotatedUnet, Engine, Model, make_schedule
from fastdiff.engine.kept import release

STATM = Path("/proc/self/statm")
needs_proc = pytest.mark.skipif(not STATM.exists(), reason="needs /proc")


def resident() -> int:
    """Bytes of the process."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_and_drop(count, prepared):
    """Engines of one network, or each of a network of its own."""
    for k in range(count):
        torch.manual_seed(k if prepared else 0)
        network = AnnotatedUnet(8, dim_mults=(1,), channels=1)
        model = Model(network, make_schedule("linear", 10), image_shape=(1, 8, 8))
        engine = Engine(model, model.table("ddpm", 2), batch_size=4, device="cpu")
        engine.sample(4, noise=None if k % 2 else lambda draw, first, shape: torch.zeros(shape))
        del engine, model, network
        if k % 10 == 9:
            release()


def grown(count, prepared):
    make_and_drop(30, prepared)  # until then the allocator itself still grows
    before = resident()
    make_and_drop(count, prepared)
    return resident() - before


@needs_proc
@pytest.mark.parametrize("prepared", [True, False])
def test_engines_that_were_dropped_leave_no_memory(prepared):
    assert grown(25, prepared) < 5e6


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("prepared", [True, False])
def test_many_engines_that_were_dropped_leave_no_memory(prepared):
    assert grown(1000, prepared) < 10e6


@needs_proc
def test_many_requests_of_one_engine_leave_no_memory():
    """With contexts that come in other memory, tables that grow, and guidance in turn."""
    model = Model(AnnotatedUnet(8, dim_mults=(1,), channels=1), make_schedule("linear", 100), image_shape=(1, 8, 8))
    engine = Engine(model, model.table("ddpm", 2), batch_size=2, device="cpu")
    tables = [model.table("ddpm", steps) for steps in (2, 3, 5)]

    def ask(count):
        for k in range(count):
            engine.sample(3, table=tables[k % 3], seed=k)

    ask(30)
    before = resident()
    ask(300)
    assert resident() - before < 5e6
