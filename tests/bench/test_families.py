"""`fastdiff bench models`: what counts as agreement, and what is said of what does not agree or is not there."""

import json

import pytest
import torch
from click.testing import CliRunner

from fastdiff.bench.families import compare, mnist
from fastdiff.bench.families.family import Drawing, Family, Loop, normals
from fastdiff.cli.main import main

IMAGES = torch.linspace(-2, 2, 24).view(2, 3, 2, 2)


def loops(*differences, clipped=False):
    """A family of loops that differ by so much."""
    made = [Loop(f"by {by:g}", clipped, lambda: IMAGES, lambda by=by: IMAGES + by) for by in differences]
    return Family("a library's network", lambda: iter(made))


def test_a_family_whose_loop_agrees():
    row = compare.compared(next(mnist.FAMILIES[0].loops()))
    assert compare.within(row) and 0 < row["distance"] < 1e-5


@pytest.mark.parametrize("clipped, differences, agree", [(False, (0, 1e-5, 1e-4), 2), (True, (0, 1e-3, 1e-2), 2)])
def test_distances_are_relative_to_the_largest_pixel(clipped, differences, agree):
    (row,) = compare.measure((loops(*differences, clipped=clipped),))
    assert [one["distance"] for one in row["loops"]] == pytest.approx([by / 2 for by in differences], rel=0.05)
    assert sum(map(compare.within, row["loops"])) == agree


def test_what_fails_and_what_is_absent_is_a_row_that_says_so():
    def broken():
        raise ValueError("no such thing")

    failing = Family("failing", lambda: iter([Loop("one", False, broken, broken)]))
    absent = Family("absent", lambda: iter([]), needs=("no_such_package",))
    failed, missing = compare.measure((failing, absent))
    assert failed["loops"][0]["reason"] == "ValueError: no such thing" and not compare.within(failed["loops"][0])
    assert missing["reason"] == "no_such_package is not installed"
    made = {**compare.origin("here"), "rows": [failed, missing]}
    text = compare.summary(made, {"rows": []})
    assert (
        "no_such_package is not installed" in text
        and "0 of 1 agree" in text
        and "no such thing" in compare.details(made)
    )


@pytest.mark.parametrize("difference, code", [(1e-7, 0), (0.1, 1)])
def test_the_command(difference, code, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "FAMILIES", (loops(difference),))
    monkeypatch.setattr(compare.measure, "__defaults__", (compare.FAMILIES,))
    done = CliRunner().invoke(main, ["bench", "models", "-o", str(tmp_path / "m.json")])
    assert done.exit_code == code and "1 configurations" in done.output
    assert ("too far: by 0.1" in done.output) == bool(code)
    assert json.loads((tmp_path / "m.json").read_text())["rows"][0]["family"] == "a library's network"


def test_draws_come_in_turn():
    with Drawing():
        first, second = torch.randn(2, 3), torch.randn_like(torch.zeros(4))
    assert torch.equal(first, normals(0, 0, (2, 3))) and torch.equal(second, normals(1, 0, (4,)))
