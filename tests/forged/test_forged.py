"""Forged files: every reader refuses them by an InputError, soon, in little memory, and executes nothing of them."""

import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastdiff import InputError

FORGED = int(os.environ.get("FORGED", "2000"))  # files in all
SECONDS = 2.0
TIMES = 10  # a file's size: the memory that its reader may take, and Reader.more
NAMES = (
    *("safetensors", "what a file says of itself", "training checkpoint", "foreign safetensors"),
    *("torch.save", "torch.save, not zipped", "MindSpore"),
    *("diffusers, network", "diffusers, scheduler", "diffusers, index"),
    *("manifest", "note", "log", "ONNX", "npy", "npz", "context", "IDX", "CIFAR-10", "zip of pictures"),
    *("CSV of classes", "png", "jpg", "gif", "tif", "webp"),
)
# Readers that take tens of milliseconds have a quarter of the others' share.
SLOW = {"ONNX", "training checkpoint", "diffusers, network", "diffusers, scheduler", "diffusers, index", "npz"}
SHARE = FORGED / (len(NAMES) - 0.75 * len(SLOW))

# --- how files are forged ---

ODD_NUMBERS = (0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 10**30, 0.5, -0.0, 1e308)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", "x", "0", "true", "\x1b[2J", "a\nb", "\u202e", "x" * 3000, "../..", "os.system", "4"]),
    st.text(max_size=5),
    st.integers(),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
DEEP = 200_000
EDITS = st.tuples(
    st.sampled_from(["turn", "cut", "put", "repeat", "end", "number"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
    st.sampled_from(ODD_NUMBERS[:12]),
)


def bytes_forged(data: bytes, draw) -> bytes:
    """A few edits anywhere."""
    made = bytearray(data)
    for kind, place, new, number in draw(st.lists(EDITS, min_size=1, max_size=4)):
        at = int(place * (len(made) + 1))
        if kind == "turn":
            made[at : at + len(new)] = new
        elif kind == "cut":
            del made[at : at + len(new) ** 3]
        elif kind == "put":
            made[at:at] = new
        elif kind == "repeat":
            made[at:at] = made[max(0, at - len(new) * 16) : at]
        elif kind == "end":
            del made[at:]
        else:
            made[at : at + 8] = struct.pack("<q" if new[0] & 1 else ">q", max(-(2**63), min(number, 2**63 - 1)))
    return bytes(made)


def value_forged(value, draw):
    """One of the values inside is another, is gone, or is in another place."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value, key=str) if isinstance(value, dict) else range(len(value))))
        kind = draw(st.sampled_from(["inside", "inside", "inside", "gone", "more"]))
        made = type(value)(value)
        if kind == "inside":
            made[key] = value_forged(value[key], draw)
        elif kind == "gone":
            del made[key]
        elif isinstance(made, dict):
            made[draw(st.text(max_size=5))] = draw(VALUES)
        else:
            made[key:key] = [draw(VALUES)] * draw(st.sampled_from([1, 2, 5000]))
        return made
    return draw(VALUES)


def json_forged(text: str | bytes, draw) -> bytes:
    """One of the values inside is another; or the text itself is forged."""
    kind = draw(st.sampled_from(["value", "value", "value", "bytes", "deep"]))
    if kind == "bytes":
        return bytes_forged(text if isinstance(text, bytes) else text.encode(), draw)
    if kind == "deep":
        opened = draw(st.sampled_from(["[", '{"a":']))
        return (opened * DEEP).encode()
    return json.dumps(value_forged(json.loads(text), draw)).encode()


def safetensors_forged(data: bytes, draw) -> bytes:
    """The header's values, or those of the configuration in it."""
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    own = header.get("__metadata__", {}).get("fastdiff")
    if own and draw(st.integers(0, 3)):
        header["__metadata__"]["fastdiff"] = json_forged(own, draw).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = json_forged(json.dumps(header), draw)
    return struct.pack("<Q", len(text)) + text + rest


class Runs:
    """Pickled, it would run a command."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def pickle_forged(content, draw):
    """What a trainer saved, with values that are others, tensors that repeat, and code."""
    kind = draw(st.sampled_from(["value", "tensor", "code", "wrapped"]))
    if kind == "code":
        return draw(st.sampled_from([Runs(), {"model": Runs()}, {**content, "more": Runs()}]))
    if kind == "wrapped":
        made = content
        for _ in range(draw(st.integers(1, 30))):
            made = draw(st.sampled_from([[made, made], {"model": made}, (made,), {"ema": made, "model": made}]))
        return made
    state = dict(content["model"])
    name = draw(st.sampled_from(sorted(state)))
    if kind == "value":
        state[name] = draw(VALUES)
    else:
        sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 40, 1000, 2**20]), max_size=3))
        state[name] = torch.zeros((), dtype=draw(st.sampled_from([torch.float32, torch.int8, torch.complex64])))
        state[name] = state[name].expand(sizes) if draw(st.booleans()) else torch.zeros([min(n, 3) for n in sizes])
    return {**content, "model": state} if draw(st.booleans()) else state


def torch_forged(data: bytes, draw) -> bytes:
    content = torch.load(io.BytesIO(data), weights_only=False)
    file = io.BytesIO()
    torch.save(pickle_forged(content, draw), file, _use_new_zipfile_serialization=data[:2] == b"PK")
    made = file.getvalue()
    return bytes_forged(made, draw) if draw(st.integers(0, 3)) == 0 else made


def zip_forged(data: bytes, draw) -> bytes:
    """One entry is forged, under this or another name, packed or not."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        changed = draw(st.sampled_from(names))
        for name in names:
            content = old.read(name)
            if name == changed:
                content = npy_forged(content, draw) if name.endswith(".npy") else bytes_forged(content, draw)
                name = draw(st.sampled_from([name, "../" + name, "/" + name, name + ".npy", "x.png"]))
            new.writestr(name, content, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    return file.getvalue()


def npy_forged(data: bytes, draw) -> bytes:
    """The header says another shape, type or order."""
    size = struct.unpack("<H", data[8:10])[0]
    header = eval(data[10 : 10 + size].decode(), {"__builtins__": {}})
    key = draw(st.sampled_from([*header, "more"]))
    odd = st.one_of(VALUES, st.lists(st.sampled_from(ODD_NUMBERS[:12]), max_size=5).map(tuple))
    types = st.sampled_from(["|O", "<f8", "|u1", "<i8", "|V8", "|S1000000", "<M8[s]", "<c16", "|b1", "<f2", ">f4"])
    header[key] = draw(types if key == "descr" and draw(st.booleans()) else odd)
    text = repr(header).encode("latin1", "replace")[:60_000] + b"\n"
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + size :]


def cifar_forged(data: bytes, draw) -> bytes:
    """Other values, other shapes, code, or a pickle that says that much is to come."""
    kind = draw(st.sampled_from(["value", "code", "opcodes"]))
    if kind == "code":
        return pickle.dumps(Runs(), draw(st.integers(0, 4)))
    if kind == "opcodes":
        claim = draw(st.sampled_from([2**20, 2**31 - 1, 2**28]))
        opcodes = [
            b"\x80\x02]r" + struct.pack("<I", claim) + b".",  # LONG_BINPUT: a memo of so many entries
            b"\x80\x05\x96" + struct.pack("<Q", claim) + b".",  # BYTEARRAY8
            b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",  # BINBYTES8
            b"cnumpy\nndarray\n(I%d\ntR." % claim,
            b"(" * 100_000 + b".",
            b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
        ]
        return draw(st.sampled_from(opcodes))
    batch = pickle.loads(data, encoding="bytes")
    key = draw(st.sampled_from([b"data", b"labels"]))
    shapes = {"flat": batch[b"data"].reshape(-1)[:100], "wide": batch[b"data"].astype("f4")[:, :, None]}
    made = draw(st.one_of(VALUES, st.sampled_from(sorted(shapes)).map(shapes.get)))
    return pickle.dumps({**batch, key: made}, 2)


def onnx_forged(data: bytes, draw) -> bytes:
    """Its description of itself, or the names and shapes of what it takes and gives."""
    import onnx

    model = onnx.load_from_string(data)
    if draw(st.integers(0, 3)):
        for entry in model.metadata_props:
            entry.value = json_forged(entry.value, draw)[:100_000].decode("utf-8", "replace")
    else:
        one = draw(st.sampled_from([*model.graph.input, *model.graph.output]))
        if draw(st.booleans()):
            one.name = draw(st.sampled_from(["x", "seed", "images", "noise"]))
        else:
            one.type.tensor_type.elem_type = draw(st.integers(0, 17))
    return model.SerializeToString()


FORGERIES = {
    ".safetensors": safetensors_forged,
    ".json": json_forged,
    ".pt": torch_forged,
    ".npy": npy_forged,
    ".npz": zip_forged,
    ".zip": zip_forged,
    ".onnx": onnx_forged,
    "": cifar_forged,
}


def forged(path: Path, data: bytes, draw) -> bytes:
    own = FORGERIES.get(path.suffix)
    return bytes_forged(data, draw) if own is None or draw(st.integers(0, 2)) == 0 else own(data, draw)


# --- what is looked at ---

EXECUTES = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "socket.connect", "ctypes.dlopen"}
executed: list[str] = []
watched: set[int] = set()  # threads in which a file is being read


def _audit(event: str, args: tuple) -> None:
    if event in EXECUTES and threading.get_ident() in watched:
        executed.append(event)


sys.addaudithook(_audit)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, readers):
    """reader → its folder with a whole file, and the file's path within."""
    pytest.importorskip("diffusers")
    pytest.importorskip("onnxruntime")
    made = {}
    for name, reader in readers.items():
        folder = tmp_path_factory.mktemp("whole")
        made[name] = folder, reader.make(folder).relative_to(folder)
    return made


def test_all_readers_are_named(readers):
    assert tuple(readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_read(name, readers, whole, tmp_path, monkeypatch):
    """Else the forged ones might all be refused for what the whole one lacks."""
    monkeypatch.chdir(tmp_path)
    folder, file = whole[name]
    shutil.copytree(folder, tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        readers[name].read(tmp_path / "whole" / file)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_forged_files_are_refused(name, readers, whole, counts, taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, file = whole[name]
    shutil.copytree(folder, tmp_path / "forged")
    path = tmp_path / "forged" / file
    data, reader = path.read_bytes(), readers[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.read(path)  # what is imported, compiled or kept when it is first used is not the files' doing
        path.write_bytes(data)
    count = counts.setdefault(name, dict.fromkeys(("files", "read", "refused", "otherwise", "seconds", "mebibytes"), 0))

    @settings(
        max_examples=math.ceil(SHARE / 4 if name in SLOW else SHARE),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # a failure is shown as it was found
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def refuse(drawn):
        content = forged(path, data, drawn.draw)
        path.write_bytes(content)
        watched.add(threading.get_ident())
        count["files"] += 1
        count["otherwise"] += 1  # until it has ended well
        try:
            with warnings.catch_warnings(), taken() as memory:
                warnings.simplefilter("ignore")
                began, began_cpu = time.perf_counter(), time.process_time()
                reader.read(path)
            refused = False
        except InputError as error:
            assert not reader.never
            assert len(str(error)) < 2000 and str(error).strip()
            refused = True
        finally:
            watched.discard(threading.get_ident())
        wall, seconds, most = time.perf_counter() - began, time.process_time() - began_cpu, memory()
        count["seconds"] = max(count["seconds"], seconds)
        count["mebibytes"] = max(count["mebibytes"], most / 2**20)
        assert not executed and not os.path.exists("executed") and not (tmp_path / "executed").exists()
        assert seconds < SECONDS and wall < 10 * SECONDS, f"{seconds:.1f} s of work in {wall:.1f} s"
        assert most <= TIMES * max(len(content), sum(one.stat().st_size for one in folder.rglob("*"))) + reader.more
        count["otherwise"] -= 1
        count["refused" if refused else "read"] += 1

    refuse()
