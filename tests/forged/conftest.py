"""The readers under test, and the table of what became of the forged files."""

import importlib.util
import json
import os
import sys
from datetime import date
from pathlib import Path

import pytest
import torch

from fastdiff.files import save_json, save_text
from fastdiff.markdown import table
from fastdiff.provenance import machine, source_version, versions

REPORT = os.environ.get("FORGED_REPORT")


@pytest.fixture(scope="session")
def files():
    """The module files.py beside this one."""
    spec = importlib.util.spec_from_file_location("tests_forged_files", Path(__file__).with_name("files.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def readers(files, mindspore_file):
    return files.readers(mindspore_file)


@pytest.fixture(scope="session")
def counts():
    """reader → what became of its files; written as a report at the end where FORGED_REPORT names one."""
    found: dict[str, dict[str, float]] = {}
    yield found
    if REPORT and found:
        write_report(found, Path(REPORT))


def write_report(found, path):
    """A run of some readers alone replaces their rows, and keeps the others of the same command and machine."""
    facts = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "command": f"make forged FORGED={os.environ['FORGED']}",
    }
    made = {"date": date.today().isoformat(), "fastdiff": source_version()}
    found = {name: {**one, **made} for name, one in found.items()}
    file = path.with_suffix(".json")
    before = json.loads(file.read_text()) if file.exists() else {}
    if all(before.get(name) == value for name, value in facts.items()):
        found = before["readers"] | found
    save_json({**facts, "readers": found}, file)
    head = ["reader", "files", "read", "refused", "otherwise", "slowest, s", "most memory, MiB"]
    rows = [
        [
            name,
            f"{one['files']:,}",
            f"{one['read']:,}",
            f"{one['refused']:,}",
            str(one["otherwise"]),
            f"{one['seconds']:.2f}",
            f"{one['mebibytes']:.0f}",
        ]
        for name, one in found.items()
    ]
    total = {key: sum(one[key] for one in found.values()) for key in ("files", "read", "refused", "otherwise")}
    rows.append(["all", *(f"{value:,}" for value in total.values()), "", ""])
    text = [
        "# Forged files",
        "",
        f"{_all('date', found)}, fastdiff {_all('fastdiff', found)}, {facts['machine']}; {facts['versions']}. Made by "
        f"`{facts['command']}`.",
        "",
        "Whole files of every kind, changed at random: bytes turned, cut out, put in and repeated; values of JSON, of "
        "pickles, of headers and of archives replaced by others. *Refused* is an InputError; *otherwise* is any other "
        "exception, more than 2 s of work, more memory than ten times the file and 64 MiB (for pictures 32 bytes for "
        "each of 89 million pixels), or anything that was executed.",
        "",
        *table(head, rows),
    ]
    save_text("\n".join(text) + "\n", path.with_suffix(".md"))


def _all(name, found):
    return ", ".join(sorted({one[name] for one in found.values()}))
