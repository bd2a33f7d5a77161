"""Samples into a folder: however often a run is cut, and into however many processes, its files have the same bytes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastdiff import ContextUnet, Engine, InputError, Model, load, make_schedule, make_table, sample, save
from fastdiff.cli.main import main
from fastdiff.files import only_writer
from fastdiff.images import to_uint8
from fastdiff.shards.folder import Plan, Shard, ShardFolder, check_channels, check_shard_size, save_npz
from fastdiff.shards.manifest import RESTORED, Samples
from fastdiff.shards.processes import AnotherFailed, Processes, check_alike, default_threads
from fastdiff.shards.run import ShardRun
from fastdiff.temporary import temporary

CLASSES = ("monster", "player", "item", "spell", "dungeon")
WORDS = ["sample", "b.safetensors", "-n", 21, "--first", 3, "--steps", 2, "--batch-size", 4, "--shard-size", 8]


@pytest.fixture
def run(tmp_path, monkeypatch, randomised):
    """The command in a folder with a small model, b.safetensors; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    network = randomised(ContextUnet(3, 8, 5, 16))
    save(
        Model(
            network,
            make_schedule("course", 30),
            prediction_type="epsilon",
            image_shape=(3, 16, 16),
            time="fraction",
            class_names=CLASSES,
        ),
        "b.safetensors",
    )

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def refused(output, *words):
    lines = output.strip().splitlines()
    assert lines[-1].startswith("Error: ") and "Traceback" not in output
    for word in words:
        assert word in lines[-1]


def content(folder):
    """Every file below, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def change(folder, **parts):
    """Edit the manifest's sections."""
    found = manifest(folder)
    for name, values in parts.items():
        found[name] = {**found[name], **values} if isinstance(values, dict) else values
    (Path(folder) / "manifest.json").write_text(json.dumps(found, indent=2) + "\n")


# --- what is written ---


def test_the_shards_hold_the_samples(run):
    out = run(*WORDS, "-o", "out/")
    names = ["samples-00000003-00000008.npz", "samples-00000008-00000016.npz", "samples-00000016-00000024.npz"]
    assert sorted(content("out")) == ["manifest.json", *names]
    images = sample(load("b.safetensors"), 21, steps=2, first=3, batch_size=4)
    arrays = [np.load(f"out/{name}")["arr_0"] for name in names]
    assert all(array.dtype == np.uint8 and array.shape[1:] == (16, 16, 3) for array in arrays)
    assert np.array_equal(np.concatenate(arrays), to_uint8(images).permute(0, 2, 3, 1).numpy())
    form = manifest("out")["configuration"]["form"]
    assert "21 images, dpmpp_2m_sde, 2 steps" in out and f"(cpu, {form}, 1 thread, float32, batches of 4)" in out
    assert str(Path("out").resolve()) in out
    assert "nothing left to do: all 21 images" in run(*WORDS, "-o", "out")  # an existing folder needs no slash


def test_floats_and_pictures(run):
    images = sample(load("b.safetensors"), 21, steps=2, first=3, batch_size=4)
    run(*WORDS, "-o", "floats/", "--format", "npy")
    shards = [np.load(f"floats/{name}") for name in sorted(content("floats")) if name.endswith("npy")]
    assert np.array_equal(np.concatenate(shards), images.numpy())
    run(*WORDS, "-o", "pictures/", "--format", "png")
    paths = sorted(Path("pictures").glob("samples-*/*.png"))
    assert [path.stem for path in paths] == [f"{i:08d}" for i in range(3, 24)]
    assert paths[5].parent.name == "samples-00000008-00000016"
    with Image.open(paths[5]) as picture:
        assert np.array_equal(np.asarray(picture), to_uint8(images)[5].permute(1, 2, 0).numpy())


