"""Steps captured as CUDA graphs, those of all engines in one pool: a cap in bytes, the least recently used go first."""

from __future__ import annotations

import statistics
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

GAIN = 0.97  # a graph whose replay takes more than this share of the eager step is not worth its memory


class Recorder(Protocol):
    """Turns a body into something that replays it."""

    def record(
        self, body: Callable[[], None], reset: Callable[[], None], device: torch.device, owner: int
    ) -> tuple[Callable[[], None], int]:
        """body's replay, and the bytes that it holds. reset puts the state where a body may begin.

        What an owner records may share memory: it never runs at the same time.
        """
        ...

    def release(self, owner: int) -> None:
        """Everything that the owner recorded has been dropped."""
        ...

    def seconds(self, call: Callable[[], None], device: torch.device) -> float:
        """How long a call takes on the device."""
        ...


class CudaGraphs:
    """Recorder by torch.cuda.CUDAGraph. Each owner has a memory pool of its own: CUDA gives the memory of one back only
    when all of its graphs are gone, so that in a common one a cap would bound nothing."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}  # handles

    def release(self, owner: int) -> None:
        if self.memory.pop(owner, None) is not None:
            torch.cuda.empty_cache()

    def record(
        self, body: Callable[[], None], reset: Callable[[], None], device: torch.device, owner: int
    ) -> tuple[Callable[[], None], int]:
        current = torch.cuda.current_stream(device)
        with torch.cuda.device(device), torch.cuda.stream(current):  # a capture that fails leaves its own in place
            pool = self.memory.setdefault(owner, torch.cuda.graph_pool_handle())
            aside = torch.cuda.Stream(device)
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                reset()
                body()  # kernels compile and libraries choose before the capture
                reset()
                with _no_sync():
                    body()
                reset()
            current.wait_stream(aside)
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()  # as a capture begins with; here, so that what it frees is not counted
            before = torch.cuda.memory_reserved(device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                body()
            return graph.replay, max(0, torch.cuda.memory_reserved(device) - before)

    def seconds(self, call: Callable[[], None], device: torch.device) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began


@contextmanager
def _no_sync() -> Iterator[None]:
    """A host read raises an error that names it: within a capture it would only invalidate that."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class GraphPool:
    """The captured steps of a process, by owner and number of steps.

    limit: bytes that graphs may hold together before all those of the owner that is least recently used are dropped.
    """

    def __init__(self, recorder: Recorder, limit: int = 4 << 30) -> None:
        self.recorder, self.limit = recorder, limit
        self.held: OrderedDict[int, dict[int, tuple[Callable[[], None], int]]] = OrderedDict()

    def replay(self, owner: int, count: int) -> Callable[[], None] | None:
        """The owner's graph of that many steps, the owner now the most recently used; None where it is not held."""
        if count not in self.held.get(owner, ()):
            return None
        self.held.move_to_end(owner)
        return self.held[owner][count][0]

    def add(self, owner: int, count: int, replay: Callable[[], None], size: int) -> None:
        self.held.setdefault(owner, {})[count] = replay, size
        self.held.move_to_end(owner)
        while self.bytes() > self.limit and len(self.held) > 1:
            self.forget(next(iter(self.held)))

    def forget(self, owner: int) -> None:
        self.held.pop(owner, None)
        self.recorder.release(owner)

    def bytes(self, owner: int | None = None) -> int:
        """What all graphs hold, or those of one owner."""
        return sum(size for key, graphs in self.held.items() if owner in (None, key) for _, size in graphs.values())


POOL = GraphPool(CudaGraphs())


class CapturedStep:
    """A step body that is replayed from the pool: call ready() before a batch, then it with a number of steps.

    body: one step, reading and writing fixed buffers only. reset: puts the state at a table's first row.
    counts: the numbers of steps that one graph may hold. Where capture fails, or gains nothing over the eager body,
    the body runs eagerly; `told` says which and why.
    """

    def __init__(
        self,
        body: Callable[[], None],
        reset: Callable[[], None],
        device: torch.device,
        counts: tuple[int, ...] = (1,),
        pool: GraphPool | None = None,
    ) -> None:
        self.body, self.reset, self.device, self.counts = body, reset, device, counts
        self.pool = POOL if pool is None else pool
        self.eager, self.told = False, ""
        weakref.finalize(self, self.pool.forget, id(self)).atexit = False

    def ready(self) -> None:
        """Capture what the pool does not hold; the state's contents are lost."""
        for count in self.counts:
            if self.eager or self.pool.replay(id(self), count) is not None:
                continue

            def steps(count: int = count) -> None:
                for _ in range(count):
                    self.body()

            try:
                replay, size = self.pool.recorder.record(steps, self.reset, self.device, id(self))
            except torch.OutOfMemoryError:
                raise  # the batch is too large, eagerly too
            except Exception as problem:
                reason = (str(problem).splitlines() or [type(problem).__name__])[0]
                self.told = f"the step could not be captured as a CUDA graph and runs eagerly: {reason}"
                warnings.warn(self.told, stacklevel=2)
                self.eager = True
                return
            if not self.told:
                self._compare(steps, replay, count)
                if self.eager:
                    del replay
                    self.pool.forget(id(self))
                    return
            self.pool.add(id(self), count, replay, size)

    def _compare(self, steps: Callable[[], None], replay: Callable[[], None], count: int) -> None:
        """Whether replaying is faster than launching, by the medians of interleaved runs."""
        taken: dict[Callable[[], None], list[float]] = {steps: [], replay: []}
        for _ in range(5):
            for call in taken:
                self.reset()
                taken[call].append(self.pool.recorder.seconds(call, self.device) / count)
        self.reset()
        eager, replayed = (statistics.median(times) for times in taken.values())
        self.eager = replayed > GAIN * eager
        verb = "gains nothing and is not used" if self.eager else "is used"
        self.told = f"capture {verb}: {replayed * 1e3:.3f} ms a step replayed, {eager * 1e3:.3f} ms launched"

    def bytes(self) -> int:
        return self.pool.bytes(id(self))

    def __call__(self, count: int) -> None:
        replay = None if self.eager else self.pool.replay(id(self), count)
        if replay is not None:
            replay()
        else:
            for _ in range(count):
                self.body()
