"""fastdiff train, once its options are read: the run, its bar, and what is printed."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from fastdiff.checkpoints.config import check_network, network_config
from fastdiff.checkpoints.load import load, states_itself, stored_info
from fastdiff.cli.data import data_source
from fastdiff.cli.options import listed
from fastdiff.cli.stop import INTERRUPTED, StopSignal
from fastdiff.data.load import load_data
from fastdiff.data.sources import accepted
from fastdiff.errors import InputError, install
from fastdiff.model import Model
from fastdiff.networks.registry import COMMON_OPTIONS, network_class
from fastdiff.provenance import machine
from fastdiff.samplers.schedule import Schedule, make_schedule
from fastdiff.schema import check_arguments
from fastdiff.terminal import note, say
from fastdiff.training.checkpoint import read_checkpoint
from fastdiff.training.folder import RunFolder
from fastdiff.training.group import Apart, Group
from fastdiff.training.loop import Epoch, Run, Step, Wishes
from fastdiff.training.recipe import PRESETS, Recipe
from fastdiff.training.trainer import Trainer


def new_run(
    group: Group,
    *,
    preset: str,
    data: str | None,
    output: str,
    init: str | None,
    accumulate: int | None,
    wishes: Mapping[str, Any],
    **options: Any,
) -> Run:
    """A run from its beginning. options: load_data's, fields of the recipe, and the network's options."""
    recipe, kept = Recipe.preset(preset), Wishes(**wishes)
    classes = {flag: options[flag.replace("-", "_")] for flag in ("class-names", "context-dropout")}
    data = PRESETS[preset].data if data is None else data
    if data is None:
        raise InputError(f"preset {preset!r} needs --data: {accepted()}")
    source, folder = data_source(data, options), RunFolder(output)
    network = {name: options.pop(name) for name in COMMON_OPTIONS}
    recipe = recipe.with_options(options)
    command = shlex.join(["fastdiff", *sys.argv[1:]])  # as typed, without the path of the program
    if init is None:
        made = with_options(preset, network)
        check_network(made)  # before the data, which may be long in coming
        recipe = recipe.with_options({"network": made})
    else:
        command = f"{command}  # {init}: {stored_info(init).get('trained with', 'a model from elsewhere')}"
    with group.first_alone():
        if group.is_first:
            folder.check()
        pictures = load_data(**source, progress=group.is_first)
    start = None if init is None else start_model(init, pictures.image_shape, options, network)
    trainer = Trainer(recipe, pictures, device=group.asked, init=start, accumulate=accumulate or 1)
    if group.is_first:
        if start is not None:
            _say_start(trainer, init, start)
        _say_unused(trainer, classes)
    return Run(trainer, folder, source, command, kept)


def resumed_run(
    group: Group, resume: str, *, epochs: int | None, accumulate: int | None, wishes: Mapping[str, Any]
) -> Run:
    """The run whose folder or checkpoint `resume` names, where it stopped."""
    checkpoint = read_checkpoint(resume)
    if not checkpoint.extra.keys() >= {"data", "command"}:
        raise InputError(
            f"{str(checkpoint.path)!r} does not say what data it was trained on; accepted: a run of fastdiff train"
        )
    where = f"{str(checkpoint.path)!r} (training)"
    kept = Wishes(**check_arguments(Wishes, {**checkpoint.extra.get("wishes", {}), **wishes}, where))
    source = check_arguments(load_data, {**checkpoint.extra["data"], "progress": group.is_first}, where)
    folder = RunFolder(checkpoint.path.parent)
    accumulate = accumulate or checkpoint.extra.get("accumulate", 1)
    with group.first_alone():
        if group.is_first:
            folder.check(resume=True)
        pictures = load_data(**source)
    trainer = Trainer.resume(checkpoint, pictures, device=group.asked, epochs=epochs, accumulate=accumulate)
    folder.read_log(trainer.steps_done)
    command = checkpoint.extra["command"]
    if epochs is not None and epochs != checkpoint.recipe.epochs:
        command = f"{command}  # from step {trainer.steps_done} on with --epochs {epochs}"
        if group.is_first:
            say(_new_course(trainer, checkpoint.recipe))
    return Run(trainer, folder, checkpoint.extra["data"], command, kept)


def _new_course(trainer: Trainer, before: Recipe) -> str:
    """What becomes of the learning rate where a run goes on to another number of epochs."""
    step, new = trainer.steps_done, trainer.recipe
    first = trainer.learning_rate(min(step, trainer.total_steps - 1))
    old = before.learning_rate(max(0, step - 1), trainer.steps_per_epoch)
    return (
        f"{new.epochs} epochs in place of {before.epochs}: the learning rate, {old:.3g} in the last step, goes on at "
        f"{first:.3g} and ends at {trainer.learning_rate(trainer.total_steps - 1):.3g} ({new.lr_decay})"
    )


def to_the_end(run: Run, flags: str = "") -> None:
    """Train: a bar where stderr is a terminal, and a line for each epoch in any case; the first process talks.

    Args:
        run: a new or a resumed one.
        flags: what --resume is to be given with, for the same bits, such as " --threads 1".
    """
    trainer, folder, group = run.trainer, run.folder, run.trainer.group
    again = f"fastdiff train --resume {folder.path}{flags}"
    if not len(trainer):
        if group.is_first:
            epochs = trainer.recipe.epochs
            say(f"all {epochs} epochs are done; to go on: {again} --epochs {2 * epochs}")
        return
    if group.is_first:
        say(_beginning(trainer))
        if group.world == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
            note("one process trains alone; several on a CPU are started by torchrun")
        if not folder.plots:
            say(f"no loss curve without matplotlib: {install('train')}", err=True)
    try:
        _show(run)
    except Apart as error:
        if folder.checkpoint.exists():
            raise Apart(f"{error}; continue with: {again}") from error
        raise
    stopped = trainer.steps_done < trainer.total_steps
    if stopped and group.is_first:
        done = f"stopped after {trainer.steps_done} of {trainer.total_steps} steps"
        say(f"{done}; continue with: {again}", err=True)
    if stopped:
        raise SystemExit(INTERRUPTED)
    if group.is_first:
        say(f"wrote {folder.model.resolve()}")
        say(f"sample from it: fastdiff sample {folder.path}")


def _show(run: Run) -> None:
    """All steps, or those until a stop is asked for."""
    trainer, group = run.trainer, run.trainer.group
    silent = None if group.is_first else True  # None: where stderr is no terminal
    with (
        StopSignal() as stop,
        tqdm(total=trainer.total_steps, initial=trainer.steps_done, unit="step", disable=silent) as bar,
    ):
        for step in run.steps(lambda: stop.asked):
            bar.update()
            if step.loss is not None:
                bar.set_postfix(loss=f"{step.loss:.4f}")
            if group.is_first:
                _tell(step, trainer.recipe.epochs)


def _beginning(trainer: Trainer) -> str:
    """The line before the first step: what is trained, on what, by whom."""
    recipe, world = trainer.recipe, trainer.group.world
    precision = " in bfloat16" if recipe.bf16 else ""
    classes = f"; classes {trainer.data.class_list()}" if trainer.takes_context and trainer.data.class_names else ""
    together = f", {world} processes that share each batch of {recipe.batch_size}" if world > 1 else ""
    return (
        f"{trainer.data.summary()}{classes}; {sum(p.numel() for p in trainer.network.parameters()):,} parameters, "
        f"{trainer.total_steps:,} steps in {recipe.epochs} epochs on {machine(trainer.device)}{precision}{together}"
    )


def _tell(step: Step, epochs: int) -> None:
    """A line where there is something to say."""
    if step.foretold is not None:
        say(f"about {tqdm.format_interval(step.foretold)} of training to come, by the first steps")
    if step.epoch is not None:
        say(_epoch_line(step.epoch, epochs))


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.number}/{epochs}: loss {epoch.loss:.4f}, held out {epoch.val_loss:.4f}, "
        f"{epoch.images_per_second:,.0f} images/s, {tqdm.format_interval(epoch.seconds_left)} left"
    )


def with_options(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's network, with the options that were given; None is none."""
    network = dict(PRESETS[preset].network)
    taken = _options(network["name"])
    for name, value in given.items():
        if value is None:
            continue
        if name not in taken:
            raise InputError(
                f"--{name.replace('_', '-')} {value} with preset {preset!r}; it belongs to another network"
            )
        network[name] = _widths(value) if name == "dim_mults" else value
    return network


