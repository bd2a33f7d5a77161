"""fastdiff train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_folder, complete_model
from fastdiff.cli.data import data_options
from fastdiff.cli.options import device_option, given_flags, listed, threads_option
from fastdiff.data.sources import accepted
from fastdiff.errors import InputError
from fastdiff.networks.registry import BLOCKS, COMMON_OPTIONS, NETWORK_TITLES
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.schedule import NAMES as SCHEDULES
from fastdiff.training.losses import LOSSES
from fastdiff.training.recipe import LR_DECAYS, OPTIMIZERS, PRESETS, Recipe
from fastdiff.training.tensorboard import LOGS

WISHES = ("sample_every", "keep_every", "log")  # what the run's folder gets
ON_RESUME = {"resume", "device", "threads", "epochs", "accumulate", *WISHES}  # what --resume may be given with
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
            f"    {NETWORK_TITLES[preset.network['name']]}, {_flags(preset.network)}; {recipe.schedule} schedule, "
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
@data_options
@click.option("-o", "--output", default="runs/model", show_default=True, help="Folder of the run.")
@click.option(
    "--init",
    metavar="MODEL",
    help="Start from this model, any that loads: its network and weights, its schedule and prediction type.",
    shell_complete=complete_model,
)
@click.option(
    "--resume",
    metavar="FOLDER",
    shell_complete=complete_folder,
    help="Continue an interrupted run, exactly with the same --threads, or a finished one with more --epochs. The "
    "recipe stays; what may be given anew is --epochs, --accumulate, --sample-every, --keep-every, --log, --device and "
    "--threads.",
)
@click.option("--epochs", type=int, help="How many times each picture is seen, from the run's beginning.")
@click.option("--batch-size", type=int, help="Pictures in a step, of all processes together.")
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    metavar="N",
    help="Evaluate each batch in N parts, one after another, which saves memory.  [default: 1]",
)
@click.option("--max-grad-norm", type=float, help="Clip the gradients' norm to this.  [default: off]")
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
@click.option(
    "--bf16/--no-bf16", default=None, help="Run the network in bfloat16.  [default: where the processor or GPU has it]"
)
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
@click.option("--sample-every", type=int, metavar="K", help="A grid of samples every K epochs; 0: never.  [default: 1]")
@click.option("--keep-every", type=int, metavar="K", help="Keep the weights of every K-th epoch.  [default: 0, none]")
@click.option(
    "--log",
    multiple=True,
    metavar="WHERE",
    help=f"Write losses and samples to {listed(LOGS)} too.",
    shell_complete=complete(LOGS),
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
    fastdiff train --resume runs/mine --epochs 80
    torchrun --nproc-per-node 4 -m fastdiff train -o runs/garments

    The folder gets the model (model.safetensors, for `fastdiff sample`), a checkpoint to resume from, the loss
    curve, a grid of samples for every epoch, and a model card. Ctrl-C saves before it stops; what a crash loses is two
    minutes at most. Processes that torchrun or accelerate starts share each batch: the steps are those of one process.
    """
    from fastdiff.cli.training import new_run, resumed_run, to_the_end
    from fastdiff.engine.placement import has_bf16, set_threads
    from fastdiff.shards.processes import AnotherFailed
    from fastdiff.training.group import Group

    try:
        set_threads(threads)
        wishes = {name: options.pop(name) for name in WISHES}
        given = {name: value for name, value in wishes.items() if value not in (None, ())}
        flags = [f" --{name} {value}" for name, value in (("threads", threads), ("device", device)) if value]
        with Group(device) as group:
            if resume is None:
                if options["bf16"] is None:
                    options["bf16"] = has_bf16(group.device)
                run = new_run(group, wishes=given, **options)
            else:
                _refuse_changes(click.get_current_context())
                run = resumed_run(
                    group, resume, epochs=options["epochs"], accumulate=options["accumulate"], wishes=given
                )
            to_the_end(run, "".join(flags))
    except AnotherFailed:  # it has said why
        raise SystemExit(2) from None


def _refuse_changes(context: click.Context) -> None:
    flags = ", ".join(flag for name, flag in given_flags(context).items() if name not in ON_RESUME)
    if flags:
        raise InputError(f"--resume with {flags}; a resumed run keeps its own values: leave them out")
