"""Sampling into a folder: any number of samples, by one process or several, continuing where an earlier run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.engine import Engine
from fastdiff.engine.placement import choose_device, set_threads
from fastdiff.engine.request import Request, check_batch_size
from fastdiff.errors import InputError, unknown_name, warn_caller
from fastdiff.files import check_folder, only_writer
from fastdiff.model import Model
from fastdiff.provenance import source_version
from fastdiff.shards.folder import (
    SHORT_NAMES,
    Plan,
    Shard,
    ShardFolder,
    check_channels,
    check_shard_size,
    digits,
)
from fastdiff.shards.formats import DEFAULT, FORMATS
from fastdiff.shards.manifest import (
    RESTORED,
    Manifest,
    Samples,
    asked_for,
    changes,
    check_given,
    check_same,
    model_facts,
    new_manifest,
    read_manifest,
    write_manifest,
)
from fastdiff.shards.processes import Processes, default_threads

SHARED_SECONDS = 10.0  # until a file written by one machine is visible to another


class ShardRun:
    """Samples of a model into a folder: begun, or continued. Every process of a split run makes one of these.

    Args:
        model: what is sampled from.
        name: the model's name as the user gave it.
        samples: which samples.
        path: the folder.
        given: batch_size, threads, dtype, form, device, format and shard_size; None leaves one to the manifest of the
            run that is continued, or to the default.
        processes: those that share the run.

    Raises:
        InputError: before anything is written.
        AnotherFailed: in the processes that did not fail themselves.
    """

    def __init__(
        self, model: Model, name: str, samples: Samples, path: Path, given: dict[str, Any], processes: Processes
    ) -> None:
        self.model, self.name, self.samples = model, name, samples
        self.path, self.given, self.processes = path, given, processes
        self.engine: Engine | None = None  # made only if this process has work
        self.holding = ExitStack()

    @cached_property
    def request(self) -> Request:
        """All samples; checked when it is first asked for, which the first process does while the others wait."""
        return self.samples.request(self.model)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The samples as plain values; their pictures are hashed once."""
        return self.samples.values(self.model)

    @property
    def sampler(self) -> str:
        """What the samples are drawn with, for messages."""
        assert self.request.table is not None
        return self.request.table.sampler

    @property
    def rows(self) -> int:
        """Evaluations of the network for a sample, for messages."""
        assert self.request.table is not None
        return len(self.request.table)

    def __enter__(self) -> ShardRun:
        try:
            self._open()
        except BaseException:
            self.holding.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.holding.close()

    def _open(self) -> None:
        processes = self.processes
        facts = model_facts(self.model, self.name)
        self.manifest, self.done = processes.on_rank_zero(lambda: self._settle(facts))
        processes.agree({**asked_for(facts, self.values), **self.given})
        self.plan = Plan(self.request.first, self.request.n, self.manifest["files"]["shard_size"])
        self.folder = self._folder(self.manifest)
        self.images_done = sum(self.plan.shard(at).end - at for at in self.done)
        own = None
        if next(self._mine(), None) is not None:
            if self.engine is None:
                configuration = self.manifest["configuration"]
                smallest = min([configuration["batch_size"], *self.manifest["smaller_batches"].values()])
                self.engine = self._engine({**configuration, "batch_size": smallest})
            own = {"fastdiff": source_version(), **self.engine.configuration()}
        everyone = processes.gather(own)
        self.manifest = processes.on_rank_zero(lambda: self._begin(everyone))
        self._check_shared()

    def _settle(self, model: dict[str, Any]) -> tuple[Manifest, set[int]]:
        """The run's manifest, and the first samples of its whole shards. Writes nothing."""
        check_folder(self.path)
        request, values = self.request, self.values
        format, shard_size = self.given["format"], self.given["shard_size"]
        if format is not None and format not in FORMATS:
            raise unknown_name("format", format, FORMATS)
        options = {name: self.given[name] for name in RESTORED}
        manifest = read_manifest(self.path)
        if manifest is None:
            self._check_empty()
            size = check_batch_size(options["batch_size"])
            format = check_channels(format or DEFAULT, self.model.image_shape[0])
            files = {"format": format, "shard_size": check_shard_size(shard_size, size)}
            self.engine = self._engine(options)
            manifest = new_manifest(source_version(), model, values, files, self.engine.configuration())
        else:
            check_shard_size(manifest["files"]["shard_size"], manifest["configuration"]["batch_size"])
            check_same(self.path, manifest, model, values)
            device = None if options["device"] is None else choose_device(options["device"]).type
            check_given(self.path, manifest["files"], {"format": format, "shard_size": shard_size})
            check_given(self.path, manifest["configuration"], {**options, "device": device})
            if digits(request.end) != digits(request.first + manifest["samples"]["n"]):
                raise InputError(
                    f"n = {request.n}; the run in {str(self.path)!r} has file names for samples "
                    f"below {SHORT_NAMES}: extend it so far, or name another folder"
                )
            manifest["samples"]["n"] = request.n
        folder = self._folder(manifest)
        folder.take_notes(manifest)
        return manifest, folder.done(Plan(request.first, request.n, manifest["files"]["shard_size"]))

    def _folder(self, manifest: Manifest) -> ShardFolder:
        model, format = self.model, manifest["files"]["format"]
        return ShardFolder(self.path, format, self.request.end, model.image_shape, model.value_range)

    def _check_empty(self) -> None:
        found = next(ShardFolder(self.path, DEFAULT, 0, ()).names(), None)
        if found:
            raise InputError(
                f"{str(self.path)!r} holds {found[0]!r} but no manifest of its run; accepted: another folder"
            )

    def _engine(self, options: dict[str, Any]) -> Engine:
        """An engine by the options of the command line or of a manifest; sets torch's threads."""
        device = choose_device(self.processes.device)
        if options["device"] not in (None, device.type, self.processes.device):
            device = choose_device(options["device"])
        if options["threads"] or device.type == "cpu":
            set_threads(options["threads"] or default_threads())
        dtype = None if options["dtype"] is None else getattr(torch, options["dtype"])
        return Engine(
            self.model,
            self.request.table,
            batch_size=options["batch_size"],
            device=device,
            dtype=dtype,
            clip=self.samples.clip,
            form=options["form"],
        )

    def _begin(self, facts: list[dict[str, Any] | None]) -> Manifest:
        """Lock the folder, tidy it, and write the manifest, with a note for each change since the run began."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.holding.enter_context(only_writer(self.path))
        for stem in self.folder.tidy(self.plan):
            self.manifest["smaller_batches"].pop(stem, None)
        for change in changes(self.manifest, facts):
            start = next(self._left()).begin
            note = f"from sample {start} on: {change}"
            warn_caller(f"{note}; the images' last bits may differ")
            self.manifest["notes"].append(note)
        self._write_manifest()
        return self.manifest

    def _write_manifest(self) -> None:
        taken = self.folder.take_notes(self.manifest)
        write_manifest(self.path, self.manifest)
        for file in taken:
            file.unlink()

    def _check_shared(self) -> None:
        until = time.monotonic() + SHARED_SECONDS
        while read_manifest(self.path) != self.manifest:
            if time.monotonic() > until:
                raise InputError(
                    f"{str(self.path)!r} is not the folder that the first process writes to; "
                    "accepted: one that all machines share"
                )
            time.sleep(0.2)

    def _left(self) -> Iterator[Shard]:
        return (shard for shard in self.plan if shard.begin not in self.done)

    def _mine(self) -> Iterator[Shard]:
        """This process's share of the missing shards: number rank, rank + world, ..."""
        return islice(self._left(), self.processes.rank, None, self.processes.world)

    def run(self, progress: Callable[[int], object], stop: Callable[[], bool], end: int | None = None) -> bool:
        """Make the missing shards.

        Args:
            progress: called with the number of images made by all processes.
            stop: asked before every batch.
            end: only shards that begin before this sample; all of them unless given.

        Returns:
            False if stopped early.
        """

        def count(m: int) -> None:
            progress(self.processes.count(m))

        for shard in takewhile(lambda shard: end is None or shard.begin < end, self._mine()):
            assert self.engine is not None
            images = None if stop() else self._draw(self.engine, shard, count, stop)
            if images is None:
                return False
            if self.engine.notes or self.engine.batch_size != self.manifest["configuration"]["batch_size"]:
                self.folder.note(shard, self.engine.batch_size, self.engine.notes)
            self.folder.write(shard, images)
        self.processes.finish(progress)
        if self.processes.is_rank_zero:
            self._write_manifest()
        return True

    def _draw(
        self, engine: Engine, shard: Shard, count: Callable[[int], None], stop: Callable[[], bool]
    ) -> Tensor | None:
        """The shard's images, all by one batch size: begun again if the engine halves it. None if stopped."""
        while True:
            parts: list[Tensor] = []
            size, made = 0, 0
            for (images,) in engine.batches(self.request.part(*shard)):
                if parts and engine.batch_size != size:
                    count(-made)
                    break
                size, made = engine.batch_size, made + len(images)
                parts.append(self.folder.encode(images))
                count(len(images))
                if made < shard.end - shard.begin and stop():
                    return None
            else:
                return torch.cat(parts)
