"""What torchrun tells the processes that it starts; the same variables may come from elsewhere. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastdiff.errors import InputError, whole_number

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MOST = 2**20  # processes


@dataclass(frozen=True)
class Launch:
    """Process `rank` of `world`, on its machine `local_rank` of `local_world`; alone, 0 of 1 whatever RANK says."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @classmethod
    def read(cls) -> Launch:
        """By the environment. Raises InputError for variables that torchrun does not set so."""
        world, local_world = _number("WORLD_SIZE", 1, 1, MOST), _number("LOCAL_WORLD_SIZE", 1, 1, MOST)
        _number("MASTER_PORT", 0, 0, 2**16 - 1)
        here = local_world if world > 1 and "LOCAL_WORLD_SIZE" in os.environ else MOST
        rank = _number("RANK", 0, 0, (world if world > 1 else MOST) - 1)
        local_rank = _number("LOCAL_RANK", 0, 0, here - 1)
        return cls(rank, world, local_rank, local_world) if world > 1 else cls(0, 1, 0, local_world)

    @classmethod
    def whole(cls) -> Launch:
        """The same, of processes that can find each other."""
        launch = cls.read()
        missing = [name for name in NEEDED if name not in os.environ]
        if launch.world > 1 and missing:
            raise InputError(
                f"WORLD_SIZE = {launch.world} without {', '.join(missing)}; start the processes by torchrun"
            )
        return launch


def _number(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name, str(default))
    number = whole_number(text)
    if number is None or not low <= number <= high:
        raise InputError(f"{name} = {text!r}; accepted: a whole number from {low} to {high}, as torchrun sets it")
    return number
