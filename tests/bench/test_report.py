"""Reports: their files, tables and plots, two of them compared, and what a run shows."""

import json
import sys

import pytest
import torch
from tqdm.auto import tqdm

from fastdiff import InputError
from fastdiff.bench import against, live, plots, report, session, tables
from fastdiff.bench.case import Case, Kind, case_key, case_text
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.plans import plan
from fastdiff.provenance import installed

ROLES = {"reference": Role.REFERENCE, "fastdiff": Role.FASTDIFF}
FIGURES = {
    "median_seconds": 0.002,
    "seconds": [0.002],
    "ratio": [2.0, 1.9, 2.1],
    "share_of_limit": 0.5,
    "parity": 1e-7,
    "first_seconds": 0.5,
}


def row(contender="fastdiff", kind=Kind.EVALUATION, network="B@16", what="", batch=4, **more):
    """With figures, or with a reason."""
    role = ROLES.get(contender.split(",")[0], Role.PEER)
    facts = {**Case(kind, network, what, batch).facts, "contender": contender, "role": role}
    if "reason" in more:
        return {**facts, "status": Status.FAILED, **more}
    return {**facts, "status": Status.MEASURED, **FIGURES, **more}


def made(*rows, **more):
    facts = {
        "format": report.FORMAT,
        "plan": "quick",
        "machine": "A CPU, 2 cores",
        "python": "3.12.0",
        "versions": {"torch": "2.13.0"},
        "fastdiff": "0.1",
        "command": "fastdiff bench --quick",
        "seconds": 130.0,
        "cases": len({case_key(each) for each in rows}),
        "rows": list(rows),
    }
    return {**facts, **more}


