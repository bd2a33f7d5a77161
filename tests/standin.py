"""torch.cuda on the CPU, as far as fastdiff.engine.graphs uses it: what a body did to its tensors, done again.

As in a graph, Python values, branches and the tensors themselves are those of the recording; what a recording or a
replay made is garbage afterwards (here NaN), but for what the body wrote into tensors that were there before. What no
graph can hold is refused where torch tells nothing of it, and so is torch's global generator, which a graph can hold
but a sample must not depend on.

What goes wrong with several devices, threads and engines goes wrong here too: a capture records what is launched on its
own stream only; a synchronisation of the device, or memory that goes back to the driver, ends every capture that is
under way; a capture that was ended so leaves torch's allocator in it; and without a stream torch captures on one of the
device that captured first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
TO_THE_HOST = {"numpy", "tolist", "cpu", "__array__", "pin_memory"}  # of these torch dispatches nothing that tells


class NotInAGraph(RuntimeError):
    """What a real capture would have failed at."""


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
        out = func(*args, **kwargs)
        given = _storages((args, kwargs))
        results = enumerate(tree_leaves(out))
        made = {k: t for k, t in results if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given}
        if made or func._schema.is_mutable:  # else a view: it lies where it lay
            self.operations.append((func, args, kwargs, made))
        return out


class Observer(TorchDispatchMode):
    """The names of all operations outside of replays, with "replay" for each of those."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__()
        self.cuda, self.seen = cuda, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        if not self.cuda.replaying:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        pass


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.operations, self.private = cuda, list[Any](), list[Tensor]()

    def keep(self, recording: _Recording) -> None:
        self.operations = recording.operations
        made = [made for *_, made in self.operations]
        self.private = list({c: t for one in made for c, t in _storages(list(one.values())).items()}.values())
        self.cuda.reserved += self.bytes()
        weakref.finalize(self, self.cuda.end_of_graph, self.bytes())
        _spoil(self.private)

    def bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self.private)

    def replay(self) -> None:
        self.cuda.replays += 1
        for observer in self.cuda.observers:
            observer.seen.append("replay")
        self.cuda.replaying = True
        try:
            for func, args, kwargs, made in self.operations:
                results = tree_leaves(func(*args, **kwargs))
                for k, place in made.items():
                    place.copy_(results[k])
            _spoil(self.private)
        finally:
            self.cuda.replaying = False


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.replays = cuda, 0

    def record(self) -> None:
        self.replays = self.cuda.replays

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        return self.cuda.slower if end.replays > self.replays else 1.0


class Cuda(threading.local):
    """What is current belongs to the thread, all else to the process; see Process."""

    def __init__(self, process: Process) -> None:
        self.__dict__["process"] = process
        self.__dict__["current"] = (CPU, {})  # the device, and the stream of each

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.process, name, value)

    def Stream(self, device: torch.device | None = None) -> Stream:  # noqa: N802
        return Stream(self.current[0] if device is None else device)

    def current_stream(self, device: torch.device) -> Stream:
        return self.current[1].get(device) or self.process.default_stream(device)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.current
        self.__dict__["current"] = (device, before[1])
        try:
            yield
        finally:
            self.__dict__["current"] = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """The stream becomes current, and so does its device."""
        before = self.current
        self.__dict__["current"] = (stream.device, {**before[1], stream.device: stream})
        try:
            yield
        finally:
            self.__dict__["current"] = before

    def CUDAGraph(self) -> Graph:  # noqa: N802
        return Graph(self)

    def Event(self, enable_timing: bool) -> Event:  # noqa: N802
        return Event(self)

    @contextmanager
    def graph(
        self, graph: Graph, pool: Any, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        if stream is None:
            self.process.capture_stream = stream = self.process.capture_stream or self.Stream()
        self.synchronize()
        self.empty_cache()
        drawn, recording = torch.get_rng_state(), _Recording()
        capture = self.process.begin_capture(capture_error_mode)
        self.allocating.append(pool)
        try:
            with self.stream(stream):
                here = self.current_stream(self.process.home) is stream
                with _Reads(), recording if here else nullcontext():
                    yield
        except NotInAGraph:  # CUDA ends the capture, and torch is left allocating for it
            raise
        except BaseException:
            self.allocating.remove(pool)
            raise
        finally:
            self.process.captures_under_way.remove(capture)
        if capture["invalid"]:
            raise NotInAGraph(f"the capture was ended by {capture['invalid']}")
        self.allocating.remove(pool)
        if not torch.equal(drawn, torch.get_rng_state()):
            raise NotInAGraph("the body draws from torch's generator")
        self.process.captures += 1
        graph.keep(recording)

    @contextmanager
    def watched(self) -> Iterator[Observer]:
        """All that torch does within it, replays excluded."""
        with Observer(self) as observer:
            self.observers.append(observer)
            try:
                yield observer
            finally:
                self.observers.remove(observer)


class Process:
    """captures, replays: how many there were. slower: milliseconds that a replay takes, the launched body taking 1.

    home: the device whose current stream bodies launch on, since their tensors lie on the CPU. reserved: the graphs'
    bytes that torch holds; `unused` ones of them go back to the driver by empty_cache.
    """

    def __init__(self, slower: float = 0.1, home: torch.device = CPU) -> None:
        self.slower, self.home = slower, home
        self.captures = self.replays = self.reserved = self.unused = 0
        self.replaying = False
        self.observers: list[Observer] = []
        self.captures_under_way: list[dict[str, Any]] = []
        self.allocating: list[Any] = []  # the pools of captures, until torch has ended them
        self.memory = SimpleNamespace(_cuda_endAllocateToPool=self.end_allocation)
        self.capture_stream: Stream | None = None
        self.streams: dict[torch.device, Stream] = {}

    def default_stream(self, device: torch.device) -> Stream:
        return self.streams.setdefault(device, Stream(device))

    def begin_capture(self, mode: str) -> dict[str, Any]:
        assert mode == "thread_local", "what other threads do would end the capture"
        self.captures_under_way.append({"invalid": ""})
        return self.captures_under_way[-1]

    def _hazard(self, call: str) -> None:
        for capture in self.captures_under_way:
            capture["invalid"] = call

    def synchronize(self, device: torch.device | None = None) -> None:
        self._hazard("synchronize")

    def graph_pool_handle(self) -> object:
        return object()

    def end_allocation(self, index: int | None, pool: object) -> None:
        if pool not in self.allocating:
            raise RuntimeError("not currently recording to this pool")
        self.allocating.remove(pool)

    def empty_cache(self) -> None:
        self._hazard("empty_cache")
        if self.allocating and not self.captures_under_way:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.reserved, self.unused = self.reserved - self.unused, 0

    def memory_reserved(self, device: torch.device) -> int:
        return self.reserved

    def end_of_graph(self, size: int) -> None:
        self.unused += size


def cuda(**options: Any) -> Cuda:
    return Cuda(Process(**options))


def _spoil(tensors: list[Tensor]) -> None:
    for t in tensors:
        t.fill_(float("nan") if t.is_floating_point() else t.dtype != torch.bool)
