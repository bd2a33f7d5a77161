"""What it costs that a file is on the disk before it gets its name: each kind written with and without, in turn."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import click
import torch

import fastdiff
from fastdiff import files
from fastdiff.data.images import ImageData
from fastdiff.files import check_writable, save_json, save_text
from fastdiff.images import to_uint8
from fastdiff.markdown import table
from fastdiff.provenance import machine, source_version, versions
from fastdiff.shards.folder import Shard, ShardFolder
from fastdiff.terminal import say

OUTPUT = Path(__file__).resolve().parent / "results" / "synced.json"
SHARD, ROUNDS = 1024, 15


def written(folder: Path) -> dict[str, Callable[[], object]]:
    """What is written, by name: shards of sprites in each format, and the checkpoint of a shipped model."""
    images = torch.rand(SHARD, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made: dict[str, Callable[[], object]] = {}
    for format in ("npz", "npy", "png"):
        place = folder / format
        place.mkdir()
        shards = ShardFolder(place, format, SHARD, (3, 16, 16))
        kept = images if format == "npy" else to_uint8(images)
        made[f"a shard of {SHARD:,} sprites, {format}"] = partial(shards.write, Shard(0, SHARD), kept)
    model = fastdiff.load("fashion-mnist")
    pixels = torch.zeros(16, 1, 28, 28, dtype=torch.uint8)
    data = ImageData("x", pixels, torch.zeros(16, 0), (), pixels[:1], torch.zeros(1, 0))
    recipe = fastdiff.Recipe(ema_decay=0.999).without_network()
    trainer = fastdiff.Trainer(recipe, data, device="cpu", init=model)
    trainer.step()
    made["a training checkpoint of fashion-mnist"] = partial(trainer.save, folder / "checkpoint.safetensors")
    return made


def measured(folder: Path) -> list[dict[str, Any]]:
    """Median seconds of each, with and without, one after another in every round."""
    rows: list[dict[str, Any]] = []
    for name, write in written(folder).items():
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(1 + ROUNDS):
            for synced in seconds:
                with mock.patch.object(files, "_sync", files._sync if synced else lambda path: None):
                    began = time.perf_counter()
                    write()
                    seconds[synced].append(time.perf_counter() - began)
        with_, without = (median(seconds[one][1:]) for one in (True, False))
        rows.append({"what": name, "synced": with_, "not_synced": without})
        say(f"{name}: {with_ * 1e3:.1f} ms, {without * 1e3:.1f} ms without")
    return rows


@click.command()
@click.option("-o", "--output", type=Path, default=OUTPUT, show_default=True, help="The report; a .md lies beside it.")
def command(output: Path) -> None:
    """Measure what it costs that files are on the disk before they get their names, in the report's folder."""
    check_writable(output)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        rows = measured(Path(folder))
    facts = {
        "date": date.today().isoformat(),
        "fastdiff": source_version(),
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "command": " ".join(["fastdiff", *sys.argv[1:]]),
    }
    save_json({**facts, "rows": rows}, output)
    cells = [[row["what"], *(f"{row[key] * 1e3:.1f}" for key in ("not_synced", "synced"))] for row in rows]
    text = [
        "# Synced files",
        "",
        f"{facts['date']}, fastdiff {facts['fastdiff']}, {facts['machine']}; {facts['versions']}. "
        f"Made by `{facts['command']}`.",
        "",
        f"Milliseconds to write, medians of {ROUNDS}: without and with the wait until the disk has the file.",
        "",
        *table(["written", "without, ms", "synced, ms"], cells),
    ]
    save_text("\n".join(text) + "\n", output.with_suffix(".md"))
    say(f"wrote {output} and {output.with_suffix('.md').name}")
