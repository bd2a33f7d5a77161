"""fastdiff eval: what it writes and prints, that it goes on, and what it refuses before anything is drawn."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import AnnotatedUnet, ContextUnet, Model, from_diffusers, load, make_schedule, sample, save
from fastdiff.cli import evaluating
from fastdiff.data.load import load_data
from fastdiff.evaluation import page
from fastdiff.evaluation.measures import frechet, precision_recall
from fastdiff.evaluation.pixels import some
from fastdiff.images import to_uint8
from fastdiff.shards.run import ShardRun

FEATURES = "own_eval_features"
DATA = ["--data", "x.npy", "--labels", "y.npy", "--holdout", 0.25]
WORDS = [*DATA, "--features", f"{FEATURES}:corners", "-n", 12, "--steps", 2, "--threads", 1, "--batch-size", 2]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch, randomised):
    """Two models of two classes, data, and a feature network: 4 numbers of a picture."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        network = randomised(ContextUnet(3, 8, 2, 8), seed)
        schedule = make_schedule("course", 30)
        save(Model(network, schedule, image_shape=(3, 8, 8), time="fraction", class_names=("cat", "dog")), f"{name}.st")
        os.rename(f"{name}.st", f"{name}.safetensors")
    dice = np.random.default_rng(0)
    np.save("x.npy", dice.integers(0, 256, (80, 8, 8, 3), np.uint8))
    np.save("y.npy", np.eye(2, dtype=np.uint8)[np.arange(80) % 2])
    Path(f"{FEATURES}.py").write_text("def corners(x):\n    return x[:, 0, ::7, ::7].flatten(1)\n")
    yield
    sys.modules.pop(FEATURES, None)


def corners(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.float() / 127.5 - 1)[:, 0, ::7, ::7].flatten(1).double()


def report(path="eval/report.json"):
    return json.loads(Path(path).read_text())


def test_the_report(run):
    out = run("eval", "a.safetensors", *WORDS)
    found = report()
    (row,) = found["rows"]
    data = load_data("x.npy", "y.npy", holdout=0.25)
    contexts = torch.eye(2)[torch.arange(12) % 2]
    images = to_uint8(sample(load("a.safetensors"), 12, steps=2, context=contexts, batch_size=2))
    made, real = corners(images), corners(data.val_images)
    assert row["distance"] == pytest.approx(frechet(made, real), rel=1e-4)
    shares = precision_recall(made, real[some(len(real), 12)])
    assert (row["precision"], row["recall"]) == shares
    assert [(one["class"], one["images"], one["real"]) for one in row["classes"]] == [("cat", 6, 10), ("dog", 6, 10)]
    assert row["classes"][1]["distance"] == pytest.approx(
        frechet(made[1::2], real[data.val_labels[:, 1] == 1]), rel=1e-4
    )
    assert row["times_floor"] == row["distance"] / row["floor"]["distance"]
    assert found["features"] == {"name": f"{FEATURES}:corners", "size": 4} and found["note"] == ""
    assert {"torch", "torchmetrics"} <= found["versions"].keys() and found["machine"] and found["command"]
    assert found["data"].startswith("x: 60 pictures 3x8x8") and found["real_of_each_class"] == {"cat": 10, "dog": 10}
    text = Path("eval/report.md").read_text()
    assert text == page.markdown(found) and f"| a.safetensors | dpmpp_2m_sde, 2 steps | {row['distance']:.3g} |" in text
    assert f"distance {row['distance']:.3g} (floor " in out and str(Path("eval/report.md").resolve()) in out
    assert not Path("eval/report.png").exists()  # a single model has no curve
    with Image.open(Path("eval") / row["nearest"]) as picture:
        assert picture.mode == "RGB" and f"({row['nearest']})" in text
    assert "samples of a.safetensors: 12\n" in out and "img/s" not in out  # a line, and no bar, where it is piped


