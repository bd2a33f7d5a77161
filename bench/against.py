"""Two reports of one machine: which ratios have become worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastdiff.bench.case import Case, Key, case_key
from fastdiff.bench.contender import Role
from fastdiff.bench.report import Report
from fastdiff.bench.tables import name_of, ratio_text, why
from fastdiff.errors import InputError

WORSE = 0.10  # of the old ratio
Row = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A row of both reports.

    Attributes:
        row: The older one.
        new: Its [median, low, high] of today, or, where fastdiff no longer has a figure, why.
    """

    row: Row
    new: list[float] | str

    @property
    def worse(self) -> bool:
        """By more than WORSE, each median outside the other's interval."""
        if isinstance(self.new, str):
            return True
        was, low, _ = self.row["ratio"]
        now, _, high = self.new
        return now < (1 - WORSE) * was and now < low and was > high

    def __str__(self) -> str:
        now = self.new if isinstance(self.new, str) else ratio_text(self.new)
        return f"{name_of(self.row)}: was {ratio_text(self.row['ratio'])}, now {now}"


def check_cases(old: Report, cases: Iterable[Case]) -> None:
    """Raises InputError for a report of other cases."""
    if not {case.key for case in cases} & {case_key(row) for row in old["rows"]}:
        raise InputError("the old report has none of the cases that are to be measured; accepted: one of such a run")


def row_key(row: Row) -> Key:
    return (*case_key(row), row["contender"])


def compare(old: Report, rows: list[Row]) -> list[Change]:
    """The rows that both have a ratio for, and fastdiff's that only the old one has. References are left out."""
    now = {row_key(row): row for row in rows}
    cases = {case_key(row) for row in rows}
    changes = []
    for row in old["rows"]:
        found = now.get(row_key(row), {})
        if "ratio" not in row or case_key(row) not in cases or row["role"] == Role.REFERENCE:
            continue
        if "ratio" in found:
            changes.append(Change(row, found["ratio"]))
        elif row["role"] == Role.FASTDIFF:
            changes.append(Change(row, why(found) if found.get("reason") else "without a figure"))
    return changes


def confirmed(old: Report, rows: list[Row], again: Callable[[set[Key]], list[Row]]) -> tuple[list[Change], int]:
    """Those that are worse, and the number of all changes: what seems worse is measured again, and counts where it is
    worse again.

    again: the keys of cases → their rows, measured anew, which then replace those in `rows`.
    """
    changes = compare(old, rows)
    suspects = {row_key(change.row) for change in changes if change.worse}
    if suspects:
        measured = {row_key(row): row for row in again({key[:-1] for key in suspects})}
        rows[:] = [measured.get(row_key(row), row) if row_key(row) in suspects else row for row in rows]
        changes = compare(old, rows)
    return [change for change in changes if change.worse and row_key(change.row) in suspects], len(changes)
