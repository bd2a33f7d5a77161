"""Several threads against one: in this process, and by processes on a busy machine."""

import os
import subprocess

import numpy as np
import pytest
import torch

from fastdiff.bench import runner
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Status
from fastdiff.bench.contenders import threads


def test_threads_and_a_large_product_are_each_held_against_one_thread(stubbed, monkeypatch):
    monkeypatch.setattr(threads, "SIZE", 16)
    used = []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: used.append(torch.get_num_threads()))
    case, before = Case(Kind.THREADS, "B@16", "ddim 5", 2, threads=2, rounds=3), torch.get_num_threads()
    rows = {row["contender"]: row for row in runner.measure([case], False, False)}
    assert list(rows) == [threads.ONE, "fastdiff", threads.PRODUCT_OF_ONE, threads.PRODUCT]
    assert {row["status"] for row in rows.values()} == {Status.MEASURED} and torch.get_num_threads() == before
    assert rows[threads.ONE]["ratio"] == rows[threads.PRODUCT_OF_ONE]["ratio"] == [1, 1, 1]
    assert rows["fastdiff"]["parity"] <= rows["fastdiff"]["bound"]
    assert set(used) == {1, 2}
    one, two = (rows[name]["seconds"] for name in (threads.PRODUCT_OF_ONE, threads.PRODUCT))
    assert rows[threads.PRODUCT]["ratio"][0] == pytest.approx(np.median(np.divide(one, two)), rel=1e-3)


def test_a_busy_machine_runs_the_command_as_users_start_it(stubbed, monkeypatch):
    """Beside a process for each core, which are gone afterwards."""
    asked, busy = [], []
    begin = subprocess.Popen

    def started(*given, **options):
        busy.append(begin(*given, **options))
        return busy[-1]

    def printed(words, environment):
        asked.append((words, environment, [one.poll() for one in busy[-os.cpu_count() :]]))
        np.save(words[words.index("--npy") + 1], np.ones((2, 3, 16, 16), np.float32))
        return "2 images in 1 s\nwrote them"

    monkeypatch.setattr(threads.subprocess, "Popen", started)
    monkeypatch.setattr(threads, "printed", printed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = Case(Kind.THREADS, "B@16", "ddim 5 busy", 2, threads=2, rounds=1)
    rows = runner.measure([case], False, False)
    assert [(row["contender"], row["status"], row["parity"], row["remark"]) for row in rows] == [
        (name, Status.MEASURED, 0, "2 images in 1 s") for name in (threads.ONE, "fastdiff")
    ]
    assert [words[words.index("--threads") + 1] for words, *_ in asked if "--threads" in words] == ["1"] * 3
    assert len(asked) == 6 and all(words[3:5] == ["sample", "sprites"] for words, *_ in asked)
    assert not any("OMP_NUM_THREADS" in environment for _, environment, _ in asked)
    assert all(states == [None] * os.cpu_count() for *_, states in asked)  # running
    assert all(one.poll() is not None for one in busy)
