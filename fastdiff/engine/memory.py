"""How much memory prepared networks hold."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor


def held_bytes(*roots: Any) -> int:
    """Bytes of the tensors that these reach through attributes, containers and closures; shared memory counts once.

    A function of a file holds its closure and defaults, and one that was made by `exec` all the names that it was given
    (fastdiff.capture.program). Classes and modules hold nothing.
    """
    storages: dict[int, int] = {}
    seen: dict[int, Any] = {}  # with the objects, since ids come again after an object's end
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, ModuleType)):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            if value.layout is torch.strided:
                storage = value.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
            waiting += vars(value).values()
        elif isinstance(value, FunctionType):
            waiting += (value.__closure__, value.__defaults__, value.__kwdefaults__)
            if "__name__" not in value.__globals__:  # which those of a file have
                waiting += (one for name, one in value.__globals__.items() if name != "__builtins__")
        else:
            waiting += gc.get_referents(value)
    return sum(storages.values())
