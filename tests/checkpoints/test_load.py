"""Checkpoints: the own format, state dicts as people have them, and files that must be refused."""

import json
import os
import pathlib
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastdiff import AnnotatedUnet, ContextUnet, InputError, Model, load, make_schedule, sample, save
from fastdiff.bench.peers.reference import AnnotatedReference, ContextReference
from fastdiff.checkpoints.config import model_config, model_from_config
from fastdiff.checkpoints.load import stored_info
from fastdiff.checkpoints.shipped import shipped_models
from fastdiff.checkpoints.tensors import write_tensors


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# --- the own format ---


def models():
    yield Model(
        AnnotatedUnet(dim=12, dim_mults=(1, 3), channels=3, edition="hf-2022"),
        make_schedule("cosine", 77, s=0.01),
        prediction_type="v_prediction",
        image_shape=(3, 8, 10),
        clip=("dynamic", 0.99),
    )
    yield Model(
        AnnotatedUnet(dim=16, block="resnet", resnet_groups=4),
        make_schedule("linear", 200),
        image_shape=(1, 8, 8),
        clip=1.0,
    )
    yield Model(
        ContextUnet(3, 8, 2, 20, shortcut=True),
        make_schedule("course", 50),
        prediction_type="epsilon",
        image_shape=(3, 20, 20),
        time="fraction",
        class_names=("a", "b"),
    )


@pytest.mark.parametrize("model", list(models()), ids=["hf", "resnet", "context"])
def test_round_trip(model, tmp_path, randomised):
    randomised(model.network)
    path = tmp_path / "m.safetensors"
    save(model, path, info={"note": "x"})
    again = load(path)
    assert type(again.network) is type(model.network) and again.network.options == model.network.options
    assert equal(again.network, model.network) and not again.network.training
    for name in ("prediction_type", "image_shape", "time", "class_names", "clip"):
        assert getattr(again, name) == getattr(model, name)
    assert (again.schedule.betas == model.schedule.betas).all()
    assert stored_info(path) == {"note": "x"}
    options = dict(n=2, steps=3, device="cpu")
    assert torch.equal(sample(again, **options), sample(Model(**{**vars(model)}), **options))


