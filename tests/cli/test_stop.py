"""How commands end that are cut short: by Ctrl-C, by a reader that has gone, by a full disk."""

import os
import signal
import subprocess
import sys
import termios
from functools import partial

import pytest
import torch
from click.testing import CliRunner

from fastdiff import AnnotatedUnet, Model, make_schedule, save
from fastdiff.cli.main import main

FASTDIFF = [sys.executable, "-m", "fastdiff"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a model."""
    torch.manual_seed(0)
    model = Model(AnnotatedUnet(dim=8, dim_mults=(1, 2)), make_schedule("linear", 1000), image_shape=(1, 8, 8))
    save(model, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def interrupted(words, shown: str) -> tuple[int, str]:
    """Ctrl-C once the command has shown some text on its terminal; its exit code, and all that it showed."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 100))  # else bars are not shown
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells have what runs behind them ignore Ctrl-C
    process = subprocess.Popen([*FASTDIFF, *words], stdout=its, stderr=its, preexec_fn=heard)
    os.close(its)
    text = ""
    while True:
        try:
            part = os.read(ours, 4096).decode(errors="replace")
        except OSError:  # Linux's end of a terminal
            break
        if not part:
            break
        if shown in text + part and shown not in text:
            process.send_signal(signal.SIGINT)
        text += part
    os.close(ours)
    return process.wait(timeout=60), text


def test_ctrl_c_while_sampling(folder):
    code, text = interrupted(["sample", "a.safetensors", "-n", "5000", "--steps", "30", "--threads", "1"], "0%|")
    assert code == 130, text
    assert text.rstrip().endswith("stopped") and "Traceback" not in text and "Abort" not in text
    assert os.listdir() == ["a.safetensors"]


def test_ctrl_c_while_exporting(folder):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    code, text = interrupted(
        # Its check runs a thousand steps, so that it is under way even where this process is slow to hear of it.
        ["export", "a.safetensors", "--sampler", "ddpm", "-o", "out/a.onnx"],
        "capturing the network ...",
    )
    assert code == 130, text
    assert text.rstrip().endswith("stopped") and "Traceback" not in text and "Abort" not in text
    assert os.listdir() == ["a.safetensors"]


@pytest.mark.parametrize("words", [["info", "a.safetensors"], ["noise", "a.png"], ["bench", "--list"]])
def test_ctrl_c_anywhere(words, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.commands[words[0]], "callback", interrupt)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130 and result.output == "stopped\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["info"], ["sample", "a.safetensors", "-n", "1", "--steps", "1"]])
def test_a_full_disk_behind_stdout(words, unbuffered, folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*FASTDIFF, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: No space left on device\n"


def test_a_reader_that_has_gone(folder):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*FASTDIFF, "info"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == "" and done.returncode == 1


def test_an_error_of_the_disk_elsewhere_is_not_hidden(monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main.commands["info"], "callback", full)
    result = CliRunner().invoke(main, ["info"])
    assert isinstance(result.exception, OSError)
