"""Reports: their files, tables and plots, two of them compared, and what a run shows."""

import io
import json
import sys

import pytest
import torch

from fastdiff import InputError
from fastdiff.bench import against, plots, report, session, tables
from fastdiff.bench.case import Case, Kind, case_key, case_text
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.live import Live
from fastdiff.bench.plans import plan

CPU = torch.device("cpu")


# --- reports ---
def role_of(contender):
    roles = {"reference": Role.REFERENCE, "fastdiff": Role.FASTDIFF}
    return roles.get(contender.split(",")[0], Role.PEER)


def row(contender="fastdiff", kind=Kind.EVALUATION, network="B@16", what="", batch=4, **more):
    facts = {
        "kind": kind,
        "network": network,
        "what": what,
        "batch": batch,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "contender": contender,
        "role": role_of(contender),
        "status": Status.MEASURED,
    }
    if "reason" in more:
        facts["status"] = Status.FAILED
    else:
        facts |= {
            "median_seconds": 0.002,
            "seconds": [0.002],
            "ratio": [2.0, 1.9, 2.1],
            "share_of_limit": 0.5,
            "parity": 1e-7,
            "first_seconds": 0.5,
        }
        facts |= {"images_per_second": batch / 0.002} if kind == Kind.SAMPLING else {}
    return {**facts, **more}


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


def test_a_report_is_read_from_its_file_or_its_folder(tmp_path):
    whole = made(row("reference"), row())
    paths = report.write(whole, tmp_path / "a" / "b")
    assert report.read(tmp_path / "a" / "b") == report.read(str(paths[0])) == whole
    assert [path.name for path in paths] == ["report.json", "report.md", "share-of-limit.png"]
    assert all(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "3",
        "null",
        '"text"',
        "{}",
        '{"format": 2}',
        json.dumps({"format": 1, "rows": []}),
        json.dumps({**made(), "format": 99}),
        "\xff\xfe",
    ],
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="no report of `fastdiff bench`; accepted: .*report.json") as refusal:
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
        row("fastdiff", kind=Kind.STEP, what="ddpm", reason="refused: it differs from the reference by 1.0e-02"),
        row("fastdiff", kind=Kind.TRAINING, images_per_second=50.0),
        row("fastdiff", kind=Kind.OPERATOR, what="bias_add", against_compiled=[0.5, 0.4, 0.6]),
        row("fastdiff", kind=Kind.PROFILE, kernels=[{"kernel": "a|b", "calls": 2.0, "microseconds": 3.0}]),
        row("sampler.onnx", kind=Kind.LOOP, what="ddim 10"),
    ]
    text = report.markdown(made(*rows), ["images-by-batch.png"])
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| case", "| ---"))]
    assert len(lines) == len(rows) + 2 and lines.remove("| a/b | 2 | 3.0 | 100% |") is None
    assert lines.remove("| kernel | calls | µs | share |") is None and all(line.count("|") == 10 for line in lines)
    for each in rows:
        (line,) = [
            x
            for x in lines
            if f"| {tables.cells(each)[0]} |" in x
            and case_text(each) in x
            and ("reason" not in each or each["reason"] in x)
            and ("reason" in each) == ("| 500 ms |" not in x)
            and (each["kind"] != Kind.TRAINING or "| 50 |" in x)
            and ("graph_bytes" not in each or "its graphs hold 5 MB" in x)
        ][:1]
        lines.remove(line)
        assert ("2.00x (1.90 to 2.10)" in line) == (each.get("ratio") == [2.0, 1.9, 2.1])
    assert not lines
    assert "Cut short" not in text and "Cut short: 9 of 12 cases" in report.markdown(made(*rows, cases=12))
    for kind in Kind:
        assert f"## {kind.capitalize()}" in text and report.EXPLAINED[kind] in text
    expected = (
        "2.50 M parameters, 0.123 GFLOP an image and evaluation",
        "peak 300 MB",
        "nothing to compare",
        "(other network)",
        "2 ms",
        "1e-07",
        "50%",
        "A CPU, 2 cores",
        "torch 2.13.0",
        "`fastdiff bench --quick`",
        "0.50x (0.40 to 0.60) against torch.compile, it loses",
        "Geometric mean against torch.compile: 0.50x",
        "![images by batch](images-by-batch.png)",
        "B@16, ddim 25, batch 1, bfloat16, 2 threads",
    )
    assert [words for words in expected if words not in text] == []


