"""The formats of shards. Imports no torch, so that the command lists them without."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """An entry.

    Attributes:
        ending: of a shard's name; a shard without one is a folder.
        holds: what a shard holds, in a few words.
        channels: those that an image may have; None for any number.
    """

    ending: str
    holds: str
    channels: tuple[int, ...] | None = None


FORMATS = {
    "npz": Format(".npz", "uint8"),
    "npy": Format(".npy", "float32"),
    "png": Format("", "pictures", channels=(1, 3, 4)),
}
DEFAULT = "npz"
