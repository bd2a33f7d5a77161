"""What a network consists of, as a key: networks of equal content compute the same."""

from __future__ import annotations

import enum
import functools
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from fastdiff.engine.checksum import checksum


class Content:
    """The words of a walk through a network; their hash is computed once."""

    def __init__(self, words: tuple[Hashable, ...]) -> None:
        self.words, self.number = words, hash(words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and self.number == other.number and self.words == other.words

    def __hash__(self) -> int:
        return self.number


def content_of(network: nn.Module) -> Content | None:
    """What networks that compute the same share, and any change of one changes; None where that cannot be told.

    Content is what the network and its modules hold (tensors, numbers, names, hooks, modes, and lists, dicts and
    objects of such; which of them are one and the same), their classes' functions, and what those name outside of
    themselves: a function or a number of their file, `settings.gain`. It cannot be told where something has state that
    Python does not show, such as a generator of random numbers.
    """
    walk = _Walk()
    try:
        walk.hold((modules._global_forward_pre_hooks, modules._global_forward_hooks))
        walk.hold(network)
    except _HiddenStateError:
        return None
    return Content((*walk.words, *checksum(walk.tensors)))


class _HiddenStateError(Exception):
    """Something may change without being seen."""


class _Same:
    """Equal for one and the same object, which is not kept alive unless it takes no weak references."""

    def __init__(self, value: Any) -> None:
        self.number = id(value)
        try:
            self.get: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self.get = lambda: value

    def __eq__(self, other: object) -> bool:  # not by ids, which come again after an object's end
        return isinstance(other, _Same) and self.get() is other.get() is not None

    def __hash__(self) -> int:
        return self.number


_PLAIN = {bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
_CONTAINERS = {tuple, torch.Size, list, dict, OrderedDict, set, frozenset}
_TENSORS = {Tensor, nn.Parameter, nn.Buffer}
# Each is what it is: it has no state, or none that a network would change.
_NAMED = (type, enum.Enum, types.ModuleType, torch._ops.OpOverload, torch._ops.OpOverloadPacket, np.ufunc)
_HOOKS = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}
_CALLS = {"__call__", "__getattr__", "__getattribute__"}
_LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names}
_POINTERS = nn.Module.__basicsize__ - object.__basicsize__  # what a class in Python adds, for __dict__ and weakrefs