def test_from_pictures(run):
    """Begun as a picture, or partly known: the images of fastdiff.sample, and no run goes on with other pictures."""
    dice = np.random.default_rng(0)
    for name in ("one", "other"):
        Image.fromarray(dice.integers(0, 256, (16, 16, 3), np.uint8)).save(f"{name}.png")
    Image.fromarray(np.uint8(255 * (np.arange(256).reshape(16, 16) % 16 < 7))).save("left.png")
    one = torch.from_numpy(np.array(Image.open("one.png"))).permute(2, 0, 1) / 127.5 - 1
    mask = (torch.arange(16) < 7).float().expand(1, 16, 16)
    words = ["sample", "b.safetensors", "--sampler", "ddim", "--steps", 10, "--batch-size", 4, "--format", "npy"]

    def drawn(folder):
        return np.concatenate([np.load(Path(folder, name)) for name in sorted(content(folder)) if "samples" in name])

    begun = [*words, "--init", "one.png", "-o", "begun/"]
    assert "ddim, 6 steps" in run(*begun, "-n", 5)
    run(*begun, "-n", 9, "--strength", 0.6)  # which is what it is unless said
    expected = sample(load("b.safetensors"), 9, "ddim", steps=10, batch_size=4, init=one, device="cpu")
    assert np.array_equal(drawn("begun"), expected.numpy())
    asked = manifest("begun")["samples"]
    assert asked["strength"] == 0.6 and list(asked["pictures"]) == ["init"] and len(asked["pictures"]["init"]) == 64
    refused(run(*begun, "-n", 9, "--strength", 0.5, code=2), "strength = 0.5; the run in 'begun' has 0.6")
    refused(run(*words, "--init", "other.png", "-o", "begun/", "-n", 9, code=2), "pictures = {'init': ", "the run in ")
    refused(run(*words, "-o", "begun/", "-n", 9, code=2), "strength = None; the run in 'begun' has 0.6")

    held = [*words, "--known", "one.png", "--mask", "left.png", "-n", 5, "-o", "held/"]
    assert "ddim, 10 steps in 19 rows" in run(*held, "--resample", 2)
    more = dict(known=one, mask=mask, resample=2)
    expected = sample(load("b.safetensors"), 5, "ddim", steps=10, batch_size=4, device="cpu", **more)
    assert np.array_equal(drawn("held"), expected.numpy())
    refused(run(*held, code=2), "resample = None; the run in 'held' has 2")
    refused(run(*words, "-o", "no/", "--resample", 2, code=2), "resample = 2 without mask and known")
    refused(run(*words, "-o", "no/", "--mask", "left.png", code=2), "mask and known belong together")
    refused(run(*words, "-o", "no/", "--init", "none.png", code=2), "none.png", "as a picture")
    assert not Path("no").exists()


def test_the_manifest_tells_what_made_the_files(run):
    run(*WORDS, "-o", "out/", "--context", "item", "--context", "spell=0.5", "--guidance-scale", 2, "--clip", "dynamic")
    found = manifest("out")
    assert found["samples"] == {
        "sampler": "dpmpp_2m_sde",
        "steps": 2,
        "eta": 0.0,
        "spacing": "trailing",
        "clip": ["dynamic", 0.995],
        "seed": 0,
        "first": 3,
        "n": 21,
        "contexts": [[0, 0, 1, 0, 0], [0, 0, 0, 0.5, 0]],
        "guidance_scale": 2.0,
        "sigmas": None,
        "timesteps": None,
    }
    model = load("b.safetensors")
    ask = found["samples"]
    again = Engine(
        model,
        make_table("dpmpp_2m_sde", model.schedule, 2, time="fraction"),
        clip=tuple(ask["clip"]),
        batch_size=found["configuration"]["batch_size"],
    )
    rows = torch.tensor(ask["contexts"])
    images = again.sample(21, first=3, guidance_scale=2.0, context=lambda at, m: rows[(at + torch.arange(m)) % 2])
    shards = [np.load(path)["arr_0"] for path in sorted(Path("out").glob("*.npz"))]
    assert np.array_equal(np.concatenate(shards), to_uint8(images).permute(0, 2, 3, 1).numpy())
    assert found["files"] == {"format": "npz", "shard_size": 8} and found["notes"] == []
    assert found["fastdiff"].startswith("0.") and len(found["model"]["sha256"]) == 64
    assert found["configuration"] == json.loads(json.dumps(again.configuration()))


