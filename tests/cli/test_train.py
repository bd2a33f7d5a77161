"""fastdiff train: the folder it leaves, what it prints, stopping and resuming."""

import csv
import io
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import AnnotatedUnet, ContextUnet, Trainer, load, make_schedule, sample
from fastdiff.cli import training
from fastdiff.cli.main import main
from fastdiff.data.sources import SOURCES
from fastdiff.engine import placement
from fastdiff.training import folder, loop
from fastdiff.training.checkpoint import read_checkpoint
from fastdiff.training.recipe import PRESETS

TINY = ["--epochs", "2", "--batch-size", "10", "--threads", "1"]


@pytest.fixture
def sprites(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.eye(5, dtype=np.uint8)[np.arange(40) % 5])
    return ["--preset", "course", "--data", "x.npy", "--labels", "y.npy", "--n-feat", "8"]


def rows(folder):
    with open(f"{folder}/log.csv") as file:
        return list(csv.DictReader(file))


def test_train_leaves_a_folder_to_sample_from(run, sprites, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("train", *sprites, *TINY, "--ema", 0.9, "--class-names", "a,b,c,d,e", "-o", "r")
    assert "38 pictures 3x16x16" in out and "sample from it: fastdiff sample r" in out
    for name in (
        "checkpoint.safetensors",
        "model.safetensors",
        "log.csv",
        "loss.png",
        "samples.png",
        "README.md",
        "samples/epoch-0001.png",
        "samples/epoch-0002.png",
    ):
        assert (tmp_path / "r" / name).stat().st_size > 100
    assert not [name for name in os.listdir("r") if name.startswith(".")]
    logged = rows("r")
    assert [row["step"] for row in logged] == ["4", "8"] and float(logged[1]["val_loss"]) > 0
    card = (tmp_path / "r" / "README.md").read_text()
    for word in ("# r", "38 pictures", "fastdiff 0.", "8 in 0 minutes", "| batch_size | `10` |", "![loss]"):
        assert word.replace("fastdiff 0.", "| fastdiff | 0.") in card
    assert "classes          a, b, c, d, e" in run("info", "r")
    assert "8 steps done" in run("info", "r/checkpoint.safetensors")
    run("sample", "r", "-n", 2, "--steps", 2, "--context", "b=1")
    assert torch.equal(
        sample(load("r"), 1, steps=2), sample(load("r/checkpoint.safetensors"), 1, steps=2)
    )  # both hold the averaged weights


def test_names_cannot_break_out_of_the_card(run, sprites, monkeypatch):
    names, folder = "<b>a\n\n<script>alert(1)</script>,[x](y),`</code>,d|d,\u202ee", "r<img src=y onerror=alert(2)>"
    words = ["train", *sprites, *TINY, "--epochs", "1", "--sample-every", "0", "--class-names", names, "-o", folder]
    monkeypatch.setattr(sys, "argv", ["fastdiff", *words])
    assert all(line.isprintable() for line in run(*words).splitlines())
    with open(f"{folder}/README.md") as file:
        lines = file.read().splitlines()
    assert lines[0] == "# r&lt;img src=y onerror=alert(2)&gt;" and all(map(str.isprintable, lines))
    assert lines[4].startswith("    fastdiff train") and r"\n\n<script>" in lines[4] and r"\u202e" in lines[4]
    assert not any("<" in line for line in lines if line != lines[4])
    assert not any("](y)" in line.replace(r"\](", "") for line in lines if line != lines[4])


def test_options_change_the_recipe(run, tmp_path):
    (tmp_path / "p").mkdir()
    for k in range(12):
        Image.new("RGB", (9, 8), (20 * k, 0, 0)).save(tmp_path / "p" / f"{k}.png")
    run(
        "train",
        "--data",
        "p",
        "--size",
        8,
        *TINY,
        *"--dim 8 --dim-mults 1,2 --block resnet --loss l1 --schedule cosine --timesteps 20".split(),
        *"--prediction-type v_prediction --min-snr 5 --no-flip -o r".split(),
    )
    model = load("r")
    assert model.network.options["block"] == "resnet" and model.prediction_type == "v_prediction"
    assert model.schedule.name == "cosine" and model.schedule.num_timesteps == 20 and model.image_shape == (3, 8, 8)
    assert "| flip | `False` |" in (tmp_path / "r" / "README.md").read_text()


def test_a_model_whose_schedule_needs_a_clip_has_it(run, sprites, tmp_path):
    """Cosine with T = 1000 and noise prediction: 1 / alpha is 2e4 at the start."""
    run("train", *sprites, *TINY, "--schedule", "cosine", "--timesteps", 1000, "-o", "r")
    assert load("r").clip == 1.0 and load("r/checkpoint.safetensors").clip == 1.0
    said = "note: the predicted image is clipped, by 1.0, as the model has it; --clip off leaves it as it is"
    assert said in run("sample", "r", "-n", 2, "--steps", 5, "--npy", "own.npy")
    assert said not in run("sample", "r", "-n", 2, "--steps", 5, "--clip", "off", "--npy", "off.npy")
    assert np.abs(np.load("own.npy")).max() < 2 < 10 < np.abs(np.load("off.npy")).max()


def test_an_interrupted_run_is_resumed_exactly(run, sprites, tmp_path, refused):
    """Ctrl-C in a real process, --resume, and the result is that of the uninterrupted run."""
    # Four more epochs than are waited for: seconds, in which the signal comes.
    options = [*sprites, "--epochs", "5", "--batch-size", "10", "--threads", "1", "--ema", "0.9"]
    command = [sys.executable, "-m", "fastdiff", "train", *options, "-o", "cut"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first, epoch = process.stdout.readline(), process.stdout.readline()  # as they are printed, into a pipe too
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "38 pictures 3x16x16" in first
    assert re.fullmatch(r"epoch 1/5: loss \d\.\d{4}, held out \d\.\d{4}, [\d,]+ images/s, \d\d:\d\d left\n", epoch)
    assert process.returncode == 130 and "fastdiff train --resume cut" in errors and "Traceback" not in errors
    assert "step/s" not in errors  # the bar is for terminals
    done = int(rows("cut")[-1]["step"])
    assert 0 < done < 20
    np.save("kept.npy", np.load("x.npy"))
    np.save("x.npy", 255 - np.load("x.npy"))
    refused(run("train", "--resume", "cut", code=2), "data 'x' has changed since the run began")
    os.replace("kept.npy", "x.npy")
    run("train", "--resume", "cut", "--threads", 1)
    run("train", *options, "-o", "whole")
    cut, whole = (load(f"{name}/model.safetensors").network.state_dict() for name in ("cut", "whole"))
    assert all(torch.equal(cut[k], whole[k]) for k in whole)
    ends = {name: {row["step"]: row["val_loss"] for row in rows(name) if row["val_loss"]} for name in ("cut", "whole")}
    assert ends["cut"] == ends["whole"]


BAD_TRAINING = [
    (["--preset", "annotatd"], ["'annotatd'", "did you mean 'annotated'"]),
    (["--preset", "course"], ["needs --data"]),
    (["--data", "nowhere"], ["nowhere"]),
    (["--data", "empty"], ["empty", "holds no data"]),
    (["--data", "x.npy", "--labels", "x.npy"], ["(40, K)"]),
    (["--data", "x.npy", "--batch-size", "0"], ["batch_size = 0"]),
    (["--data", "x.npy", "--loss", "mse"], ["'mse'", "huber"]),
    (["--data", "x.npy", "--schedule", "sigmoidal"], ["did you mean 'sigmoid'"]),
    (["--data", "x.npy", "--n-feat", "8"], ["--n-feat", "another network"]),
    (["--data", "x.npy", "--dim", "9"], ["dim = 9"]),
    (["--data", "x.npy", "--dim-mults", "1,x"], ["'1,x'"]),
    (["--data", "x.npy", "--dim-mults", "1,2,4,8,16,32"], ["(1, 3, 16, 16)", "multiples of 32"]),
    (["--data", "odd.npy", "--preset", "course"], ["height = 18", "multiple of 4"]),
    (["--data", "x.npy", "--device", "cuda:9"], ["cuda:9"]),
    (["--data", "x.npy", "-o", "taken"], ["'taken'", "--resume"]),
    (["--data", "x.npy", "-o", "x.npy/r"], ["cannot write"]),
    (["--resume", "empty"], ["no checkpoint to resume from in 'empty'", "checkpoint.safetensors"]),
    (["--resume", ""], ["no run to resume"]),
    (["--resume", "nowhere"], ["no run to resume at 'nowhere'"]),
    (["--resume", "taken", "--ema", "0.5"], ["--resume with --ema;"]),
    (["--data", "x.npy", "--labels", ""], ["cannot be read"]),
    (["--data", "x.npy", "--labels", "nan.npy"], ["NaN"]),
    (["--data", "x.npy", "--size", "8"], ["size = '8'"]),
    (["--data", "x.npy", "--p2-gamma", "inf"], ["p2_gamma = inf"]),
    (["--data", "x.npy", "--dim", "1000000000"], ["1000000000"]),
    (["--data", "x.npy", "--timesteps", "10000000000000"], ["timesteps = 10000000000000"]),
    (["--data", "q" * 300], ["qqq"]),
    (["--resume", "taken", "--lr", "1"], ["--resume with --lr"]),
]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--block", "conv"], ["'conv'", "did you mean 'convnext'"]),
        (["--dim", 0], ["dim = 0"]),
        (["--preset", "course", "--data", "nowhere", "--n-feat", 9], ["n_feat = 9"]),
    ],
)
def test_a_bad_network_is_refused_before_the_data_is_read(words, message, run, refused, monkeypatch):
    monkeypatch.setattr(training, "load_data", lambda **source: pytest.fail("read the data first"))
    refused(run("train", *words, code=2), *message)


