"""A run of `fastdiff bench`, from its plan to its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdiff.bench import against, compiling, plots, report, runner
from fastdiff.bench.case import Case, Key
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.live import Live
from fastdiff.bench.tables import name_of, why
from fastdiff.errors import InputError
from fastdiff.files import check_folder
from fastdiff.provenance import hardware


@dataclass(frozen=True)
class Options:
    """How cases are measured; see runner.measure."""

    cold: bool
    together: bool


def run(
    cases: Sequence[Case],
    plan: str,
    folder: Path,
    old: str | None = None,
    update: bool = False,
    cold: bool | None = None,
) -> dict[str, Any]:
    """Measure the cases and write the report into `folder`; all that can be refused is refused before that.

    Args:
        old: A report to compare with.
        update: Put the rows into the report that is there, in place of its own for these cases.
        cold: Whether torch.compile may take minutes; None: unless the plan is quick.

    Returns:
        What was measured; with an old report also what became "worse", in sentences.

    Raises:
        InputError: For reports that cannot be compared or updated, and missing packages.
    """
    plots.pyplot()
    check_folder(folder)
    compiling.use_folder()
    machine = hardware(cases[0].device)
    before = None if old is None else report.read(old)
    if before is not None:
        against.check_comparable(before, machine, {case.key for case in cases})
    there = report.read(folder) if update else None
    if there is not None and there["machine"] != machine:
        raise InputError(
            f"the report in {str(folder)!r} is of {there['machine']!r}, this machine is {machine!r}; accepted: a "
            "report of the same machine"
        )
    quick = plan == "quick"
    options = Options(not quick if cold is None else cold, together=quick)
    began = time.perf_counter()
    made = {"format": report.FORMAT, "plan": plan, **report.origin(machine), "cases": len(cases), "rows": []}

    def keep(rows: list[runner.Row]) -> None:
        """What is done is on disk, should the run be cut short."""
        made["rows"] += rows
        made["seconds"] = time.perf_counter() - began
        report.save_partial(made, folder)

    live = Live(cases, keep)
    try:
        with live:
            runner.measure(cases, options.cold, options.together, live)
        live.finish()
        if before is not None:
            made["worse"] = _compare(before, cases, made["rows"], options, live)
    except KeyboardInterrupt:
        kept = f" of {len(cases)} cases are in {folder / report.PARTIAL}" if made["rows"] else " cases were finished"
        live.print(f"stopped: {report.done(made)}{kept}")
        raise SystemExit(130) from None  # what shells report for an interrupted command
    made["seconds"] = time.perf_counter() - began
    for path in report.write(made if there is None else report.updated(there, made), folder):
        live.print(f"wrote {path}")
    report.remove_partial(folder)
    return made


def _again(cases: Sequence[Case], keys: set[Key], options: Options) -> list[runner.Row]:
    """The rows of those cases, measured over twice the rounds."""
    some = [replace(case, rounds=2 * case.rounds) for case in cases if case.key in keys]
    with Live(some) as live:
        live.print(f"measuring again: {'; '.join(case.label for case in some)}")
        return runner.measure(some, options.cold, options.together, live)


def _compare(
    before: dict[str, Any], cases: Sequence[Case], rows: list[runner.Row], options: Options, live: Live
) -> list[str]:
    """What became worse, one sentence each, shown as well."""
    worse, changes = against.confirmed(before, rows, lambda keys: _again(cases, keys, options))
    texts = [f"WORSE  {change}" for change in worse]
    was, now = before["versions"], report.installed()
    moved = [f"{name} {was[name]} to {now[name]}" for name in now if was.get(name, now[name]) != now[name]]
    if moved:
        live.print(f"note: other versions than the old report's: {', '.join(moved)}")
    if not changes:
        texts = ["nothing could be compared: no row has a figure in both reports"]
    for text in texts or [f"no row of {len(changes)} is worse by more than {against.WORSE:.0%}"]:
        live.print(text)
    return texts


def refused(made: dict[str, Any]) -> list[str]:
    """fastdiff's rows without a figure, refused by the parity gate or failed, but for want of a package."""
    fine = (Status.MEASURED, Status.MISSING)
    return [
        f"{name_of(row)}: {why(row)}"
        for row in made["rows"]
        if row["role"] == Role.FASTDIFF and row["status"] not in fine
    ]
