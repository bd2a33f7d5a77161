"""fastdiff train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_folder, complete_model
from fastdiff.cli.options import device_option, given_flags, listed, parse_device, set_threads, threads_option
from fastdiff.cli.stop import INTERRUPTED
from fastdiff.data.sources import accepted
from fastdiff.errors import InputError
from fastdiff.networks.registry import BLOCKS, COMMON_OPTIONS, NETWORK_TITLES
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.schedule import NAMES as SCHEDULES
from fastdiff.training.losses import LOSSES
from fastdiff.training.recipe import LR_DECAYS, OPTIMIZERS, PRESETS, Recipe

DEFAULT_DATA = listed(f"with --preset {name}: {preset.data}" for name, preset in PRESETS.items() if preset.data)


def one_of(flag: str, names: Iterable[str], more: str = "") -> Callable[[Any], Any]:
    """An option that takes one of the names, which its help lists and the Tab key completes."""
    return click.option(flag, help=f"{more}{listed(names)}.", shell_complete=complete(names))


def preset_list() -> str:
    """The presets with their values, for the end of the help."""
    lines = ["\b", "Presets"]
    for name, preset in PRESETS.items():
        recipe = preset.recipe
        more = [f"batches of {recipe.batch_size}", f"{recipe.epochs} epochs"]
        if recipe.flip:
            more.append("random flips")
        if recipe.context_dropout:
            more.append(f"{recipe.context_dropout:.0%} of samples without their context")
        lines += [
            f"  {name}: {preset.title}",
            f"    {NETWORK_TITLES[recipe.network['name']]}, {_flags(recipe.network)}; {recipe.schedule} schedule, "
            f"T = {recipe.timesteps}",
            f"    {recipe.loss} loss; {recipe.optimizer}, {_learning_rate(recipe)}",
            f"    {'; '.join(more)}",
        ]
    return "\n".join(lines)


def _flags(network: Mapping[str, Any]) -> str:
    """The network's options as the command takes them; those that it does not take are left out."""
    given = {name: network[name] for name in COMMON_OPTIONS if name in network}
    texts = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    return " ".join(f"--{name.replace('_', '-')} {text}" for name, text in texts.items())


def _learning_rate(recipe: Recipe) -> str:
    falls = {"cosine": "by a cosine", "linear-epoch": "linearly, epoch by epoch"}
    end = f" to {_power(recipe.lr_final)} {falls[recipe.lr_decay]}" if recipe.lr_decay in falls else ""
    return f"learning rate {_power(recipe.lr)}{end}"


def _power(number: float) -> str:
    """1e-4, where %g has 0.0001."""
    mantissa, _, exponent = f"{number:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if number else "0"


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
@click.option(
    "--labels",
    metavar="FILE",
    help="Which class each picture is. Beside an .npy: an .npy of (N,) class numbers, or (N, K) weights of K classes. "
    "Beside a folder or .zip: a .csv of file name and class; without it the subfolders are the classes.",
)
@click.option("--class-names", help="Names of the K classes, with commas between them.")
@click.option(
    "--size",
    metavar="N|WxH",
    help="Cut the middle out of picture files and resize it, to 32 or 48x32 pixels, say. They may then be of any size; "
    "one is opened at a time.",
)
@click.option(
    "--range",
    "value_range",
    metavar="LOW,HIGH",
    help="The values that become -1 and 1 in training, such as 0,4095 for scans of 12 bits; samples are written back "
    "in them.  [default: 0,255 for 8 bits; 0,1 or -1,1 for floats that lie there; else the least and greatest value]",
)
@click.option(
    "--alpha", is_flag=True, help="Keep the transparency of picture files, as a fourth channel, not on white."
)
@click.option("--skip-corrupt", is_flag=True, help="Leave out picture files that cannot be read, and say which.")
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
@click.option("--epochs", type=int, help="How many times each picture is seen.")
@click.option("--batch-size", type=int, help="Pictures in a step.")
@click.option("--lr", type=float, help="Learning rate at the start.")
@click.option("--lr-final", type=float, help="Learning rate at the end.")
@one_of("--lr-decay", LR_DECAYS)
@click.option("--lr-warmup", type=int, help="Steps over which the learning rate first rises.  [default: 0]")
@one_of("--optimizer", OPTIMIZERS)
@click.option("--weight-decay", type=float, help="Of the optimizer; 0 is off.")
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
@click.option("--seed", type=int, help="Of the initial weights and all that is drawn, 0 to 2^63 - 1.  [default: 0]")
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
    fastdiff train --data photos.zip --labels kinds.csv --size 48x32 -o runs/photos
    fastdiff train --data scans/ --range 0,4095 -o runs/scans
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
