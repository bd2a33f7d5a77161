"""How commands end that are cut short: by Ctrl-C, by a reader that has gone, by a full disk."""

import os
import signal
import subprocess
import sys
import termios

import pytest
import torch
from click.testing import CliRunner

from fastdiff import AnnotatedUnet, Model, make_schedule, save
from fastdiff.cli import stop
from fastdiff.cli.main import main
from fastdiff.files import write_atomically

FASTDIFF = [sys.executable, "-m", "fastdiff"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a model."""
    torch.manual_seed(0)
    model = Model(AnnotatedUnet(dim=8, dim_mults=(1, 2)), make_schedule("linear", 1000), image_shape=(1, 8, 8))
    save(model, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def heard() -> None:
    """In a new process: shells have what runs behind them ignore Ctrl-C."""
    for number in stop.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def interrupted(words, shown: str) -> tuple[int, str]:
    """Ctrl-C once the command has shown some text on its terminal; its exit code, and all that it showed."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 100))  # else bars are not shown
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


@pytest.mark.parametrize("number", stop.SIGNALS)
@pytest.mark.parametrize("words", [["info", "a.safetensors"], ["noise", "a.png"], ["export", "a", "-o", "a.onnx"]])
def test_every_signal_cleans_up_and_a_second_one_does_not_disturb(words, number, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        def write(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")

        try:
            write_atomically(tmp_path / "a.bin", write)
        finally:
            os.kill(os.getpid(), number)
            (tmp_path / "cleaned up").touch()

    monkeypatch.setattr(main.commands[words[0]], "callback", interrupt)
    before = signal.getsignal(number)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130 and result.output == "stopped\n"
    assert os.listdir(tmp_path) == ["cleaned up"] and signal.getsignal(number) == before


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_stop_is_asked_for_then_demanded(number):
    with stop.StopSignal() as asked:
        os.kill(os.getpid(), number)
        assert asked.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # while the second one is being obeyed


def test_nohup_is_kept(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.StopSignal() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not asked.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_during_the_imports(number, tmp_path):
    """In the middle of a module that the command needs, and that catches what it can."""
    code = f"import os\ntry: os.kill(os.getpid(), {int(number)})\nexcept BaseException: pass\n"
    (tmp_path / "click.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [*FASTDIFF, "info"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, preexec_fn=heard
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_a_signal_when_all_is_over():
    code = (
        "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "from fastdiff.__main__ import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code, "info"], capture_output=True, text=True, preexec_fn=heard)
    assert done.returncode == 0 and "sprites" in done.stdout and done.stderr == ""


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


@pytest.mark.parametrize("words, code", [(["info"], 0), (["nonsense"], 2), (["noise", "none.png", "--size", "x"], 2)])
@pytest.mark.parametrize("how", ["/dev/full", "closed", "closed output"])
def test_a_standard_error_that_takes_nothing(how, words, code, tmp_path):
    if how == "/dev/full" and not os.path.exists(how):
        pytest.skip("no /dev/full")
    number = 1 if how == "closed output" else 2
    with open(how if number == 2 and how != "closed" else os.devnull, "w") as stream:
        done = subprocess.run(
            [*FASTDIFF, *words],
            stdout=subprocess.PIPE,
            stderr=stream if number == 2 else subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            preexec_fn=None if how == "/dev/full" else lambda: os.close(number),
        )
    assert done.returncode == code and ("sprites" in done.stdout) == (code == 0 and number == 2)
    assert "Traceback" not in (done.stderr or "")


def test_an_error_of_the_disk_elsewhere_is_not_hidden(monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main.commands["info"], "callback", full)
    result = CliRunner().invoke(main, ["info"])
    assert isinstance(result.exception, OSError)