def test_no_batch_is_computed_twice(run, monkeypatch):
    began, batch = [], Engine._batch

    def counted(self, start, *rest):
        began.append(start)
        return batch(self, start, *rest)

    monkeypatch.setattr(Engine, "_batch", counted)
    run(*WORDS, "-o", "out/")
    assert began == [0, 4, 8, 12, 16, 20]


def test_plans():
    assert list(Plan(3, 21, 8)) == [Shard(3, 8), Shard(8, 16), Shard(16, 24)]
    assert list(Plan(8, 9, 8)) == [Shard(8, 16), Shard(16, 17)]
    assert list(Plan(3, 2, 8)) == [Shard(3, 5)]
    assert [check_shard_size(None, size) for size in (1, 3, 64, 600, 4096)] == [1000, 999, 1024, 1200, 4096]
    with pytest.raises(InputError, match="shard_size = 100; accepted: a multiple of the batch size, 64, such as 64 or"):
        check_shard_size(100, 64)
    assert ShardFolder(Path("."), "npy", 2**63, (3, 8, 8)).stem(Shard(2**62, 2**63)) < "samples-9"


def test_npz_files_have_no_date(tmp_path, monkeypatch):
    array = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    save_npz(tmp_path / "a.npz", array)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save_npz(tmp_path / "b.npz", array)
    np.savez(tmp_path / "c.npz", array)
    assert content(tmp_path)["a.npz"] == content(tmp_path)["b.npz"]
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], np.load(tmp_path / "c.npz")["arr_0"])


def test_a_huge_run_begins_at_once(run, monkeypatch):
    """Nothing is as long as n: neither the plan, nor the contexts, nor the list of what is there."""
    stop_after(monkeypatch, 3)
    out = run(*WORDS, "-n", 10**15, "--context", "item", "--context", "spell", "-o", "out/", code=130)
    assert "stopped: 5 of 1,000,000,000,000,003 images" in out.replace("000,000 images", "000,003 images")
    assert f"samples-{3:019d}-{8:019d}.npz" in content("out")


# --- cut and continued ---


