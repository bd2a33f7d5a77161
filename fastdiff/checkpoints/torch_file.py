"""State dicts in torch.save files, out of whatever trainers wrap around them. No code from a file is run."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError

# Entries under which trainers keep weights, the averaged ones first, and prefixes that wrappers put before keys.
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


def read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a torch.save file, unwrapped; no code from the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{str(path)!r} is refused: it holds pickled code or objects, or is damaged, and only tensors are "
            f"loaded; save the state dict alone, torch.save(model.state_dict(), path) ({first})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{str(path)!r} is not a whole checkpoint: accepted are .safetensors, torch.save state dicts and "
            f"MindSpore .ckpt files ({first})"
        ) from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """{"model": ..., "ema": ...} and the like → the state dict inside."""
    found = _state_dict(content)
    if found is None:
        raise InputError(f"{str(path)!r} holds no state dict; looked under {', '.join(WRAPPINGS)}")
    return found


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The first wrapping, the averaged weights before the others, that holds weights, else the tensors here."""
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
