"""Random calls in threads and processes, some of them killed: in the end the memory, the descriptors and the files are
those of the beginning."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.engine.kept import release

MINUTES = float(os.environ.get("RANDOM_MINUTES", "10"))
REPORT = os.environ.get("RANDOM_REPORT")
THREADS = 2
PARTS, WARM = 8, 3  # of the time; after so many of them what is kept for use again is there
GROWTH = 64 * 2**20  # bytes, of an allocator's leavings


def memory() -> int:
    """Of this process, in bytes, without what nobody holds any more."""
    release()
    gc.collect()
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def descriptors() -> set[str]:
    """What this process has open."""
    folder = "/proc/self/fd"
    return {os.readlink(f"{folder}/{one}") for one in os.listdir(folder) if os.path.lexists(f"{folder}/{one}")}


class Calls:
    """One random call at a time, each in a folder of its own; `done` counts them by name."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice = folder, random.Random(seed)
        self.models = {name: fastdiff.load(name) for name in ("sprites", "fashion-mnist")}
        self.shared = fastdiff.Engine(self.models["sprites"], batch_size=8)
        self.done: dict[str, int] = {}
        self.lock = threading.Lock()

    def one(self, number: int) -> None:
        torch.set_num_threads(1)
        with self.lock:
            name = self.dice.choice([one for one in dir(self) if one.startswith("call_")])
            dice = random.Random(self.dice.random())
            self.done[name.removeprefix("call_")] = self.done.get(name.removeprefix("call_"), 0) + 1
        place = self.folder / str(number)
        place.mkdir()
        try:
            getattr(self, name)(place, dice)
            left = [path for path in place.rglob(".fastdiff-*")]
            assert not left, left
        finally:
            shutil.rmtree(place)

    def call_sample(self, place: Path, dice: random.Random) -> None:
        model = self.models[dice.choice(sorted(self.models))]
        options = {"steps": dice.randint(1, 4), "batch_size": dice.choice([None, 1, 3, 8]), "seed": dice.randrange(99)}
        images = fastdiff.sample(model, dice.randint(1, 9), dice.choice(["ddim", "ddpm_large", None]), **options)
        fastdiff.save_picture(fastdiff.grid(images), place / "x.png")

    def call_shared_engine(self, place: Path, dice: random.Random) -> None:
        table = self.models["sprites"].table("ddim", dice.randint(1, 4))
        assert self.shared.sample(dice.randint(1, 12), seed=dice.randrange(99), table=table).isfinite().all()

    def call_refused(self, place: Path, dice: random.Random) -> None:
        wrong = [{"steps": 0}, {"seed": -1}, {"context": {"nobody": 1}}, {"batch_size": 0}, {"frames": 0}]
        with pytest.raises(fastdiff.InputError):
            fastdiff.sample("sprites", 2, **dice.choice(wrong))

    def call_save_and_load(self, place: Path, dice: random.Random) -> None:
        fastdiff.save(self.models["sprites"], place / "m.safetensors", dtype=dice.choice([None, torch.float16]))
        fastdiff.load(place / "m.safetensors")
        (place / "m.safetensors").write_bytes((place / "m.safetensors").read_bytes()[: dice.randrange(9999)])
        with pytest.raises(fastdiff.InputError):
            fastdiff.load(place / "m.safetensors")

    def call_train(self, place: Path, dice: random.Random) -> None:
        np.save(place / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
        recipe = fastdiff.Recipe(
            network={"name": "annotated", "dim": 8, "dim_mults": [1, 2]}, timesteps=20, batch_size=5, epochs=1
        )
        trainer = fastdiff.Trainer(recipe, fastdiff.load_data(place / "x.npy"), device="cpu")
        for _ in range(dice.randint(1, 4)):
            trainer.step()
        trainer.save(place / "checkpoint.safetensors")

    def call_export(self, place: Path, dice: random.Random) -> None:
        model = self.models["fashion-mnist"]
        fastdiff.export.export_sampler(model, place / "s.onnx", model.table("ddim", dice.randint(1, 3)))
        fastdiff.export.OnnxSampler(place / "s.onnx", threads=1).sample(2)

    def call_command(self, place: Path, dice: random.Random) -> None:
        """A process, which may be killed; the same command goes on after it."""
        np.save(place / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8))
        small = ["--dim", "8", "--dim-mults", "1,2", "--timesteps", "20", "--threads", "1", "--device", "cpu"]
        words = dice.choice(
            [
                ["sample", "sprites", "-n", "40", "--steps", "3", "--threads", "1", "--shard-size", "64", "-o", "out/"],
                ["train", "--data", "x.npy", *small, "--batch-size", "5", "--epochs", "1", "-o", "out"],
                ["export", "fashion-mnist", "--sampler", "ddim", "--steps", "2", "-o", "out/s.onnx"],
            ]
        )
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, "-m", "fastdiff", *words], cwd=place, **pipes) as process:
            if dice.random() < 0.5:
                try:
                    process.wait(dice.uniform(0, 8))
                except subprocess.TimeoutExpired:
                    process.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        if words[0] != "train" or not (place / "out").exists():
            done = subprocess.run([sys.executable, "-m", "fastdiff", *words], cwd=place, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_is_left_of_random_calls(tmp_path):
    pytest.importorskip("onnxruntime")
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    calls, began, numbers = Calls(tmp_path, seed), time.monotonic(), iter(range(10**9))

    def work(until: float) -> None:
        while time.monotonic() < until:
            with calls.lock:
                number = next(numbers)
            calls.one(number)

    def run(minutes: float) -> None:
        until = time.monotonic() + 60 * minutes
        with ThreadPoolExecutor(THREADS) as pool:
            for one in [pool.submit(work, until) for _ in range(THREADS)]:
                one.result()

    state = []
    for part in range(PARTS):
        if part == WARM:
            temporaries = set(os.listdir(tempfile.gettempdir()))
        run(MINUTES / PARTS)
        state.append((memory(), descriptors(), threading.active_count()))
    mebibytes = [round(one[0] / 2**20) for one in state]
    print(f"{sum(calls.done.values())} calls: {calls.done}; memory after each part {mebibytes} MiB")
    before, after = state[WARM - 1], state[-1]
    assert after[0] <= before[0] + GROWTH
    assert after[1] <= before[1] and after[2] == before[2]
    assert not list(tmp_path.iterdir())
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - temporaries if "fastdiff" in name}
    if REPORT:
        facts = {"seconds": time.monotonic() - began, "calls": calls.done, "descriptors": len(after[1])}
        Path(REPORT).write_text(json.dumps({**facts, "mebibytes": mebibytes, "seed": seed}, indent=1) + "\n")
