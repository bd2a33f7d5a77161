"""Words of files and of users, where they are shown."""

import ast

import pytest

from fastdiff import markdown, terminal
from fastdiff.errors import first_line, printable
from tests.test_layers import ALL

OBEYED = "a\x1b[2J\x07\r\n\u2028\x9b1m\u202egnp.exe\x7f"
ANOTHER_PROCESS = ("fastdiff.bench.peers.cold_process",)  # whose numbers are read by the one that started it


def test_what_a_terminal_would_obey_is_shown_instead(capsys):
    assert printable("red \x1b[31m\x07\n\u202e é") == r"red \x1b[31m\x07\n\u202e é"
    terminal.say(OBEYED)
    terminal.note(OBEYED)
    out, err = capsys.readouterr()
    assert out[:-1].isprintable() and err[:-1].isprintable()
    assert first_line(ValueError("bad \x1b[31mname\u202e\nmore")) == r"bad \x1b[31mname\u202e"


@pytest.mark.parametrize("name", [name for name in ALL if name != "fastdiff.terminal" and name not in ANOTHER_PROCESS])
def test_nothing_is_printed_elsewhere(name):
    calls = [node for node in ast.walk(ast.parse(ALL[name].read_text())) if isinstance(node, ast.Call)]
    called = {ast.unparse(node.func) for node in calls}
    assert not called & {"click.echo", "click.secho", "print", "tqdm.write", "bar.write"}


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a\n\n<script>alert(2)</script>",
    "`</code><b>",
    "``` ` ",
    "a|b",
    "[x](javascript:y)",
    "*_",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_words_stay_words_in_markdown(words):
    shown = [markdown.plain(words), *markdown.table(["name"], [[markdown.plain(words)]])]
    for line in shown:
        assert line.isprintable() and "<" not in line and "](" not in line.replace("\\](", "")
    assert len(markdown.table(["name", ""], [[words, 1]])[-1].split("|")) == 4
    block = markdown.block(words)
    assert block.startswith("    ") and block.isprintable()


@pytest.mark.parametrize("words", [*HOSTILE, "plain", ""])
def test_code_ends_where_the_words_do(words):
    made = markdown.code(words)
    ticks = made[: len(made) - len(made.lstrip("`"))]
    inside = made[len(ticks) : -len(ticks)]
    assert made.endswith(ticks) and ticks not in inside and made.isprintable()
    assert inside[:1] != "`" and inside[-1:] != "`"