def test_a_learned_variance_is_kept(tmp_path):
    model = Model(ContextUnet(3, 8, 5, 16), make_schedule("course", 50), image_shape=(3, 16, 16), learned_variance=True)
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").learned_variance is True
    config = model_config(model)
    del config["learned_variance"]  # as files of before have it
    assert model_from_config(config).learned_variance is False
    write_tensors(tmp_path / "m.safetensors", model.network.state_dict(), {**config, "learned_variance": "yes"})
    with pytest.raises(InputError, match="learned_variance = 'yes'; accepted: a valid boolean"):
        load(tmp_path / "m.safetensors")


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, rel):
    model = Model(ContextUnet(3, 16, 5, 16), make_schedule("course", 50), image_shape=(3, 16, 16), time="fraction")
    save(model, tmp_path / "full.safetensors")
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert os.path.getsize(tmp_path / "half.safetensors") < 0.7 * os.path.getsize(tmp_path / "full.safetensors")
    for name, value in load(tmp_path / "half.safetensors").network.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        if value.is_floating_point():
            assert torch.allclose(value, model.network.state_dict()[name], atol=1e-3)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    model = next(models())
    path = tmp_path / "m.safetensors"
    save(model, path)
    before = path.read_bytes()

    def half(tensors, name, metadata):
        name.write_bytes(b"x")
        raise OSError("disk full")

    monkeypatch.setattr("fastdiff.checkpoints.tensors.save_file", half)
    with pytest.raises(InputError, match="cannot write '.*m.safetensors': disk full"):
        save(model, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.safetensors"]


def test_a_network_of_another_class_is_refused(tmp_path):
    with pytest.raises(InputError, match="Identity cannot be saved"):
        save(Model(torch.nn.Identity(), make_schedule("linear", 5)), tmp_path / "m.safetensors")
    assert not os.listdir(tmp_path)


# --- what people have ---


EDITION_OPTIONS = [
    dict(edition="mindspore"),
    dict(edition="mindspore-torch", dim=16, dim_mults=(1, 2, 2)),
    dict(edition="hf-2022", channels=3),
    dict(edition="hf-2022", dim=16, block="resnet"),
    dict(edition="mindspore-torch", dim=16, block="resnet", init_dim=5),
]


def annotated_state(options):
    return AnnotatedReference(**options).state_dict()


@pytest.mark.parametrize("options", EDITION_OPTIONS)
def test_state_dicts_of_a(options, tmp_path):
    state = annotated_state(options)
    torch.save(state, tmp_path / "a.pt")
    model = load(tmp_path / "a.pt")
    assert model.network.options["edition"] == options["edition"]
    assert model.network.options["block"] == options.get("block", "convnext")
    assert all(torch.equal(v, model.network.state_dict()[k]) for k, v in state.items())
    assert model.schedule.name == "linear" and model.schedule.num_timesteps == 200
    assert model.image_shape == (options.get("channels", 1), 28, 28) and model.time == "index"
    other = load(tmp_path / "a.pt", schedule=make_schedule("cosine", 1000), image_size=32)
    assert other.schedule.num_timesteps == 1000 and other.image_shape[1:] == (32, 32)


def test_loading_twice_the_convnext_mult(tmp_path):
    torch.save(AnnotatedUnet(dim=8, convnext_mult=3).state_dict(), tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").network.options["convnext_mult"] == 3


def test_state_dicts_of_b(tmp_path):
    state = ContextReference(3, 16, 5, 20).state_dict()
    torch.save(state, tmp_path / "b.pth")
    with pytest.warns(UserWarning, match="taken as zero, its mean") as warned:
        model = load(tmp_path / "b.pth")
    assert {one.filename for one in warned} == {__file__}  # the caller's line, not one of fastdiff's own
    assert model.network.options == dict(
        in_channels=3, n_feat=16, n_cfeat=5, height=20, shortcut=False, edition="course"
    )
    assert all(torch.equal(v, model.network.state_dict()[k]) for k, v in state.items())
    assert model.time == "fraction" and model.schedule.name == "course" and model.schedule.num_timesteps == 500
    torch.save(ContextReference(3, 16, 5, 20, shortcut="trained").state_dict(), tmp_path / "s.pth")
    assert load(tmp_path / "s.pth").network.options["shortcut"]


BESIDE = {
    "a loss": np.mean([0.1, 0.2]),
    "a score": np.float32(3),
    "a step": np.int64(7),
    "a history": np.arange(3.0),
    "a generator": np.random.RandomState(0).get_state(),
    "a flag": np.bool_(True),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_values_of_numpy_beside_the_weights(what, zipped, tmp_path):
    state = annotated_state(dict(dim=8))
    torch.save({"model": state, what: BESIDE[what]}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    loaded = load(tmp_path / "a.pt").network.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in state.items())


def test_what_a_file_does_not_say_is_said_once(tmp_path):
    torch.save(annotated_state(dict(dim=8)), tmp_path / "a.pt")
    with pytest.warns(UserWarning) as warned:
        load(tmp_path / "a.pt")
    assert [str(one.message) for one in warned] == [
        "a.pt does not say the image size nor the schedule of its model; assumed: 28 pixels a side, Schedule('linear', "
        "200 timesteps); for another give image_size (--image-size) and schedule (--schedule, --timesteps)"
    ]
    with pytest.warns(
        UserWarning, match="not say the image size of its model; assumed: 28 pixels a side; .*--image-size.$"
    ):
        load(tmp_path / "a.pt", make_schedule("cosine", 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "a.pt", make_schedule("cosine", 9), 32)


def test_bare_safetensors_and_legacy_files(tmp_path):
    state = annotated_state(dict(dim=8))
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "old.pt"):
        assert load(tmp_path / name).network.options["dim"] == 8


def test_half_precision_state_dicts(tmp_path):
    torch.save({k: v.half() for k, v in annotated_state(dict(dim=8)).items()}, tmp_path / "a.pt")
    assert all(p.dtype == torch.float32 for p in load(tmp_path / "a.pt").network.parameters())


@pytest.fixture
def unnamed(tmp_path):
    """A file of a ContextUnet whose three classes have no names: a state dict, and one of fastdiff's own."""
    network = ContextUnet(1, 8, 3, 8, shortcut=True)
    torch.save(network.state_dict(), tmp_path / "b.pt")
    save(Model(network, make_schedule("course", 9), image_shape=(1, 8, 8), time="fraction"), tmp_path / "b.safetensors")
    return tmp_path


@pytest.mark.parametrize("file", ["b.pt", "b.safetensors"])
def test_class_names_for_a_file_without(file, unnamed):
    assert load(unnamed / file).class_names == ()
    assert load(unnamed / file, class_names=["x", "y", "z"]).class_names == ("x", "y", "z")
    for names, message in (
        (["x", "y"], "2 class names, x, y; the network of .* takes contexts of 3 numbers"),
        (["x", "y", "x"], "3 that differ"),
        (["x", "y", ""], "none of them empty"),
    ):
        with pytest.raises(InputError, match=message):
            load(unnamed / file, class_names=names)


def test_class_names_where_there_are_no_classes_or_names_already(tmp_path):
    torch.save(annotated_state(dict(dim=8)), tmp_path / "a.pt")
    with pytest.raises(InputError, match="1 class names, x; the network of .* takes no context"):
        load(tmp_path / "a.pt", class_names=["x"])
    with pytest.raises(InputError, match="'.*sprites.*' names its own classes, monster, "):
        load("sprites", class_names=list("abcde"))


# --- MindSpore ---


def mindspore_names(state):
    """Norm parameters as MindSpore calls them."""
    norms = {
        k.rsplit(".", 1)[0] for k, v in state.items() if k.endswith(".bias") and state[k[:-4] + "weight"].ndim == 1
    }
    return {
        (k.replace(".weight", ".gamma").replace(".bias", ".beta") if k.rsplit(".", 1)[0] in norms else k): v
        for k, v in state.items()
    }


@pytest.mark.parametrize(
    "packed, slices, dtype", [(False, 1, torch.float32), (True, 1, torch.float16), (False, 3, torch.float32)]
)
def test_mindspore_ckpt(packed, slices, dtype, tmp_path, mindspore_file):
    state = {k: v.to(dtype) for k, v in annotated_state(dict(edition="mindspore")).items()}
    named = mindspore_names(state)
    assert len(named) == 166 and sum(k.endswith(".gamma") for k in named) > 20
    training = {
        "moment1.init_conv.weight": torch.zeros(3),
        "global_step": torch.zeros(1),
        "learning_rate": torch.zeros(()),
    }
    (tmp_path / "unet.ckpt").write_bytes(mindspore_file({**training, **named}, packed, slices))
    model = load(tmp_path / "unet.ckpt")
    assert model.network.options["edition"] == "mindspore"
    assert all(torch.equal(v.float(), model.network.state_dict()[k]) for k, v in state.items())


def test_mindspore_ckpt_without_the_renaming_loop(tmp_path, mindspore_file):
    named = mindspore_names(annotated_state(dict(edition="mindspore")))
    for drop in ([k for k in named if ".net." in k][:52], list(named)[:52]):
        (tmp_path / "unet.ckpt").write_bytes(mindspore_file({k: v for k, v in named.items() if k not in drop}))
        with pytest.raises(InputError, match="holds 114 tensors: one saved without the tutorial's loop"):
            load(tmp_path / "unet.ckpt")


@pytest.mark.parametrize("cut", [1, 10, 1000, -1])
def test_truncated_mindspore_ckpt(cut, tmp_path, mindspore_file):
    data = mindspore_file(mindspore_names(annotated_state(dict(edition="mindspore", dim=8))))
    (tmp_path / "unet.ckpt").write_bytes(data[:cut])
    with pytest.raises(InputError):
        load(tmp_path / "unet.ckpt")


# --- refused ---


class Odd(torch.nn.Linear):
    pass


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/fastdiff-was-run",))


def write(name, mindspore_file=None):
    """Ways to make a file that must be refused; each returns the words that its message must hold."""
    state = annotated_state(dict(dim=8))

    def code(path):
        torch.save({"model": state, "extra": Evil()}, path)
        return [f"pickled code or objects ({os.system.__module__}.system), and only", "torch.save(model.state_dict()"]

    def bare_pickle(path):
        path.write_bytes(pickle.dumps([Evil(), Evil(), pathlib.PurePosixPath("a"), pathlib.PurePath]))
        return [f"(pathlib.PurePath, pathlib.PurePosixPath, {os.system.__module__}.system)"]

    def old_pickle(path):
        path.write_bytes(pickle.dumps(Evil(), protocol=0))
        return [f"({os.system.__module__}.system)"]

    def code_in_an_array(path):
        torch.save({"model": state, "history": np.array([Evil()], dtype=object)}, path)
        return [f"pickled code or objects ({os.system.__module__}.system), and only"]

    def code_beside_a_number(path):
        torch.save({"model": state, "loss": np.float64(0.1), "x": Evil()}, path, _use_new_zipfile_serialization=False)
        return [f"pickled code or objects ({os.system.__module__}.system), and only"]

    def escape_sequences(path):
        path.write_bytes(b"c\x1b[2J\nname\n.")
        return ["('\\x1b[2J.name')"]

    def whole_module(path):
        torch.save(torch.nn.Linear(2, 2), path)
        return ["pickled code or objects (torch.nn.modules.linear.Linear)"]

    def old_whole_module(path):
        torch.save(Odd(2, 2), path, _use_new_zipfile_serialization=False)
        return ["pickled code or objects (", f"{__name__}.Odd)"]

    def truncated(path):
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
        return ["not a whole checkpoint"]

    def truncated_safetensors(path):
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-100])
        return ["not a whole safetensors file"]

    def other_network(path):
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
        return ["not a network that fastdiff knows", "bias"]

    def no_tensors(path):
        torch.save({"lr": 0.1}, path)
        return ["holds no state dict"]

    def text(path):
        path.write_text("hello")
        return ["not a whole"]

    def empty(path):
        path.write_bytes(b"")
        return ["not a whole checkpoint"]

    def some_zip(path):
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("a", "b")
        return ["not a whole checkpoint"]

    def first_edition(path):
        torch.save({**state, "downs.0.2.fn.norm.g": torch.zeros(1), "downs.0.2.fn.norm.b": torch.zeros(1)}, path)
        return ["first PyTorch edition", "not supported yet"]

    def missing_key(path):
        torch.save({k: v for k, v in state.items() if k != "mid_block1.ds_conv.bias"}, path)
        return ["does not match AnnotatedUnet", "1 missing (mid_block1.ds_conv.bias"]

    def wrong_shape(path):
        torch.save({**state, "mid_block1.ds_conv.bias": torch.zeros(3)}, path)
        return ["1 wrong shape"]

    def half_a_network(path):
        torch.save({k: v for k, v in state.items() if not k.startswith("downs")}, path)
        return ["does not match AnnotatedUnet: it has no downs.0.2.fn.fn.to_qkv.weight"]

    def half_of_b(path):
        torch.save(
            {k: v for k, v in ContextReference(3, 8, 5, 16).state_dict().items() if not k.startswith("up")}, path
        )
        return ["does not match ContextUnet: it has no up0.0.weight"]

    def odd_shapes(path):
        torch.save({**state, "time_mlp.1.weight": torch.zeros(3)}, path)
        return ["does not match AnnotatedUnet: its tensors have odd shapes"]

    def odd_shapes_of_b(path):
        torch.save({**ContextReference(3, 8, 5, 16).state_dict(), "up0.0.weight": torch.zeros(3)}, path)
        return ["does not match ContextUnet: its tensors have odd shapes"]

    def not_a_number(path):
        torch.save({**state, "init_conv.bias": state["init_conv.bias"] * float("nan")}, path)
        return ["holds NaN or infinity in 1 tensors (init_conv.bias"]

    def a_list_for_configuration(path):
        save_file({"a": torch.zeros(1)}, path, metadata={"fastdiff": "[1]"})
        return ["accepted: a valid dictionary"]

    def wrong_configuration(path):
        config = {"format": 1, "network": "x", "schedule": {}, "prediction_type": "epsilon", "image_shape": [1, 8, 8]}
        save_file({"a": torch.zeros(1)}, path, metadata={"fastdiff": json.dumps(config)})
        return ["makes no model"]

    def another_protobuf(path):
        path.write_bytes(mindspore_file({"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}))
        return ["not a network that fastdiff knows"]

    def newer_format(path):
        save_file({"a": torch.zeros(1)}, path, metadata={"fastdiff": json.dumps({"format": 99})})
        return ["format 99"]

    def no_configuration(path):
        save_file({"a": torch.zeros(1)}, path, metadata={"fastdiff": json.dumps({"format": 1})})
        return ["makes no model"]

    def broken_configuration(path):
        save_file({"a": torch.zeros(1)}, path, metadata={"fastdiff": "{"})
        return ["configuration"]

    def lying_header(path):
        path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
        return ["not a whole safetensors file"]

    return locals()[name]


REFUSED = [
    ("code", ".pt"),
    ("bare_pickle", ".pt"),
    ("old_pickle", ".pt"),
    ("code_in_an_array", ".pt"),
    ("code_beside_a_number", ".pt"),
    ("escape_sequences", ".pt"),
    ("whole_module", ".pth"),
    ("old_whole_module", ".pth"),
    ("truncated", ".pt"),
    ("truncated_safetensors", ".safetensors"),
    ("other_network", ".pt"),
    ("no_tensors", ".pt"),
    ("text", ".pt"),
    ("text", ".safetensors"),
    ("empty", ".pt"),
    ("some_zip", ".pt"),
    ("first_edition", ".pt"),
    ("missing_key", ".pt"),
    ("wrong_shape", ".pt"),
    ("half_a_network", ".pt"),
    ("half_of_b", ".pt"),
    ("newer_format", ".safetensors"),
    ("no_configuration", ".safetensors"),
    ("broken_configuration", ".safetensors"),
    ("lying_header", ".safetensors"),
    ("odd_shapes", ".pt"),
    ("odd_shapes_of_b", ".pt"),
    ("not_a_number", ".pt"),
    ("a_list_for_configuration", ".safetensors"),
    ("wrong_configuration", ".safetensors"),
    ("another_protobuf", ".ckpt"),
]


@pytest.mark.parametrize("name, ending", REFUSED)
def test_refused_files(name, ending, tmp_path, mindspore_file):
    path = tmp_path / f"file{ending}"
    words = write(name, mindspore_file)(path)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).isprintable() and "file" + ending in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to run the code after all
    for word in words:
        assert word in str(caught.value)
    assert not os.path.exists("/tmp/fastdiff-was-run")


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(InputError) as caught:
        load("fashion-minst")
    assert "'fashion-minst'" in str(caught.value) and "did you mean 'fashion-mnist'" in str(caught.value)


def test_an_own_file_keeps_its_own_schedule(tmp_path):
    save(next(models()), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="states its own"):
        load(tmp_path / "m.safetensors", image_size=32)


def test_the_shipped_models():
    assert set(shipped_models()) == {"fashion-mnist", "sprites"}


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(schedule="cosine"), "schedule = 'cosine'; accepted: a Schedule"),
        (dict(image_size=(8, 8, 8)), r"image_size = \(8, 8, 8\); accepted: a side, or \(height, width\)"),
    ],
)
def test_what_a_user_says_wrongly(options, words, tmp_path):
    torch.save(annotated_state(dict(dim=8)), tmp_path / "a.pt")
    with pytest.raises(InputError, match=words):
        load(tmp_path / "a.pt", **options)
    assert load(tmp_path / "a.pt", make_schedule("linear", 9), [8, 16]).image_shape == (1, 8, 16)
