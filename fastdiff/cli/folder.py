"""fastdiff sample into a folder: the bar, Ctrl-C, and what is printed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from fastdiff.cli.drawn import chosen_steps, count_steps, given_pictures, parse_contexts, where
from fastdiff.cli.options import load_model, parse_clip, parse_dtype
from fastdiff.cli.stop import INTERRUPTED, StopSignal
from fastdiff.errors import InputError
from fastdiff.model import Model
from fastdiff.shards.launch import Launch
from fastdiff.shards.manifest import Samples
from fastdiff.shards.processes import AnotherFailed, Processes
from fastdiff.shards.run import ShardRun
from fastdiff.terminal import note, say

LAST_WORDS_SECONDS = 1.0  # for the process that failed to say why, before torchrun ends all


def sample_to_folder(
    model: str,
    output: str,
    **options: Any,
) -> None:
    """The command with a folder as its output, in each process of a run."""
    processes = Processes(options["device"])

    def prepare() -> tuple[Model, Samples, dict[str, Any]]:
        loaded = load_model(model, options)
        if options["dtype"] is not None:
            parse_dtype(options["dtype"])
        return loaded, _samples(loaded, options), options

    try:
        loaded, samples, given = _first_alone(processes, prepare)
        with ShardRun(loaded, model, samples, Path(output), given, processes) as run:
            _to_the_end(run)
        processes.close()
    except AnotherFailed:
        time.sleep(LAST_WORDS_SECONDS)
        if processes.is_rank_zero:
            say(f"stopped, for another process has; the same command goes on in {output}", err=True)
        raise SystemExit(1) from None
    except InputError as error:
        processes.fail()
        if processes.is_rank_zero:
            raise
        raise InputError(f"{error} (process {processes.rank} of {processes.world})") from error
    except Exception:
        processes.fail()
        raise


def _first_alone(processes: Processes, make: Callable[[], Any]) -> Any:
    """Each process makes its own, rank 0 first, so that bad input is reported once."""
    made: list[Any] = []
    processes.on_rank_zero(lambda: made.append(make()))
    return made[0] if made else make()


def _samples(model: Model, options: dict[str, Any]) -> Samples:
    names = ("eta", "seed", "first", "n", "guidance_scale", "strength", "resample")
    return Samples(
        **chosen_steps(options, model),
        clip=parse_clip(options.pop("clip")),
        contexts=parse_contexts(options.pop("contexts"), model),
        pictures=given_pictures(options, model),
        **{name: options.pop(name) for name in names},
    )


def _to_the_end(run: ShardRun) -> None:
    samples, folder, is_rank_zero = run.samples, run.path.resolve(), run.processes.is_rank_zero
    began, made = time.perf_counter(), 0
    _warn_of_crowding(run)

    def progress(total: int) -> None:
        nonlocal made
        made = total
        bar.update(run.images_done + total - bar.n)

    # disable=None: no bar where stderr is not a terminal.
    with (
        StopSignal() as stop,
        tqdm(total=samples.n, initial=run.images_done, unit="img", disable=None if is_rank_zero else True) as bar,
    ):
        try:
            finished = run.run(progress, lambda: stop.asked)
        except KeyboardInterrupt:  # asked twice
            finished = False
    seconds = time.perf_counter() - began
    if not finished:
        if is_rank_zero:
            kept = sum(run.plan.shard(at).end - at for at in run.folder.done(run.plan))
            say(f"stopped: {kept:,} of {samples.n:,} images are in {folder}; the same command goes on", err=True)
        raise SystemExit(INTERRUPTED)
    if not is_rank_zero:
        return
    if run.images_done == samples.n or run.engine is None:
        say(f"nothing left to do: all {samples.n:,} images are in {folder}")
        return
    engine, several = run.engine, f"{run.processes.world} processes, each " if run.processes.world > 1 else ""
    how = where(engine.device, engine.form.name, str(engine.dtype).removeprefix("torch."))
    steps = count_steps(samples.count, run.rows)
    say(
        f"{made:,} images, {run.sampler}, {steps}, in {seconds:.2f} s: {made / seconds:.1f} images/s "
        f"({several}{how}, batches of {engine.batch_size})"
    )
    say(f"wrote {folder}: {samples.n:,} images as {run.folder.format}, {run.folder.path.name}/manifest.json")


def _warn_of_crowding(run: ShardRun) -> None:
    """Each process has the threads of a run in one process, for the same bytes; together they may be too many."""
    here, threads = Launch.read().local_world, run.manifest["configuration"]["threads"]
    cores = os.cpu_count() or 1
    if run.processes.is_rank_zero and here > 1 and threads and here * threads > cores:
        several = f"{here} processes of {threads} threads on {cores} cores"
        note(f"{several}; a new run with --threads {max(1, cores // here)} would be faster")
