"""Several processes train as one does: torchrun in real processes on the CPU."""

import contextlib
import csv
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import load
from fastdiff.cli.main import main
from fastdiff.training.group import Group

pytest.importorskip("accelerate")

TRAIN = "train --data x.npy --dim 8 --dim-mults 1,2 --batch-size 10 --no-bf16 --device cpu --threads 1".split()


@given(count=st.integers(1, 50), world=st.integers(1, 9), parts=st.integers(1, 7))
def test_shares_are_the_batch_in_its_order(count, world, parts):
    group, slices = Group("cpu"), []
    group.world = world
    for rank in range(world):
        group.rank = rank
        own = group.share(count, parts)
        sizes = [part.stop - part.start for part in own]
        assert len(own) <= parts and (not own or min(sizes) > 0)
        assert count // world <= sum(sizes) <= -(-count // world)
        assert not own or max(sizes) - min(sizes) <= 1
        slices += own
    assert [row for part in slices for row in range(count)[part]] == list(range(count))


@pytest.fixture
def folder(tmp_path):
    """31 pictures to train on: the last of four batches is one row, which two processes cannot share."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (32, 8, 8, 1), dtype=np.uint8))
    return tmp_path


def alone(folder, *words) -> str:
    """What the command says, in this process."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.output


def processes(folder, *words, start=("-m", "fastdiff"), world=2, code: int | None = 0) -> str:
    """What torchrun says."""
    standalone = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), *standalone, *start, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code if code is not None else done.returncode != 0, said
    return said


def rows(folder):
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


def close(a, b, tolerance=1e-4) -> bool:
    x, y = (load(path / "model.safetensors").network.state_dict() for path in (a, b))
    return all(torch.allclose(x[k], y[k], rtol=tolerance, atol=tolerance) for k in x)


def test_two_processes_take_the_steps_of_one(folder):
    """The same pictures, noise and losses, to rounding; the first process writes and talks."""
    said = processes(folder, *TRAIN, "--epochs", "2", "--accumulate", "2", "-o", "two")
    alone(folder, *TRAIN, "--epochs", "2", "-o", "one")
    assert said.count("8 steps in 2 epochs") == 1 and "2 processes that share each batch of 10" in said
    assert said.count("epoch 2/2") == 1 and said.count("wrote ") == 1 and "strides" not in said
    two, one = rows(folder / "two"), rows(folder / "one")
    assert [row["step"] for row in two] == [row["step"] for row in one] == ["4", "8"]
    for name in ("loss", "val_loss"):
        assert [float(row[name]) for row in two] == pytest.approx([float(row[name]) for row in one], rel=1e-4)
    assert close(folder / "two", folder / "one")
    said = alone(folder, "train", "--resume", "two", "--epochs", "3", "--device", "cpu", "--threads", "1")
    alone(folder, *TRAIN, "--epochs", "3", "-o", "three")
    assert "3 epochs in place of 2" in said and [row["step"] for row in rows(folder / "two")] == ["4", "8", "12"]
    # Its first two epochs had the learning rates of a shorter run.
    assert float(rows(folder / "two")[2]["loss"]) == pytest.approx(float(rows(folder / "three")[2]["loss"]), rel=5e-2)


def test_a_process_that_dies_ends_the_run_and_resume_goes_on(folder):
    (folder / "dies.py").write_text(
        textwrap.dedent("""
        import os, signal, sys
        from fastdiff.cli.main import main
        from fastdiff.training import loop
        from fastdiff.training.trainer import Trainer

        loop.SAVE_SECONDS, loop.LOG_EVERY, step = 0.0, 1, Trainer.step

        def dying(self):
            if self.steps_done == 5 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self)

        Trainer.step = dying
        main(sys.argv[1:])
        """)
    )
    said = processes(folder, *TRAIN, "--epochs", "2", "-o", "cut", start=("dies.py",), code=None)
    assert "process 0 of 2 could not go on with the others" in said
    assert "fastdiff train --resume cut" in said
    assert rows(folder / "cut")[-1]["step"] == "5"
    alone(folder, "train", "--resume", "cut", "--device", "cpu", "--threads", "1")
    alone(folder, *TRAIN, "--epochs", "2", "-o", "whole")
    assert close(folder / "cut", folder / "whole")


@pytest.mark.parametrize("words, reason", [(["--data", "nope.npy"], "nope.npy"), (["-o", "taken"], "a run already")])
def test_bad_input_is_one_sentence(folder, words, reason):
    """Of the first process; the others end with it."""
    (folder / "taken").mkdir()
    (folder / "taken" / "checkpoint.safetensors").write_bytes(b"x")
    said = processes(folder, *TRAIN, "--epochs", "2", *words, code=None)
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and reason in errors[0] and "group.py" not in said


def test_several_processes_need_a_device_each(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE = 2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start"):
        Group("cpu")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="device = 'cuda:1' with 2 processes; accepted: cpu, or cuda"):
        Group("cuda:1")


@pytest.mark.slow
def test_processes_of_different_recipes_begin_nothing(folder):
    (folder / "odd.py").write_text(
        "import os, sys; from fastdiff.cli.main import main\n"
        "main([*sys.argv[1:], *(['--lr', '0.5'] if os.environ['RANK'] == '1' else [])])\n"
    )
    said = processes(folder, *TRAIN, "--epochs", "1", "-o", "odd", start=("odd.py",), code=None)
    assert said.count("Error: lr = 0.5 in process 1 of 2, and 0.0001 in the first") == 1
    assert not (folder / "odd").exists()


def test_a_batch_in_more_parts_than_it_has_pictures():
    assert Group("cpu").share(3, 10**9) == [slice(0, 1), slice(1, 2), slice(2, 3)]
