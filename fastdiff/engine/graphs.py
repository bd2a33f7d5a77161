"""Steps captured as CUDA graphs, in one pool for all engines: a cap in bytes, the least recently used dropped first.

One step is captured at a time, and no memory is freed meanwhile; either would abort the capture. Other threads may
launch, allocate and read during a capture. All captures of a device use one stream, and so share cuBLAS's workspace
for it: engines must not replay at the same time on several streams of one device.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, cuda
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff.errors import first_line, warn_caller

SLOWER = 1.03  # times a launched step; at equal speed a replay is preferred, since it saves the CPU the launches
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put"}


class Graph(NamedTuple):
    replay: Callable[[], None]
    bytes: int


class CannotCapture(RuntimeError):
    """Why a step cannot be a CUDA graph."""


def capture(body: Callable[[], None], index: Tensor, device: torch.device) -> Graph:
    """Capture a step as a CUDA graph. The current device and stream stay as they were.

    Args:
        body: one step, which advances the index by one.
        index: () int64 on the device; ends at 0.
        device: a CUDA device.

    Returns:
        The graph, and the bytes of device memory that it holds.

    Raises:
        CannotCapture: the step does what no graph can hold.
        RuntimeError: torch's own errors during a capture.
    """
    current = cuda.current_stream(device)
    with cuda.device(device), cuda.stream(current):  # a capture that fails leaves its own stream and device behind
        aside = _stream(device)
        aside.wait_stream(current)
        with cuda.stream(aside):
            index.zero_()
            body()  # kernels compile and libraries choose before the capture
            index.zero_()
            with _Capturable(device):
                body()
            index.zero_()
        current.wait_stream(aside)
        cuda.synchronize(device)
        cuda.empty_cache()  # a capture begins with this; done here so that what it frees is not counted
        before = cuda.memory_reserved(device)
        graph, pool = cuda.CUDAGraph(), cuda.graph_pool_handle()
        try:
            # Unless given a stream, torch uses one on the device where this process first captured.
            with cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                body()
        except BaseException:
            # After a capture that CUDA aborted, torch still allocates from its pool, and empty_cache would fail.
            with suppress(RuntimeError):  # if torch has stopped already
                cuda.memory._cuda_endAllocateToPool(device.index, pool)
            raise
        index.zero_()
        graph.replay()
        if int(index) != 1:
            raise CannotCapture("the graph is empty: the step was launched somewhere else than on the capture's stream")
        index.zero_()
        return Graph(graph.replay, max(0, cuda.memory_reserved(device) - before))


@cache
def _stream(device: torch.device) -> Any:
    return cuda.Stream(device)


class _Capturable(TorchDispatchMode):
    """Raises CannotCapture, which names the operation, at one that no graph can hold.

    During a capture, CUDA's own error would not name it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes a second

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        name, given = func.overloadpacket.__name__, _tensors((args, kwargs))
        if name in INDEXED:
            reads = any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
        else:
            reads = bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags))
        there = any(t.device.type == self.device.type for t in given)
        if there and reads:
            raise CannotCapture(f"aten.{name} has the host read a tensor, which a graph cannot hold")
        out = func(*args, **(kwargs or {}))
        # A scalar on the host is passed as a launch argument, unless it is copied.
        places = {t.device.type for t in [*given, *_tensors(out)] if t.ndim or name in ("copy_", "_to_copy")}
        if len(places) > 1 or (there and name in ("lift", "lift_fresh")):  # torch.tensor(...) ends in one of these
            raise CannotCapture(f"aten.{name} copies data between host and device, which a graph cannot hold")
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