def test_a_notes_bars_leave_the_table_whole():
    text = report.markdown(made(row(reason="RuntimeError: expected int | None"), row("reference")))
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("| B@16")]
    assert [line.count("|") for line in rows] == [10, 10]


@pytest.mark.parametrize(
    "seconds, text",
    [(123.4, "123 s"), (1234.5, "1234 s"), (1.0, "1 s"), (0.9994, "999 ms"), (0.00123, "1.23 ms"), (4.5e-6, "4.5 µs")],
)
def test_seconds_in_words(seconds, text):
    assert tables.seconds_text(seconds) == text


def test_versions_are_of_what_is_installed():
    assert report.installed()["torch"] == torch.__version__ or report.installed()["torch"] in torch.__version__
    assert set(report.installed()) <= set(report.PACKAGES)


def test_an_update_lists_its_runs_and_words_them():
    again, old = made(row(), command="b", plan="full"), made(row(batch=5), command="a and then z")
    once = report.updated(old, again)  # an older report's text is one run
    assert [run["command"] for run in once["runs"]] == ["a and then z", "b"]
    assert (once["command"], once["plan"], once["fastdiff"]) == ("a and then z and then b", "quick and full", "0.1")
    twice = report.updated(once, again)
    assert len(twice["runs"]) == 3 and twice["command"] == once["command"] and twice["rows"] == once["rows"]


# --- plots ---
def sampled(contender, batch, what="ddim 25", **more):
    return row(contender, Kind.SAMPLING, "B@16", what, batch, **more)


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
def change(old, new):
    return against.Change(("k",), "text", old, new)


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
        ([2.0, 1.9, 2.1], None, True),
    ],
)
def test_worse_is_by_more_than_10_percent_and_outside_both_intervals(old, new, worse):
    assert change(old, new).worse is worse


def test_a_change_in_words():
    assert str(change([2.0, 1.9, 2.1], [1.5, 1.4, 1.6])) == "text: was 2.00x (1.90 to 2.10), now 1.50x (1.40 to 1.60)"
    assert str(against.Change(("k",), "text", [2, 1, 3], None, "it fails")) == "text: was 2.00x, now it fails"


def test_another_machines_report_is_refused():
    cases = {Case(Kind.EVALUATION, "B@16", batch=4).key, Case(Kind.EVALUATION, "B@16", batch=5).key}
    against.check_comparable(made(row()), "A CPU, 2 cores", cases)
    with pytest.raises(InputError, match="'A CPU, 2 cores', this machine is 'B CPU, 2 cores'; accepted: .*the same"):
        against.check_comparable(made(row()), "B CPU, 2 cores", cases)
    with pytest.raises(InputError, match="none of the cases that are to be measured; accepted: "):
        against.check_comparable(made(row(batch=6)), "A CPU, 2 cores", cases)


def test_rows_of_both_reports_are_compared_and_references_are_not():
    old = [row("reference", ratio=[1.0, 1.0, 1.0]), row("fastdiff"), row("peer"), row("fastdiff", batch=16)]
    new = [row("reference", ratio=[1.0, 1.0, 1.0]), row("fastdiff", ratio=[1.0, 1.0, 1.1]), row("peer"), row("new")]
    changes = against.compare(made(*old), new)
    assert [(c.key[-1], c.old, c.new, c.worse) for c in changes] == [
        ("fastdiff", [2.0, 1.9, 2.1], [1.0, 1.0, 1.1], True),
        ("peer", [2.0, 1.9, 2.1], [2.0, 1.9, 2.1], False),
    ]
    assert changes[0].text == "evaluation B@16, batch 4, fastdiff"
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
        (one,) = against.compare(
            made(row(name), row("peer")), [row(name, reason="it fails"), row("peer", reason="gone")]
        )
        assert one.worse and one.key[-1] == name and str(one).endswith("was 2.00x, now it fails")
    assert against.compare(made(row(reason="it failed then")), [row()]) == []


SLOWER = [1.6, 1.55, 1.65]  # 2.0 by 25% slower


