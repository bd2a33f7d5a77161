"""`fastdiff bench --against` an older report, by a clock that the tests move."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fastdiff.bench import against, plots, report, timing
from fastdiff.bench.case import Kind, case_text
from fastdiff.bench.contender import TUNED, Role
from fastdiff.bench.contenders.by_kind import CONTENDERS
from fastdiff.bench.plans import plan
from fastdiff.engine.engine import Engine

QUICK = ("--quick", "--only", "evaluation")
CASES = [case for case in plan("quick", "cpu") if case.kind == Kind.EVALUATION]


class Clock:
    """The machine's clock, without the machine: contenders take the seconds that they are said to.

    On top, as on a real machine: everything is now slower, now faster by half within a run, and each call by a tenth.
    """

    def __init__(self, seed):
        self.now, self.random = 0.0, np.random.default_rng(seed)
        self.slower = {}  # contender → factor

    def perf_counter(self):
        self.now += 1e-5
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def takes(self, name):
        nominal = 0.004 if name == "reference" else 0.0015 if name.startswith("fastdiff") else 0.003
        drift = 1 + 0.5 * math.sin(self.now / 7)
        self.now += nominal * self.slower.get(name, 1) * drift * math.exp(0.1 * self.random.standard_normal())


@pytest.fixture
def clocked(stubbed, monkeypatch):
    """clocked(seed) → the clock that contenders are timed by from then on. They are prepared and compared as ever."""

    def start(seed):
        clock = Clock(seed)
        monkeypatch.setattr(timing, "time", clock)
        return clock

    def made(one):
        ready = one.make()
        ready.run = lambda: timing.time.takes(one.name)
        return ready

    # What they compute is compared; what is timed is the clock's alone, so long turns cost nothing.
    monkeypatch.setattr(timing, "TURN", 0.05)
    monkeypatch.setattr(plots, "write", lambda made, folder: [])  # slow, and not looked at
    whole = CONTENDERS[Kind.EVALUATION]

    def timed(*given):
        """One of each role suffices."""
        some = [one for one in whole(*given) if one.role in (Role.REFERENCE, Role.FASTDIFF) or one.name == TUNED]
        return [replace(one, make=lambda one=one: made(one)) for one in some]

    monkeypatch.setitem(CONTENDERS, Kind.EVALUATION, timed)
    return start


@pytest.fixture
def old(clocked, run):
    """The older report, in the folder old."""
    clocked(0)
    run(*QUICK, "-o", "old")
    return report.read("old")


def worse(result):
    return [line for line in result.stdout.splitlines() if line.startswith("WORSE")]


def test_an_unchanged_tree_is_no_worse_than_itself(old, clocked, run):
    """Nor where the old report is replaced."""
    for seed, folder in enumerate(("new", "new", "new", "old"), 1):
        clocked(seed)
        result = run(*QUICK, "--against", "old", "-o", folder)
        compared = [row for row in old["rows"] if row["role"] != Role.REFERENCE]
        assert f"no row of {len(compared)} is worse by more than 10%" in result.stdout.splitlines()
        assert not worse(result) and report.read(folder)["worse"] == []
    assert report.read("old")["rows"] != old["rows"]


def test_a_planted_slowdown_of_a_quarter_is_found_and_named(old, clocked, run):
    clocked(1).slower = {"fastdiff": 1.25}
    result = run(*QUICK, "--against", "old/report.json", "-o", "new", code=1)
    assert f"measuring again: {'; '.join(case.label for case in CASES)}" in result.stdout.splitlines()
    expected = [f"WORSE  {case.kind} {case_text(vars(case))}, fastdiff: was " for case in CASES]
    for line, start in zip(worse(result), expected, strict=True):
        assert line.startswith(start)
        was, now = (float(part.split("x")[0]) for part in line.removeprefix(start).split(", now "))
        assert now / was == pytest.approx(1 / 1.25, rel=0.05)
    new = report.read("new")
    assert new["worse"] == worse(result)
    # Rows that were measured again took twice the rounds, and theirs are the figures that are kept.
    for row in new["rows"]:
        if "reason" not in row:
            assert len(row["seconds"]) == CASES[0].rounds * (2 if row["contender"] == "fastdiff" else 1)
    # A quarter faster is nothing to complain of.
    clocked(2)
    assert "no row of" in run(*QUICK, "--against", "new", "-o", "newer").stdout


def test_a_slowdown_that_is_gone_when_measured_again_is_no_slowdown(old, clocked, run, monkeypatch):
    clock = clocked(1)
    clock.slower = {"fastdiff": 1.5}
    confirmed = against.confirmed

    def quiet(old, rows, again):
        return confirmed(old, rows, lambda keys: clock.slower.clear() or again(keys))

    monkeypatch.setattr(against, "confirmed", quiet)
    result = run(*QUICK, "--against", "old", "-o", "new")
    assert "measuring again" in result.stdout and not worse(result)
    assert report.read("new")["worse"] == []


def test_what_is_refused_now_and_was_not_then_is_worse(old, clocked, run, monkeypatch):
    clocked(1)
    right = Engine.step_once

    def wrong(self):
        right(self)
        self.x.mul_(1.001)

    monkeypatch.setattr(Engine, "step_once", wrong)
    result = run(*QUICK, "--against", "old", "-o", "new", code=1)
    own = [row for row in old["rows"] if row["role"] == Role.FASTDIFF]
    assert len(worse(result)) == len(own)
    assert all("now refused: it differs from the reference by 1.0e-03" in line for line in worse(result))
    assert [line.split(": ")[:3] for line in result.stderr.splitlines()] == [
        ["refused", f"{row['kind']} {case_text(row)}, {row['contender']}", "refused"] for row in own
    ]