@pytest.mark.parametrize("words, message", BAD_TRAINING, ids=[" ".join(w) for w, _ in BAD_TRAINING])
def test_bad_training(words, message, run, sprites, tmp_path, refused):
    for name in ("empty", "taken"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken" / "checkpoint.safetensors").write_bytes(b"x")
    np.save("odd.npy", np.zeros((40, 18, 18, 3), np.uint8))
    np.save("nan.npy", np.full((40, 2), np.nan, np.float32))
    before = sorted(os.listdir())
    refused(run("train", *words, code=2), *message)
    assert sorted(os.listdir()) == before


def test_the_bar_is_shown_on_a_terminal(sprites, tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", Terminal())
    main(["train", *sprites, *TINY, "-o", "r"], standalone_mode=False)
    assert "8/8" in sys.stderr.getvalue() and "loss=" in sys.stderr.getvalue()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]


def test_ctrl_c_before_the_first_step_exits_as_shells_expect(run, sprites, monkeypatch):
    def interrupted(**source):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "load_data", interrupted)
    run("train", *sprites, *TINY, "-o", "r", code=130)
    assert not os.path.exists("r")


def test_without_matplotlib_a_run_has_no_curve_and_says_so(run, sprites, monkeypatch):
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    assert run("train", *sprites, *TINY, "-o", "r").count("no loss curve without matplotlib") == 1
    assert os.path.exists("r/README.md") and not os.path.exists("r/loss.png")