def test_a_planted_slowdown_is_confirmed_by_measuring_again():
    rows, asked = [row("reference", ratio=[1, 1, 1]), row(ratio=SLOWER), row("peer")], []

    def again(keys):
        asked.append(keys)
        return [row(ratio=[1.58, 1.5, 1.6]), row("peer", ratio=[0.1, 0.1, 0.1])]

    worse, changes = against.confirmed(made(row(), row("peer")), rows, again)
    assert asked == [{Case(Kind.EVALUATION, "B@16", batch=4).key}]
    assert [c.new for c in worse] == [[1.58, 1.5, 1.6]] and len(changes) == 2
    # The new figure is the report's; what was not suspected keeps its own.
    assert rows[1]["ratio"] == [1.58, 1.5, 1.6] and rows[2]["ratio"] == [2.0, 1.9, 2.1]


def test_what_is_well_again_when_measured_again_is_not_worse():
    rows = [row(ratio=SLOWER)]
    worse, changes = against.confirmed(made(row()), rows, lambda keys: [row(ratio=[1.95, 1.9, 2.0])])
    assert worse == [] and len(changes) == 1 and rows[0]["ratio"] == [1.95, 1.9, 2.0]


def test_a_note_is_measured_again_too():
    old = made(row())
    worse, _ = against.confirmed(old, [row(reason="it fails")], lambda keys: [row(reason="it fails again")])
    assert [str(one) for one in worse] == ["evaluation B@16, batch 4, fastdiff: was 2.00x, now it fails again"]
    assert against.confirmed(old, [row(reason="it fails")], lambda keys: [row()])[0] == []


def test_nothing_is_measured_again_where_nothing_is_worse():
    def never(keys):
        raise AssertionError(keys)

    worse, changes = against.confirmed(made(row()), [row(ratio=[1.9, 1.8, 2.0])], never)
    assert worse == [] and len(changes) == 1
    assert against.confirmed(made(row("a peer")), [row("new")], never) == ([], [])


# --- the live table ---
def live(monkeypatch, terminal, cases):
    import rich.console

    whole, text = rich.console.Console, io.StringIO()
    monkeypatch.setattr(
        rich.console, "Console", lambda **options: whole(file=text, force_terminal=terminal, width=140, **options)
    )
    return Live(cases), text


CASE = Case(Kind.EVALUATION, "B@16", batch=4, rounds=4)
ROWS = [row("reference", ratio=[1.0, 1.0, 1.0]), row(), row("ONNX Runtime", reason="ImportError: [bold]not[/] here")]


def test_a_terminal_shows_a_table_and_a_bar(monkeypatch):
    shown, text = live(monkeypatch, True, [CASE])
    with shown:
        shown.preparing(CASE, "reference")
        shown.round(CASE, 1)
        shown.rows(ROWS)
        shown.live.refresh()
    during = text.getvalue()
    assert "round 1 of 4" in during and "25%" in during and "━" in during
    for words in ("contender", "fastdiff", "2.00x (1.90 to 2.10)", "ImportError: [bold]not[/] here"):
        assert words in during
    text.truncate(0)
    shown.finish()
    after = text.getvalue()
    assert "━" not in after and all(name in after for name in ("reference", "fastdiff", "ONNX Runtime"))


def test_a_terminal_shows_the_latest_rows_and_in_the_end_all(monkeypatch):
    shown, text = live(monkeypatch, True, [Case(Kind.EVALUATION, "B@16")])
    with shown:
        shown.rows([row(f"contender{k:02}") for k in range(40)])
        shown.live.refresh()
    assert "contender39" in text.getvalue() and "contender00" not in text.getvalue()
    shown.finish()
    assert "contender00" in text.getvalue()


def test_elsewhere_each_row_is_a_line(monkeypatch):
    shown, text = live(monkeypatch, False, [Case(Kind.EVALUATION, "B@16")])
    with shown:
        shown.round(CASE, 1)
        shown.rows(ROWS)
        shown.rows([row("fastdiff", kind=Kind.COLD, what="ddim 25", batch=1)])
    shown.finish()
    lines = text.getvalue().splitlines()
    assert lines[0] == "evaluation:" and lines[4] == "cold start:" and len(lines) == 6
    assert lines[2] == "  B@16, batch 4: fastdiff, 2 ms, 2.00x (1.90 to 2.10), 50%, 1e-07"
    assert lines[3] == "  B@16, batch 4: ONNX Runtime, ImportError: [bold]not[/] here"


def test_without_rich_the_refusal_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(InputError, match="pip install '.\\[bench\\]'"):
        Live([Case(Kind.EVALUATION, "B@16")])
