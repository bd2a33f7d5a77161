"""The README is true: its table comes from the committed report, its commands parse, its code runs, its files exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from fastdiff.bench.sampling import BEGIN, RESULTS, put_into_readme
from fastdiff.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (fastdiff .*?)(?: {2,}#.*)?$", README, re.MULTILINE)


def test_the_table_comes_from_the_committed_report():
    report = json.loads((RESULTS / "sampling-cpu.json").read_text())
    assert BEGIN in README and put_into_readme(README, report) == README
    assert report["machine"] and report["versions"] and report["command"] and report["fastdiff"]
    assert all(row["parity"] <= 1e-4 for row in report["rows"])


def test_the_loops_cost_comes_from_the_committed_report():
    rows = json.loads((RESULTS / "onnx-cpu.json").read_text())["rows"]
    assert all("note" not in row for row in rows)

    def told(start):
        medians = [row["ratio"][0] for row in rows if row["contender"].startswith(start)]
        return f"{min(medians):.2f} to {max(medians):.2f} of it"

    loop = told("sampler.onnx").removesuffix("of it")
    assert f"takes {loop}of its network alone" in README and f"CPU form {told('fastdiff')}" in README


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