class _Walk:
    """Words in an order that the content decides, and its tensors. An object that is met again is a number."""

    def __init__(self) -> None:
        self.words: list[Hashable] = []
        self.tensors: list[Tensor] = []
        self.met: dict[int, int] = {}
        self.same: dict[int, _Same] = {}

    def hold(self, value: Any) -> None:
        """What the network holds; raises _HiddenStateError for what cannot be seen through."""
        if self._common(value, self.hold):
            return
        if isinstance(value, types.MethodType):
            self.hold((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self.hold((value.func, value.args, value.keywords))
        elif hasattr(value, "__dict__") and _adds_no_state(type(value), object):
            self._class(type(value))
            self._attributes(value, self.hold)
        else:
            raise _HiddenStateError

    def name(self, value: Any) -> None:
        """What a class or a function names; an object is not looked into."""
        if not self._common(value, self.name):
            self._itself(value)

    def _common(self, value: Any, each: Callable[[Any], None]) -> bool:
        """Add a value of a kind that is the same wherever it is met; its parts are added by `each`."""
        kind = type(value)
        if kind in _PLAIN:
            self.words += (kind, value)
        elif kind is float or kind is complex:
            self.words += (kind, repr(value))  # in which 0 is not -0, and NaN is NaN
        elif isinstance(value, np.generic):
            self.words += (kind, value.tobytes())
        elif isinstance(value, _NAMED) or _is_built_in(value):
            self._itself(value)
        elif not isinstance(value, tuple) and self._again(value):
            pass
        elif kind in _TENSORS:
            self._tensor(value)
        elif kind is types.FunctionType:
            self._function(value, each)
        elif kind is staticmethod or kind is classmethod:
            each(value.__func__)
        elif kind is property:
            each((value.fget, value.fset))
        elif kind in _CONTAINERS or any(one in _CONTAINERS and _adds_no_state(kind, one) for one in kind.__mro__):
            self._container(value, each)
        else:
            return False
        return True

    def _itself(self, value: Any) -> None:
        if id(value) not in self.same:
            self.same[id(value)] = _Same(value)
        self.words.append(self.same[id(value)])

    def _again(self, value: Any) -> bool:
        if id(value) in self.met:
            self.words.append(self.met[id(value)])
            return True
        self.met[id(value)] = len(self.met)
        return False

    def _tensor(self, value: Tensor) -> None:
        strided = value.layout is torch.strided and value.device.type in ("cpu", "cuda")
        if not strided or value.is_quantized or value.is_conj() or value.is_neg():
            raise _HiddenStateError
        self.words += (type(value), value.dtype, value.device, value.shape, value.stride())
        self.tensors.append(value)
        self._attributes(value, self.hold)

    def _container(self, value: Any, each: Callable[[Any], None]) -> None:
        self._itself(type(value))
        self.words.append(len(value))
        if isinstance(value, dict):
            parts = [part for item in value.items() for part in item]
        else:
            parts = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        for part in parts:
            each(part)
        if hasattr(value, "__dict__"):
            self._attributes(value, each)

    def _attributes(self, value: Any, each: Callable[[Any], None]) -> None:
        for name, one in vars(value).items():
            if name not in _HOOKS or one:  # most are empty
                self.words.append(name)
                each(one)
        self.words.append("")

    def _class(self, cls: type) -> None:
        """By itself, and by its functions and values, since those of other libraries' classes get replaced."""
        self._itself(cls)
        if not self._again(cls):
            for base in cls.__mro__:
                if base not in (nn.Module, object):
                    for name, value in vars(base).items():
                        if not name.startswith("__") or name in _CALLS:
                            self.words.append(name)
                            self.name(value)

    def _function(self, value: types.FunctionType, each: Callable[[Any], None]) -> None:
        self._itself(value.__code__)
        if _of_a_library(value):
            return
        each((value.__defaults__, value.__kwdefaults__))
        for cell in value.__closure__ or ():
            try:
                each(cell.cell_contents)
            except ValueError:
                continue  # an empty cell has no contents
        names = _names(value.__code__)
        for name in names:
            if name in value.__globals__:
                self.words.append(name)
                self.name(value.__globals__[name])
                self._reached(value.__globals__[name], names)

    def _reached(self, owner: Any, names: tuple[str, ...]) -> None:
        """What a function may read of a module, a class or an object that it names: settings.gain, helpers.embed."""
        if not _of_a_library(owner):
            for name in names:
                if name in getattr(owner, "__dict__", ()):
                    self.words.append(name)
                    self.name(vars(owner)[name])


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """What a function and the functions in it look up by name."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return tuple(dict.fromkeys((*code.co_names, *(name for one in inner for name in _names(one)))))


def _of_a_library(value: Any) -> bool:
    """Whether it is, or comes from, a module of torch, NumPy or Python, which are taken to stay as they are."""
    place = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(place).partition(".")[0] in _LIBRARIES


def _is_built_in(value: Any) -> bool:
    """Whether it is a function in C that belongs to no object: torch.sigmoid, math.sqrt, Tensor.add."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, (type, types.ModuleType))
    return isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType))


def _adds_no_state(kind: type, base: type) -> bool:
    """Whether all that an object of a class has besides what it has of a base is in its __dict__."""
    slots = any(vars(one).get("__slots__") for one in kind.__mro__ if one is not base)
    return not slots and kind.__basicsize__ - base.__basicsize__ <= (_POINTERS if kind.__dictoffset__ else 0)
