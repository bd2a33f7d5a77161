"""Two reports of one machine: which ratios have become worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastdiff.bench.case import Key, case_key
from fastdiff.bench.contender import Role, Status
from fastdiff.bench.report import Report
from fastdiff.bench.tables import name_of, why
from fastdiff.errors import InputError

WORSE = 0.10  # of the old ratio


@dataclass(frozen=True)
class Change:
    """A row of both reports.

    Attributes:
        old, new: [median, low, high] of the reference's time over the contender's; new is None where fastdiff no longer
            has a figure.
        reason: Why it has none.
    """

    key: Key
    text: str
    old: list[float]
    new: list[float] | None
    reason: str = ""

    @property
    def worse(self) -> bool:
        """By more than WORSE, each median outside the other's interval."""
        if self.new is None:
            return True
        return self.new[0] < (1 - WORSE) * self.old[0] and self.new[0] < self.old[1] and self.old[0] > self.new[2]

    def __str__(self) -> str:
        if self.new is None:
            return f"{self.text}: was {self.old[0]:.2f}x, now {self.reason}"
        return (
            f"{self.text}: was {self.old[0]:.2f}x ({self.old[1]:.2f} to {self.old[2]:.2f}), "
            f"now {self.new[0]:.2f}x ({self.new[1]:.2f} to {self.new[2]:.2f})"
        )


def check_comparable(old: Report, machine: str, cases: set[Key]) -> None:
    """Raises InputError for a report of another machine, whose ratios are not those of this one, or of other cases."""
    if old["machine"] != machine:
        raise InputError(
            f"the old report is of {old['machine']!r}, this machine is {machine!r}; accepted: a report of "
            "the same machine"
        )
    if not cases & {case_key(row) for row in old["rows"]}:
        raise InputError("the old report has none of the cases that are to be measured; accepted: one of such a run")


def row_key(row: dict[str, Any]) -> Key:
    return (*case_key(row), row["contender"])


def compare(old: Report, rows: list[dict[str, Any]]) -> list[Change]:
    """The rows that both have a ratio for, and fastdiff's that only the old one has. References are left out."""
    now = {row_key(row): row for row in rows}
    cases = {case_key(row) for row in rows}
    changes = []
    for row in old["rows"]:
        found = now.get(row_key(row), {})
        if "ratio" not in row or case_key(row) not in cases or row["role"] == Role.REFERENCE:
            continue
        if "ratio" in found:
            changes.append(Change(row_key(row), name_of(row), row["ratio"], found["ratio"]))
        elif row["role"] == Role.FASTDIFF:
            reason = why(found) if found and found["status"] != Status.MEASURED else "without a figure"
            changes.append(Change(row_key(row), name_of(row), row["ratio"], None, reason))
    return changes


def confirmed(
    old: Report, rows: list[dict[str, Any]], again: Callable[[set[Key]], list[dict[str, Any]]]
) -> tuple[list[Change], list[Change]]:
    """(those that are worse, all changes): what seems worse is measured again, and counts where it is worse again.

    again: the keys of cases → their rows, measured anew, which then replace those in `rows`.
    """
    changes = compare(old, rows)
    suspects = {change.key for change in changes if change.worse}
    if not suspects:
        return [], changes
    measured = {row_key(row): row for row in again({key[:-1] for key in suspects})}
    for place, row in enumerate(rows):
        if row_key(row) in suspects and row_key(row) in measured:
            rows[place] = measured[row_key(row)]
    changes = compare(old, rows)
    return [change for change in changes if change.worse and change.key in suspects], changes
