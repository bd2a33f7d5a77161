"""A run of `fastdiff bench`, from its plan to its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdiff.bench import against, compiling, plots, report, runner
from fastdiff.bench.case import Case, Key
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.live import Live
from fastdiff.bench.tables import name_of, why
from fastdiff.files import check_folder
from fastdiff.provenance import hardware
from fastdiff.terminal import say


def run(
    cases: Sequence[Case],
    plan: str,
    folder: Path,
    old: str | None = None,
    update: bool = False,
    compile: bool = True,
) -> dict[str, Any]:
    """Measure the cases and write the report into `folder`; all that can be refused is refused before that.

    Args:
        old: A report to compare with.
        update: Put the rows into the report that is there, in place of its own for these cases.
        compile: Whether torch.compile may take minutes, which the quick plan never lets it.

    Returns:
        What was measured; with an old report also what became "worse", in sentences.

    Raises:
        InputError: For reports that cannot be compared or updated, and missing packages.
    """
    plots.pyplot()
    check_folder(folder)
    compiling.use_folder()
    machine = hardware(cases[0].device)
    before = None if old is None else report.read(old, machine)
    if before is not None:
        against.check_cases(before, cases)
    there = report.read(folder, machine) if update else None
    quick = plan == "quick"
    began = time.perf_counter()
    made = {"format": report.FORMAT, "plan": plan, **report.origin(machine), "cases": len(cases), "rows": []}

    def keep(rows: list[runner.Row]) -> None:
        """What is done is on disk, should the run be cut short."""
        made["rows"] += rows
        made["seconds"] = time.perf_counter() - began
        report.save_partial(made, folder)

    def measure(cases: Sequence[Case], live: Live) -> list[runner.Row]:
        with live:
            return runner.measure(cases, cold=compile and not quick, together=quick, watcher=live)

    def again(keys: set[Key]) -> list[runner.Row]:
        """The rows of those cases, measured over twice the rounds."""
        some = [replace(case, rounds=2 * case.rounds) for case in cases if case.key in keys]
        say(f"measuring again: {'; '.join(case.label for case in some)}")
        return measure(some, Live(some))

    try:
        measure(cases, Live(cases, keep))
        if before is not None:
            made["worse"] = _worse(before, made, again)
    except KeyboardInterrupt:
        kept = f" of {len(cases)} cases are in {folder / report.PARTIAL}" if made["rows"] else " cases were finished"
        say(f"stopped: {report.done(made)}{kept}")
        raise SystemExit(130) from None  # what shells report for an interrupted command
    made["seconds"] = time.perf_counter() - began
    for path in report.write(made if there is None else report.updated(there, made), folder):
        say(f"wrote {path}")
    report.remove_partial(folder)
    return made


def _worse(before: report.Report, made: report.Report, again: Callable[[set[Key]], list[runner.Row]]) -> list[str]:
    """What has become worse, one sentence each, shown as well."""
    worse, compared = against.confirmed(before, made["rows"], again)
    was, now = before["versions"], made["versions"]
    moved = [f"{name} {was[name]} to {now[name]}" for name in now if was.get(name, now[name]) != now[name]]
    if moved:
        say(f"note: other versions than the old report's: {', '.join(moved)}")
    texts = [f"WORSE  {change}" for change in worse]
    if not compared:
        texts = ["nothing could be compared: no row has a figure in both reports"]
    for text in texts or [f"no row of {compared} is worse by more than {against.WORSE:.0%}"]:
        say(text)
    return texts


def refused(made: dict[str, Any]) -> list[str]:
    """fastdiff's rows without a figure, refused by the parity gate or failed, but for want of a package."""
    fine = (Status.MEASURED, Status.MISSING)
    return [
        f"{name_of(row)}: {why(row)}"
        for row in made["rows"]
        if row["role"] == Role.FASTDIFF and row["status"] not in fine
    ]