def start_model(
    init: str, image_shape: tuple[int, int, int], options: Mapping[str, Any], network: Mapping[str, Any]
) -> Model:
    """The model to start from; schedule and prediction type are its own unless options change them.

    Args:
        init: its name or file; the pictures say the image size that a foreign file does not.
        image_shape: of the pictures.
        options: as given, None where not.
        network: the network's options as given, which must be the model's own.
    """
    name, timesteps = options["schedule"], options["timesteps"]
    betas = {end: options[end] for end in ("beta_start", "beta_end") if options[end] is not None}
    whole = make_schedule(name, timesteps, **betas) if name and timesteps else None
    if states_itself(init):
        model = load(init)
    else:
        model = load(init, whole, image_shape[1:], prediction_type=options["prediction_type"])
    changed: dict[str, Any] = {}
    if name or timesteps or betas:
        changed = {"schedule": whole or _changed(model.schedule, init, name, timesteps, betas), "scheduler": None}
    if options["prediction_type"] is not None:
        changed["prediction_type"] = options["prediction_type"]
    _check_options(network, network_config(model.network), init)
    return replace(model, **changed)


def _changed(own: Schedule, init: str, name: str | None, timesteps: int | None, betas: Mapping[str, float]) -> Schedule:
    """The schedule of that name, or a model's own, with what else was given."""
    values = own.config()
    if name is None and values["name"] == "custom":
        raise InputError(f"the schedule of --init {init} is a list of betas; to change it give --schedule too")
    kept = values if name in (None, values["name"]) else {"timesteps": own.num_timesteps}
    given = {**kept, **betas, "timesteps": timesteps or own.num_timesteps}
    return make_schedule(name or values["name"], **{key: value for key, value in given.items() if key != "name"})


