"""How many threads, and which devices, networks may be asked to run on."""

import os

import pytest
import torch

from fastdiff import InputError
from fastdiff.engine import placement


@pytest.mark.parametrize("threads", [0, -1, 30_000, 10**30, True, 1.5, None])
def test_threads_that_no_machine_starts(threads):
    with pytest.raises(InputError, match=r"threads = .*; accepted: a whole number from 1 to \d+"):
        placement.check_threads(threads)


def test_a_larger_machines_threads_are_fine(monkeypatch):
    assert placement.check_threads(4 * os.cpu_count()) and placement.check_threads(256) == 256
    monkeypatch.setattr(os, "cpu_count", lambda: 200)
    assert placement.check_threads(800) == 800


def test_what_the_environment_asks_for_is_checked_too(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 100_000)
    with pytest.raises(InputError, match="OMP_NUM_THREADS = 100000"):
        placement.set_threads(None)


@pytest.mark.parametrize("device", [10**30, 2**63, "cpu:x", [1], "meta"])
def test_devices_that_are_none(device):
    with pytest.raises(InputError, match="cannot be used here"):
        placement.choose_device(device)