def stop_after(monkeypatch, batches, number=signal.SIGINT):
    """Ctrl-C, or another signal, while the batch after so many is made."""
    batch, left = Engine._batch, [batches]

    def stopping(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return batch(self, *arguments)

    monkeypatch.setattr(Engine, "_batch", stopping)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_and_a_terminal_that_closes_save_what_ctrl_c_saves(number, run, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3, number)
        assert "stopped: 5 of 21 images" in run(*WORDS, "-o", "cut/", code=130)
    assert not [name for name in os.listdir("cut") if name.startswith(".")]
    assert "16 images, dpmpp_2m_sde" in run(*WORDS, "-o", "cut/")


@pytest.mark.parametrize("batches", [1, 2, 3, 6])
def test_ctrl_c(batches, run, monkeypatch):
    run(*WORDS, "-o", "whole/")
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        out = run(*WORDS, "-o", "cut/", code=0 if batches == 6 else 130)  # after the last batch nothing is left to stop
    if batches < 6:
        kept = {1: 0, 2: 5, 3: 5}[batches]
        assert f"stopped: {kept} of 21 images" in out and "the same command goes on" in out
        assert f"{21 - kept} images, dpmpp_2m_sde" in run(*WORDS, "-o", "cut/")
    assert content("cut") == content("whole")


EVENTS = [
    (os, "replace"),
    (os, "rename"),
    (os, "unlink"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Engine, "_batch"),
    (np.lib.format, "write_array"),
    (np, "save"),
    (Image.Image, "save"),
]


def killed_at(event, words):
    """A process that is gone, as by SIGKILL, before the event of that number; whether it lived to the end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    left = [event]

    def mined(function):
        def step(*arguments, **named):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return function(*arguments, **named)

        return step

    try:
        for owner, name in EVENTS:
            setattr(owner, name, mined(getattr(owner, name)))
        code = CliRunner().invoke(main, [str(word) for word in words]).exit_code
        os._exit(0 if code == 0 else 1)
    finally:
        os._exit(1)


@pytest.mark.parametrize("format", ["npy", *(pytest.param(one, marks=pytest.mark.slow) for one in ("npz", "png"))])
def test_a_run_may_be_killed_at_any_point(format, run):
    words = [*WORDS[:2], "-n", 5, *WORDS[4:], "--format", format, "-o"]
    run(*words, "whole/")
    event = 0
    while not killed_at(event, [*words, f"cut{event}/"]):
        run(*words, f"cut{event}/")
        assert content(f"cut{event}") == content("whole"), event
        assert not [name for name in os.listdir(f"cut{event}") if name.startswith(".")]
        event += 1
    assert event > 9 and content(f"cut{event}") == content("whole")
    for event in range(6):  # and again and again
        assert not killed_at(9 - event, [*words, "often/"])
    run(*words, "often/")
    assert content("often") == content("whole")


def test_a_larger_n_extends_the_run(run):
    run(*WORDS, "-o", "whole/", "-n", 30)
    run(*WORDS, "-o", "grown/", "-n", 2)
    assert "samples-00000003-00000005.npz" in content("grown")
    run(*WORDS, "-o", "grown/", "-n", 21)
    run(*WORDS, "-o", "grown/", "-n", 30)
    assert content("grown") == content("whole")
    refused(run(*WORDS, "-o", "grown/", "-n", 21, code=2), "n = 21", "has 30")
    refused(run(*WORDS, "-o", "grown/", "-n", 10**9, code=2), f"n = {10**9}", str(10**8))


def test_a_damaged_or_missing_shard_is_made_again(run):
    for format in ("npz", "npy", "png"):
        words = [*WORDS, "--format", format, "-o", f"{format}/"]
        run(*words)
        whole = content(format)
        shards = sorted(Path(format).glob("samples-*"))
        if format == "png":
            next(shards[0].iterdir()).unlink()
        else:
            shards[0].write_bytes(shards[0].read_bytes()[:-100])
            shards[1].unlink()
        run(*words)
        assert content(format) == whole


def test_the_configuration_is_restored(run):
    """Whatever the defaults are by then; options that contradict it are refused."""
    words = [*WORDS[:2], "-n", 20, "--steps", 2, "-o", "out/"]
    run(*words, "--batch-size", 4, "--shard-size", 8, "--form", "eager", "--format", "npy", "--dtype", "bfloat16")
    whole = content("out")
    os.unlink("out/samples-00000008-00000016.npy")
    torch.set_num_threads(2)
    try:
        assert "(cpu, eager, 1 thread, bfloat16, batches of 4)" in run(*words)
    finally:
        torch.set_num_threads(1)
    assert content("out") == whole
    for option, value, before in (
        ("batch_size", 8, 4),
        ("threads", 2, 1),
        ("form", "cpu", "eager"),
        ("dtype", "float32", "bfloat16"),
        ("format", "npz", "npy"),
        ("shard_size", 4, 8),
    ):
        out = run(*words, f"--{option.replace('_', '-')}", value, code=2)
        refused(out, f"{option} = {value!r}", f"has {before!r}", "'out'")
    assert content("out") == whole


CHANGED = [
    (["--seed", "4"], ["seed = 4", "has 0"]),
    (["--first", "2"], ["first = 2", "has 3"]),
    (["--steps", "3"], ["steps = 3", "has 2"]),
    (["--sampler", "ddpm"], ["sampler = 'ddpm'", "has 'dpmpp_2m_sde'"]),
    (["--eta", "0.5"], ["eta = 0.5"]),
    (["--spacing", "leading"], ["spacing = 'leading'"]),
    (["--sigmas", "karras"], ["sigmas = 'karras'"]),
    (["--clip", "1"], ["clip = 1.0", "has None"]),
    (["--context", "item"], ["contexts = [[0.0, 0.0, 1.0", "has []"]),
    (["-n", "20"], ["n = 20", "has 21"]),
]


@pytest.mark.parametrize("words, message", CHANGED, ids=[" ".join(w) for w, _ in CHANGED])
def test_another_command_is_refused(words, message, run):
    run(*WORDS, "-o", "out/")
    before = content("out")
    refused(run(*WORDS, *words, "-o", "out/", code=2), *message)
    assert content("out") == before


def test_another_model_is_refused(run, randomised):
    run(*WORDS, "-o", "out/")
    os.rename("b.safetensors", "moved.safetensors")
    assert "nothing left" in run("sample", "moved.safetensors", *WORDS[2:], "-o", "out/")  # the same by another name
    network = randomised(ContextUnet(3, 8, 5, 16), seed=1)
    save(
        Model(
            network,
            make_schedule("course", 30),
            prediction_type="epsilon",
            image_shape=(3, 16, 16),
            time="fraction",
            class_names=CLASSES,
        ),
        "b.safetensors",
    )
    refused(run(*WORDS, "-o", "out/", code=2), "the model's weights (sha256)", "'out'")


def test_another_machine_or_version_is_told_and_noted(run):
    run(*WORDS, "-o", "out/")
    change("out", configuration={"machine": "Babbage"}, fastdiff="0.0.1")
    assert "note: " not in run(*WORDS, "-o", "out/")  # where nothing is made nothing differs
    os.unlink("out/samples-00000016-00000024.npz")
    out = run(*WORDS, "-o", "out/")
    assert "note: from sample 16 on: machine" in out and "last bits may differ" in out
    notes = manifest("out")["notes"]
    assert len(notes) == 2 and "in place of '0.0.1'" in notes[0] and "in place of 'Babbage'" in notes[1]


def test_a_warning_shows_the_callers_line(run):
    """Not the line of fastdiff's own that warns, from Python too."""
    run(*WORDS, "-o", "out/")
    change("out", configuration={"machine": "Babbage"})
    os.unlink("out/samples-00000016-00000024.npz")
    made = manifest("out")["samples"]
    given = {**dict.fromkeys(RESTORED), "format": None, "shard_size": None}
    asked = load("b.safetensors"), "b.safetensors", Samples(**made), Path("out"), given, Processes()
    with pytest.warns(UserWarning, match="from sample 16 on: machine") as caught, ShardRun(*asked):
        pass
    assert [one.filename for one in caught] == [__file__]


def test_a_manifest_of_values_that_no_run_writes(run):
    run(*WORDS, "-o", "out/")
    for section, name, value, words in (
        ("configuration", "dtype", "eval", "configuration.dtype = 'eval'"),
        ("files", "shard_size", 6, "shard_size = 6; accepted: a multiple of the batch size, 4"),
    ):
        before = manifest("out")[section]
        change("out", **{section: {name: value}})
        refused(run("sample", "b.safetensors", "-n", 21, "--first", 3, "--steps", 2, "-o", "out/", code=2), words)
        change("out", **{section: before})


# --- a batch that does not fit ---


def memory_for(monkeypatch, size, from_sample=0):
    batch = Engine._batch

    def limited(self, start, *rest):
        if self.batch_size > size and start >= from_sample:
            raise torch.OutOfMemoryError("out of memory")
        return batch(self, start, *rest)

    monkeypatch.setattr(Engine, "_batch", limited)


@pytest.mark.parametrize("from_sample", [0, 12])
def test_a_halved_batch_is_noted_and_kept(from_sample, run, monkeypatch):
    with monkeypatch.context() as patch:
        memory_for(patch, 2, from_sample)
        out = run(*WORDS, "-o", "whole/")
    assert "note: a batch of 4 did not fit in memory" in out and "batches of 2)" in out
    found = manifest("whole")
    small = ["samples-00000008-00000016", "samples-00000016-00000024"]
    small = small if from_sample else ["samples-00000003-00000008", *small]
    assert found["smaller_batches"] == dict.fromkeys(small, 2) and found["configuration"]["batch_size"] == 4
    assert len(found["notes"]) == 1 and not list(Path("whole").glob("*.note.json"))
    model = load("b.safetensors")
    for stem in small:  # each shard in one batch size, also where the memory ended in its midst
        begin, end = (int(part) for part in stem.split("-")[1:])
        images = sample(model, end - begin, steps=2, first=begin, batch_size=2)
        assert np.array_equal(np.load(f"whole/{stem}.npz")["arr_0"], to_uint8(images).permute(0, 2, 3, 1).numpy())

    with monkeypatch.context() as patch:
        memory_for(patch, 2, from_sample)
        stop_after(patch, 11)
        run(*WORDS, "-o", "cut/", code=130)
    assert list(Path("cut").glob("*.note.json"))
    assert "batches of 2)" in run(*WORDS, "-o", "cut/")  # though there is memory by now
    assert content("cut") == content("whole")


# --- what is refused ---


BAD = [
    (["--gif", "x.gif", "-o", "out/"], ["--gif with the folder 'out/'", "picture"]),
    (["--npy", "x.npy", "-o", "out/"], ["--npy with the folder"]),
    (["--columns", "2", "-o", "out/"], ["--columns with the folder"]),
    (["--scale", "2", "-o", "."], ["--scale with the folder '.'"]),
    (["--format", "npz", "-o", "x.png"], ["--format with the picture 'x.png'", "out/"]),
    (["--shard-size", "64"], ["--shard-size with the picture 'samples.png'"]),
    (["--format", "jpg", "-o", "out/"], ["unknown format 'jpg'", "npz, npy, png"]),
    (["--shard-size", "100", "-o", "out/"], ["shard_size = 100", "64 or 128"]),
    (["--shard-size", "0", "-o", "out/"], ["shard_size = 0"]),
    (["--batch-size", "0", "-o", "out/"], ["batch_size = 0"]),
    (["-n", "0", "-o", "out/"], ["n = 0"]),
    (["--seed", "-1", "-o", "out/"], ["seed = -1"]),
    (["--steps", "31", "-o", "out/"], ["31"]),
    (["--context", "1,2", "-o", "out/"], ["--context '1,2' has 2 numbers; accepted: 5"]),
    (["--context", "1,2", "--context", "3,4", "-o", "out/"], ["--context '1,2' has 2 numbers; accepted: 5"]),
    (["--guidance-scale", "2", "-o", "out/"], ["guidance_scale = 2.0 without a context"]),
    (["--dtype", "float8", "-o", "out/"], ["'float8'"]),
    (["--form", "fast", "-o", "out/"], ["'fast'"]),
    (["--form", "fast"], ["'fast'"]),
    (["--device", "cuda:9", "-o", "out/"], ["cuda:9"]),
    (["--device", "abacus", "-o", "out/"], ["'abacus'"]),
    (["-o", "b.safetensors/"], ["cannot write"]),
    (["-o", "/proc/nowhere/"], ["cannot write"]),
    (["-o", "other/"], ["'other/manifest.json' is not a manifest"]),
    (["-o", "lost/"], ["'samples-00000000-00001024.npz' but no manifest"]),
]


@pytest.mark.parametrize("words, message", BAD, ids=[" ".join(w) for w, _ in BAD])
def test_bad_input_leaves_nothing(words, message, run):
    for name, file in (("other", "manifest.json"), ("lost", "samples-00000000-00001024.npz")):
        os.mkdir(name)
        Path(name, file).write_text("{}")
    before = content(".")
    refused(run("sample", "b.safetensors", *words, code=2), *message)
    assert content(".") == before and not os.path.exists("out")


def test_one_run_at_a_time(run):
    run(*WORDS, "-o", "out/")
    with only_writer(Path("out")):
        refused(run(*WORDS, "-o", "out/", code=2), "another run writes to 'out'")
    run(*WORDS, "-o", "out/")


def test_nobody_elses_files_are_removed(run):
    """Commands write their temporary files to the folder too, and users call theirs as they like."""
    os.makedirs("out/.fastdiff-mine")
    os.symlink("nowhere", "out/.fastdiff-link")
    run(*WORDS, "-o", "out/")
    with temporary(Path("out"), ".onnx") as exported:
        run(*WORDS, "-o", "out/")
        assert exported.exists() and os.path.isdir("out/.fastdiff-mine") and os.path.islink("out/.fastdiff-link")


def test_a_picture_without_content_is_made_again(run):
    """As a loss of power can leave one, where a folder's names reached the disk before the files' content."""
    words = [*WORDS, "--format", "png", "-o", "out/"]
    run(*words)
    before = content("out")
    Path("out/samples-00000008-00000016/00000009.png").write_bytes(b"")
    assert "8 images, dpmpp_2m_sde" in run(*words)
    assert content("out") == before


def test_pictures_need_channels_that_show():
    with pytest.raises(InputError, match="format 'png' for images of 2 channels; accepted: npz, npy"):
        check_channels("png", 2)


def test_several_processes_need_a_folder(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run(*WORDS, "-o", "x.png", code=2), "output 'x.png' with several processes", "a folder")
    refused(run(*WORDS, "-o", "out/", code=2), "WORLD_SIZE = 2 without RANK", "torchrun")
    monkeypatch.setenv("RANK", "1")
    assert run(*WORDS, "-o", "x.png", code=2) == ""  # the first process tells
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE = 'two'"):
        Processes()


@pytest.mark.parametrize(
    "name, value",
    [
        *(("LOCAL_WORLD_SIZE", "x"), ("LOCAL_WORLD_SIZE", "0"), ("WORLD_SIZE", "9" * 5000), ("WORLD_SIZE", "٢")),
        *(("RANK", "x"), ("RANK", "2"), ("LOCAL_RANK", "-1"), ("MASTER_PORT", "99999"), ("MASTER_PORT", "http")),
    ],
)
def test_variables_that_torchrun_does_not_set_so(name, value, run, monkeypatch):
    for variable, given in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(variable, given)
    monkeypatch.setenv("MASTER_ADDR", "nowhere")
    monkeypatch.setenv(name, value)
    for words in (["-o", "x.png"], ["-o", "out/"]):
        refused(run(*WORDS, *words, code=2), f"{name} = {value!r}", "a whole number from")


def test_a_process_alone_has_no_rank(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert Processes().rank == 0


def test_threads_are_those_of_a_process_alone(monkeypatch):
    """torchrun gives each of several processes one thread, unless told otherwise; other bits than a run in one."""
    assert default_threads() == torch.get_num_threads()
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "2"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda words, env, **_: subprocess.CompletedProcess(
            words, 0, "64\n" if "OMP_NUM_THREADS" not in env else "1\n"
        ),
    )
    assert default_threads() == 64
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert default_threads() == torch.get_num_threads()


# --- several processes ---


def torchrun(*words, processes=2, start=("-m", "fastdiff")):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, *start, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_two_processes_write_the_files_of_one(run):
    words = [*WORDS, "--threads", 1, "--context", "item", "--context", "spell"]
    run(*words, "-o", "one/")
    done = torchrun(*words, "-o", "two/")
    assert done.returncode == 0, done.stderr
    assert "21 images, dpmpp_2m_sde" in done.stdout and "(2 processes, each cpu" in done.stdout
    assert done.stdout.count("wrote") == 1 and content("two") == content("one")
    os.unlink("one/samples-00000003-00000008.npz")
    os.unlink("one/samples-00000016-00000024.npz")
    done = torchrun(*words, "-o", "one/")  # begun by one, continued by two
    assert done.returncode == 0 and "13 images" in done.stdout and content("one") == content("two")


def test_processes_that_were_asked_for_different_samples_begin_none(run):
    Path("odd.py").write_text(
        "import os, sys; from fastdiff.cli.main import main\n"
        "main([*sys.argv[1:], *(['--seed', '1'] if os.environ['RANK'] == '1' else [])])\n"
    )
    done = torchrun(*WORDS, "-o", "out/", start=["odd.py"])
    assert done.returncode != 0 and done.stderr.count("Error: seed = 1 in process 1 of 2, and 0 in the first") == 1
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    "name, value", [("seed", 1), ("n", 20), ("sampler", "ddim"), ("clip", 1.0), ("the model's weights (sha256)", "x")]
)
def test_what_differs_between_processes_is_named_by_the_first(name, value):
    one = {"seed": 0, "n": 21, "sampler": None, "clip": None, "the model's weights (sha256)": "y"}
    check_alike([one, one], 0)
    with pytest.raises(InputError, match=re.escape(f"{name} = {value!r} in process 2 of 3, and {one[name]!r} in the")):
        check_alike([one, one, {**one, name: value}], 0)
    for rank in (1, 2):
        with pytest.raises(AnotherFailed):
            check_alike([one, one, {**one, name: value}], rank)
    with pytest.raises(InputError, match="strength = 0.5 in process 1 of 2, and None in the first"):
        check_alike([one, {**one, "strength": 0.5}], 0)