class GraphPool:
    """The captured steps of a process, by owner.

    Args:
        limit: bytes that all graphs may hold; beyond it the least recently used is dropped.
    """

    def __init__(self, limit: int = 4 << 30) -> None:
        self.limit = limit
        self.held: OrderedDict[int, Graph] = OrderedDict()
        self._captures = threading.Lock()
        self._captor: int | None = None  # the thread that captures
        self._dropped: deque[int] = deque()  # owners whose graphs are to go

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One capture at a time; what is forgotten meanwhile is released afterwards."""
        if self._captor == threading.get_ident():
            raise CannotCapture("it samples by another engine that captures")
        try:
            with self._captures:
                self._captor = threading.get_ident()
                try:
                    yield
                finally:
                    self._captor = None
        finally:
            self._release()

    def replay(self, owner: int) -> Callable[[], None] | None:
        """A function that replays the owner's graph, now the most recently used; None if it is not held."""
        try:
            self.held.move_to_end(owner)
            return self.held[owner].replay
        except KeyError:  # never captured, or dropped meanwhile by another thread
            return None

    def add(self, owner: int, graph: Graph) -> None:
        """Hold the owner's graph; to be called within exclusive()."""
        self.held[owner] = graph
        while self.bytes() > self.limit and len(self.held) > 1:
            self._drop(next(iter(self.held)))

    def forget(self, owner: int) -> None:
        """Release the owner's graph, now or after the running capture. Never waits, so finalizers may call it."""
        self._dropped.append(owner)
        self._release()

    def _release(self) -> None:
        # Finalizers, which may run at any point, must not wait for the lock; its holder calls this after releasing it.
        while self._dropped and self._captures.acquire(blocking=False):
            try:
                self._drop(self._dropped.popleft())
            except IndexError:  # another thread was faster
                pass
            finally:
                self._captures.release()

    def _drop(self, owner: int) -> None:
        if self.held.pop(owner, None) is not None:
            cuda.empty_cache()  # nothing else can use a graph's memory

    def bytes(self, owner: int | None = None) -> int:
        """The bytes that all graphs hold, or that of one owner."""
        return sum(graph.bytes for key, graph in list(self.held.items()) if owner in (None, key))


POOL = GraphPool()
_owners = itertools.count()  # unlike id(), never reused while a graph waits to be dropped


class CapturedStep:
    """A step that is replayed from the pool: call ready() before a batch, then the object once per step.

    If capture fails, or a replay is slower, the body is launched instead.

    Args:
        body: one step, which reads and writes fixed buffers only and advances `index` by one.
        index: () int64 on the device, the current row.
        device: a CUDA device.
        pool: default: the process's own.

    Attributes:
        eager: whether the body is launched.
        status: which of the two runs and why; "" before the first ready().
    """

    def __init__(
        self, body: Callable[[], None], index: Tensor, device: torch.device, pool: GraphPool | None = None
    ) -> None:
        self.body, self.index, self.device = body, index, device
        self.pool = POOL if pool is None else pool
        self.eager, self.status, self.owner = False, "", next(_owners)
        weakref.finalize(self, self.pool.forget, self.owner).atexit = False

    def ready(self) -> None:
        """Capture the step unless the pool holds it, which overwrites the state."""
        if self.eager or self.pool.replay(self.owner) is not None:
            return
        try:
            with self.pool.exclusive():
                graph = capture(self.body, self.index, self.device)
                if not self.status:
                    self._compare(graph.replay)
                if self.eager:
                    del graph
                    cuda.empty_cache()
                else:
                    self.pool.add(self.owner, graph)
        except torch.OutOfMemoryError:
            raise  # the batch is too large, eagerly too
        except Exception as problem:
            cause = problem.__context__ or problem  # ending a failed capture raises an error of its own
            self.status = f"the step could not be captured as a CUDA graph and runs eagerly: {first_line(cause)}"
            self.eager = True
            warn_caller(self.status)

    def _compare(self, replay: Callable[[], None]) -> None:
        """Choose the faster, by the medians of interleaved runs."""
        launched: list[float] = []
        replayed: list[float] = []
        for _ in range(5):
            for call, taken in ((self.body, launched), (replay, replayed)):
                self.index.zero_()
                taken.append(_milliseconds(call, self.device))
        self.index.zero_()
        slow, fast = statistics.median(launched), statistics.median(replayed)
        self.eager = fast > SLOWER * slow
        verb = "is slower and not used" if self.eager else "is used"
        self.status = f"capture {verb}: {fast:.3f} ms a step replayed, {slow:.3f} ms launched"

    def bytes(self) -> int:
        """The bytes that the step's graph holds."""
        return self.pool.bytes(self.owner)

    def __call__(self, most: int = 1) -> int:
        """Run one step; returns how many were run, of at most so many."""
        (self.body if self.eager else self.pool.replay(self.owner) or self.body)()
        return 1


def _milliseconds(call: Callable[[], None], device: torch.device) -> float:
    """The device's time for a call, gaps between launches included."""
    with cuda.device(device):
        cuda.synchronize(device)
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
