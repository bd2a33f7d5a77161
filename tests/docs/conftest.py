"""README.md and the pages of docs/, taken apart."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Page:
    """A page's text, and its fenced blocks as (language, code), in order."""

    path: Path
    text: str
    blocks: list[tuple[str, str]]

    def all(self, language: str) -> list[str]:
        return [code for kind, code in self.blocks if kind == language]


def read(path: Path) -> Page:
    text = path.read_text()
    return Page(path, text, re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request):
    return read(request.param)


@pytest.fixture(scope="session")
def pages():
    return {path.name: read(path) for path in PAGES}


@pytest.fixture(scope="session")
def root():
    return ROOT