def test_a_process_that_fails_ends_all(run):
    run(*WORDS, "-o", "out/")
    os.unlink("out/samples-00000003-00000008.npz")
    os.unlink("out/samples-00000008-00000016.npz")
    Path("out/samples-00000008-00000016.npz/x").mkdir(parents=True)  # the second process cannot write its shard
    done = torchrun(*WORDS, "-o", "out/")
    assert done.returncode != 0 and done.stderr.count("\nError: ") + done.stderr.startswith("Error: ") == 1
    assert "cannot write 'out/samples-00000008-00000016.npz'" in done.stderr and "(process 1 of 2)" in done.stderr
    assert not [name for name in os.listdir("out") if name.startswith(".")]


# --- at length ---

PEAK = "\nimport re; print('peak', re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_5000_images_survive_ten_kills_in_constant_memory(tmp_path):
    seed = random.randrange(10**6)
    print(f"random seed {seed}")
    moments = random.Random(seed)
    words = "sample sprites --steps 4 --threads 1 --shard-size 256".split()

    def start(n, folder):
        run = f"main({[*words, '-n', n, '-o', folder]!r}, standalone_mode=False)"
        code = f"from fastdiff.cli.main import main; {run}{PEAK}"
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    peaks, times = [], []
    for n in ("500", "5000"):
        began = time.monotonic()
        out, _ = (process := start(n, f"whole{n}/")).communicate()
        assert process.returncode == 0
        times.append(time.monotonic() - began)
        peaks.append(int(out.split("peak")[1]) / 1024)
        print(f"{n} images in {times[-1]:.1f} s, peak {peaks[-1]:.0f} MiB")
    assert peaks[1] < 1.05 * peaks[0] + 16
    work = (times[1] - times[0]) / 0.9
    latest = times[1] - work + 0.15 * work  # a start and some shards; ten of them are less than the whole
    for _ in range(10):
        process = start("5000", "cut/")
        moment = moments.uniform(0.0, latest)
        time.sleep(moment)
        assert process.poll() is None
        process.kill()
        process.wait()
        print(f"killed after {moment:.1f} s with {len(list((tmp_path / 'cut').glob('*.npz')))} of 20 shards")
    process = start("5000", "cut/")
    said = process.communicate()[0]  # the kills may have come so late that all is there already
    assert ("wrote" in said or "nothing left to do" in said) and process.returncode == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole5000")
