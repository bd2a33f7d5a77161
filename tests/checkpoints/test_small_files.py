"""Small files stay small: what a file claims is compared with what it holds before anything is made so large."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastdiff import AnnotatedUnet, ContextUnet, InputError, Model, load, make_schedule, save

MOST = 64 * 2**20


@pytest.fixture
def refused(taken):
    """(path, words): load refuses it by these words, within ten times its size and 64 MiB."""

    def check(path: Path, *words: str) -> None:
        with taken() as memory, pytest.raises(InputError) as caught:
            load(path)
        assert all(word in str(caught.value) for word in words), caught.value
        assert memory() <= 10 * path.stat().st_size + MOST

    return check


def wide(*shape, dtype=torch.float32):
    """One value, repeated."""
    return torch.zeros(1, dtype=dtype).expand(*shape)


@pytest.fixture(scope="module")
def states():
    return (
        AnnotatedUnet(dim=4, dim_mults=(1, 2), edition="mindspore").state_dict(),
        ContextUnet(1, 8, 2, 16, True).state_dict(),
    )


CLAIMS = {
    "a large layer": (0, "time_mlp.1.weight", (12000, 3000)),
    "a tensor beside the network's": (0, "extra.weight", (2**40,)),
    "many features": (1, "init_conv.conv1.0.weight", (4096, 1, 3, 3)),
    "many classes": (1, "contextembed1.model.0.weight", (16, 2**29)),
    "large images": (1, "up0.0.weight", (16, 16, 2000, 2000)),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_a_tensor_larger_than_its_values(what, states, tmp_path, refused):
    which, name, shape = CLAIMS[what]
    path = tmp_path / "m.pt"
    torch.save({**states[which], name: wide(*shape)}, path)
    assert path.stat().st_size < 2**20
    refused(path, "m.pt", f"a tensor of shape {shape} in 4 bytes")


def test_the_same_values_under_many_names(tmp_path, refused):
    values = torch.zeros(2**20)
    torch.save({f"layers.{k}.weight": values for k in range(1000)}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "the same values more than 4 times")


def pickled(path: Path, data: bytes) -> Path:
    """A file of torch.save whose pickle is another."""
    whole = io.BytesIO()
    torch.save({}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, data if entry.filename.endswith("data.pkl") else old.read(entry))
    return path


@pytest.mark.parametrize(
    ("maker", "words"),
    [(b"builtins\nbytearray", "a bytearray"), (b"torch\nTensor", "claims 4,294,967,296 bytes of values in")],
)
def test_what_a_pickle_makes_of_a_number(maker, words, tmp_path, refused):
    """(ten hundred million) of what torch.load lets a pickle call."""
    number = b"J" + (2**30).to_bytes(4, "little")
    refused(pickled(tmp_path / "m.pt", b"\x80\x02}X\x01\x00\x00\x00ac" + maker + b"\n" + number + b"\x85Rs."), words)


ODD = {
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "meta": lambda value: value.to("meta"),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.quint8),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_numbers(kind, states, tmp_path, refused):
    name = "time_mlp.1.weight"
    torch.save({**states[0], name: ODD[kind](states[0][name])}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "one that holds plain real numbers")


def test_more_tensors_than_any_network_has(tmp_path, refused, mindspore):
    empty = {f"{k}.weight": torch.zeros(0) for k in range(60_000)}
    save_file(empty, tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", "60,000 tensors; accepted: up to 20,000")
    (tmp_path / "m.ckpt").write_bytes(mindspore.mindspore_file(empty))
    refused(tmp_path / "m.ckpt", "more than 20,000 tensors")


def test_tied_weights_are_loaded(states, tmp_path):
    """Averaged and raw weights may share their values, as those of one that was never trained."""
    torch.save({"model": states[0], "ema": states[0]}, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="does not say"):
        assert load(tmp_path / "m.pt").network.options["dim"] == 4


def test_a_compressed_archive(states, tmp_path, refused):
    whole = io.BytesIO()
    torch.save({**states[0], "extra.weight": torch.zeros(2**25)}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(tmp_path / "m.pt", "is compressed")


NETWORKS = {
    "width": {"dim": 3000},
    "multiple": {"dim_mults": [1, 400]},
    "levels": {"dim_mults": [1] * 3000},
    "a number that overflows": {"dim": 2**62},
    "another network": {"name": "context", "in_channels": 1, "n_feat": 8, "n_cfeat": 300_000_000, "height": 16},
    "blocks": {"name": "openai", "channel_mult": [1, 2], "attention_levels": [0], "num_res_blocks": 10**8},
    "diffusers": {"name": "diffusers", "class": "UNet2DModel", "options": {"layers_per_block": 10**8}},
}


@pytest.mark.timeout(20)  # a network of 10^8 blocks takes hours even without memory
@pytest.mark.parametrize("what", NETWORKS)
def test_a_configuration_of_a_giant(what, tmp_path, refused):
    if what == "diffusers":
        pytest.importorskip("diffusers").UNet2DModel  # noqa: B018, whose import takes memory of its own
    path = tmp_path / "m.safetensors"
    save(Model(AnnotatedUnet(dim=8, dim_mults=(1,)), make_schedule("linear", 20), image_shape=(1, 8, 8)), path)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["fastdiff"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config["network"] = {**config["network"], **NETWORKS[what]}
    if "name" in NETWORKS[what]:
        config["network"] = NETWORKS[what]
    save_file(tensors, path, {"fastdiff": json.dumps(config)})
    refused(path, "m.safetensors", "makes no model")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("content", [(1, 2**31), (2, 2**32)])
def test_numbers_where_bytes_belong(content, tmp_path, refused, mindspore):
    """Python's bytes(number) has so many."""
    number, value = content
    fields = {1: mindspore.field(1, b"w"), 2: mindspore.field(2, b"")}
    fields[number] = mindspore.varint(number << 3) + mindspore.varint(value)
    whole = mindspore.mindspore_file({"v": torch.zeros(2)})
    (tmp_path / "m.ckpt").write_bytes(whole + mindspore.field(1, fields[1] + fields[2]))
    refused(tmp_path / "m.ckpt", "not a whole MindSpore checkpoint")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_are_float32_whatever_torchs_default(dtype, states, tmp_path):
    torch.save(states[0], tmp_path / "m.pt")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with pytest.warns(UserWarning, match="does not say"):
            network = load(tmp_path / "m.pt").network
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)
    assert {one.dtype for one in network.state_dict().values()} == {torch.float32}


def test_models_are_on_the_cpu_whatever_torchs_default_device(states, tmp_path):
    torch.save(states[1], tmp_path / "m.pt")
    with torch.device("meta"), pytest.warns(UserWarning, match="does not say"):
        network = load(tmp_path / "m.pt").network
    assert all(torch.equal(one, states[1][name]) for name, one in network.state_dict().items())
