"""The classifiers' training, and the report of time against quality."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastdiff.bench.quality import data as quality_data
from fastdiff.bench.quality import half_precision, page, points, training
from fastdiff.cli.main import main
from fastdiff.data.fashion import DEBIAN_FASHION
from fastdiff.data.images import ImageData
from fastdiff.data.load import load_data
from fastdiff.errors import InputError
from fastdiff.evaluation import classifier
from fastdiff.images import to_uint8

RESULTS = Path(__file__).parent.parent.parent / "bench" / "results"
BOTH = ("--model", "fashion-mnist", "--model", "sprites")


@pytest.fixture(autouse=True)
def _as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def status(*arguments) -> int:
    return CliRunner().invoke(main, ["bench", "quality", *map(str, arguments)], catch_exceptions=False).exit_code


def pictures(n: int, shape=(1, 8, 8), seed: int = 0, noise: float = 0.0) -> torch.Tensor:
    """Smooth uint8 pictures, with noise of that deviation."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, shape[0], 3, 3, generator=generator)
    x = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear") * 0.5
    return to_uint8(x + noise * torch.randn(x.shape, generator=generator))


def tiny_data(shape) -> ImageData:
    labels = torch.eye(2).repeat(60, 1)
    return ImageData("tiny", pictures(120, shape), labels, ("even", "odd"), pictures(120, shape, 1), labels)


def network(shape=(1, 8, 8)) -> classifier.Classifier:
    torch.manual_seed(0)
    return classifier.Classifier(shape, 2).eval().requires_grad_(False)


def test_a_classifier_learns_and_is_kept(tmp_path, monkeypatch):
    images, others = pictures(600), pictures(600, seed=1)
    kinds, held = (torch.eye(2)[(x.float().mean(dim=(1, 2, 3)) > 127).long()] for x in (images, others))
    data = ImageData("tiny", images, kinds, ("dark", "bright"), others, held)
    monkeypatch.setattr(training, "read_data", lambda *given: data)
    words = ["bench", "classifier", "fashion-mnist", "--epochs", "12", "-o", str(tmp_path)]
    output = CliRunner().invoke(main, words, catch_exceptions=False).output
    made = classifier.load("fashion-mnist", tmp_path)
    right = training.recognised(made, data)
    assert right.mean() > 0.9
    card = (tmp_path / "fashion-mnist.md").read_text()
    bright = right[held[:, 1] == 1]
    assert f"{right.mean():.2%}" in card and f"| bright | {len(bright)} | {bright.mean():.1%} |" in card
    assert output.endswith(card)
    again = training.train(data, 12).state_dict()  # weights are kept in half precision
    assert all(torch.equal(value.half(), made.state_dict()[key].half()) for key, value in again.items())


