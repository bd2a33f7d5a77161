"""The command, called in a folder of its own."""

import pytest
from click.testing import CliRunner

from fastdiff.cli.main import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.fixture
def refused():
    """(output, words): it ends with one sentence that holds the words; no traceback."""

    def check(output: str, *words: str) -> None:
        lines = output.strip().splitlines()
        assert lines[-1].startswith("Error: ") and "Traceback" not in output
        assert len([line for line in lines if line.startswith("Error")]) == 1
        for word in words:
            assert word in lines[-1]

    return check
