"""What a run shows while it goes on: a line for each row, and on a terminal a bar below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from fastdiff.bench.case import Case, case_text
from fastdiff.bench.runner import Row, Watcher
from fastdiff.bench.tables import cells
from fastdiff.terminal import say


class Live(Watcher):
    """A context; keep: is given the rows of a case before they are shown."""

    def __init__(self, cases: Sequence[Case], keep: Callable[[list[Row]], object] = lambda rows: None) -> None:
        self.keep, self.kind = keep, ""
        self.bar = tqdm(total=sum(case.rounds for case in cases), unit="round", disable=None, leave=False)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.bar.close()

    def preparing(self, case: Case, contender: str) -> None:
        self.bar.set_description(f"preparing {case.label}: {contender}")

    def round(self, case: Case, number: int) -> None:
        self.bar.set_description(f"{case.label}, round {number} of {case.rounds}", refresh=False)
        self.bar.update()

    def rows(self, rows: list[Row]) -> None:
        self.keep(rows)
        if rows[0]["kind"] != self.kind:
            self.kind = rows[0]["kind"]
            say(f"{self.kind}:")
        for row in rows:
            say(f"  {case_text(row)}: {', '.join(filter(None, cells(row)))}")