def test_the_data_that_can_be_given_is_listed(run):
    said = " ".join(run("train", "--help").split())
    for source in SOURCES:
        assert source.accepts in said


def test_the_presets_are_listed_with_their_values(run):
    said = " ".join(run("train", "--help").split())
    for name, preset in PRESETS.items():
        recipe = preset.recipe
        for words in (
            f"{name}: {preset.title}",
            f"{recipe.schedule} schedule, T = {recipe.timesteps}",
            f"batches of {recipe.batch_size}; {recipe.epochs} epochs",
        ):
            assert words in said
    for words in (
        "Annotated U-Net, --dim 28 --dim-mults 1,2,4;",
        "adam, learning rate 1e-4 to 1e-7 by a cosine",
        "10 epochs; random flips course:",
        "ContextUnet, --n-feat 64; course",
        "adam, learning rate 1e-3 to 0 linearly, epoch by epoch",
        "32 epochs; 10% of samples without their context",
    ):
        assert words in said
    assert "[default with --preset annotated: fashion-mnist]" in said


def test_a_loss_that_is_not_finite_stops_the_run(run, sprites, refused):
    refused(run("train", *sprites, *TINY, "--lr", 1e30, "-o", "r", code=2), "the loss became", "--lr")


@pytest.mark.parametrize("after, number", [(1, signal.SIGTERM), (2, signal.SIGHUP), (3, signal.SIGTERM)])
def test_a_stop_is_saved_wherever_it_falls(after, number, run, sprites, monkeypatch):
    """On the step that has just been logged too."""
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    step = Trainer.step

    def stopping(self):
        loss = step(self)
        if self.steps_done == after:
            os.kill(os.getpid(), number)
        return loss

    monkeypatch.setattr(Trainer, "step", stopping)
    assert "--resume r" in run("train", *sprites, *TINY, "-o", "r", code=130)
    assert f"{after} steps done" in run("info", "r/checkpoint.safetensors")


