"""The whole command, on tiny networks: its plan, its files, what it refuses, and where it is stopped."""

import os
import re
import socket
from functools import cache
from pathlib import Path

import pytest

from fastdiff.bench import compiling, limits, report, runner, session, tables
from fastdiff.bench.against import row_key
from fastdiff.bench.case import Kind, case_text
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.contenders.by_kind import CONTENDERS
from fastdiff.bench.plans import plan

COUNTED = limits.counted  # itself, which `stubbed` replaces


def test_the_quick_plan_on_tiny_networks(stubbed, run, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(limits, "counted", cache(COUNTED.__wrapped__))
    result = run("--quick", "--rounds", 1, "-o", "deep/report")
    whole = report.read("deep/report")
    rows = whole["rows"]
    taking_part = {case.key: CONTENDERS[case.kind](case, False) for case in plan("quick", "cpu")}
    assert [row_key(row) for row in rows] == [(*key, one.name) for key, some in taking_part.items() for one in some]
    assert {row["kind"] for row in rows if row["role"] == Role.OTHER_NETWORK} == {Kind.EVALUATION}
    for row in rows:
        if row["contender"].startswith("torch.compile"):
            assert (row["status"], row["reason"]) == (Status.NOT_COMPILED, compiling.COLD)
        else:
            assert row["status"] == Status.MEASURED and len(row["seconds"]) == 1
    files = {path.name: path for path in (tmp_path / "deep" / "report").iterdir()}
    assert files.keys() == {"report.json", "report.md", "share-of-limit.png"}
    text = files["report.md"].read_text()
    lines = result.stdout.splitlines()
    for row in rows:
        assert f"  {case_text(row)}: {', '.join(filter(None, tables.cells(row)))}" in lines
        assert f"| {case_text(row)} | {' | '.join(tables.cells(row))} |" in text
    assert [line for line in lines if line.startswith("wrote ")] == [
        f"wrote deep/report/{name}" for name in ("report.json", "report.md", "share-of-limit.png")
    ]
    headings = [line for line in lines if not line.startswith((" ", "wrote"))]
    assert headings == ["evaluation:", "sampling:"]
    for name in ("report.json", "report.md"):
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", files[name].read_text())
    assert whole["machine"] == session.hardware("cpu") and f"{os.cpu_count()} cores" in whole["machine"]
    assert whole["plan"] == "quick" and "worse" not in whole and whole["seconds"] > 0
    assert whole["versions"]["torch"] and whole["command"].startswith("fastdiff") and whole["fastdiff"]
    assert result.stderr == "" and not [p for p in tmp_path.rglob("*") if p.name.startswith(".fastdiff-")]


def test_an_interrupted_run_leaves_the_cases_that_are_done(stubbed, run, monkeypatch):
    """The standard plan finishes each case before the next begins."""
    whole = CONTENDERS[Kind.STEP]

    def contenders(case, cold):
        if case.what == "ddpm":
            raise KeyboardInterrupt
        return whole(case, cold)

    monkeypatch.setitem(CONTENDERS, Kind.STEP, contenders)
    result = run("--only", "denoise step", "--batch", 1, "--rounds", 1, "--device", "cpu", code=130)
    assert "stopped: 2 of 4 cases are in bench-report" in result.stdout
    assert {path.name for path in Path("bench-report").iterdir()} == {report.PARTIAL, report.PARTIAL_TEXT}
    made = report.read(f"bench-report/{report.PARTIAL}")
    assert {row["network"] for row in made["rows"]} == {"A28@28", "B@16"}
    assert "Cut short: 2 of 4 cases." in Path(f"bench-report/{report.PARTIAL_TEXT}").read_text()


@pytest.mark.parametrize("there", [False, True])
def test_stopped_before_anything_was_measured_no_report_is_left(there, stubbed, run, monkeypatch):
    """By the signal of Ctrl-C; one that was there before stays."""
    kept = Path("bench-report") / report.NAME
    if there:
        kept.parent.mkdir()
        kept.write_text("an older report")

    def stops(case, cold):
        raise KeyboardInterrupt

    monkeypatch.setitem(CONTENDERS, Kind.EVALUATION, stops)
    result = run("--quick", code=130)
    assert "stopped: 0 cases were finished" in result.stdout and "wrote" not in result.stdout
    assert list(Path("bench-report").glob("*")) == ([kept] if there else [])
    assert there or not kept.parent.exists()
    assert not there or kept.read_text() == "an older report"


def fails(*given):
    raise AssertionError("measured")


def test_list_prints_the_cases_and_measures_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "measure", fails)
    lines = run("--quick", "--list").output.splitlines()
    assert lines == [f"{case.label}: {case.rounds} rounds" for case in plan("quick", "cpu")]
    assert run("--list", "--only", "training b@16", "--threads", 2, "--device", "cpu").output == (
        "training step B@16 batch 16 2 threads: 9 rounds\ntraining step B@16 batch 128 2 threads: 9 rounds\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, said",
    [
        (("nope",), "unknown command 'nope'; accepted: quality, distance, classifier"),
        (("--network", "C"), "network 'C'; accepted: A28@28"),
        (("--dtype", "int8"), "dtype 'int8'; accepted: float32"),
        (("--batch", "0"), "batch_size = 0; accepted: a whole number from 1"),
        (("--batch", "7"), "no case for 7; its kinds: evaluation, sampling; on request: operator"),
        (("--network", "A64@64", "--batch", "7"), "no case for 'A64@64', 7; its kinds: evaluation"),
        (("--batch", "many"), "'many' is not a valid integer"),
        (("--threads", "-1"), "threads = -1; accepted: a whole number from 1"),
        (("--rounds", "0"), "rounds = 0; accepted: a whole number from 1"),
        (("--only", "nothing"), "no case for 'nothing'; its kinds: evaluation"),
        (("--only", "nothing"), "threads; --list without these options prints the cases"),
        (("--device", "abacus"), "abacus"),
        (("-o", ""), "-o ''; accepted: a folder"),
        (("-o", "file"), "cannot write to 'file'"),
        (("-o", "file/report"), "cannot write to 'file/report'"),
        (("--against", "none.json"), "cannot read the report 'none.json'"),
        (("--against", "file"), "'file' is no report of `fastdiff bench`"),
        (("--update", "-o", "other"), "'other/report.json' is of 'another machine', this machine is"),
        (("--against", "other"), "'other/report.json' is of 'another machine', this machine is"),
        (("--against", "empty"), "none of the cases that are to be measured; accepted: one of such a run"),
        (("--against", "older"), "'older/report.json' has format 1; accepted: format 2"),
        (("--update", "-o", "nothing"), "cannot read the report 'nothing'"),
        (("--quicker",), "No such option"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(words, said, run, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "measure", fails)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    (tmp_path / "file").write_text("text")
    facts = {"rows": [], "versions": {}, "fastdiff": "", "command": "", "machine": session.hardware("cpu")}
    changed = {"other": {"machine": "another machine"}, "empty": {}, "older": {"format": 1}}
    for name, more in changed.items():
        report.save_json({"format": report.FORMAT, **facts, **more}, Path(name) / report.NAME)
    there = set(tmp_path.rglob("*"))
    result = run("--quick", *words, code=2)
    assert said in result.stderr and result.stdout == "" and "Traceback" not in result.output
    assert set(tmp_path.rglob("*")) == there


def test_an_update_replaces_its_own_cases_and_keeps_the_rest(stubbed, run):
    run("--quick", "--only", "evaluation", "--rounds", 1, "-o", "whole")
    old = report.read("whole")
    run("--quick", "--only", "evaluation B@16", "--rounds", 2, "--update", "-o", "whole")
    new = report.read("whole")
    kept = [row for row in old["rows"] if row["network"] == "A28@28"]
    assert new["rows"][: len(kept)] == kept and new["cases"] == 2 == report.done(new)
    anew = [row for row in new["rows"] if row["network"] == "B@16" and "seconds" in row]
    assert anew and all(len(row["seconds"]) == 2 for row in anew)
    assert len(new["runs"]) == 2 and new["plan"] == "quick" and new["fastdiff"] == old["fastdiff"]  # said once
