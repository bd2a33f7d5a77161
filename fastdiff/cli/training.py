"""fastdiff train, once its options are read: the run, its bar, and what is printed."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from tqdm.auto import tqdm

from fastdiff.checkpoints.config import check_network
from fastdiff.checkpoints.load import load, stored_info
from fastdiff.cli.options import listed
from fastdiff.cli.stop import INTERRUPTED, StopSignal
from fastdiff.data import fashion
from fastdiff.data.load import load_data
from fastdiff.data.sources import accepted
from fastdiff.errors import InputError, install
from fastdiff.networks.registry import COMMON_OPTIONS, network_class
from fastdiff.provenance import machine
from fastdiff.training.checkpoint import read_checkpoint
from fastdiff.training.folder import RunFolder
from fastdiff.training.loop import Epoch, Run
from fastdiff.training.recipe import PRESETS, Recipe
from fastdiff.training.trainer import Trainer


def new_run(
    device: torch.device,
    *,
    preset: str,
    data: str | None,
    labels: str | None,
    class_names: str | None,
    output: str,
    init: str | None,
    **options: Any,
) -> Run:
    """A run from its beginning. options: load_data's, fields of the recipe, and the network's options."""
    reading = {name: options.pop(name) for name in ("size", "value_range", "alpha", "skip_corrupt", "holdout")}
    recipe = build_recipe(preset, options)
    check_network(recipe.network)  # before the data, which may be long in coming
    source = _source(preset, data, labels, class_names, reading)
    folder = RunFolder(output)
    command = shlex.join(["fastdiff", *sys.argv[1:]])  # as typed, without the path of the program
    if init is not None:
        command = f"{command}  # {init}: {stored_info(init).get('trained with', 'a model from elsewhere')}"
    found = load_data(**source, progress=True)
    trainer = Trainer(recipe, found, device=device, init=None if init is None else load(init))
    _say_unused(trainer, class_names, options["context_dropout"])
    return Run(trainer, folder, source, command)


def resumed_run(device: torch.device, resume: str) -> Run:
    """The run whose folder or checkpoint `resume` names, where it stopped."""
    checkpoint = read_checkpoint(resume)
    if not checkpoint.extra.keys() >= {"data", "command"}:
        raise InputError(
            f"{str(checkpoint.path)!r} does not say what data it was trained on; accepted: a run of fastdiff train"
        )
    folder = RunFolder(checkpoint.path.parent, resume=True)
    trainer = Trainer.resume(checkpoint, load_data(**checkpoint.extra["data"], progress=True), device=device)
    folder.read_log(trainer.steps_done)
    return Run(trainer, folder, checkpoint.extra["data"], checkpoint.extra["command"])


def to_the_end(run: Run) -> None:
    """Train: a bar where stderr is a terminal, and a line for each epoch in any case."""
    trainer, folder = run.trainer, run.folder
    click.echo(
        f"{trainer.data.summary()}; {sum(p.numel() for p in trainer.network.parameters()):,} parameters, "
        f"{trainer.total_steps:,} steps in {trainer.recipe.epochs} epochs on {machine(trainer.device)}"
    )
    if not folder.plots:
        click.echo(f"no loss curve without matplotlib: {install('train')}", err=True)
    with (
        StopSignal() as stop,
        tqdm(total=trainer.total_steps, initial=trainer.steps_done, unit="step", disable=None) as bar,
    ):
        for step in run.steps(lambda: stop.asked):
            bar.update()
            if step.loss is not None:
                bar.set_postfix(loss=f"{step.loss:.4f}")
            if step.epoch is not None:
                with tqdm.external_write_mode():
                    click.echo(_epoch_line(step.epoch, trainer.recipe.epochs))
    if trainer.steps_done < trainer.total_steps:
        done = f"stopped after {trainer.steps_done} of {trainer.total_steps} steps"
        click.echo(f"{done}; continue with: fastdiff train --resume {folder.path}", err=True)
        raise SystemExit(INTERRUPTED)
    click.echo(f"wrote {folder.model.resolve()}")
    click.echo(f"sample from it: fastdiff sample {folder.path}")


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.number}/{epochs}: loss {epoch.loss:.4f}, held out {epoch.val_loss:.4f}, "
        f"{epoch.images_per_second:,.0f} images/s, {tqdm.format_interval(epoch.seconds_left)} left"
    )


def build_recipe(preset: str, options: dict[str, Any]) -> Recipe:
    """A preset with the options that were given."""
    recipe = Recipe.preset(preset)
    network = dict(recipe.network)
    taken = _options(network["name"])
    for name in COMMON_OPTIONS:
        value = options.pop(name, None)
        if value is None:
            continue
        if name not in taken:
            raise InputError(
                f"--{name.replace('_', '-')} {value} with preset {preset!r}; it belongs to another network"
            )
        network[name] = _widths(value) if name == "dim_mults" else value
    return recipe.with_options({**options, "network": network})


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--dim-mults {text!r}; accepted: whole numbers, such as 1,2,4") from None


def _say_unused(trainer: Trainer, class_names: str | None, context_dropout: float | None) -> None:
    """Tell of classes that the network does not take, and of options that have no effect without classes."""
    data, name = trainer.data, trainer.recipe.network["name"]
    if data.class_names and trainer.takes_context:
        return
    why = "the data has no classes"
    if data.class_names:
        takers = listed(one for one, preset in PRESETS.items() if "n_cfeat" in _options(preset.recipe.network["name"]))
        why = f"the {name} network takes no classes"
        said = f"the classes ({data.class_list()}) are not used, for {why}; --preset {takers} does"
        click.echo(f"note: {said}", err=True)
    for flag, value in (("--class-names", class_names), ("--context-dropout", context_dropout)):
        if value:
            click.echo(f"note: {flag} {value} has no effect, for {why}", err=True)


def _options(network: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(network_class(network)).parameters


def _source(
    preset: str, data: str | None, labels: str | None, class_names: str | None, reading: dict[str, Any]
) -> dict[str, Any]:
    """load_data's arguments, as plain values with absolute paths, so that a resumed run finds the data."""
    data = PRESETS[preset].data if data is None else data
    if data is None:
        raise InputError(f"preset {preset!r} needs --data: {accepted()}")
    values = reading["value_range"]
    return {
        **reading,
        "value_range": None if values is None else _range(values),
        "source": data if data == fashion.NAME else str(Path(data).resolve()),
        "labels": None if labels is None else str(Path(labels).resolve()),
        "class_names": [name.strip() for name in class_names.split(",")] if class_names else [],
    }


def _range(text: str) -> list[float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--range {text!r}; accepted: two numbers, such as 0,4095") from None
    return [low, high]
