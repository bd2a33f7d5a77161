"""The commands: what they write and print, and one clear sentence with exit code 2 for bad input."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import AnnotatedUnet, ContextUnet, Model, load, make_schedule, sample, save
from fastdiff.images import fit_picture


@pytest.fixture
def models(tmp_path, randomised):
    a = Model(randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2))), make_schedule("linear", 30), image_shape=(1, 8, 8))
    names = ("monster", "player", "item", "spell", "dungeon")
    b = Model(
        randomised(ContextUnet(3, 8, 5, 16)),
        make_schedule("course", 30),
        prediction_type="epsilon",
        image_shape=(3, 16, 16),
        time="fraction",
        class_names=names,
    )
    save(a, tmp_path / "a.safetensors", info={"data": "none"})
    save(b, tmp_path / "b.safetensors")
    return a, b


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


def test_nodes_of_ones_own(run, models):
    """Over b, whose time is a fraction, timesteps may lie between two."""
    for words, more, told in (
        (["--at-timesteps", "29,17,4"], {"timesteps": [29, 17, 4]}, "ddim, 3 steps, in"),
        (["--at-timesteps", "29,17.5,4", "--strength", "0.7", "--init", "x.png"], None, "ddim, 2 steps, in"),
        (["--sigmas", "exponential", "--steps", "4"], {"sigmas": "exponential", "steps": 4}, "ddim, 4 steps, in"),
    ):
        Image.new("RGB", (16, 16)).save("x.png")
        out = run("sample", "b.safetensors", "-n", 2, "--sampler", "ddim", "--npy", "b.npy", *words)
        assert told in out
        if more is not None:
            assert np.array_equal(np.load("b.npy"), sample(load("b.safetensors"), 2, "ddim", **more).numpy())


@pytest.mark.parametrize("given, frames", [([], 15), (["--gif-frames", "7"], 6), (["--gif-frames", "all"], 30)])
def test_frames_of_an_animation(given, frames, run, models, monkeypatch):
    """At most as many as asked for, each after as many steps; the last one is the end."""
    monkeypatch.setattr("fastdiff.cli.options.GIF_FRAMES", 15)
    run("sample", "a.safetensors", "-n", 1, "--steps", 30, "--gif", "a.gif", *given)
    with Image.open("a.gif") as gif:
        assert gif.n_frames == frames


def test_an_animation_of_x0(run, models):
    """Of a network that is not trained x0 is beyond the range from the first step on, where x is not."""
    frames = {}
    for of in ("x", "x0"):
        run("sample", "a.safetensors", "-n", 1, "--sampler", "ddim", "--steps", 30, "--gif", "a.gif", "--gif-of", of)
        with Image.open("a.gif") as gif:
            frames[of] = np.asarray(gif.convert("L")).copy()
    assert frames["x"].shape == frames["x0"].shape and (frames["x"] != frames["x0"]).any()
    refused(run("sample", "a.safetensors", "--gif-of", "x0", code=2), "--gif-of x0 without --gif; give both")
    refused(run("sample", "a.safetensors", "--gif", "a.gif", "--gif-of", "y", code=2), "'y'")


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


def test_beginning_with_a_picture(run, models):
    Image.new("RGB", (40, 30), (250, 10, 10)).save("red.png")
    words = ["sample", "b.safetensors", "-n", 2, "--sampler", "ddim", "--steps", 10, "--npy", "x.npy"]
    assert "ddim, 3 steps" in run(*words, "--init", "red.png", "--strength", 0.3)
    red = fit_picture("red.png", (3, 16, 16))
    assert red.shape == (3, 16, 16) and torch.allclose(red[:, 3, 3], torch.tensor([250, 10, 10]) / 127.5 - 1)
    expected = sample(models[1], 2, "ddim", steps=10, init=red, strength=0.3)
    assert np.array_equal(np.load("x.npy"), expected.numpy())
    assert "ddim, 6 steps" in run(*words, "--init", "red.png")
    assert fit_picture("red.png", (1, 8, 12)).shape == (1, 8, 12)
    Image.fromarray(np.repeat(np.uint8([[255] * 8 + [0] * 8]), 16, 0)).save("left.png")
    held = ["--known", "red.png", "--mask", "left.png"]
    assert "ddim, 10 steps in 19 rows" in run(*words, *held, "--resample", 2)
    images = torch.from_numpy(np.load("x.npy"))
    assert torch.allclose(images[..., :8], red[..., :8].expand(2, -1, -1, -1)) and not torch.allclose(
        images[0], images[1]
    )


def test_an_overflow_is_no_black_picture(run, models):
    model = models[0]
    with torch.no_grad():
        model.network.final_conv[1].weight.fill_(3e4)  # in float16 the sums are infinite
    save(model, "large.safetensors")
    before = sorted(os.listdir())
    words = ["sample", "large.safetensors", "-n", 2, "--steps", 3, "--npy", "x.npy", "--dtype", "float16"]
    said = (
        "images from sample 0 on hold NaN or infinity, computed in float16: first in layer 'final_conv.1' (Conv2d) in"
    )
    refused(run(*words, code=2), f"{said} step 1 of 3", "--allow-nan")
    refused(run(*words[:-4], "--dtype", "float16", "-o", "out/", code=2), said)
    assert sorted(os.listdir()) == [*before, "out"] and os.listdir("out") == ["manifest.json"]
    assert f"note: {said}" in run(*words, "--allow-nan")
    assert np.isnan(np.load("x.npy")).any()


BAD_SAMPLES = [
    (["a.safetensors", "--strength", "0.5"], ["strength = 0.5 without init"]),
    (["a.safetensors", "--mask", "none.png"], ["none.png", "as a picture"]),
    (["a.safetensors", "--sampler", "ddim", "--resample", "2"], ["resample = 2 without mask and known"]),
    (["a.safetensors", "--init", "none.png"], ["none.png", "as a picture"]),
    (["a.safetensors", "--init", "none.png", "--strength", "2"], ["strength = 2.0"]),
    (["a.safetensors", "-o", "out/", "--noise", "x.npy"], ["--noise with the folder 'out/'"]),
    (["nothing"], ["'nothing'", "fashion-mnist"]),
    (["a.safetensors", "-n", "0"], ["n = 0", "from 1"]),
    (["a.safetensors", "--steps", "31"], ["31", "1 to 30"]),
    (["a.safetensors", "--sampler", "dimm"], ["'dimm'", "did you mean 'ddim'"]),
    (["a.safetensors", "--spacing", "leadin"], ["'leadin'", "did you mean 'leading'"]),
    (["a.safetensors", "--sigmas", "karas"], ["'karas'", "did you mean 'karras'"]),
    (["a.safetensors", "--at-timesteps", "29,soon"], ["--at-timesteps '29,soon'", "999,749"]),
    (["a.safetensors", "--at-timesteps", "9,29"], ["timesteps with 29 after 9"]),
    (["a.safetensors", "--at-timesteps", "29,9", "--steps", "2"], ["timesteps with steps", "leave those out"]),
    (["a.safetensors", "-o", "out/", "--at-timesteps", "29,9", "--steps", "2"], ["timesteps with steps"]),
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
    (["b.safetensors", "--context", "1,2,3"], ["'1,2,3' has 3 numbers; accepted: 5"]),
    (["b.safetensors", "--context", "1,2,3", "--context", "item"], ["'1,2,3' has 3 numbers; accepted: 5"]),
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
    model = Model(
        models[1].network,
        models[1].schedule,
        prediction_type="epsilon",
        image_shape=(3, 16, 16),
        time="fraction",
        class_names=names,
    )
    said = {"network": "forged", "sampled by": "forged", "\x1b[1mkey": "\x1b[8mhidden", "clip ": "a\nclip  forgery"}
    save(model, "odd.safetensors", info=said)
    out = run("info", "odd.safetensors")
    own, _, others = out.partition("The file says:\n")
    assert "key" not in own and all(line.startswith("  ") for line in others.splitlines())
    assert "forged" not in run("info", "odd.safetensors", "--json")
    assert "forged" not in out and not any(c in out for c in "\x1b\u202e")
    assert r"\x1b[2Ja, new\nline, \u202eb, c, d" in out and r"\x1b[8mhidden" in out
    out = run("sample", "odd.safetensors", "--context", "e=1", code=2)
    refused(out, "unknown class 'e'", r"\x1b[2Ja")
    assert "\x1b" not in out
    assert "\x1b" not in run("sample", "a.safetensors", "--\x1b[2Jno", code=2)
    assert "\x1b" not in run("\x1b[2J", code=2)


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
