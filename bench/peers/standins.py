"""Stand-ins for packages that another library imports and does not need for what is measured here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Absent:
    """Anything of a package that is not there: it may be named, not used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *given: Any, **options: Any) -> Any:
        raise ImportError(f"{self._name} is called, and {self._name.split('.')[0]} is not installed")

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self._name}.{name}")


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


class _Finder:
    """Finds the given packages and all that is imported from them; its own loader too."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] not in self.packages:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def stand_in(*packages: str) -> Iterator[list[str]]:
    """Within it those of the packages that are not installed can be imported; yields their names.

    An installed package is left alone, also where it is one that fails to import. Afterwards the stand-ins are out of
    sys.modules; what was imported meanwhile keeps its references, and raises ImportError where it uses one.
    """
    absent = [name for name in packages if name not in sys.modules and find_spec(name) is None]
    finder = _Finder(absent)
    sys.meta_path.append(finder)  # type: ignore[arg-type]
    try:
        yield absent
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [name for name in sys.modules if name.split(".")[0] in absent]:
            del sys.modules[name]
        importlib.invalidate_caches()
