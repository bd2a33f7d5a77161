"""The commands: what they write and print, and one clear sentence with exit code 2 for bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff import AnnotatedUnet, ContextUnet, Model, load, make_schedule, sample, save
from fastdiff.cli.main import main

TINY = ["--epochs", "2", "--batch-size", "10", "--threads", "1"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.fixture
def models(tmp_path, randomised):
    a = Model(randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2))), make_schedule("linear", 30), image_shape=(1, 8, 8))
    names = ("monster", "player", "item", "spell", "dungeon")
    b = Model(
        randomised(ContextUnet(3, 8, 5, 16)), make_schedule("course", 30), "epsilon", (3, 16, 16), "fraction", names
    )
    save(a, tmp_path / "a.safetensors", info={"data": "none"})
    save(b, tmp_path / "b.safetensors")
    return a, b


@pytest.fixture
def sprites(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.eye(5, dtype=np.uint8)[np.arange(40) % 5])
    return ["--preset", "course", "--data", "x.npy", "--labels", "y.npy", "--n-feat", "8"]


def refused(output: str, *words: str) -> None:
    """One sentence that holds the words; no traceback."""
    lines = output.strip().splitlines()
    assert lines[-1].startswith("Error: ") and "Traceback" not in output
    assert len([line for line in lines if line.startswith("Error")]) == 1
    for word in words:
        assert word in lines[-1]


# --- sample ---


def test_sample_writes_what_sample_returns(run, models, tmp_path):
    out = run(
        "sample", "a.safetensors", "-n", 5, "--steps", 4, "--seed", 3, "--first", 2, "--npy", "a.npy", "--gif", "a.gif"
    )
    assert "5 images, dpmpp_2m_sde, 4 steps" in out and "images/s (" in out and str(tmp_path / "samples.png") in out
    expected = sample(load("a.safetensors"), 5, steps=4, seed=3, first=2)
    assert torch.equal(torch.from_numpy(np.load("a.npy")), expected)
    with Image.open("samples.png") as picture, Image.open("a.gif") as gif:
        assert picture.size == gif.size and gif.n_frames == 4


@pytest.mark.parametrize("given, frames", [([], 15), (["--gif-frames", "7"], 6), (["--gif-frames", "all"], 30)])
def test_frames_of_an_animation(given, frames, run, models, monkeypatch):
    """At most as many as asked for, each after as many steps; the last one is the end."""
    monkeypatch.setattr("fastdiff.cli.options.GIF_FRAMES", 15)
    run("sample", "a.safetensors", "-n", 1, "--steps", 30, "--gif", "a.gif", *given)
    with Image.open("a.gif") as gif:
        assert gif.n_frames == frames


def test_classes_of_a_file_that_does_not_name_them(run, models):
    torch.save(models[1].network.state_dict(), "b.pt")
    words = ["sample", "b.pt", "--schedule", "course", "--timesteps", 30, "-n", 2, "--steps", 2, "--npy", "x.npy"]
    assert "classes          5, without names: a context is 5 numbers" in run("info", "b.pt")
    assert "classes          v, w, x, y, z" in run("info", "b.pt", "--class-names", "v,w,x,y,z")
    refused(run(*words, "--context", "x=1", code=2), "no class names; give numbers")
    run(*words, "--class-names", "v, w,x,y,z", "--context", "x")
    named = np.load("x.npy")
    run(*words, "--context", "0,0,1,0,0")
    assert np.array_equal(named, np.load("x.npy"))
    refused(run("info", "b.pt", "--class-names", "v,w", code=2), "2 class names, v, w; the network of 'b.pt' takes")


def test_contexts_on_the_command_line(run, models):
    options = dict(n=4, steps=3, seed=0)
    words = ["sample", "b.safetensors", "-n", 4, "--steps", 3, "--npy", "b.npy"]
    model = load("b.safetensors")
    for given, context, guidance in (
        (["--context", "monster=1,spell=0.6"], [1, 0, 0, 0.6, 0], None),
        (["--context", "item", "--guidance-scale", 2], [0, 0, 1, 0, 0], 2.0),
        (["--context", "1,0,0.6,0,0"], [1, 0, 0.6, 0, 0], None),
        (["--context", "item", "--context", "spell"], [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]] * 2, None),
    ):
        run(*words, *given)
        expected = sample(model, context=context, guidance_scale=guidance, **options)
        assert torch.equal(torch.from_numpy(np.load("b.npy")), expected)


def test_contexts_in_turn_belong_to_the_sample(run, models):
    words = ["sample", "b.safetensors", "--steps", 2, "--context", "item", "--context", "spell", "--npy", "b.npy"]
    run(*words, "-n", 4)
    whole = np.load("b.npy")
    run(*words, "-n", 1, "--first", 3)
    assert np.allclose(np.load("b.npy")[0], whole[3], atol=1e-5)


def test_the_ddpm_family_takes_all_steps_unless_told(run, models):
    assert "ddpm, 30 steps" in run("sample", "a.safetensors", "-n", 1, "--sampler", "ddpm")
    assert "ddpm, 5 steps" in run("sample", "a.safetensors", "-n", 1, "--sampler", "ddpm", "--steps", 5)
    assert "dpmpp_2m_sde, 25 steps" in run("sample", "a.safetensors", "-n", 1)
    assert "dpmpp_2m, 25 steps" not in run("sample", "a.safetensors", "-n", 1, "--sampler", "dpmpp_2m", "--steps", 3)


def test_a_state_dict_with_its_schedule(run, models):
    torch.save(models[0].network.state_dict(), "a.pt")
    options = ["-n", 2, "--steps", 3, "--npy", "x.npy"]
    run("sample", "a.pt", "--schedule", "linear", "--timesteps", 30, "--image-size", 8, *options)
    ours = np.load("x.npy")
    run("sample", "a.safetensors", *options)
    assert np.allclose(ours, np.load("x.npy"), atol=1e-6)


BAD_SAMPLES = [
    (["nothing"], ["'nothing'", "fashion-mnist"]),
    (["a.safetensors", "-n", "0"], ["n = 0", "from 1"]),
    (["a.safetensors", "--steps", "31"], ["31", "1 to 30"]),
    (["a.safetensors", "--sampler", "dimm"], ["'dimm'", "did you mean 'ddim'"]),
    (["a.safetensors", "--spacing", "leadin"], ["'leadin'", "did you mean 'leading'"]),
    (["a.safetensors", "--seed", "-4"], ["seed = -4"]),
    (["a.safetensors", "--context", "item=1"], ["--context 'item=1'", "takes no context"]),
    (["a.safetensors", "--context", "1,2"], ["--context '1,2'", "takes no context"]),
    (["a.safetensors", "--class-names", "x,y"], ["2 class names, x, y", "takes no context"]),
    (["b.safetensors", "--class-names", "x,y"], ["names its own classes, monster"]),
    (["a.safetensors", "--gif", "x.gif", "--gif-frames", "0"], ["--gif-frames '0'", "from 1", "or all"]),
    (["a.safetensors", "--gif", "x.gif", "--gif-frames", "every"], ["--gif-frames 'every'", "or all"]),
    (["a.safetensors", "--gif-frames", "3"], ["--gif-frames 3 without --gif"]),
    (["a.safetensors", "-o", "out/", "--gif-frames", "3"], ["--gif-frames with the folder 'out/'"]),
    (["b.safetensors", "--context", "itme=1"], ["'itme'", "did you mean 'item'"]),
    (["b.safetensors", "--context", "item=much"], ["'much'"]),
    (["b.safetensors", "--context", "1,2,3"], ["(3,)", "(5,)"]),
    (["b.safetensors", "--context", "1,2,3", "--context", "item"], ["[3, 5]"]),
    (["b.safetensors", "--guidance-scale", "2"], ["guidance_scale = 2.0 without a context"]),
    (["a.safetensors", "--clip", "hard"], ["'hard'", "dynamic"]),
    (["a.safetensors", "--dtype", "float8"], ["'float8'", "did you mean 'float"]),
    (["a.safetensors", "--device", "cuda:9"], ["cuda:9", "available"]),
    (["a.safetensors", "-o", "x.xyz"], ["x.xyz", ".png"]),
    (["a.safetensors", "-o", "a.safetensors/x.png"], ["cannot write"]),
    (["a.safetensors", "-o", "/proc/nowhere/x.png"], ["cannot write", "/proc/nowhere"]),
    (["a.safetensors", "--gif", "x.png"], ["x.png", ".gif"]),
    (["a.safetensors", "--npy", "x.txt"], ["x.txt", ".npy"]),
    (["a.safetensors", "--schedule", "cosine"], ["--schedule and --timesteps belong together"]),
    (["a.safetensors", "--image-size", "16"], ["states its own"]),
    (["trash.pt"], ["trash.pt"]),
    (["a" * 300], ["aaa"]),
    (["a.safetensors", "-o", "o" * 300 + ".png"], ["cannot write"]),
    (["a.safetensors", "-o", "x.h5"], ["x.h5", ".png"]),
    (["a.safetensors", "-o", "x.gif", "--gif", "x.gif"], ["two outputs"]),
    (["a.safetensors", "--scale", "100000"], ["pixels"]),
    (["a.safetensors", "-n", "10000000000000000000000000"], ["n = 1000"]),
    (["b.safetensors", "--context", "item="], ["''", "'item'", "a number"]),
    (["b.safetensors", "--context", "item=1,item=2"], ["'item' twice"]),
    (["b.safetensors", "--context", "item=1e300"], ["1e+300"]),
    (["b.safetensors", "--context", ""], ["''"]),
]


@pytest.mark.parametrize("words, message", BAD_SAMPLES, ids=[" ".join(w) for w, _ in BAD_SAMPLES])
def test_bad_samples(words, message, run, models, tmp_path):
    (tmp_path / "trash.pt").write_bytes(b"PK\x03\x04 trash")
    before = sorted(os.listdir())
    refused(run("sample", *words, code=2), *message)
    assert sorted(os.listdir()) == before  # nothing half-written is left behind


# --- info, noise ---


def test_info(run, models):
    out = run("info", "b.safetensors")
    for word in (
        "ContextUnet",
        "n_feat=8",
        "course, 30 timesteps, alphas_cumprod ends at 0.7",
        "epsilon",
        "3x16x16",
        "t / T",
        "monster, player",
    ):
        assert word in out
    facts = json.loads(run("info", "a.safetensors", "--json"))
    assert facts["schedule"].startswith("linear, 30 timesteps") and facts["data"] == "none"
    assert "fashion-mnist" in run("info")
    refused(run("info", "nothing", code=2), "'nothing'")


def test_what_a_file_says_cannot_take_the_terminal_or_the_place_of_facts(run, models):
    names = ("\x1b[2Ja", "new\nline", "\u202eb", "c", "d")
    model = Model(models[1].network, models[1].schedule, "epsilon", (3, 16, 16), "fraction", names)
    save(model, "odd.safetensors", info={"network": "forged", "\x1b[1mkey": "\x1b[8mhidden"})
    out = run("info", "odd.safetensors")
    assert "forged" not in out and not any(c in out for c in "\x1b\u202e")
    assert r"\x1b[2Ja, new\nline, \u202eb, c, d" in out and r"\x1b[8mhidden" in out
    out = run("sample", "odd.safetensors", "--context", "e=1", code=2)
    refused(out, "unknown class 'e'", r"\x1b[2Ja")
    assert "\x1b" not in out


def test_info_lists_the_shipped_models_without_torch():
    code = (
        "import sys; from fastdiff.cli.main import main\n"
        "try: main(['info'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "sprites" in done.stdout, done.stderr


def test_noise(run, tmp_path):
    Image.new("RGB", (40, 30), (200, 10, 10)).save("cat.png")
    assert "t = 0, 50, 100, 150, 199 of linear, T = 200" in run("noise", "cat.png", "--size", 16)
    with Image.open("noise.png") as picture:
        assert picture.size == (5 * 18 + 2, 20)
        strip = np.asarray(picture).astype(float)
    spread = [strip[2:18, 2 + 18 * k : 18 + 18 * k].std(axis=(0, 1)).mean() for k in range(5)]
    assert spread == sorted(spread) and spread[0] < 5 < spread[4]
    run("noise", "cat.png", "--schedule", "cosine", "--timesteps", 1000, "--at", "0,500,999", "-o", "c.png")
    run("noise", "cat.png", "--schedule", "course", "--timesteps", 10, "--at", "1,10", "-o", "c.png")
    assert "t = 1, 2 of course" in run("noise", "cat.png", "--schedule", "course", "--timesteps", 2, "-o", "c.png")


@pytest.mark.parametrize(
    "words, message",
    [
        (["none.png"], ["none.png", "as a picture"]),
        (["cat.png", "--schedule", "cosin"], ["did you mean 'cosine'"]),
        (["cat.png", "--at", "0,200"], ["200", "0 to 199"]),
        (["cat.png", "--at", "a"], ["'a'"]),
        (["cat.png", "--timesteps", "0"], ["0"]),
        (["cat.png", "-o", "strip"], ["strip", ".png"]),
    ],
)
def test_bad_noise(words, message, run):
    Image.new("RGB", (8, 8)).save("cat.png")
    refused(run("noise", *words, code=2), *message)
    assert os.listdir() == ["cat.png"]


# --- train ---


def rows(folder):
    with open(f"{folder}/log.csv") as file:
        return list(csv.DictReader(file))


def test_train_leaves_a_folder_to_sample_from(run, sprites, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("train", *sprites, *TINY, "--ema", 0.9, "--class-names", "a,b,c,d,e", "-o", "r")
    assert "39 pictures 3x16x16" in out and "sample from it: fastdiff sample r" in out
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
    for word in ("# r", "39 pictures", "fastdiff 0.", "8 in 0 minutes", "| batch_size | `10` |", "![loss]"):
        assert word.replace("fastdiff 0.", "| fastdiff | 0.") in card
    assert "classes          a, b, c, d, e" in run("info", "r")
    assert "8 steps done" in run("info", "r/checkpoint.safetensors")
    run("sample", "r", "-n", 2, "--steps", 2, "--context", "b=1")
    assert torch.equal(
        sample(load("r"), 1, steps=2), sample(load("r/checkpoint.safetensors"), 1, steps=2)
    )  # both hold the averaged weights


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


def test_an_interrupted_run_is_resumed_exactly(run, sprites, tmp_path):
    """Ctrl-C in a real process, --resume, and the result is that of the uninterrupted run."""
    # Four more epochs than are waited for: seconds, in which the signal comes.
    options = [*sprites, "--epochs", "5", "--batch-size", "10", "--threads", "1", "--ema", "0.9"]
    command = [sys.executable, "-m", "fastdiff", "train", *options, "-o", "cut"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not (tmp_path / "cut" / "checkpoint.safetensors").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "fastdiff train --resume cut" in errors and "Traceback" not in errors
    done = int(rows("cut")[-1]["step"])
    assert 0 < done < 20
    np.save("kept.npy", np.load("x.npy"))
    np.save("x.npy", 255 - np.load("x.npy"))
    refused(run("train", "--resume", "cut", code=2), "x.npy", "has changed since the run began")
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
    (["--resume", "empty"], ["checkpoint.safetensors"]),
    (["--resume", ""], ["no run to resume"]),
    (["--resume", "nowhere"], ["no run to resume at 'nowhere'"]),
    (["--resume", "taken", "--ema", "0.5"], ["--resume with --ema;"]),
    (["--data", "x.npy", "--labels", ""], ["cannot be read"]),
    (["--data", "x.npy", "--labels", "nan.npy"], ["NaN"]),
    (["--data", "x.npy", "--size", "8"], ["size = 8"]),
    (["--data", "x.npy", "--p2-gamma", "inf"], ["p2_gamma = inf"]),
    (["--data", "x.npy", "--dim", "1000000000"], ["1000000000"]),
    (["--data", "x.npy", "--timesteps", "10000000000000"], ["timesteps = 10000000000000"]),
    (["--data", "q" * 300], ["qqq"]),
    (["--resume", "taken", "--lr", "1"], ["--resume with --lr"]),
]


@pytest.mark.parametrize("words, message", BAD_TRAINING, ids=[" ".join(w) for w, _ in BAD_TRAINING])
def test_bad_training(words, message, run, sprites, tmp_path):
    for name in ("empty", "taken"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken" / "checkpoint.safetensors").write_bytes(b"x")
    np.save("odd.npy", np.zeros((40, 18, 18, 3), np.uint8))
    np.save("nan.npy", np.full((40, 2), np.nan, np.float32))
    before = sorted(os.listdir())
    refused(run("train", *words, code=2), *message)
    assert sorted(os.listdir()) == before


def test_a_loss_that_is_not_finite_stops_the_run(run, sprites):
    refused(run("train", *sprites, *TINY, "--lr", 1e30, "-o", "r", code=2), "the loss became", "--lr")


# --- the whole ---


def test_help_teaches(run):
    out = run("--help")
    for word in ("fastdiff sample fashion-mnist", "train", "noise", "info"):
        assert word in out
    for command in ("sample", "train", "noise", "info"):
        assert f"fastdiff {command} " in run(command, "--help")
    assert "fastdiff, version" in run("--version")


def test_unknown_commands_and_options(run):
    refused(run("sampel", code=2), "'sampel'", "did you mean 'sample'")
    assert "--step" in run("sample", "a", "--stepz", "3", code=2)


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "fastdiff", "sample", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("Error: unknown model") and "Traceback" not in done.stderr


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stop_is_saved_wherever_it_falls(after, run, sprites, monkeypatch):
    """On the step that has just been logged too."""
    from fastdiff.training import loop as runs

    monkeypatch.setattr(runs, "LOG_EVERY", 2)
    step = runs.Trainer.step

    def stopping(self):
        loss = step(self)
        if self.steps_done == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(runs.Trainer, "step", stopping)
    assert "--resume r" in run("train", *sprites, *TINY, "-o", "r", code=130)
    assert f"{after} steps done" in run("info", "r/checkpoint.safetensors")


def test_a_killed_run_has_saved_meanwhile(run, sprites, monkeypatch):
    """Between epochs too, every SAVE_SECONDS; what a crash leaves behind can be resumed."""
    from fastdiff.training import loop as runs

    monkeypatch.setattr(runs, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(runs, "LOG_EVERY", 1)
    monkeypatch.setattr(runs.Run, "_end_of_epoch", lambda self: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        run("train", *sprites, *TINY, "-o", "r")
    assert "3 steps done" in run("info", "r/checkpoint.safetensors")
    assert [row["step"] for row in rows("r")] == ["1", "2", "3"]


def test_a_run_may_start_from_a_model(run, sprites):
    run("train", *sprites, *TINY, "-o", "first")
    run("train", *sprites, *TINY, "--init", "first", "--lr", 1e-12, "-o", "second")
    first, second = (load(name).network.state_dict() for name in ("first", "second"))
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first if "running" not in k and "num" not in k)
    assert "# first: " in run("info", "second")
    refused(run("train", *sprites, *TINY, "--n-feat", 16, "--init", "first", "-o", "third", code=2), "does not match")
    refused(run("train", *sprites, *TINY, "--init", "nothing", "-o", "third", code=2), "'nothing'")
    assert not os.path.exists("third")


def test_betas_on_the_command_line(run, sprites):
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
