"""What a run shows while it goes on: on a terminal a table that fills, with a bar; elsewhere a line for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from fastdiff.bench.case import Case, case_text
from fastdiff.bench.contender import FASTDIFF, Status
from fastdiff.bench.report import COLUMNS
from fastdiff.bench.runner import Row, Watcher
from fastdiff.bench.tables import cells
from fastdiff.errors import InputError, install

SHOWN = 18  # rows of the table on a terminal, the latest


class Live(Watcher):
    """A context; keep: is given the rows of a case before they are shown."""

    def __init__(self, cases: Sequence[Case], keep: Callable[[list[Row]], object] = lambda rows: None) -> None:
        try:
            from rich.console import Console
            from rich.live import Live as RichLive
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError as error:
            raise InputError(f"the live table needs rich ({error}); {install('bench')}") from error
        self.console, self.keep = Console(), keep
        self.shown: list[Row] = []
        self.progress = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
        )
        self.task = self.progress.add_task("", total=sum(case.rounds for case in cases))
        self.live = RichLive(console=self.console, refresh_per_second=2, transient=True)
        self.terminal = self.console.is_terminal
        self.kind = ""

    def __enter__(self) -> Live:
        if self.terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.terminal:
            self.live.stop()

    def print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def preparing(self, case: Case, contender: str) -> None:
        self._step(f"preparing {case.label}: {contender}", 0)

    def round(self, case: Case, number: int) -> None:
        self._step(f"{case.label}: round {number} of {case.rounds}", 1)

    def _step(self, text: str, advance: int) -> None:
        self.progress.update(self.task, description=text, advance=advance)
        if self.terminal:
            self._draw()

    def rows(self, rows: list[Row]) -> None:
        self.keep(rows)
        self.shown += rows
        if self.terminal:
            self._draw()
            return
        if rows[0]["kind"] != self.kind:
            self.kind = rows[0]["kind"]
            self.print(f"{self.kind}:")
        for row in rows:
            self.print(f"  {case_text(row)}: {', '.join(filter(None, cells(row)))}")

    def _draw(self) -> None:
        from rich.console import Group

        self.live.update(Group(self.table(self.shown[-SHOWN:]), self.progress))

    def table(self, rows: list[Row]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for place, name in enumerate(COLUMNS[:7]):
            table.add_column(name, justify="left" if place < 2 else "right")
        for row in rows:
            dim = "" if row["status"] == Status.MEASURED else "dim"
            style = "bold" if row["contender"] == FASTDIFF else dim
            table.add_row(*(Text(cell, style) for cell in (f"{row['kind']} {case_text(row)}", *cells(row))))
        return table

    def finish(self) -> None:
        """The whole table, where it was not printed line by line."""
        if self.terminal:
            self.console.print(self.table(self.shown))
