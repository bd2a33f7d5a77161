"""State dicts in torch.save files, unwrapped from what trainers put around them. No code from a file is run."""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError, first_line

# Entries under which trainers keep weights, averaged ones first, and prefixes that wrappers put before keys.
WRAPPINGS = (
    "ema",
    "ema_model",
    "ema_state_dict",
    "shadow",
    "model",
    "state_dict",
    "model_state_dict",
    "network",
    "net",
    "unet",
)
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "model.", "network.", "net.", "unet.", "denoise_fn.")

ACCEPTED = "accepted: .safetensors, state dicts of torch.save, MindSpore's .ckpt"
SHOWN = 3  # objects that a refusal names
PICKLES = 5  # in torch.save's format without a zip, before the tensors


def read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a torch.save file, unwrapped; no code from the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _objects_in(path)
        if not names:
            raise InputError(
                f"{str(path)!r} is not a whole checkpoint, or holds more than tensors and plain values; {ACCEPTED}"
            ) from error
        more = ", ..." if len(names) > SHOWN else ""
        raise InputError(
            f"{str(path)!r} is refused: it holds pickled code or objects ({', '.join(names[:SHOWN])}{more}), and only "
            "tensors and plain values are loaded; save the state dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise InputError(f"{str(path)!r} is not a whole checkpoint ({first_line(error)}); {ACCEPTED}") from error
    return _unwrap(content, path)


def _objects_in(path: Path) -> list[str]:
    """Names (module.name) of what the file would import when unpickled. It is only parsed; nothing is run."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):  # not in the zip format of torch.save
        # torch allows its own rebuild functions, but has no public list of them.
        names = {
            name for name in _named_by_pickle(path.read_bytes()) if not name.startswith(("torch.", "collections."))
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
    except ValueError:  # damaged from here on
        pass
    return names


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """{"model": ..., "ema": ...} and the like → the state dict inside."""
    found = _state_dict(content)
    if found is None:
        raise InputError(f"{str(path)!r} holds no state dict; looked under {', '.join(WRAPPINGS)}")
    return found


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The weights under the first known wrapper (averaged ones first), else the tensors at this level."""
    if not isinstance(content, Mapping):
        return None
    for name in WRAPPINGS:
        inner = _state_dict(content.get(name))
        if inner is not None:
            return inner
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    return tensors if any(name.endswith("weight") for name in tensors) else None


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every key; keys outside the network (a step count, say) are dropped."""
    result = dict(tensors)
    while "init_conv.weight" not in result and "init_conv.conv1.0.weight" not in result:
        for prefix in PREFIXES:
            inner = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
            if any(k.split(".")[-1] == "weight" for k in inner):
                result = inner
                break
        else:
            break
    return result