def test_a_killed_run_has_saved_meanwhile(run, sprites, monkeypatch):
    """Between epochs too, every SAVE_SECONDS; what a crash leaves behind can be resumed."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setattr(loop.Run, "_end_of_epoch", lambda self: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        run("train", *sprites, *TINY, "-o", "r")
    assert "3 steps done" in run("info", "r/checkpoint.safetensors")
    assert [row["step"] for row in rows("r")] == ["1", "2", "3"]


def test_a_run_may_start_from_a_model(run, sprites, refused):
    run("train", *sprites, *TINY, "-o", "first")
    run("train", *sprites, *TINY, "--init", "first", "--lr", 1e-12, "-o", "second")
    first, second = (load(name).network.state_dict() for name in ("first", "second"))
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first if "running" not in k and "num" not in k)
    assert "# first: " in run("info", "second")
    wide = ["--n-feat", 16, "--init", "first", "-o", "third"]
    refused(run("train", *sprites, *TINY, *wide, code=2), "--n-feat 16 with --init first", "n_feat = 8")
    refused(run("train", *sprites, *TINY, "--init", "nothing", "-o", "third", code=2), "'nothing'")
    assert not os.path.exists("third")


PUBLISHED = {
    "of today's text": ("blog.pt", "gray", ()),
    "its width said too": ("blog.pt", "gray", ("--dim", 8, "--dim-mults", "1,2")),
    "MindSpore's": ("ms.pt", "gray", ()),
    "the course's": ("course.pth", "x", ("--preset", "course", "--labels", "y.npy")),
}


@pytest.mark.parametrize("file, data, options", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_checkpoint_is_trained_further(file, data, options, run, sprites, tmp_path):
    """It says what network it is; its pictures say of which size."""
    np.save("gray.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    if file == "course.pth":
        network = ContextUnet(3, 8, 5, 16)
    else:
        network = AnnotatedUnet(dim=8, dim_mults=(1, 2), edition={"blog.pt": "hf-2022", "ms.pt": "mindspore"}[file])
    torch.save(network.state_dict(), file)
    out = run(
        "train", "--init", file, "--data", f"{data}.npy", *options, *TINY, "--lr", 1e-9, "--lr-final", 0, "-o", "r"
    )
    assert "note: " in out and "does not say" in out
    found = load("r")
    assert found.image_shape == ((1, 8, 8) if data == "gray" else (3, 16, 16))
    weights = network.state_dict()
    assert all(
        torch.allclose(v, weights[k], atol=1e-6)
        for k, v in found.network.state_dict().items()
        if "num" not in k and "running" not in k
    )
    assert "# " + file in run("info", "r")


def test_the_schedule_of_a_model_that_training_starts_from(run, sprites):
    run("train", *sprites, *TINY, "--schedule", "cosine", "--timesteps", 30, "-o", "first")
    run("train", *sprites[:-2], *TINY, "--init", "first", "-o", "second")
    assert load("second").schedule.config() == load("first").schedule.config()
    said = run("train", *sprites[:-2], *TINY, "--init", "first", "--timesteps", 40, "-o", "third")
    assert (
        load("third").schedule.config() == {"name": "cosine", "timesteps": 40} and "starts from first: Model(" in said
    )
    run("train", *sprites[:-2], *TINY, "--init", "third", "--schedule", "linear", "--beta-end", 0.1, "-o", "fourth")
    assert load("fourth").schedule.config() == make_schedule("linear", 40, beta_end=0.1).config()


def test_classes_that_get_other_names_are_said(run, sprites):
    run("train", *sprites, *TINY, "--class-names", "a,b,c,d,e", "-o", "first")
    words = ["train", *sprites[:-2], *TINY, "--init", "first", "-o"]
    assert "are now" not in run(*words, "second")
    assert "classes a, b, c, d, e are now v, w, x, y, z" in run(*words, "third", "--class-names", "v,w,x,y,z")


def test_a_run_does_not_overwrite_other_files(run, sprites, refused):
    os.mkdir("mine")
    with open("mine/README.md", "w") as file:
        file.write("my own")
    refused(run("train", *sprites, *TINY, "-o", "mine", code=2), "'mine' holds README.md, which a run would overwrite")
    assert open("mine/README.md").read() == "my own"


def test_a_finished_run_goes_on(run, sprites, refused):
    run("train", *sprites, *TINY, "--keep-every", 1, "-o", "r")
    said = run("train", "--resume", "r", "--epochs", 4, "--sample-every", 0)
    assert "4 epochs in place of 2: the learning rate, 0.0005 in the last step, goes on at 0.0005 and ends at" in said
    assert "epoch 4/4" in said and [row["step"] for row in rows("r")] == ["4", "8", "12", "16"]
    assert sorted(os.listdir("r/epochs")) == [f"epoch-{number:04d}.safetensors" for number in (1, 2, 3, 4)]
    assert sorted(os.listdir("r/samples")) == ["epoch-0001.png", "epoch-0002.png"]
    assert "# from step 8 on with --epochs 4" in run("info", "r")
    refused(run("train", "--resume", "r", "--epochs", 3, code=2), "epochs = 3, but 4 are done; accepted: 4 and more")
    assert "all 4 epochs are done; to go on: fastdiff train --resume r --epochs 8" in run("train", "--resume", "r")


def test_bfloat16_is_the_default_where_it_is_fast(run, sprites, monkeypatch):
    for fast, flags, bf16 in ((True, (), True), (False, (), False), (True, ("--no-bf16",), False)):
        monkeypatch.setattr(placement, "has_bf16", lambda device, fast=fast: fast)
        folder = f"r{fast}{len(flags)}"
        assert ("in bfloat16" in run("train", *sprites, *TINY, *flags, "-o", folder)) == bf16
        assert read_checkpoint(folder).recipe.bf16 == bf16


def test_betas_on_the_command_line(run, sprites, refused):
    run(
        "train",
        *sprites,
        *TINY,
        "--schedule",
        "linear",
        "--timesteps",
        20,
        "--beta-start",
        5e-3,
        "--beta-end",
        0.4,
        "-o",
        "r",
    )
    assert np.allclose(load("r").schedule.betas, np.linspace(5e-3, 0.4, 20))
    refused(run("train", *sprites, *TINY, "--beta-end", 2, "-o", "x", code=2), "beta_end = 2.0")
