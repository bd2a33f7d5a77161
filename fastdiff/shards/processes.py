"""The processes of one run: started by torchrun, by the same variables from elsewhere, or a single one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastdiff.engine.placement import choose_device
from fastdiff.errors import InputError, shown
from fastdiff.shards.launch import Launch

T = TypeVar("T")
POLL_SECONDS = 0.1


class AnotherFailed(Exception):
    """Another process of the run failed and reported why, or torchrun ended. This process exits silently."""


def check_alike(asked: Sequence[Mapping[str, Any]], rank: int) -> None:
    """Compare what each of several processes was asked for: together they make one result.

    Args:
        asked: by each process in turn.
        rank: of this process.

    Raises:
        InputError: in the first process, for the first value that another one has otherwise.
        AnotherFailed: in the others then.
    """
    for other, values in enumerate(asked):
        for name in {**asked[0], **values}:
            value, first = values.get(name), asked[0].get(name)
            if value != first:
                if rank:
                    raise AnotherFailed
                raise InputError(
                    f"{name} = {shown(value)} in process {other} of {len(asked)}, and {shown(first)} in the first; "
                    "accepted: the same in all"
                )


class Processes:
    """Process `rank` of `world` that share a run; a single process communicates with nobody.

    Only small objects are sent (by gloo, on CUDA by nccl). Progress is counted in the rendezvous' store, so that
    waiting for a slower process has no time limit.

    Args:
        device: as the user named it. Of several processes, each takes the CUDA device of its LOCAL_RANK.

    Raises:
        InputError: for a device that several processes cannot use, or incomplete variables of torchrun.
    """

    def __init__(self, device: str | None = None) -> None:
        launch = Launch.whole()
        self.rank, self.world, self.device = 0, launch.world, device
        if self.world == 1:
            self.counted = 0
            return
        self.rank, local = launch.rank, launch.local_rank
        if device not in (None, "cpu", "cuda"):
            raise InputError(f"device = {device!r} with {self.world} processes; accepted: cpu, or cuda for one each")
        backend = "gloo"
        if choose_device(device).type == "cuda":
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"process {local} of this machine has no CUDA device of its own, there are "
                    f"{torch.cuda.device_count()}; accepted: as many processes, or --device cpu"
                )
            self.device, backend = f"cuda:{local}", "nccl"
            torch.cuda.set_device(local)
        store, _, _ = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)
        self.store = dist.PrefixStore("fastdiff", store)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes the manifest and talks to the user."""
        return self.rank == 0

    def on_rank_zero(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process, return its result in all; if it raises, the others raise AnotherFailed."""
        if self.world == 1:
            return make()
        box: list[Any] = [False, None]
        if self.is_rank_zero:
            try:
                box = [True, make()]
            except BaseException:
                dist.broadcast_object_list(box)
                raise
        dist.broadcast_object_list(box)
        if not box[0]:
            raise AnotherFailed
        return box[1]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in every process."""
        values: list[Any] = [value]
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values

    def agree(self, what: Mapping[str, Any]) -> None:
        """Compare what each process was asked for, by name; see `check_alike`."""
        check_alike(self.gather(what), self.rank)

    def count(self, n: int) -> int:
        """Count n more images; returns the number made by all processes. Raises AnotherFailed."""
        if self.world == 1:
            self.counted += n
            return self.counted
        try:
            if self.store.check(["failure"]):
                raise AnotherFailed
            return self.store.add("images", n)
        except dist.DistError as error:
            raise AnotherFailed from error

    def fail(self) -> None:
        """Tell the others that this process failed."""
        if self.world > 1:
            with suppress(dist.DistError):
                self.store.set("failure", str(self.rank))

    def finish(self, watch: Callable[[int], object]) -> None:
        """Wait for all processes, passing the count to `watch` meanwhile. Raises AnotherFailed."""
        if self.world == 1:
            return
        self.store.add("finished", 1)
        while self.store.add("finished", 0) < self.world:
            watch(self.count(0))
            time.sleep(POLL_SECONDS)
        watch(self.count(0))
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def default_threads() -> int:
    """The CPU threads that torch uses in a process that runs alone.

    A split run must write the same bits as a single process, whose bits depend on the threads; but torchrun sets
    OMP_NUM_THREADS=1. So a child process without that variable is asked.
    """
    several = Launch.read().local_world > 1 and "TORCHELASTIC_RUN_ID" in os.environ
    if not several or os.environ.get("OMP_NUM_THREADS") != "1":
        return torch.get_num_threads()
    alone = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    return int(subprocess.run(words, env=alone, capture_output=True, text=True, check=True).stdout)
