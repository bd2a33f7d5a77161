"""The Tab key: what shells are told, without waiting for torch."""

import shutil
import subprocess
import sys

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from fastdiff.cli.main import main
from fastdiff.samplers.samplers import SAMPLERS
from fastdiff.samplers.schedule import NAMES
from fastdiff.samplers.spacing import SPACINGS
from fastdiff.training.losses import LOSSES
from fastdiff.training.recipe import LR_DECAYS, OPTIMIZERS, PRESETS


def told(line: str) -> list[tuple[str, str]]:
    """(type, value) of what is offered for the line's last word."""
    *words, begun = line.split(" ")
    items = BashComplete(main, {}, "fastdiff", "_FASTDIFF_COMPLETE").get_completions(words, begun)
    return [(item.type, item.value) for item in items]


@pytest.mark.parametrize(
    "line, names",
    [
        ("sam", ["sample"]),
        ("sample x --gif-f", ["--gif-frames"]),
        ("sample x --sampler ", list(SAMPLERS)),
        ("sample x --sampler dpm", [name for name in SAMPLERS if name.startswith("dpm")]),
        ("sample x --spacing ", list(SPACINGS)),
        ("sample x --sigmas k", ["karras"]),
        ("sample x --schedule co", ["cosine", "course"]),
        ("sample x --dtype ", ["float32", "bfloat16", "float16"]),
        ("sample x --format np", ["npz", "npy"]),
        ("sample x --device c", ["cpu", "cuda"]),
        ("eval x --sampler dd", [name for name in SAMPLERS if name.startswith("dd")]),
        ("eval x --prediction-type v", ["v_prediction"]),
        ("export x --sampler a", [name for name in [*SAMPLERS, "any"] if name.startswith("a")]),
        ("export x --weights ", ["float32", "float16"]),
        ("export x --noise ", ["philox", "input"]),
        ("noise x --schedule ", list(NAMES)),
        ("train --preset ", list(PRESETS)),
        ("train --schedule q", ["quadratic"]),
        ("train --loss ", list(LOSSES)),
        ("train --optimizer ", list(OPTIMIZERS)),
        ("train --lr-decay ", list(LR_DECAYS)),
        ("train --prediction-type v", ["v_prediction"]),
        ("train --block ", ["convnext", "resnet"]),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_names_are_completed(line, names):
    assert told(line) == [("plain", name) for name in names]


@pytest.mark.parametrize("command", ["sample", "info", "export", "eval"])
def test_models_are_shipped_ones_and_files(command):
    """The file first: bash forgets the names before it."""
    assert told(f"{command} ") == [("file", ""), ("plain", "fashion-mnist"), ("plain", "sprites")]
    assert told(f"{command} spr") == [("file", "spr"), ("plain", "sprites")]
    assert told("train --init spr") == [("file", "spr"), ("plain", "sprites")]
    assert told("noise ca") == [("file", "ca")] and told("train --resume ru") == [("dir", "ru")]


def test_completion_does_not_wait_for_torch():
    lines = ["sample sp", "info ", "sample x --dtype fl", "sample x --sampler d", "sample x --format n"]
    lines += ["export x --noise p", "train --preset a", "train --loss h", "completion b"]
    code = (
        "import sys; from click.shell_completion import BashComplete; from fastdiff.cli.main import main\n"
        f"for line in {lines}:\n"
        "    *words, begun = line.split(' ')\n"
        "    assert BashComplete(main, {}, 'fastdiff', 'X').get_completions(words, begun), line\n"
        "    assert 'torch' not in sys.modules, line"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell):
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0 and f"_FASTDIFF_COMPLETE={shell}_complete" in result.output


def test_an_unknown_shell_is_refused():
    result = CliRunner().invoke(main, ["completion", "zhs"])
    assert result.exit_code == 2 and "unknown shell 'zhs'; accepted: bash, zsh, fish" in result.output


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_by_the_script(tmp_path):
    command = tmp_path / "fastdiff"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m fastdiff "$@"\n')
    command.chmod(0o755)
    typed = (
        'compopt() { :; }; eval "$(fastdiff completion bash)"; COMP_WORDS=(fastdiff sample fash); COMP_CWORD=2\n'
        '_fastdiff_completion fastdiff; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", typed], capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    assert done.stdout == "fashion-mnist\n", done.stderr
