"""What a run shows while it goes on: on a terminal a table that fills, with a bar; elsewhere a line for each row."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from fastdiff.bench.cases import Case
from fastdiff.bench.report import case_text, cells
from fastdiff.errors import InputError

COLUMNS = ("case", "contender", "time", "faster", "a second", "of the limit", "difference")
SHOWN = 18  # rows of the table on a terminal, the latest


class Live:
    """A context: step() says what is going on and counts, rows() adds rows that are done."""

    def __init__(self, cases: Sequence[Case], quiet: bool = False) -> None:
        try:
            from rich.console import Console
            from rich.live import Live as RichLive
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError as error:
            raise InputError(f"the live table needs rich ({error}); pip install 'fastdiff-engine[bench]'") from error
        self.console = Console(quiet=quiet)
        self.shown: list[dict[str, Any]] = []
        self.progress = Progress(
            BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False), console=self.console,
        )  # fmt: skip
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

    def step(self, text: str) -> None:
        self.progress.update(self.task, description=text, advance=1 if ": round " in text else 0)
        if self.terminal:
            self._draw()

    def rows(self, rows: list[dict[str, Any]]) -> None:
        self.shown += rows
        if self.terminal:
            self._draw()
            return
        if rows[0]["kind"] != self.kind:
            self.kind = rows[0]["kind"]
            self.console.print(f"{self.kind}:", markup=False)
        for row in rows:
            words = [word for word in cells(row) if word]
            self.console.print(f"  {case_text(row)}: {', '.join(words)}", markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        from rich.console import Group

        self.live.update(Group(self.table(self.shown[-SHOWN:]), self.progress))

    def table(self, rows: list[dict[str, Any]]) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in COLUMNS[:2] else "right")
        for row in rows:
            style = "bold" if row["contender"] == "fastdiff" else "dim" if "note" in row else ""
            table.add_row(*(Text(cell, style) for cell in (f"{row['kind']} {case_text(row)}", *cells(row))))
        return table

    def finish(self) -> None:
        """The whole table, where it was not printed line by line."""
        if self.terminal:
            self.console.print(self.table(self.shown))
