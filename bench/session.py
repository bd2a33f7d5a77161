"""A run of `fastdiff bench`, from its plan to its report."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdiff.bench import against, compiling, plots, report, reporting, runner
from fastdiff.bench.cases import Case
from fastdiff.bench.contender import FASTDIFF
from fastdiff.bench.live import Live
from fastdiff.errors import InputError
from fastdiff.files import check_folder
from fastdiff.provenance import hardware, source_version


def run(
    cases: Sequence[Case],
    plan: str,
    folder: Path,
    old: str | None = None,
    update: bool = False,
    cold: bool | None = None,
) -> dict[str, Any]:
    """Measure the cases and write the report into `folder`; returns what was measured, "worse" with an old report:
    what became so.

    update: put the rows into the report that is there, in place of its own for these cases. cold: whether torch.compile
    may take minutes; None: unless the plan is quick. All that can be refused is refused before anything is measured.
    Raises InputError.
    """
    plots.pyplot()
    check_folder(folder)
    compiling.use_folder()
    device = cases[0].device
    before = None if old is None else report.read(old)
    if before is not None:
        against.check_comparable(before, hardware(device), {case.key for case in cases})
    there = report.read(folder) if update else None
    if there is not None and there["machine"] != hardware(device):
        raise InputError(f"the report in {str(folder)!r} is of {there['machine']!r}, this machine is "
                         f"{hardware(device)!r}; accepted: a report of the same machine")  # fmt: skip
    quick = plan == "quick"
    cold = not quick if cold is None else cold
    began, live = time.perf_counter(), Live(cases)
    made: dict[str, Any] = {
        "format": report.FORMAT,
        "plan": plan,
        "machine": hardware(device),
        "python": platform.python_version(),
        "versions": report.installed(),
        "fastdiff": source_version(),
        "command": reporting.command("fastdiff", *sys.argv[1:]),
        "cases": len(cases),
        "rows": [],
    }

    def keep(rows: list[dict[str, Any]]) -> None:
        """What is done is on disk, should the run be cut short."""
        made["rows"] += rows
        made["seconds"] = time.perf_counter() - began
        report.save_partial(made, folder)
        live.rows(rows)

    try:
        with live:
            runner.measure(cases, cold, quick, live.step, keep)
        live.finish()
        if before is not None:
            made["worse"] = _compare(before, cases, made["rows"], quick, cold, live)
    except KeyboardInterrupt:
        kept = f" of {len(cases)} cases are in {folder / report.PARTIAL}" if made["rows"] else " cases were finished"
        live.console.print(f"stopped: {report.done(made)}{kept}", markup=False)
        raise SystemExit(130) from None  # what shells report for an interrupted command
    made["seconds"] = time.perf_counter() - began
    for path in report.write(made if there is None else report.updated(there, made), folder):
        live.console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    report.remove_partial(folder)
    return made


def _again(cases: Sequence[Case], keys: set[tuple[str, ...]], quick: bool, cold: bool) -> list[dict[str, Any]]:
    """The rows of those cases, measured over twice the rounds."""
    some = [replace(case, rounds=2 * case.rounds) for case in cases if case.key in keys]
    with Live(some) as live:
        live.console.print(f"measuring again: {'; '.join(case.label for case in some)}", markup=False, soft_wrap=True)
        return runner.measure(some, cold, quick, live.step)


def _compare(
    before: dict[str, Any], cases: Sequence[Case], rows: list[dict[str, Any]], quick: bool, cold: bool, live: Live
) -> list[str]:
    """What became worse, one sentence each, told as well."""
    worse, changes = against.confirmed(before, rows, lambda keys: _again(cases, keys, quick, cold))
    texts = [f"WORSE  {change}" for change in worse]
    now = report.installed()
    moved = [f"{name} {before['versions'][name]} to {now[name]}" for name in now
             if before["versions"].get(name, now[name]) != now[name]]  # fmt: skip
    if moved:
        live.console.print(f"note: other versions than the old report's: {', '.join(moved)}", markup=False)
    if not changes:
        texts = ["nothing could be compared: no row has a figure in both reports"]
    for text in texts or [f"no row of {len(changes)} is worse by more than {against.WORSE:.0%}"]:
        live.console.print(text, markup=False, highlight=False, soft_wrap=True)
    return texts


def refused(made: dict[str, Any]) -> list[str]:
    """fastdiff's rows without a figure, refused by the parity gate or failed, but for want of a package."""
    return [
        f"{row['kind']} {report.case_text(row)}, {row['contender']}: {row['note']}"
        for row in made["rows"]
        if row["contender"].split(",")[0] == FASTDIFF and "not installed" not in row.get("note", "not installed")
    ]
