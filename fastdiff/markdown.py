"""The one writer of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of Markdown; bars in cells become slashes."""
    head = f"| {' | '.join(columns)}".rstrip() + " |"  # the last column may have no name
    lines = [["---"] * len(columns), *rows]
    return [head, *(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)]
