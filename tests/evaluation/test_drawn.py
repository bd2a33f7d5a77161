"""Which samples an evaluation draws: classes in turn, and where they are kept."""

import dataclasses

import pytest
import torch

from fastdiff import ContextUnet, Model, make_schedule
from fastdiff.evaluation.drawn import Classes, Stopped, class_names, draw, folder_name, in_turn
from fastdiff.networks.openai import OpenaiUnet
from fastdiff.shards.manifest import Samples, read_manifest

ASKED = Samples("ddim", 2, 0.0, "trailing", None, 0, 0, 10, [], None)
COURSE = dict(prediction_type="epsilon", image_shape=(3, 16, 16), time="fraction")


@pytest.fixture
def model(randomised):
    """Of two classes."""
    network = randomised(ContextUnet(3, 8, 2, 16))
    return Model(network, make_schedule("course", 30), class_names=("cat", "dog"), **COURSE)


def test_classes_take_turns(model, randomised):
    assert in_turn(model) == [[1, 0], [0, 1]] and class_names(model) == ["cat", "dog"]
    numbered = Model(
        OpenaiUnet(3, 32, 6, 1, (1, 2), (), num_classes=4), make_schedule("linear", 10), num_classes=4, null_class=3
    )
    assert in_turn(numbered) == [0, 1, 2] and class_names(numbered) == ["0", "1", "2"]
    named = dataclasses.replace(numbered, class_names=("a", "b", "c"))
    assert in_turn(named) == [0, 1, 2] and class_names(named) == ["a", "b", "c"]


def test_which_class_is_which(model, data):
    assert Classes.of(model, data(names=("dog", "cat"))).known == [("cat", 1), ("dog", 0)]
    assert data(names=("class0", "class1")).unnamed and not data().unnamed
    assert Classes.of(model, data(names=("class0", "class1"))).known == [("cat", 0), ("dog", 1)]
    assert Classes.of(dataclasses.replace(model, class_names=()), data()).known == [("0", 0), ("1", 1)]
    for names, why in (
        ((), "the data has no labels"),
        (("a", "b", "c"), "the model has 2 classes, the data 3"),
        (("bird", "dog"), "the model's classes are cat, dog, the data's bird, dog"),
    ):
        found = Classes.of(model, data(names=names))
        assert (found.known, found.why, found.alike) == ([], why, False) and found.contexts == [[1, 0], [0, 1]]


def test_classes_come_as_often_as_they_are_held_out(model, data):
    """The data's columns are the other way around: of 40 held-out pictures 10 are dogs."""
    given = data(names=("dog", "cat"))
    labels = torch.eye(2)[(torch.arange(40) % 4 > 0).long()]
    given = dataclasses.replace(given, val_labels=labels)
    found = Classes.of(model, given)
    assert (found.contexts, found.order) == ([[1, 0], [1, 0], [0, 1], [1, 0]], [0, 0, 1, 0]) and found.alike
    for others in (data(names=("cat", "dog")), data(), data(names=())):
        found = Classes.of(model, others)
        assert (found.contexts, found.order) == ([[1, 0], [0, 1]], [0, 1])


def test_a_folder_for_each_model_and_way(model):
    names = {
        folder_name(name, one, asked, options)
        for name, one, asked, options in (
            ("a/model.safetensors", model, ASKED, {}),
            ("a/model.safetensors", model, dataclasses.replace(ASKED, n=99), {"threads": 3, "device": "cpu"}),  # same
            ("a/model.safetensors", model, dataclasses.replace(ASKED, steps=3), {}),
            ("a/model.safetensors", model, ASKED, {"dtype": "bfloat16"}),
            ("a/model.safetensors", model, dataclasses.replace(ASKED, clip=1.0), {}),
        )
    }
    names.add(folder_name("a/model.safetensors", model, ASKED, {}, "npy"))
    assert len(names) == 5 and all(name.startswith("a-model-") for name in names)
    with torch.no_grad():
        next(model.network.parameters()).add_(1)
    assert folder_name("a/model.safetensors", model, ASKED, {}) not in names
    for name in ("..", "/x/../y z.pt", "."):
        made = folder_name(name, model, ASKED, {})
        assert not set(made) & set("/\\ ") and made[0] != "."


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_drawing_goes_on(model, tmp_path, format):
    folder, seen = tmp_path / "s", []
    options = {"batch_size": 2, "device": "cpu", "threads": 1}
    with pytest.raises(Stopped):
        draw(model, "m", ASKED, folder, options, format=format, progress=seen.append, stop=lambda: max(seen) >= 8)
    first = sorted(folder.glob("samples-*"))
    assert [path.name.split(".")[0] for path in first] == ["samples-00000000-00000008"]
    kept, seen[:] = first[0].stat().st_mtime_ns, []
    images, how = draw(model, "m", ASKED, folder, {"device": "cpu"}, format=format, progress=seen.append)
    assert seen[0] == 8 and seen[-1] == 10 and first[0].stat().st_mtime_ns == kept
    assert read_manifest(folder)["configuration"]["batch_size"] == 2 and "(cpu, " in how and "1 thread" in how
    whole, _ = draw(model, "m", ASKED, tmp_path / "whole", options, format=format)
    assert torch.equal(images, whole) and images.shape == (10, 3, 16, 16)
    assert images.dtype == (torch.uint8 if format == "npz" else torch.float32)


def test_a_damaged_shard_is_made_again(model, tmp_path):
    options = {"batch_size": 2, "device": "cpu", "threads": 1}
    whole, _ = draw(model, "m", ASKED, tmp_path / "s", options)
    shard = min((tmp_path / "s").glob("samples-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert torch.equal(draw(model, "m", ASKED, tmp_path / "s", {})[0], whole)


def test_fewer_samples_than_there_are(model, tmp_path):
    """The first ones serve, also of a folder that was begun for more and stopped."""
    options, few = {"batch_size": 2, "device": "cpu", "threads": 1}, dataclasses.replace(ASKED, n=7)
    whole, _ = draw(model, "m", ASKED, tmp_path / "whole", options)
    assert torch.equal(draw(model, "m", few, tmp_path / "whole", {})[0], whole[:7])
    many, seen = dataclasses.replace(ASKED, n=40), [0]
    with pytest.raises(Stopped):
        draw(model, "m", many, tmp_path / "cut", options, progress=seen.append, stop=lambda: max(seen) >= 2)
    images, _ = draw(model, "m", few, tmp_path / "cut", {}, progress=seen.append)
    assert torch.equal(images, whole[:7]) and max(seen) == 7
    assert len(list((tmp_path / "cut").glob("samples-*"))) == 1  # 8 of 40
