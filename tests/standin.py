"""A stand-in for CUDA graphs on the CPU: what a body did to its tensors, done again; nothing of its Python.

As in a graph, Python values, branches and the tensors themselves are those of the recording; what a recording or a
replay made is garbage afterwards (here NaN), but for what the body wrote into tensors that were there before. What no
graph can hold is refused: the host reading a tensor, data copied from the host, and torch's global generator, which a
graph can hold but a sample must not depend on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TO_THE_HOST = {"numpy", "tolist", "cpu", "__array__", "pin_memory"}  # of these torch dispatches nothing that tells
FROM_THE_HOST = {"lift_fresh", "lift"}  # a tensor of Python's or NumPy's data
INDEXED = {"index", "index_put_", "index_put"}


class NotInAGraph(RuntimeError):
    """What a real capture would have failed at."""


def refuse(func: Any, args: tuple[Any, ...]) -> None:
    name = func.overloadpacket.__name__
    masks = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)] \
        if name in INDEXED else []  # fmt: skip
    reads = torch.Tag.data_dependent_output in func.tags or masks
    if reads or (torch.Tag.dynamic_output_shape in func.tags and name not in INDEXED) or name == "is_nonzero":
        raise NotInAGraph(f"aten.{name} has the host read a tensor, which a graph cannot hold")
    if name in FROM_THE_HOST:
        raise NotInAGraph(f"aten.{name} copies data from the host, which a graph cannot hold")


class _Reads(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        if getattr(func, "__name__", "") in TO_THE_HOST:
            raise NotInAGraph(f"Tensor.{func.__name__} has the host read a tensor, which a graph cannot hold")
        return func(*args, **(kwargs or {}))


def _storages(values: Any) -> dict[int, Tensor]:
    return {t.untyped_storage()._cdata: t for t in tree_leaves(values) if isinstance(t, Tensor)}


class _Recording(TorchDispatchMode):
    """The operations in order: (function, arguments, the results that it made anew, by their place)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], dict[int, Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        refuse(func, args)
        out = func(*args, **kwargs)
        given = _storages((args, kwargs))
        results = enumerate(tree_leaves(out))
        made = {k: t for k, t in results if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given}
        if made or func._schema.is_mutable:  # else a view: it lies where it lay
            self.operations.append((func, args, kwargs, made))
        return out


class Observer(TorchDispatchMode):
    """The names of all operations outside of replays, with "replay" for each of those."""

    def __init__(self, recorder: StandIn) -> None:
        super().__init__()
        self.recorder, self.seen = recorder, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        if not self.recorder.replaying:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class StandIn:
    """graphs.Recorder. captures: recordings made. slower: what seconds() says a replay takes, the body taking 1."""

    def __init__(self, slower: float = 0.1) -> None:
        self.slower, self.captures, self.replays, self.replaying = slower, 0, 0, False
        self.observers: list[Observer] = []
        self._made: weakref.WeakSet[Callable[[], None]] = weakref.WeakSet()

    def record(
        self, body: Callable[[], None], reset: Callable[[], None], device: torch.device, owner: int = 0
    ) -> tuple[Callable[[], None], int]:
        for _ in range(2):  # as a capture is warmed up
            reset()
            body()
        reset()
        drawn = torch.get_rng_state()
        with _Reads(), _Recording() as recording:
            body()
        if not torch.equal(drawn, torch.get_rng_state()):
            raise NotInAGraph("the body draws from torch's generator")
        operations = recording.operations
        private = list({c: t for *_, made in operations for c, t in _storages(list(made.values())).items()}.values())
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            for observer in self.observers:
                observer.seen.append("replay")
            self.replaying = True
            try:
                for func, args, kwargs, made in operations:
                    results = tree_leaves(func(*args, **kwargs))
                    for k, place in made.items():
                        place.copy_(results[k])
                _spoil(private)
            finally:
                self.replaying = False

        _spoil(private)
        self._made.add(replay)
        return replay, sum(t.untyped_storage().nbytes() for t in private)

    def release(self, owner: int) -> None:
        """Nothing is kept here."""

    def seconds(self, call: Callable[[], None], device: torch.device) -> float:
        call()
        return self.slower if call in self._made else 1.0

    @contextmanager
    def watched(self) -> Iterator[Observer]:
        """All that torch does within it, replays excluded."""
        with Observer(self) as observer:
            self.observers.append(observer)
            try:
                yield observer
            finally:
                self.observers.remove(observer)


def _spoil(tensors: list[Tensor]) -> None:
    for t in tensors:
        t.fill_(float("nan") if t.is_floating_point() else t.dtype != torch.bool)
