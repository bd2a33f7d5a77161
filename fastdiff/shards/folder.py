"""A folder of samples in shards: which samples go into which file, in what format, and which are there already."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge
from torch import Tensor
from typing_extensions import TypedDict

from fastdiff.engine.noise import LIMIT
from fastdiff.errors import InputError, check_int, warn_caller
from fastdiff.files import save_npy, save_text, write_atomically, write_folder
from fastdiff.images import from_unit, sixteen_bits, to_picture, to_uint8
from fastdiff.schema import check, read_json
from fastdiff.shards.formats import FORMATS
from fastdiff.shards.manifest import Manifest
from fastdiff.temporary import remove, tidy

SHARD_NAME = re.compile(rf"samples-(\d+)-(\d+)({'|'.join(re.escape(one.ending) for one in FORMATS.values())})")
SHORT_NAMES = 10**8
SHARD_IMAGES = 1000


def digits(end: int) -> int:
    """The digits of the numbers in file names, padded so that the names sort; fixed when a run begins."""
    return 8 if end <= SHORT_NAMES else 19


class Shard(NamedTuple):
    """Samples begin .. end - 1."""

    begin: int
    end: int


@dataclass(frozen=True)
class Plan:
    """Samples first .. first + n - 1 in shards that begin at multiples of `size`; the outer two may be partial."""

    first: int
    n: int
    size: int

    def shard(self, at: int) -> Shard:
        """The shard that holds sample `at`."""
        start = at - at % self.size
        return Shard(max(self.first, start), min(self.first + self.n, start + self.size))

    def __iter__(self) -> Iterator[Shard]:
        at = self.first
        while at < self.first + self.n:
            shard = self.shard(at)
            yield shard
            at = shard.end


class ShardFolder:
    """Writes shards, and finds those that are whole.

    Args:
        path: the folder.
        format: a name out of FORMATS: npz (arr_0, uint8 (m, H, W, C)), npy (float32 (m, C, H, W)) or png.
        end: one past the run's last sample.
        image_shape: (C, H, W).
        value_range: the model's, in which npy is written, and png of 16 bits where it is of such; None for 8 bits.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        end: int,
        image_shape: tuple[int, ...],
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.path, self.format, self.image_shape = path, format, tuple(image_shape)
        self.value_range = value_range
        self.digits = digits(end)

    def stem(self, shard: Shard) -> str:
        return f"samples-{shard.begin:0{self.digits}}-{shard.end:0{self.digits}}"

    def file(self, shard: Shard) -> Path:
        return self.path / (self.stem(shard) + FORMATS[self.format].ending)

    def encode(self, images: Tensor) -> Tensor:
        """A batch as it is kept until its shard is complete: float32 for npy, else uint8, or int32 for 16 bits."""
        if self.format == "npy":
            return images if self.value_range is None else from_unit(images, self.value_range)
        if self.format == "png" and self.image_shape[0] == 1 and self.value_range and sixteen_bits(self.value_range):
            return from_unit(images.nan_to_num(-1.0).clamp(-1, 1), self.value_range).round().int()
        return to_uint8(images)

    def write(self, shard: Shard, images: Tensor) -> None:
        """Write the shard, whole or not at all; raises InputError if it cannot be written."""
        path = self.file(shard)
        if self.format == "png":
            remove(path)  # one that is there is not whole
            with write_folder(path) as made:
                for index, image in enumerate(images, shard.begin):
                    to_picture(image).save(made / self._picture(index))
        elif self.format == "npy":
            save_npy(images.numpy(), path)
        else:
            array = images.permute(0, 2, 3, 1).contiguous().numpy()
            write_atomically(path, lambda made: save_npz(made, array))

    def _picture(self, index: int) -> str:
        return f"{index:0{self.digits}}.png"

    def is_whole(self, shard: Shard) -> bool:
        """Whether the shard holds all its images, judged by their number and shape alone."""
        path, m = self.file(shard), shard.end - shard.begin
        channels, height, width = self.image_shape
        try:
            if self.format == "png":
                names = {self._picture(index) for index in range(*shard)}
                with os.scandir(path) as entries:  # a loss of power can leave files without content
                    return names == {one.name for one in entries if one.is_file() and one.stat().st_size}
            if self.format == "npy":
                array = np.load(path, mmap_mode="r")
                return array.shape == (m, channels, height, width) and array.dtype == np.float32
            with zipfile.ZipFile(path) as file, file.open("arr_0.npy") as entry:
                np.lib.format.read_magic(entry)
                shape = np.lib.format.read_array_header_1_0(entry)[0]
            return shape == (m, height, width, channels)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return False

    def done(self, plan: Plan) -> set[int]:
        """Where the whole shards begin."""
        there = (Shard(begin, end) for _, begin, end in self.names() if plan.first <= begin < plan.first + plan.n)
        return {shard.begin for shard in there if plan.shard(shard.begin) == shard and self.is_whole(shard)}

    def names(self) -> Iterator[tuple[str, int, int]]:
        """(name, begin, end) of everything named like a shard."""
        if self.path.is_dir():
            for entry in os.scandir(self.path):
                match = SHARD_NAME.fullmatch(entry.name)
                if match:
                    yield entry.name, int(match[1]), int(match[2])

    def tidy(self, plan: Plan) -> list[str]:
        """Remove what a killed process left, and partial last shards of a run that is being extended.

        Returns:
            The stems of those shards.
        """
        partial = []
        tidy(self.path)
        for name, begin, end in list(self.names()):
            if plan.first <= begin < plan.first + plan.n and plan.shard(begin).begin == begin:
                path = self.path / name
                if end < plan.shard(begin).end and path == self.file(Shard(begin, end)):
                    remove(path)
                    partial.append(self.stem(Shard(begin, end)))
        return partial

    def note(self, shard: Shard, batch_size: int, notes: list[str]) -> None:
        """Record the smaller batch and the notes in a file beside the shard; take_notes moves them to the manifest."""
        text = json.dumps({"batch_size": batch_size, "notes": notes})
        save_text(text, self.path / f"{self.stem(shard)}.note.json")

    def take_notes(self, manifest: Manifest) -> list[Path]:
        """Add the shards' notes to the manifest; returns their files, to be removed once it is written."""
        files = sorted(self.path.glob("samples-*.note.json"))
        for file in files:
            try:
                found = check(_Note, read_json(file), repr(str(file)))
            except InputError as error:  # the samples are whole without it
                warn_caller(f"a note on some of the samples is lost: {error}")
                continue
            if found["batch_size"] < manifest["configuration"]["batch_size"]:
                manifest["smaller_batches"][file.name.removesuffix(".note.json")] = found["batch_size"]
            manifest["notes"] += [note for note in found["notes"] if note not in manifest["notes"]]
        manifest["smaller_batches"] = dict(sorted(manifest["smaller_batches"].items()))
        return files