# --- reports ---
def test_a_report_is_read_from_its_file_or_its_folder(tmp_path):
    whole = made(row("reference"), row())
    paths = report.write(whole, tmp_path / "a" / "b")
    assert report.read(tmp_path / "a" / "b") == report.read(str(paths[0])) == whole
    assert [path.name for path in paths] == ["report.json", "report.md", "share-of-limit.png"]
    assert all(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    "text, said",
    [
        *((text, "no report of `fastdiff bench`; accepted: .*report.json") for text in ("", "not json", "\xff\xfe")),
        *((text, "no report of") for text in ("[]", "3", "null", '"text"', "{}", '{"format": 2}')),
        (json.dumps(made(format=1)), "has format 1; accepted: format 2"),
        (json.dumps(made(format=99)), "has format 99; accepted: format 2"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said) as refusal:
        report.read(path)
    assert "other.json" in str(refusal.value)


def test_a_report_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot read the report .*No such file"):
            report.read(path)


def test_the_markdown_has_every_row_and_note():
    rows = [
        row("reference", ratio=[1.0, 1.0, 1.0]),
        row("fastdiff", graph_bytes=5_000_000),
        row("ONNX Runtime", reason="ImportError: onnxruntime is not installed"),
        row(
            "theirs",
            kind=Kind.SAMPLING,
            what="ddim 25",
            role=Role.OTHER_NETWORK,
            parameters=2_500_000,
            gflop_of_an_image=0.123,
        ),
        row("fastdiff", kind=Kind.COLD, what="ddim 25", batch=1, threads=2, dtype="bfloat16", peak_bytes=300_000_000),
        row("fastdiff, the whole loop", kind=Kind.EXPORT, batch=1, remark="nothing to compare"),
        row("fastdiff", kind=Kind.STEP, what="ddpm", reason="it differs from the reference by 1.0e-02"),
        row("fastdiff", kind=Kind.TRAINING, images_per_second=50.0),
        row("fastdiff", kind=Kind.OPERATOR, what="bias_add", against_compiled=[0.5, 0.4, 0.6]),
        row("fastdiff", kind=Kind.PROFILE, kernels=[{"kernel": "a|b", "calls": 2.0, "microseconds": 3.0}]),
        row("sampler.onnx", kind=Kind.LOOP, what="ddim 10"),
        row("fastdiff", kind=Kind.EAGER, what="ddim 10"),
        row("fastdiff", kind=Kind.THREADS, what="ddim 10", threads=2),
        row("fastdiff", batch=7, gflop=0.3, in_torch=["aten.sort.stable, 2 times"]),
    ]
    text = report.markdown(made(*rows), ["images-by-batch.png"])
    for each in rows:
        begun = "" if "reason" in each else "500 ms"
        assert f"| {case_text(each)} | {' | '.join([*tables.cells(each), begun, tables.remarks(each)])} |" in text
    for kind in Kind:
        assert f"## {kind.capitalize()}" in text and report.EXPLAINED[kind] in text
    expected = (
        "2.50 M parameters, 0.123 GFLOP an image and evaluation",
        "0.3 GFLOP by its plan, not counted, in torch: aten.sort.stable, 2 times",
        "peak 300 MB",
        "its graphs hold 5 MB",
        "| 2 ms | 2.00x (1.90 to 2.10) | 50 | 50% | 1e-07 | 500 ms |",
        "| ONNX Runtime | ImportError: onnxruntime is not installed |",
        "nothing to compare",
        "(other network)",
        "A CPU, 2 cores; Python 3.12.0, torch 2.13.0; fastdiff 0.1; `fastdiff bench --quick`; 2 minutes.",
        "0.50x (0.40 to 0.60) against torch.compile, it loses",
        "Geometric mean against torch.compile: 0.50x",
        "| a/b | 2 | 3.0 | 100% |",
        "![images by batch](images-by-batch.png)",
        "B@16, ddim 25, batch 1, bfloat16, 2 threads",
    )
    assert [words for words in expected if words not in text] == []
    assert "Cut short" not in text and "Cut short: 12 of 14 cases" in report.markdown(made(*rows, cases=14))


@pytest.mark.parametrize(
    "seconds, text",
    [(123.4, "123 s"), (1234.5, "1234 s"), (1.0, "1 s"), (0.9994, "999 ms"), (0.00123, "1.23 ms"), (4.5e-6, "4.5 µs")],
)
def test_seconds_in_words(seconds, text):
    assert tables.seconds_text(seconds) == text


def test_versions_are_of_what_is_installed():
    found = installed((*report.PACKAGES, "no such package"))
    assert found["torch"] == torch.__version__ or found["torch"] in torch.__version__
    assert set(found) <= set(report.PACKAGES)


def test_an_update_lists_its_runs_and_words_them():
    again, old = made(row(), command="b", plan="full"), made(row(batch=5), command="a and then z")
    once = report.updated(old, again)  # an older report's text is one run
    assert [run["command"] for run in once["runs"]] == ["a and then z", "b"]
    assert (once["command"], once["plan"], once["fastdiff"]) == ("a and then z and then b", "quick and full", "0.1")
    twice = report.updated(once, again)
    assert len(twice["runs"]) == 3 and twice["command"] == once["command"] and twice["rows"] == once["rows"]


# --- plots ---
def sampled(contender, batch, what="ddim 25", **more):
    return row(contender, Kind.SAMPLING, "B@16", what, batch, **{"images_per_second": batch / 0.002, **more})


def test_plots_are_those_that_there_are_rows_for(tmp_path):
    names = lambda *rows: [path.stem for path in plots.write(made(*rows), tmp_path)]  # noqa: E731
    assert names() == [] and names(row(reason="failed")) == []
    both = [sampled(contender, batch) for batch in (1, 4) for contender in ("reference", "fastdiff")]
    assert names(*both) == ["images-by-batch"]
    assert names(*both, sampled("fastdiff", 4, "dpmpp_2m 15")) == ["images-by-batch", "time-by-steps"]
    assert not (tmp_path / "cold-start.png").exists()
    assert names(row(), row(kind=Kind.COLD)) == ["share-of-limit", "cold-start"]
    # What an older report left is gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cold-start.png", "share-of-limit.png"]
    assert names(sampled("fastdiff", 1), sampled("fastdiff", 4, reason="it fails")) == []  # one batch is no line


def test_plots_are_pictures_and_leave_no_figure(tmp_path):
    from PIL import Image

    rows = [sampled(c, b, w) for c in ("reference", "fastdiff", "x") for b in (1, 4) for w in ("ddim 25", "ddim 50")]
    rows += [row(network=n, batch=b) for n in ("A28@28", "B@16") for b in (1, 4)] + [row(kind=Kind.COLD, threads=2)]
    before = dict(plots.pyplot().rcParams)
    paths = plots.write(made(*rows), tmp_path)
    assert len(paths) == 4 and plots.pyplot().get_fignums() == [] and dict(plots.pyplot().rcParams) == before
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # not blank


def test_lines_and_bars_are_the_rows_figures():
    rows = [sampled("fastdiff", 4), sampled("fastdiff", 1, images_per_second=7.0), sampled("x", 1)]
    figure, (left, right) = plots.figure_of(2, "")
    plots.by_batch(left, rows, plots.colours_of(rows))
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()}
    assert drawn == {"fastdiff": [[1, 7], [4, 2000]], "x": [[1, 500]]}
    rows = [row("reference", share_of_limit=0.2), row("fastdiff", share_of_limit=1.3)]
    plots.share_of_limit(right, rows, plots.colours_of(rows))
    assert [bar.get_width() for bar in right.patches] == pytest.approx([20, 130])
    assert [text.get_text() for text in right.get_yticklabels()] == ["reference", "fastdiff"]
    plots.pyplot().close(figure)


def test_without_matplotlib_the_refusal_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install '.\\[bench\\]'"):
        session.run(plan("quick", "cpu"), "quick", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- two reports ---
@pytest.mark.parametrize(
    "old, new, worse",
    [
        ([2.0, 1.9, 2.1], [1.5, 1.4, 1.6], True),
        ([2.0, 1.9, 2.1], [2.0, 1.9, 2.1], False),
        ([2.0, 1.9, 2.1], [3.0, 2.9, 3.1], False),
        ([2.0, 1.99, 2.01], [1.81, 1.80, 1.82], False),  # by less than 10%, though apart
        ([2.0, 1.99, 2.01], [1.79, 1.78, 1.80], True),
        ([2.0, 1.4, 2.1], [1.5, 1.45, 1.6], False),  # inside the old interval
        ([2.0, 1.9, 2.1], [1.5, 1.0, 2.05], False),  # the old one is inside the new interval
        ([2.0, 1.9, 2.1], [1.5, 1.0, 1.95], True),  # intervals that touch, with both medians outside
        ([2.0, 1.9, 2.1], "it fails", True),
    ],
)
def test_worse_is_by_more_than_10_percent_and_outside_both_intervals(old, new, worse):
    assert against.Change(row(ratio=old), new).worse is worse


def test_rows_of_both_reports_are_compared_and_references_are_not():
    old = [row("reference", ratio=[1.0, 1.0, 1.0]), row("fastdiff"), row("peer"), row("fastdiff", batch=16)]
    new = [row("reference", ratio=[1.0, 1.0, 1.0]), row("fastdiff", ratio=[1.0, 1.0, 1.1]), row("peer"), row("new")]
    changes = against.compare(made(*old), new)
    assert list(map(str, changes)) == [
        "evaluation B@16, batch 4, fastdiff: was 2.00x (1.90 to 2.10), now 1.00x (1.00 to 1.10)",
        "evaluation B@16, batch 4, peer: was 2.00x (1.90 to 2.10), now 2.00x (1.90 to 2.10)",
    ]
    for more in (
        {"batch": 5},
        {"dtype": "float16"},
        {"threads": 2},
        {"network": "A28@28"},
        {"kind": Kind.STEP},
        {"what": "ddim"},
        {"device": "cuda"},
    ):
        assert against.compare(made(row()), [row(**more)]) == []


def test_a_row_of_fastdiffs_that_became_a_note_counts_and_a_peers_does_not():
    for name in ("fastdiff", "fastdiff, eager"):
        now = [row(name, reason="it fails"), row("peer", reason="gone")]
        (one,) = against.compare(made(row(name), row("peer")), now)
        assert one.worse and one.row["contender"] == name and str(one).endswith("(1.90 to 2.10), now it fails")
    assert against.compare(made(row(reason="it failed then")), [row()]) == []


def test_what_is_well_again_when_measured_again_is_not_worse_and_else_nothing_is_measured_again():
    old = made(row())
    assert against.confirmed(old, [row(reason="it fails")], lambda keys: [row()]) == ([], 1)

    def never(keys):
        raise AssertionError(keys)

    assert against.confirmed(old, [row(ratio=[1.9, 1.8, 2.0])], never) == ([], 1)
    assert against.confirmed(made(row("a peer")), [row("new")], never) == ([], 0)


# --- what a run shows ---
CASE = Case(Kind.EVALUATION, "B@16", batch=4, rounds=4)


@pytest.mark.parametrize("terminal", [True, False])
def test_each_row_is_a_line_and_a_terminal_has_a_bar(terminal, monkeypatch, capsys):
    monkeypatch.setattr(live, "tqdm", lambda **options: tqdm(**{**options, "disable": not terminal, "mininterval": 0}))
    with live.Live([CASE]) as shown:
        shown.preparing(CASE, "reference")
        shown.round(CASE, 1)
        shown.rows([row("reference", ratio=[1.0, 1.0, 1.0]), row(), row("ONNX Runtime", reason="not here", error="E")])
        shown.rows([row(kind=Kind.COLD, what="ddim 25", batch=1)])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "evaluation:" and lines[4] == "cold start:" and len(lines) == 6
    assert lines[2] == "  B@16, batch 4: fastdiff, 2 ms, 2.00x (1.90 to 2.10), 50%, 1e-07"
    assert lines[3] == "  B@16, batch 4: ONNX Runtime, E: not here"
    assert terminal or not err
    for words in ("preparing evaluation B@16 batch 4: reference", "round 1 of 4", "25%") if terminal else ():
        assert words in err
