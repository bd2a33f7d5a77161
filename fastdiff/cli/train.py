"""fastdiff train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_folder, complete_model
from fastdiff.cli.options import device_option, given_flags, listed, parse_device, set_threads, threads_option
from fastdiff.cli.stop import INTERRUPTED
from fastdiff.data.sources import accepted
from fastdiff.errors import InputError
from fastdiff.networks.registry import BLOCKS
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.schedule import NAMES as SCHEDULES
from fastdiff.training.losses import LOSSES
from fastdiff.training.recipe import LR_DECAYS, OPTIMIZERS, PRESETS

DEFAULT_DATA = listed(f"with --preset {name}: {preset.data}" for name, preset in PRESETS.items() if preset.data)


def one_of(flag: str, names: Iterable[str], more: str = "") -> Callable[[Any], Any]:
    """An option that takes one of the names, which its help lists and the Tab key completes."""
    return click.option(flag, help=f"{more}{listed(names)}.", shell_complete=complete(names))


def preset_list() -> str:
    """The presets with their values, for the end of the help."""
    lines = ["\b", "Presets"]
    for name, preset in PRESETS.items():
        recipe = preset.recipe
        network = ", ".join(f"{key} {value}" for key, value in recipe.network.items() if key != "name")
        lines += [
            f"  {name}: {preset.title}",
            f"    {recipe.network['name']} network, {network}; {recipe.schedule} schedule, T = {recipe.timesteps}",
            f"    {recipe.loss} loss; {recipe.optimizer}, learning rate {recipe.lr:g} to {recipe.lr_final:g}, "
            f"{recipe.lr_decay}",
            f"    batches of {recipe.batch_size}; {recipe.epochs} epochs; {'' if recipe.flip else 'no '}flips; "
            f"{recipe.context_dropout:.0%} of contexts dropped",
        ]
    return "\n".join(lines)


@click.command(short_help="Train a model of your own.", epilog=preset_list())
@click.option(
    "--preset",
    default="annotated",
    show_default=True,
    help=f"{listed(f'{name} ({preset.title})' for name, preset in PRESETS.items())}.",
    shell_complete=complete(PRESETS),
)
@click.option(
    "--data",
    help=f"{accepted()}.  [default {DEFAULT_DATA}]",
)
@click.option("--labels", help="The (N, K) .npy of labels beside an .npy of pictures.")
@click.option("--class-names", help="Names of the K labels, with commas between them.")
@click.option("--size", type=click.IntRange(4), help="Cut pictures of a folder to squares of this size.")
@click.option("-o", "--output", default="runs/model", show_default=True, help="Folder of the run.")
@click.option(
    "--init",
    metavar="MODEL",
    help="Start from this model's weights in place of random ones.",
    shell_complete=complete_model,
)
@click.option(
    "--resume",
    metavar="FOLDER",
    shell_complete=complete_folder,
    help="Continue an interrupted run exactly; takes no other option but --device and --threads.",
)
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float, help="Learning rate at the start.")
@click.option("--lr-final", type=float, help="Learning rate at the end.")
@one_of("--lr-decay", LR_DECAYS)
@one_of("--optimizer", OPTIMIZERS)
@click.option("--weight-decay", type=float)
@one_of("--loss", LOSSES)
@click.option("--p2-gamma", type=float, help="p2 weighting; 0 is off.")
@click.option("--min-snr", type=float, help="min-SNR weighting with this gamma.")
@click.option("--ema", "ema_decay", type=float, help="Decay of averaged weights, such as 0.999; 0 is off.")
@click.option("--flip/--no-flip", default=None, help="Random horizontal flips.")
@click.option("--context-dropout", type=float, help="Share of samples trained without their context.")
@click.option("--bf16/--no-bf16", default=None, help="Run the network in bfloat16.")
@one_of("--schedule", SCHEDULES)
@click.option("--timesteps", type=int, help="Training timesteps T.")
@click.option("--beta-start", type=float, help="First beta of the schedule.  [default: 1e-4]")
@click.option("--beta-end", type=float, help="Last beta of the schedule.  [default: 0.02]")
@one_of("--prediction-type", PREDICTION_TYPES)
@click.option(
    "--course-perturbation",
    is_flag=True,
    default=None,
    help="Perturb as the course's code does, (1 - abar) noise; for comparison.",
)
@click.option("--dim", type=int, help="Base width of the Annotated U-Net.")
@click.option("--dim-mults", help="Its widths by level, such as 1,2,4.")
@one_of("--block", BLOCKS, "Its blocks: ")
@click.option("--n-feat", type=int, help="Base width of ContextUnet.")
@click.option("--seed", type=int)
@click.option(
    "--holdout",
    type=float,
    default=0.05,
    show_default=True,
    help="Share kept for validation where the data has no test set.",
)
@device_option
@threads_option
def train(resume: str | None, device: str | None, threads: int | None, **options: Any) -> None:
    """Train a network on pictures. Presets are the published recipes, listed below; options change single values.

    \b
    fastdiff train -o runs/garments
    fastdiff train --preset course --data sprites.npy --labels labels.npy -o runs/sprites
    fastdiff train --data my_pictures/ --size 32 --dim 64 --epochs 50 --ema 0.999 -o runs/mine
    fastdiff train --init sprites --preset course --data tiles.npy --labels tiles_labels.npy -o runs/tuned
    fastdiff train --resume runs/mine

    The folder gets the model (model.safetensors, for `fastdiff sample`), a checkpoint to resume from, the loss
    curve, a grid of samples for every epoch, and a model card. Ctrl-C saves before it stops.
    """
    try:
        from fastdiff.cli.training import new_run, resumed_run, to_the_end

        set_threads(threads)
        if resume is None:
            run = new_run(parse_device(device), **options)
        else:
            _refuse_changes(click.get_current_context())
            run = resumed_run(parse_device(device), resume)
        to_the_end(run)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _refuse_changes(context: click.Context) -> None:
    free = {"resume", "device", "threads"}
    flags = ", ".join(flag for name, flag in given_flags(context).items() if name not in free)
    if flags:
        raise InputError(f"--resume with {flags}; a resumed run keeps its own values: leave them out")