def test_several_models_are_a_curve(run):
    Path("runs").mkdir()
    for k, name in enumerate("aba"):
        save(load(f"{name}.safetensors"), f"runs/epoch-{k}.safetensors")
    models = [f"runs/epoch-{k}.safetensors" for k in range(3)]
    run("eval", *models, *WORDS, "--sampler", "ddim", "-o", "r/curve.json", "--samples", "kept")
    rows = report("r/curve.json")["rows"]
    assert [row["model"] for row in rows] == models and rows[0]["distance"] == rows[2]["distance"] != rows[1][
        "distance"
    ]
    assert len(list(Path("kept").iterdir())) == 3
    assert Path("r/curve.png").read_bytes().startswith(b"\x89PNG") and "(curve.png)" in Path("r/curve.md").read_text()
    assert page.short(models) == ["epoch-0", "epoch-1", "epoch-2"]
    assert page.short(["sprites", "runs/a"]) == ["sprites", "runs/a"]


def test_models_with_classes_in_another_order_and_without(run, randomised):
    """The first model names the data's classes, and the second one's samples go by these names."""
    save(dataclasses.replace(load("a.safetensors"), class_names=("dog", "cat")), "other.safetensors")
    plain = Model(
        randomised(AnnotatedUnet(8, dim_mults=(1, 2), channels=3)), make_schedule("linear", 30), image_shape=(3, 8, 8)
    )
    save(plain, "plain.safetensors")
    np.save("y.npy", np.eye(2, dtype=np.uint8)[(np.arange(80) % 4 == 0).astype(int)])  # a quarter is of the second
    run("eval", "a.safetensors", "other.safetensors", "plain.safetensors", *WORDS)
    first, second, third = report()["rows"]
    counts = {one["class"]: (one["images"], one["real"]) for one in first["classes"]}
    assert counts == {"cat": (9, 15), "dog": (3, 5)}
    assert {one["class"]: (one["images"], one["real"]) for one in second["classes"]} == counts
    assert first["floor"] == second["floor"] != third["floor"] and third["no_classes"] == "the model takes no classes"
    text = Path("eval/report.md").read_text()
    assert "12 training pictures, classes as often as they are held out, have" in text
    assert "12 training pictures, drawn at random, have" in text and "(the first for models of such classes)" in text
    run("eval", "plain.safetensors", *WORDS)
    assert "classes as often" not in Path("eval/report.md").read_text()
    run("eval", "plain.safetensors", "a.safetensors", *WORDS)
    assert Path("eval/report.md").read_text().split("would reach: ")[1].startswith("12 training pictures, classes as")


def test_another_split_than_in_training_is_said(run):
    save(load("a.safetensors"), "c.safetensors", info={"data": "x: 62 pictures 3x8x8, 18 held out"})
    out = run("eval", "a.safetensors", "c.safetensors", *WORDS)
    said = "c.safetensors was trained on x: 62 pictures 3x8x8, 18 held out; the data is read as 60 pictures 3x8x8, 20"
    assert out.count("was trained on") == 1 and said in out and said in report()["note"]


def test_an_interrupted_evaluation_goes_on(run, monkeypatch):
    whole = run("eval", "a.safetensors", "b.safetensors", *WORDS, "-o", "whole/report.json")
    draw, batches = ShardRun._draw, []

    def cut(self, engine, shard, count, stop):
        def counted(m):
            count(m)
            batches.append(m)
            if len(batches) == 9:  # of 6 for each model
                os.kill(os.getpid(), signal.SIGINT)

        return draw(self, engine, shard, counted, stop)

    monkeypatch.setattr(ShardRun, "_draw", cut)
    out = run("eval", "a.safetensors", "b.safetensors", *WORDS, code=130)
    assert "stopped; the same command goes on with the samples in eval/samples" in out and "Traceback" not in out
    assert not Path("eval/report.json").exists()
    shards = sorted(Path("eval/samples").glob("a*/*.npz"))
    before = [path.stat().st_mtime_ns for path in shards]
    del batches[:]
    assert run("eval", "a.safetensors", "b.safetensors", *WORDS).count("distance") == whole.count("distance") == 2
    assert 0 < len(batches) <= 6 and before == [path.stat().st_mtime_ns for path in shards]
    assert report()["rows"] == report("whole/report.json")["rows"]
    del batches[:]
    run("eval", "a.safetensors", *WORDS, "-n", 8)
    assert report()["images"] == 8 and not batches
    run("eval", "a.safetensors", *WORDS, "-n", 14)
    assert report()["images"] == 14


