"""The runner: what its gate lets through, and how those that pass take turns; by contenders that the tests make up."""

import json

import pytest
import torch

from fastdiff.bench import runner, session, tables
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Contender, Ready, Role, Status
from fastdiff.bench.contenders.by_kind import CONTENDERS
from fastdiff.engine import graphs

ROLES = {"reference": Role.REFERENCE, "fastdiff": Role.FASTDIFF, "theirs": Role.OTHER_NETWORK}


def contender(name, value=1.0, run=lambda: None, make=None):
    result = value if isinstance(value, torch.Tensor) else torch.full((2, 3), value)
    ready = Ready(run, None if name == "theirs" else lambda: result)
    return Contender(name, make or (lambda: ready), ROLES.get(name, Role.PEER))


@pytest.fixture
def every_kind(stubbed, monkeypatch):
    """every_kind(make): from then on cases of every kind have the contenders of make(case)."""

    def put(make):
        for kind in CONTENDERS:
            monkeypatch.setitem(CONTENDERS, kind, lambda case, cold: make(case))

    return put


@pytest.fixture
def measured(every_kind):
    """(contenders) → their rows by name; each has either a reason or figures, never neither."""

    def rows(*made, rounds=2):
        every_kind(lambda case: iter(made))
        done = runner.measure([Case(Kind.EVALUATION, "A28@28", batch=2, rounds=rounds)], True, True)
        assert all(("reason" in row) != ("median_seconds" in row) for row in done)
        assert all(("reason" in row) != (row["status"] == Status.MEASURED) for row in done)
        return {row["contender"]: row for row in done}

    return rows


def notes(rows):
    return {name: tables.why(row) for name, row in rows.items() if "reason" in row}


def fails(message="no such units", at=1):
    """A call that fails at its time of that number, and then is not called again."""
    calls = []

    def call(*given):
        calls.append(1)
        assert len(calls) <= at
        if len(calls) == at:
            raise RuntimeError(message)

    return call


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.01, -1.0, 0.0])
def test_other_values_are_refused_before_they_are_timed_in_json_that_everyone_reads(value, measured):
    rows = measured(contender("reference"), contender("x", value, run=fails()), contender("y"))
    assert list(notes(rows)) == ["x"] and notes(rows)["x"].startswith("refused: it differs from the reference by")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(json.dumps(rows), parse_constant=refuse) == rows


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (6,), (1, 2, 3), ()])
def test_another_shape_is_refused(shape, measured):
    rows = measured(contender("reference"), contender("x", torch.ones(shape)), contender("y"))
    assert notes(rows) == {"x": f"refused: its result has shape {shape}, not (2, 3)"}


def test_a_nan_of_the_reference_refuses_all(measured):
    rows = measured(contender("reference", float("nan")), contender("x"), contender("y", float("nan")))
    assert list(notes(rows)) == ["reference", "x", "y"]


def test_contenders_that_fail_are_rows_that_say_so(measured):
    rows = measured(
        contender("reference"),
        contender("made", make=fails()),
        contender("compared", make=lambda: Ready(lambda: None, fails("no result"))),
        contender("warmed", run=fails("no run")),
        contender("later", run=fails("out of memory\nand more", at=3)),  # once to be warm, once in the first round
        contender("well"),
        rounds=4,
    )
    assert notes(rows) == {
        "made": "RuntimeError: no such units",
        "compared": "RuntimeError: no result",
        "warmed": "RuntimeError: no run",
        "later": "RuntimeError: out of memory",
    }
    assert len(rows["well"]["seconds"]) == 4
    assert session.refused({"rows": rows.values()}) == []  # none of these is fastdiff's own
    named = [{**row, "contender": f"fastdiff, {name}", "role": Role.FASTDIFF} for name, row in rows.items()]
    assert session.refused({"rows": named}) == [
        f"evaluation A28@28, batch 2, fastdiff, {name}: {why}" for name, why in notes(rows).items()
    ]