def test_the_sprites_are_split_as_in_training(tmp_path):
    n = 200
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), np.uint8))
    np.save(tmp_path / "y.npy", np.eye(5, dtype=np.uint8)[np.arange(n) * 5 // n])
    files = (str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    found, plain = quality_data.read_data("sprites", *files), load_data(*files)
    assert torch.equal(found.val_images, plain.val_images) and torch.equal(found.labels, plain.labels)
    assert found.class_names == ("monster", "player", "item", "spell", "dungeon")
    with pytest.raises(
        InputError, match="the data of 'sprites' does not ship; give its pictures and labels with --data and --labels"
    ):
        quality_data.read_data("sprites")


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_stated_accuracy():
    data = load_data("fashion-mnist", download=False)
    stated, held_out = classifier.stated_accuracy("fashion-mnist")
    assert held_out == len(data.val_images) == 10_000 and stated > 0.91
    few = replace(data, val_images=data.val_images[:2000], val_labels=data.val_labels[:2000])
    right = training.recognised(classifier.load("fashion-mnist"), few)
    assert abs(right.mean() - stated) < 0.015  # two standard deviations of a share of 2,000
    assert f"| {stated:.2%} |" in (classifier.FOLDER / "fashion-mnist.md").read_text()


def test_points():
    assert points.Point.parse("ddim:25") == ("ddim", 25, None)
    assert points.Point.parse("ddim:25:1.5") == ("ddim", 25, 1.5) and str(points.Point("a", 5, 2.0)) == "a-5-g2"
    assert points.Point("ddim", 25).evaluations == 25 and points.Point("ddim", 25, 2.0).evaluations == 50
    for text in ("ddim", "ddim:x", "ddim:5:", "ddim:5:1.2.3", "ddim:5:1:1"):
        with pytest.raises(InputError, match="accepted: SAMPLER:STEPS"):
            points.Point.parse(text)
    for name, grid in points.POINTS.items():
        assert len(points.checked(name, (), 2000)) == len(grid.split())


def row(sampler: str, steps: int, distance: float, milliseconds: float):
    facts = {"sampler": sampler, "steps": steps, "guidance_scale": None, "evaluations": steps}
    return {**facts, "milliseconds": milliseconds, "distance": distance, "to_training": distance + 1}


FAILED = {"sampler": "d", "steps": 1, "guidance_scale": None, "evaluations": 1, "reason": "failed"}


def entry(rows):
    return {"model": "m", "rows": rows, "floor": {"distance": 0.5}}


def test_what_to_take_is_computed_from_the_rows():
    rows = [
        row("a", 5, 9.0, 10.0),
        row("a", 10, 2.15, 20.0),
        row("b", 10, 3.0, 21.0),
        row("b", 50, 2.0, 100.0),
        row("c", 200, 2.2, 400.0),
        FAILED,
    ]
    assert page.costs(rows)[0] == "milliseconds"
    assert [(r["sampler"], r["steps"]) for r in page.front(rows, "milliseconds")] == [("a", 5), ("a", 10), ("b", 50)]
    assert page.choice(rows, "milliseconds") is rows[1]
    assert page.advice(entry(rows)) == [
        "**m**: take `a` with 10 steps (distance 2.15, 20 ms an image). It is the cheapest within 10% of the smallest "
        "distance, which is that of `b` with 50 steps (distance 2, 100 ms an image), 4 times the floor's and 5 times "
        "as dear. By the distance to training pictures it is the same.",
        "",
        "For less time, the nearest at its cost: `a` with 5 steps (distance 9, 10 ms an image).",
    ]
    rows[1]["distance"] = 2.3  # no longer within 10%
    assert page.choice(rows, "milliseconds") is rows[3]
    assert "It has the smallest distance, 4 times the floor's." in page.advice(entry(rows))[0]
    rows[4]["to_training"] = 1.0
    assert page.advice(entry(rows))[0].endswith("training pictures it is `c` with 200 steps.")
    del rows[0]["milliseconds"]  # without all times, by evaluations
    assert page.costs(rows) == ("evaluations", "evaluations")
    assert "50 evaluations" in page.advice(entry(rows))[0]
    assert page.advice(entry([FAILED])) == ["**m**: no point was measured."]


@pytest.fixture
def models(tiny):
    return tiny(50)


@pytest.fixture
def small(monkeypatch, models, tmp_path):
    """Tiny models, data and classifiers in place of the shipped ones."""
    own = {"fashion-mnist": models["A28@28"], "sprites": models["B@16"]}
    monkeypatch.setattr(points.fastdiff, "load", own.get)
    monkeypatch.setattr(points, "read_data", lambda name, *given: tiny_data(own[name].image_shape))
    monkeypatch.setattr(classifier, "load", lambda name: network(own[name].image_shape))
    monkeypatch.setattr(classifier, "stated_accuracy", lambda name: (0.5, 120))
    output = tmp_path / "new" / "quality.json"
    common = ("--samples", tmp_path / "samples", "--threads", 1, "--device", "cpu", "--rounds", 1, "--output", output)
    return output, common


def test_the_report(small, tmp_path):
    output, common = small
    chosen = ("-n", 70, "--point", "ddim:2", "--point", "ddpm:3")
    assert status(*BOTH, *chosen, "--do", "distances", *common) == 0
    before = json.loads(output.read_text())
    assert [entry["model"] for entry in before["models"]] == ["fashion-mnist", "sprites"] and "times" not in before
    for found in before["models"]:
        assert [(r["sampler"], r["steps"]) for r in found["rows"]] == [("ddim", 2), ("ddpm", 3)]
        assert all(r["distance"] > 0 and "reason" not in r for r in found["rows"])
        assert all(len(r["halves"]) == 2 and r["to_training"] > 0 for r in found["rows"]) and found["training"] == 120
        assert found["floor"]["pictures"] == 70 and found["images"] == 70 and found["real"] == 120
        assert found["floor"]["lowest"] <= found["floor"]["distance"] <= found["floor"]["highest"]
    manifest = json.loads((tmp_path / "samples" / "sprites" / "ddim-2" / "manifest.json").read_text())
    assert manifest["samples"]["contexts"] == torch.eye(5).tolist() and manifest["samples"]["seed"] == 0

    # The folders are taken as they are; a lost one is made again, with the same distance.
    shards = sorted((tmp_path / "samples").rglob("*.npz"))
    kept, lost = shards[0].stat().st_mtime_ns, shards[-1].read_bytes()
    shards[-1].unlink()
    assert status(*BOTH, *chosen, "--do", "distances", *common) == 0
    assert shards[0].stat().st_mtime_ns == kept and shards[-1].read_bytes() == lost
    assert json.loads(output.read_text())["models"] == before["models"]

    assert status("--do", "times", *common) == 0
    report = json.loads(output.read_text())
    for old, new in zip(before["models"], report["models"], strict=True):
        for first, second in zip(old["rows"], new["rows"], strict=True):
            assert second["milliseconds"] > 0 and first == {key: second[key] for key in first}
    text = output.with_suffix(".md").read_text()
    assert (
        text == page.markdown(report)
        and "item, spell, dungeon, as often as they are held out" in text
        and "ms an image)" in text
    )
    assert text.rstrip().splitlines()[-1].startswith(("**sprites**", "For less time"))
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_point_that_fails_is_a_row_that_says_so(small, tmp_path, monkeypatch):
    output, common = small
    folder = tmp_path / "samples" / "fashion-mnist" / "ddim-3"
    folder.mkdir(parents=True)
    (folder / "samples-00000000-00000064.npz").write_bytes(b"another's")
    assert status("-n", 70, "--point", "ddim:3", "--point", "ddim:2", *common) == 1
    failed, made = json.loads(output.read_text())["models"][0]["rows"]
    assert "but no manifest of its run" in failed["reason"] and "distance" not in failed
    assert made["distance"] > 0 and made["milliseconds"] > 0
    text = output.with_suffix(".md").read_text()
    assert "no manifest" in text and "take `ddim` with 2 steps" in text

    right = points.Engine.sample
    monkeypatch.setattr(points.Engine, "sample", lambda self, *given, **more: 1 / 0)
    assert status("--do", "times", *common) == 1
    failed, made = json.loads(output.read_text())["models"][0]["rows"]
    assert made["untimed"].startswith("ZeroDivisionError") and "milliseconds" not in made
    monkeypatch.setattr(points.Engine, "sample", right)
    assert status("--do", "times", *common) == 1
    failed, made = json.loads(output.read_text())["models"][0]["rows"]
    assert "untimed" not in made and made["milliseconds"] > 0 and "no manifest" in failed["reason"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--point", "ddim:51"), "steps = 51"),
        (("--point", "dim:5"), "unknown sampler 'dim'"),
        (("--point", "ddim:5:2"), "'fashion-mnist' takes no context"),
        (("-n", "1"), "n = 1; accepted"),
        (("--threads", "0"), "'--threads': 0 is not in the range"),
        (("--model", "digits"), "unknown model 'digits'"),
        (("--do", "times"), "is no report of this command"),
    ],
)
def test_bad_input_is_told_of_before_any_work(small, tmp_path, arguments, message):
    output, common = small
    result = CliRunner().invoke(main, ["bench", "quality", *map(str, (*common, *arguments))])
    assert result.exit_code == 2 and message in result.stderr
    assert not output.exists() and not (tmp_path / "samples").exists()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("quality-*.json")), ids=lambda path: path.name)
def test_the_reports_in_the_repository(path):
    report = json.loads(path.read_text())
    text = path.with_suffix(".md").read_text()
    assert text == page.markdown(report) and path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for found in report["models"]:
        assert found["images"] >= 2000 and all("distance" in r or "reason" in r for r in found["rows"])
        assert f"({classifier.stated_accuracy(found['model'])[0]:.2%} right" in text


def test_the_distance_of_16_bit_images(monkeypatch, models, tmp_path):
    monkeypatch.setattr(half_precision.fastdiff, "load", lambda name: models["A28@28"])
    words = [
        "-n",
        "3",
        "--batch",
        "3",
        "--whole",
        "2",
        "--steps",
        "5",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "d.json"),
    ]
    result = CliRunner().invoke(main, ["bench", "distance", *words], catch_exceptions=False)
    first, *others = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert result.exit_code == 0 and result.output == (tmp_path / "d.md").read_text()
    assert first["mean_rms"] == 0 and all(0 < row["mean_rms"] <= row["percentile_99"] < 0.2 for row in others)
    assert [row["dtype"] for row in others] == ["bfloat16", "float16"] and "| float16 | " in result.output
