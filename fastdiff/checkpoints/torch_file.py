"""torch.save files, as data: no code from a file is run."""

from __future__ import annotations

import io
import itertools
import mmap
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import InputError, first_line
from fastdiff.files import open_regular

ACCEPTED = "accepted: .safetensors, state dicts of torch.save, MindSpore's .ckpt"
SHOWN = 3  # objects that a refusal names
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"  # which runs source code out of the pickle
# Modules of options and callbacks, which Lightning keeps beside the weights.
_OPTIONS = ("argparse.", "omegaconf.", "pytorch_lightning.", "lightning.", "pathlib.")
SHARED = 4  # times that values may be shared, by tied weights and by copies under other names
PICKLES = 5  # in torch.save's format without a zip, before the tensors


# What a number, an array or a generator's state of NumPy is made of in a pickle. Each makes data alone.
_NUMPY: list[Any] = [np.dtype, np.ndarray, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
for _maker, _name in ((np.float64(0).__reduce__()[0], "scalar"), (np.zeros(0).__reduce__()[0], "_reconstruct")):
    # As they are called before and since NumPy 2.
    _NUMPY += [(_maker, f"numpy.{core}.multiarray.{_name}") for core in ("core", "_core")]


def read_torch(path: Path) -> Any:
    """What a torch.save file holds: tensors, and plain values and NumPy's around them; no code from it is run."""
    _check_archive(path)
    _check_buffers(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_storages(content, path)
        return content
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        names = _objects_in(path)
        if not names:
            raise InputError(
                f"{str(path)!r} is not a whole checkpoint, or holds more than tensors and plain values; {ACCEPTED}"
            ) from error
        if _PERSISTENT in names:
            raise InputError(
                f"{str(path)!r} is refused: it is a network pickled together with its code, as NVIDIA's EDM and "
                "StyleGAN do, and no code from a file is run; if you trust it, unpickle it where that code is, "
                'network = pickle.load(open(path, "rb"))["ema"], and if it is of EDM take '
                "fastdiff.from_edm(network), see docs/checkpoints.md"
            ) from error
        more = ", ..." if len(names) > SHOWN else ""
        raise InputError(
            f"{str(path)!r} is refused: it holds pickled code or objects ({', '.join(names[:SHOWN])}{more}), and only "
            f"tensors and plain values are loaded; save the state dict alone: {_saved(names)}"
        ) from error
    except Exception as error:  # of torch, for files of any kind
        raise InputError(f"{str(path)!r} is not a whole checkpoint ({first_line(error)}); {ACCEPTED}") from error


def _check_archive(path: Path) -> None:
    """Raises InputError for a program of torch.jit.save, and for a zip whose entries are larger than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # of zipfile, for files of any kind: older ones of torch.save are none, and damaged ones
        return
    if any(one.filename.endswith("/constants.pkl") for one in entries):
        raise InputError(
            f"{str(path)!r} is a TorchScript archive, which is code; save its weights: "
            'torch.save(torch.jit.load(path).state_dict(), "weights.pt")'
        )
    unpacked, size = sum(one.file_size for one in entries), path.stat().st_size
    if unpacked > size or any(one.compress_type != zipfile.ZIP_STORED for one in entries):
        raise InputError(
            f"{str(path)!r} is compressed, {unpacked:,} bytes in {size:,}; accepted: what torch.save wrote, as it is"
        )


def _check_buffers(path: Path) -> None:
    """Raises InputError for a bytearray, which torch.load makes as large as a file says."""
    with open_regular(path) as file:
        if path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if data.find(b"bytearray") >= 0:
                    raise InputError(f"{str(path)!r} holds a bytearray; {ACCEPTED}")


def _check_storages(content: Any, path: Path) -> None:
    """Raises InputError for tensors that repeat what the file holds: a small file would become a large network."""
    claimed, stored = 0, {}
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise InputError(
                f"{str(path)!r} holds a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device.type!r}; "
                "accepted: one that holds plain real numbers"
            )
        storage = tensor.untyped_storage()
        size = tensor.numel() * tensor.element_size()
        if size > storage.nbytes():
            raise InputError(
                f"{str(path)!r} holds a tensor of shape {tuple(tensor.shape)} in {storage.nbytes():,} bytes; accepted: "
                f"{size:,} bytes, a value for each element"
            )
        claimed += size
        stored[storage.data_ptr()] = storage.nbytes()
    held, size = sum(stored.values()), path.stat().st_size
    if held > size:
        raise InputError(f"{str(path)!r} claims {held:,} bytes of values in {size:,}; accepted: what torch.save wrote")
    if claimed > SHARED * held:
        raise InputError(f"{str(path)!r} holds the same values more than {SHARED} times; accepted: a state dict")


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings, lists and tuples, each of these looked into once."""
    seen, left = set(), [content]
    while left:
        one = left.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, Mapping) else one


def _saved(names: list[str]) -> str:
    """The line that saves a state dict alone: of a module, or of a file in which options lie beside it."""
    if all(name.startswith(_OPTIONS) for name in names):
        return 'if you trust it, torch.save(torch.load(path, weights_only=False)["state_dict"], "weights.pt")'
    return "torch.save(model.state_dict(), path)"


def _objects_in(path: Path) -> list[str]:
    """Names (module.name) of what the file would import when unpickled. It is only parsed; nothing is run."""
    try:
        with torch.serialization.safe_globals(_NUMPY):
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not in the zip format of torch.save, or damaged
        # torch allows its own rebuild functions, but has no public list of them.
        names = {
            name
            for name in _named_by_pickle(path.read_bytes())
            if not name.startswith(("torch.", "collections.", "numpy.", "_codecs."))
        }
    return sorted(name if name.isprintable() else ascii(name) for name in names)


def _named_by_pickle(data: bytes) -> set[str]:
    """Names (module.name) of all objects that the file's pickles import, up to the first damaged byte."""
    names: set[str] = set()
    memo: list[Any] = []
    strings: list[Any] = []  # pushed so far; a STACK_GLOBAL takes the last two
    last: Any = None  # the top of the stack, if it is a string
    file = io.BytesIO(data)
    try:
        for opcode, argument, _ in itertools.chain.from_iterable(pickletools.genops(file) for _ in range(PICKLES)):
            if opcode.name == "MEMOIZE":
                memo.append(last)
            elif opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(map(str, strings[-2:])))
            elif opcode.name not in ("PROTO", "FRAME"):
                last = argument if isinstance(argument, str) else None
                if isinstance(argument, int) and opcode.name in ("BINGET", "LONG_BINGET") and argument < len(memo):
                    last = memo[argument]
                if isinstance(last, str):
                    strings.append(last)
    except Exception:  # of pickletools, for a file that is damaged from here on
        pass
    return names
