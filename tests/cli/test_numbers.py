"""Numbers that nothing can be done with: a sentence and exit code 2 before any work, from every command."""

import numpy as np
import pytest
from PIL import Image

from fastdiff import ContextUnet, Model, make_schedule, save

HUGE, LONG = str(10**30), "9" * 5000
SAMPLE = ["sample", "b.safetensors", "-n", "1", "--steps", "1"]
GUIDED = [*SAMPLE, "--context", "a"]
TRAIN = ["train", "--preset", "course", "--data", "x.npy", "--labels", "y.npy", "--n-feat", "8"]
INVERT = ["invert", "b.safetensors", "p.png"]
EVAL = ["eval", "b.safetensors", "--data", "x.npy"]
EXPORT = ["export", "b.safetensors", "-o", "e.onnx", "--sampler", "ddim"]


@pytest.fixture
def inputs(tmp_path):
    """In the working folder of `run`: a model, a picture and data."""
    model = Model(
        ContextUnet(1, 8, 3, 16, True),
        make_schedule("course", 20),
        image_shape=(1, 16, 16),
        time="fraction",
        class_names=("a", "b", "c"),
    )
    save(model, tmp_path / "b.safetensors")
    Image.new("L", (16, 16), 90).save(tmp_path / "p.png")
    np.save(tmp_path / "x.npy", np.zeros((40, 16, 16, 1), np.uint8))
    np.save(tmp_path / "y.npy", np.arange(40) % 3)


@pytest.mark.parametrize(
    "words",
    [
        *([*words, "--threads", n] for words in (SAMPLE, TRAIN, INVERT, EVAL) for n in ("0", "30000", "100000", HUGE)),
        *(["bench", "--list", "--threads", n] for n in ("0", "30000", HUGE)),
        *(["bench", "--list", "--rounds", HUGE], ["bench", "--list", "--batch", str(2**62)]),
        *([*SAMPLE, *into, "--batch-size", str(2**62)] for into in ([], ["-o", "out/"])),
        *([*SAMPLE, *into, "--clip", bound] for into in ([], ["-o", "out/"]) for bound in ("1e39", "1e-50", "1e400")),
        *([*GUIDED, *into, "--guidance-scale", "3.5e38"] for into in ([], ["-o", "out/"])),
        [*SAMPLE, "--gif", "a.gif", "--gif-frames", LONG],
        *([*TRAIN, flag, "1e39"] for flag in ("--lr", "--min-snr", "--p2-gamma", "--weight-decay", "--max-grad-norm")),
        *([*TRAIN, flag, HUGE] for flag in ("--epochs", "--batch-size", "--timesteps", "--lr-warmup", "--n-feat")),
        *(["train", "--data", "x.npy", "--dim", str(2**62)], ["train", "--data", "x.npy", "--dim-mults", f"1,{HUGE}"]),
        *([*EXPORT, "--context-shape", LONG], [*EXPORT, "--clip", "1e39"], [*EXPORT, "--steps", HUGE]),
        *(["noise", "p.png", "--size", HUGE], ["noise", "p.png", "--timesteps", HUGE]),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_a_number_that_is_too_large_or_small_is_refused(words, run, inputs, refused, tmp_path):
    before = set(tmp_path.iterdir())
    out = run(*words, code=2)
    assert "accepted" in out or "out of range" in out.lower() or "pixels" in out or "not in the range" in out
    refused(out)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["nonsense", "", "triton"])
@pytest.mark.parametrize("words", [SAMPLE, [*SAMPLE, "-o", "out/"], TRAIN, INVERT, ["noise", "p.png"]])
def test_kernels_that_there_are_not(name, words, run, inputs, refused, monkeypatch):
    monkeypatch.setenv("FASTDIFF_KERNELS", name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    refused(run(*words, code=2), "FASTDIFF_KERNELS", "accepted")