def test_a_folder_of_samples_without_a_manifest_is_refused_at_once(run):
    run("eval", "a.safetensors", *WORDS)
    (manifest,) = Path("eval/samples").glob("*/manifest.json")
    manifest.write_text("{}")
    out = run("eval", "a.safetensors", *WORDS, code=2)
    assert "is not a manifest that this version reads" in out and "features of real pictures" not in out


def test_ctrl_c_while_comparing(run, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluating, "evaluate", interrupt)
    assert "the same command goes on" in run("eval", "a.safetensors", *WORDS, code=130)


def test_classes_that_do_not_match(run):
    run("eval", "a.safetensors", *WORDS, "--class-names", "dog,cat")
    by_name = report()["rows"][0]["classes"]
    assert [one["class"] for one in by_name] == ["cat", "dog"]
    run("eval", "a.safetensors", *WORDS, "--class-names", "bird,cat")
    (row,) = report()["rows"]
    assert row["classes"] == [] and "the data's bird, cat" in Path("eval/report.md").read_text()


def test_few_pictures_for_many_features(run):
    Path(f"{FEATURES}.py").write_text("def corners(x):\n    return x.flatten(1)[:, :30]\n")
    run("eval", "a.safetensors", *WORDS)
    text = Path("eval/report.md").read_text()
    assert "12 samples and 20 held-out pictures for 30 features" in text and "No distance where a class" in text


BAD = [
    (["a.safetensors", *DATA], "no feature network for pictures 8x8x3"),
    (["a.safetensors", *DATA, "--features", "corners"], "--features 'corners'; accepted: MODULE:NAME"),
    (["a.safetensors", *WORDS, "--features", "no_module:x"], "cannot import --features 'no_module:x'"),
    (["a.safetensors", *WORDS, "-n", "3"], "n = 3; accepted"),
    (["a.safetensors", *WORDS, "--steps", "31"], "steps = 31"),
    (["a.safetensors", *WORDS, "--sampler", "dimm"], "did you mean 'ddim'"),
    (["a.safetensors", *WORDS, "--clip", "hard"], "'hard'"),
    (["a.safetensors", *WORDS, "--dtype", "float8"], "'float8'"),
    (["a.safetensors", *WORDS, "--device", "cuda:9"], "cuda:9"),
    (["a.safetensors", *WORDS, "--batch-size", "0"], "batch_size = 0"),
    (["a.safetensors", *WORDS, "--form", "fast"], "'fast'"),
    (["a.safetensors", *WORDS, "--holdout", "2"], "holdout = 2.0"),
    (["a.safetensors", *WORDS, "-o", "report.txt"], "'report.txt'; accepted: a name that ends in .json"),
    (["a.safetensors", *WORDS, "-o", "a.safetensors/r.json"], "cannot write"),
    (["a.safetensors", *WORDS, "--samples", "a.safetensors"], "cannot write"),
    (["a.safetensors", "c.safetensors", *WORDS], "c.safetensors"),
    (["fashion-mnist", *WORDS], "makes images 1x28x28, the data holds 3x8x8"),
    (["a.onnx", *WORDS], "is an ONNX file"),
    (["a.safetensors", "--data", "nowhere"], "nowhere'; accepted"),
    (["a.safetensors"], "Missing option '--data'"),
    ([*WORDS], "Missing argument 'MODEL...'"),
]


@pytest.mark.parametrize("words, said", BAD, ids=[said for _, said in BAD])
def test_bad_input_is_refused_before_anything_is_drawn(words, said, run):
    before = sorted(os.listdir())
    out = run("eval", *words, code=2)
    assert said in out.splitlines()[-1] and "Traceback" not in out
    assert [name for name in sorted(os.listdir()) if name != "__pycache__"] == before


def test_a_model_of_tokens(run, conditional):
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    save(from_diffusers(conditional, DDIMScheduler()), "text.safetensors")
    out = run("eval", "text.safetensors", *WORDS, code=2)
    assert "needs encoder_hidden_states, and has no classes to take in turn" in out and not Path("eval").exists()


def test_the_help_teaches(run):
    out = " ".join(run("eval", "--help").split())
    for words in ("distances by different features do not compare", "perfect samples would", "fastdiff eval runs/mine"):
        assert words in out
