"""The README is true: its table comes from the committed report, its commands parse, its code runs, its files exist."""

import re
import shlex
from pathlib import Path

import pytest

from fastdiff import defaults
from fastdiff.bench import readme, report
from fastdiff.bench.contender import Role
from fastdiff.bench.quality import page
from fastdiff.bench.readme import RESULTS
from fastdiff.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (fastdiff .*?)(?: {2,}#.*)?$", README, re.MULTILINE)


def test_the_figures_come_from_the_committed_reports():
    for name, section in readme.sections().items():
        assert section and readme.put_in(README, name, section) == README, "run fastdiff bench readme"


@pytest.mark.parametrize("folder", readme.reports(), ids=lambda folder: folder.name)
def test_the_committed_reports_are_whole(folder):
    made = report.read(folder)
    assert made["machine"] and made["versions"]["torch"] and made["command"].startswith("fastdiff bench")
    assert "+" not in made["fastdiff"]  # of a commit, not of files that nobody has
    pictures = sorted(path.name for path in folder.glob("*.png"))
    text = (folder / "report.md").read_text()
    assert sorted(re.findall(r"^!\[.*?\]\((.*?)\)$", text, re.MULTILINE)) == pictures
    assert text == report.markdown(made, re.findall(r"^!\[.*?\]\((.*?)\)$", text, re.MULTILINE))
    cpu = made["rows"][0]["device"] == "cpu"
    assert len(pictures) == 4 or not cpu
    timed = [row for row in made["rows"] if "median_seconds" in row and row["role"] != Role.OTHER_NETWORK]
    assert all(row["parity"] <= row["bound"] for row in timed if "parity" in row)
    assert all("parity" in row or "remark" in row for row in timed)
    for network in ("A28@28", "B@16") if cpu else ():  # a GPU's machine may lack some
        there = {row["contender"] for row in timed if row["network"] == network and row["kind"] == "sampling"}
        assert {"reference", "eager, tuned", "torch.compile", "torch.compile, max-autotune", "ONNX Runtime",
                "diffusers' scheduler", "fastdiff"} <= there  # fmt: skip


@pytest.mark.parametrize("path", sorted(RESULTS.glob("quality-*.json")), ids=lambda path: path.name)
def test_the_default_sampler_is_what_was_measured(path):
    """No point of at most as many evaluations is nearer to the data."""
    for entry in page.read(path)["models"]:
        points = [row for row in entry["rows"] if "distance" in row and row["guidance_scale"] is None]
        (own,) = (row for row in points if (row["sampler"], row["steps"]) == (defaults.SAMPLER, defaults.STEPS))
        assert own["distance"] <= min(row["distance"] for row in points if row["evaluations"] <= own["evaluations"])


def test_the_loops_cost_comes_from_the_committed_report():
    loop, own = (f"{low:.2f} to {high:.2f}" for low, high in readme.costs_of_a_step())
    assert f"takes {loop} of its network alone" in README and f"CPU form {own} of it" in README


def test_there_are_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line):
    name, *words = shlex.split(line)[1:]
    main.commands[name].make_context(name, words)


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!https://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "fastdiff.sample" in blocks[0]
    names: dict = {}
    exec(blocks[0], names)
    assert names["images"].shape == (8, 3, 16, 16) and names["frames"].shape == (10, 8, 3, 16, 16)
