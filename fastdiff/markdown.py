"""The one writer of Markdown: tables, and words of a file or of the user in it, which stay words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fastdiff.errors import printable


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of Markdown; in cells, which may be Markdown, bars become slashes, and there is no HTML."""
    head = f"| {' | '.join(columns)}".rstrip() + " |"  # the last column may have no name
    lines = [["---"] * len(columns), *rows]
    return [head, *(f"| {' | '.join(_cell(str(cell)) for cell in line)} |" for line in lines)]


def _cell(text: str) -> str:
    return printable(text).replace("|", "/").replace("<", "&lt;")


def plain(words: object) -> str:
    """Words as they are: on one line, without HTML, links or other markup."""
    text = printable(str(words)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]~#]|\b_|_\b)", r"\\\1", text)


def code(words: object) -> str:
    """Words as code within a line, between more backticks than they hold."""
    text = printable(str(words))
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if not text.strip("` ") or text[0] in "` " or text[-1] in "` " else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def block(words: str) -> str:
    """A line of code by itself."""
    return f"    {printable(words)}"
