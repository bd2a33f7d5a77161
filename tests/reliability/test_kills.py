"""kill -9 at random moments: nothing is lost but the last interval, nothing is left after the next run, and the results
are those of a run in one piece."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

KILLS = 10
SMALL = ["--dim", "8", "--dim-mults", "1,2", "--timesteps", "20", "--no-bf16", "--device", "cpu", "--threads", "1"]
# Saves after every few steps, so that kills fall between and into saves.
TRAINS = """
import sys
from fastdiff.cli.main import main
from fastdiff.training import loop
loop.SAVE_SECONDS, loop.GRID = 0.2, 4
main(sys.argv[1:])
"""


def contents(folder: Path) -> dict[str, str]:
    """Every file below, by its name: a hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left(folder: Path) -> list[str]:
    """What a process that was killed left behind."""
    return [str(path) for path in folder.rglob("*") if path.name.startswith((".fastdiff-", "compiling-"))]


def start(words: list[str], folder: Path, **environment: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=env, start_new_session=True, **pipes)


def finish(words: list[str], folder: Path, **environment: str) -> str:
    process = start(words, folder, **environment)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def killed(words: list[str], folder: Path, latest: float, moments: random.Random, **environment: str) -> bool:
    """Start the command and kill it, with all that it has started, before `latest`; whether that came in time."""
    process = start(words, folder, **environment)
    try:
        process.communicate(timeout=moments.uniform(0, latest))
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True


@pytest.fixture
def moments():
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    return random.Random(seed)


@pytest.fixture
def pictures(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8))
    return tmp_path


COMMANDS = {
    "sampling": [
        *("sample", "sprites", "-n", "600", "--steps", "3", "--threads", "1", "--shard-size", "64"),
        *("-o", "out/"),
    ],
    "sampling of pictures": [
        *("sample", "sprites", "-n", "300", "--steps", "3", "--threads", "1", "--shard-size", "64"),
        *("--format", "png", "-o", "out/"),
    ],
    "export": ["export", "sprites", "--sampler", "ddim", "--steps", "5", "-o", "out/sampler.onnx"],
    "page": ["export", "sprites", "--web", "out"],
    "page into an empty folder": ["export", "sprites", "--web", "out"],
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_that_is_killed(what, tmp_path, moments):
    words = ["-m", "fastdiff", *COMMANDS[what]]

    def fresh(name: str) -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        (tmp_path / name / ("out" if what == "page into an empty folder" else "")).mkdir(parents=True)
        return tmp_path / name

    finish(words, fresh("whole"))  # what is compiled and kept is there from now on
    began = time.monotonic()
    finish(words, fresh("whole"))
    seconds = time.monotonic() - began
    fresh("cut")
    kills = 0
    while kills < KILLS:
        if killed(words, tmp_path / "cut", seconds, moments):
            kills += 1
        else:  # it was done: once more
            fresh("cut")
    if not what.startswith("page") or not (tmp_path / "cut" / "out" / "index.html").exists():  # which is refused
        finish(words, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") and not left(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_that_is_killed(pictures, moments):
    (pictures / "train.py").write_text(TRAINS)
    new = ["train.py", "train", "--data", "x.npy", *SMALL, "--epochs", "6", "--batch-size", "10"]
    began = time.monotonic()
    finish([*new, "-o", "whole"], pictures)
    seconds = time.monotonic() - began
    kills, steps = 0, []
    again = ["train.py", "train", "--resume", "cut", "--device", "cpu", "--threads", "1"]
    while kills < KILLS:
        checkpoint = pictures / "cut" / "checkpoint.safetensors"
        words = again if checkpoint.exists() else [*new, "-o", "cut"]
        if not killed(words, pictures, seconds, moments):
            break  # all epochs are done
        kills += 1
        if checkpoint.exists():
            from fastdiff.training.checkpoint import read_checkpoint

            steps.append(read_checkpoint(checkpoint).steps_done)
    finish(again if (pictures / "cut" / "checkpoint.safetensors").exists() else [*new, "-o", "cut"], pictures)
    assert steps == sorted(steps)
    cut, whole = contents(pictures / "cut"), contents(pictures / "whole")
    assert set(cut) == set(whole) and not left(pictures)
    for name in ("samples.png", *(f"samples/epoch-{k:04d}.png" for k in range(1, 7))):
        assert cut[name] == whole[name]
    from fastdiff import load

    models = [load(pictures / name).network.state_dict() for name in ("cut", "whole")]
    assert all(models[0][key].equal(models[1][key]) for key in models[0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_compilation_that_is_killed(tmp_path, moments):
    words = ["-c", "from fastdiff.kernels.cpu import compiled; assert compiled.build_error() is None"]
    began = time.monotonic()
    finish(words, tmp_path, FASTDIFF_CACHE=str(tmp_path / "whole"))
    seconds = time.monotonic() - began
    kills = 0
    while kills < KILLS:
        if not killed(words, tmp_path, seconds, moments, FASTDIFF_CACHE=str(tmp_path / "cut")):
            for file in (tmp_path / "cut").iterdir():
                file.unlink()
            continue
        kills += 1
    finish(words, tmp_path, FASTDIFF_CACHE=str(tmp_path / "cut"))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") and not left(tmp_path)
