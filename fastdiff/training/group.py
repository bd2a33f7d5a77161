"""The processes that train one model together, by Hugging Face accelerate; or a single one, which needs none of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.placement import choose_device, out_of_memory
from fastdiff.errors import InputError, install
from fastdiff.shards.launch import Launch
from fastdiff.shards.processes import AnotherFailed, check_alike

PATIENCE = timedelta(hours=6)  # for the first process, which may download or cut pictures before the others


class Apart(InputError):
    """Another process of the group is gone."""


class Group:
    """Process `rank` of `world`, started by `torchrun` or `accelerate launch`; a process by itself is 0 of 1.

    Args:
        device: None is the CUDA device if there is one, else the CPU. Of several processes each takes its own.

    Attributes:
        asked: the device as it was given.
        device: of this process.
        rank: 0 for the process that writes files and talks to the user.
        world: how many there are.

    Raises:
        InputError: for an unknown device, one that several processes cannot use, or where accelerate is missing.
    """

    device: torch.device

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.asked, self.rank, self.world = device, 0, Launch.whole().world
        if self.world == 1:
            self.device = choose_device(device)
            return
        if device is not None and str(device) not in ("cpu", "cuda"):
            raise InputError(
                f"device = {str(device)!r} with {self.world} processes; accepted: cpu, or cuda for one each"
            )
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError as error:
            raise InputError(f"training by {self.world} processes needs accelerate; {install('accelerate')}") from error
        on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        self._accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
        self.rank, self.device = self._accelerator.process_index, self._accelerator.device
        if self._accelerator.num_processes != self.world:
            raise InputError(
                f"WORLD_SIZE = {self.world}, but accelerate found {self._accelerator.num_processes} processes; start "
                "them by torchrun"
            )

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A context that the first process leaves before the others enter: what one finds or makes, all then have.

        Where it raises in the first process, the others raise AnotherFailed.
        """
        if self.world == 1:
            yield
        elif self.is_first:
            done = False
            try:
                yield
                done = True
            finally:
                self.any(done)
        else:
            with self.together():
                done = self.any(False)
            if not done:
                raise AnotherFailed
            yield

    def agree(self, what: Mapping[str, Any]) -> None:
        """Compare what each process was asked for, by name; see `check_alike`."""
        if self.world > 1:
            from accelerate.utils import gather_object

            with self.together():
                asked = gather_object([dict(what)])
            check_alike(asked, self.rank)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients become the mean over all processes; SyncBatchNorm on CUDA."""
        if self.world == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # A gain of shape (1, C, 1, 1) has two equal layouts in memory, which torch tells apart, in every process.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return self._accelerator.prepare_model(network)

    def share(self, count: int, parts: int) -> list[slice]:
        """This process' rows of a batch of `count`, in up to `parts` slices; [] where there are too few rows for it."""
        parts = min(parts, count)
        start, end = count * self.rank // self.world, count * (self.rank + 1) // self.world
        edges = [start + (end - start) * k // parts for k in range(parts + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]

    def accumulating(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A context for one part's gradients, which are sent to the other processes with the last part's."""
        return nullcontext() if self.world == 1 or last else self._accelerator.no_sync(network)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device."""
        return value if self.world == 1 else self._accelerator.reduce(value, "sum")

    def any(self, asked: bool) -> bool:
        """Whether it is so in any process; waits for all."""
        return asked if self.world == 1 else bool(self.total(torch.tensor(float(asked), device=self.device)))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What a process raises when another one is gone, as Apart."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise Apart(f"process {self.rank} of {self.world} could not go on with the others: {reason}") from error

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Leave the group, unless there is none left."""
        if self.world > 1 and (kind is None or not issubclass(kind, Apart)):
            self._accelerator.end_training()