class _Note(TypedDict):
    """What ShardFolder.note writes."""

    batch_size: Annotated[int, Ge(1)]
    notes: list[str]


def save_npz(path: Path, array: np.ndarray) -> None:
    """np.savez(path, array) without timestamps, so that the same array gives the same bytes."""
    with zipfile.ZipFile(path, "w") as file, file.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)


def check_shard_size(size: int | None, batch_size: int) -> int:
    """The shard size, by default near SHARD_IMAGES; a multiple of the batch, so that no batch is computed twice."""
    if size is None:
        return max(1, round(SHARD_IMAGES / batch_size)) * batch_size
    if check_int("shard_size", size, 1, LIMIT - 1) % batch_size:
        lower = size // batch_size * batch_size
        near = " or ".join(str(k) for k in (lower, lower + batch_size) if k)
        raise InputError(f"shard_size = {size}; accepted: a multiple of the batch size, {batch_size}, such as {near}")
    return size


def check_channels(format: str, channels: int) -> str:
    """The format; raises InputError if it cannot hold images of so many channels."""
    holding = [name for name, one in FORMATS.items() if one.channels is None or channels in one.channels]
    if format not in holding:
        raise InputError(f"format {format!r} for images of {channels} channels; accepted: {', '.join(holding)}")
    return format