def _check_options(given: Mapping[str, Any], own: Mapping[str, Any], init: str) -> None:
    """Raises InputError for a network's option that is not the model's own."""
    for name, value in given.items():
        has = own.get(name)
        if value is not None and value != (",".join(map(str, has)) if isinstance(has, (list, tuple)) else has):
            flag = f"--{name.replace('_', '-')} {value}"
            raise InputError(f"{flag} with --init {init}, whose network has {name} = {has}; leave it out")


def _say_start(trainer: Trainer, init: str | None, start: Model) -> None:
    """Tell what training starts from, and of classes that get other names."""
    say(f"starts from {init}: {' '.join(repr(start).split())}")
    before, names = start.class_names, trainer.model.class_names
    if before and names and tuple(before) != tuple(names):
        note(f"its classes {', '.join(before)} are now {', '.join(names)}, in this order")


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--dim-mults {text!r}; accepted: whole numbers, such as 1,2,4") from None


def _say_unused(trainer: Trainer, given: Mapping[str, Any]) -> None:
    """Tell of classes that the network does not take, and of options that have no effect without classes."""
    data = trainer.data
    if data.class_names and trainer.takes_context:
        return
    why = "the data has no classes"
    if data.class_names:
        networks = {name: preset.network["name"] for name, preset in PRESETS.items()}
        takers = listed(name for name, network in networks.items() if "n_cfeat" in _options(network))
        why = f"{type(trainer.network).__name__} takes no classes"
        said = f"the classes ({data.class_list()}) are not used, for {why}; --preset {takers} does"
        note(said)
    for flag, value in given.items():
        if value:
            note(f"--{flag} {value} has no effect, for {why}")


def _options(network: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(network_class(network)).parameters