@pytest.mark.parametrize("made", [True, False])
def test_without_a_reference_nothing_is_compared(made, measured):
    make = (lambda: Ready(lambda: None, fails())) if made else fails()
    rows = measured(contender("reference", make=make), *map(contender, ("fastdiff", "x", "theirs")))
    assert notes(rows) == {
        "reference": "RuntimeError: no such units",
        "fastdiff": "not timed: there is no reference to compare with",
        "x": "not timed: there is no reference to compare with",
    }
    assert "ratio" not in rows["theirs"] and len(session.refused({"rows": rows.values()})) == 1


def test_a_reference_that_fails_when_it_is_timed_leaves_times_without_ratios(measured):
    rows = measured(contender("reference", run=fails("out of memory", at=3)), contender("x"), rounds=3)
    assert notes(rows) == {"reference": "RuntimeError: out of memory"}
    assert "ratio" not in rows["x"] and len(rows["x"]["seconds"]) == 3


def test_one_that_checks_its_own_result_says_so(measured):
    rows = measured(contender("reference"), contender("x", make=lambda: Ready(lambda: None)), contender("theirs"))
    assert rows["x"]["remark"] == "nothing to compare: it checks its own result" and "parity" not in rows["x"]
    assert "remark" not in rows["theirs"]


# --- turns ---
def watched(name, seen):
    """A contender that notes what it is asked, and under which settings."""

    def note(what):
        seen.append((name, what, torch.is_grad_enabled(), torch.get_num_threads()))

    def make():
        note("make")
        return Ready(lambda: note("run"), lambda: note("outputs") or torch.ones(2))

    return Contender(name, make, Role.PEER if name in ("b", "c") else Role.REFERENCE)


def test_contenders_take_turns_every_other_round_backwards(measured):
    seen = []
    measured(watched("reference", seen), watched("b", seen), watched("c", seen), rounds=3)
    prepared = [(n, w) for n in ("reference", "b", "c") for w in ("make", "outputs", "run")]
    assert [(name, what) for name, what, *_ in seen[:9]] == prepared
    assert [name for name, *_ in seen[9:]] == ["reference", "b", "c", "c", "b", "reference", "reference", "b", "c"]


class Notes(runner.Watcher):
    def __init__(self):
        self.steps, self.done = [], []

    def preparing(self, case, contender):
        self.steps.append((case.batch, contender))

    def round(self, case, number):
        self.steps.append((case.batch, "round", number))

    def rows(self, rows):
        self.done.append([row["batch"] for row in rows])


@pytest.mark.parametrize(
    "together, runs", [(True, [1, 2, 1, 2, 2, 1, 2, 2]), (False, [1, 1, 1, 2, 2, 2, 2, 2])], ids=["together", "singly"]
)
def test_cases_take_turns_or_follow_each_other(together, runs, every_kind):
    """Each runs once to be warm."""
    cases = [Case(Kind.EVALUATION, "B@16", batch=batch, rounds=rounds) for batch, rounds in ((1, 2), (2, 4))]
    seen, told = [], Notes()
    every_kind(lambda case: [watched(case.batch, seen)])
    rows = runner.measure(cases, True, together, told)
    assert [name for name, what, *_ in seen if what == "run"] == runs
    assert [row["batch"] for row in rows] == [1, 2] and told.done == [[1], [2]]
    assert [len(row["seconds"]) for row in rows] == [2, 4]
    assert told.steps[0] == (1, 1) and (2, "round", 4) in told.steps and len(told.steps) == 2 + 6


@pytest.mark.parametrize("together", [True, False])
def test_threads_and_gradients_are_those_of_the_case_and_come_back(together, every_kind):
    """Compiled code is for one setting: it would be compiled again, and within a round."""
    seen = []
    every_kind(lambda case: [watched(case.kind, seen)])
    threads = {Kind.EVALUATION: 2, Kind.STEP: 1, Kind.SAMPLING: 2, Kind.TRAINING: 1}
    before, limit = torch.get_num_threads(), graphs.POOL.limit
    what = {Kind.STEP: "ddim", Kind.SAMPLING: "ddim 5"}
    runner.measure([Case(k, "A28@28", what.get(k, ""), 2, threads=n) for k, n in threads.items()], True, together)
    assert set(seen) == {
        (kind, what, kind == Kind.TRAINING, count)
        for kind, count in threads.items()
        for what in ("make", "outputs", "run")
    }
    assert torch.get_num_threads() == before and graphs.POOL.limit == limit and torch.is_grad_enabled()
