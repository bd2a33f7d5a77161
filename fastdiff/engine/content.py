"""What a network consists of, as a key: networks of equal content compute the same."""

from __future__ import annotations

import enum
import functools
import logging
import re
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

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
    objects of such; which of them are one and the same), their classes' values and functions, and what those name
    outside of themselves: functions, classes, numbers and objects of their file and of other files, with all that they
    hold in turn. Of functions that no code names, such as a class's way to save itself, it is the code alone. It cannot
    be told where something has state that Python does not show, such as a generator of random numbers.

    Args:
        network: any; it is not changed, and not kept alive.
    """
    walk = _Walk()
    try:
        walk.hold((modules._global_forward_pre_hooks, modules._global_forward_hooks, network))
        while walk.named:
            walk.hold(walk.named.pop())
    except (_HiddenStateError, RecursionError):
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
_NAMED = (
    type,
    enum.Enum,
    types.ModuleType,
    torch._ops.OpOverload,
    torch._ops.OpOverloadPacket,
    torch.jit.ScriptFunction,
    torch.nn.attention.SDPBackend,
    np.ufunc,
    logging.Logger,
    re.Pattern,
    TypeVar,
)
_HOOKS = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}
_CALLS = {"forward", "__call__", "__getattr__", "__getattribute__"}  # without being named
_LIBRARIES = {"torch", "numpy", "fastdiff", *sys.stdlib_module_names}
_POINTERS = nn.Module.__basicsize__ - object.__basicsize__  # what a class in Python adds, for __dict__ and weakrefs


class _Walk:
    """Words in an order that the content decides, and its tensors. An object that is met again is a number."""

    def __init__(self) -> None:
        self.words: list[Any] = []
        self.tensors: list[Tensor] = []
        self.met: dict[int, int] = {}
        self.same: dict[int, _Same] = {}
        self.names: set[str] = set()  # that code reads
        self.unnamed: dict[str, list[Any]] = {}  # functions of classes, by names that no code has read so far
        self.named: list[Any] = []  # those whose name was read since

    def hold(self, value: Any) -> None:
        """What the network holds or its code names; raises _HiddenStateError for what cannot be seen through."""
        kind = type(value)
        if kind in _PLAIN:
            self.words += (kind, value)
        elif kind is float or kind is complex:
            self.words += (kind, repr(value))  # in which 0 is not -0, and NaN is NaN
        elif isinstance(value, np.generic):
            self.words += (kind, value.tobytes())
        elif isinstance(value, type) and not _of_a_library(value):
            self._class(value)
        elif isinstance(value, _NAMED):
            self._itself(value)
        elif not isinstance(value, tuple) and self._again(value):
            pass
        elif kind in _TENSORS:
            self._tensor(value)
        elif kind is types.FunctionType:
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.hold((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self.hold((value.func, value.args, value.keywords))
        elif kind is staticmethod or kind is classmethod:
            self.hold(value.__func__)
        elif kind is functools._lru_cache_wrapper:
            self.hold(value.__wrapped__)
        elif kind is property:
            self.hold((value.fget, value.fset))
        elif kind in _CONTAINERS or any(one in _CONTAINERS and _adds_no_state(kind, one) for one in kind.__mro__):
            self._container(value)
        elif hasattr(value, "__dict__") and _adds_no_state(kind, object):
            self._class(kind)
            self._attributes(value)
        elif _is_built_in(value):
            self._itself(value)
        else:
            raise _HiddenStateError

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
        self._attributes(value)

    def _container(self, value: Any) -> None:
        self._itself(type(value))
        self.words.append(len(value))
        if isinstance(value, dict):
            parts = [part for item in value.items() for part in item]
        else:
            parts = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        for part in parts:
            self.hold(part)
        if hasattr(value, "__dict__"):
            self._attributes(value)

    def _attributes(self, value: Any) -> None:
        for name, one in vars(value).items():
            if name not in _HOOKS or one:  # most are empty
                self.words.append(name)
                self.hold(one)
        self.words.append("")

    def _class(self, cls: type) -> None:
        """By itself, and by its functions and values, since those of other libraries' classes get replaced."""
        self._itself(cls)
        if self._again(cls):
            return
        for base in cls.__mro__:
            if base not in (nn.Module, object):
                for name, value in vars(base).items():
                    if name in _CALLS or not (name.startswith("__") or name == "_abc_impl"):
                        self.words.append(name)
                        self._member(name, value)

    def _member(self, name: str, value: Any) -> None:
        """A value or a function of a class. The latter may name half a library, so it is looked into if it is named."""
        function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if name in _CALLS or not isinstance(function, types.FunctionType):
            self.hold(value)
        else:
            self._itself(function.__code__)
            if name in self.names:
                self.named.append(function)
            else:
                self.unnamed.setdefault(name, []).append(function)

    def _function(self, value: types.FunctionType) -> None:
        self._itself(value.__code__)
        if _of_a_library(value):
            return
        self.hold((value.__defaults__, value.__kwdefaults__, vars(value)))
        for cell in value.__closure__ or ():
            try:
                self.hold(cell.cell_contents)
            except ValueError:
                continue  # an empty cell has no contents
        names = _names(value.__code__)
        for name in names:
            self.names.add(name)
            self.named += self.unnamed.pop(name, ())
        spaces = [value.__globals__]
        for space in spaces:  # those of modules that are met are added: settings.gain, package.helpers.embed
            for name in names:
                if name in space:
                    self.words.append(name)
                    self.hold(space[name])
                    if _is_users_module(space[name]) and all(vars(space[name]) is not one for one in spaces):
                        spaces.append(vars(space[name]))


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """What a function and the functions in it look up by name."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return tuple(dict.fromkeys((*code.co_names, *(name for one in inner for name in _names(one)))))


def _of_a_library(value: Any) -> bool:
    """Whether it is, or comes from, a module of these libraries, which are taken to stay as they are."""
    place = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(place).partition(".")[0] in _LIBRARIES


def _is_users_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and not _of_a_library(value)


def _is_built_in(value: Any) -> bool:
    """Whether it is a function or a descriptor in C that belongs to no object: torch.sigmoid, math.sqrt, Tensor.add."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, (type, types.ModuleType))
    return hasattr(type(value), "__get__") and not hasattr(value, "__dict__") and _of_a_library(type(value))


def _adds_no_state(kind: type, base: type) -> bool:
    """Whether all that an object of a class has besides what it has of a base is in its __dict__."""
    slots = any(vars(one).get("__slots__") for one in kind.__mro__ if one is not base)
    return not slots and kind.__basicsize__ - base.__basicsize__ <= (_POINTERS if kind.__dictoffset__ else 0)
