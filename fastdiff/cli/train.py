"""fastdiff train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastdiff.cli.options import device_option, given_flags, parse_device, set_threads, threads_option
from fastdiff.errors import InputError, unknown_name

if TYPE_CHECKING:
    from fastdiff.training.recipe import Recipe
    from fastdiff.training.trainer import Trainer


@click.command(short_help="Train a model of your own.")
@click.option(
    "--preset",
    default="annotated",
    show_default=True,
    help="annotated (the Annotated Diffusion Model) or course (How Diffusion Models Work).",
)
@click.option(
    "--data",
    help="fashion-mnist, a folder of IDX files, of CIFAR-10 or of pictures, or an .npy of pictures.  "
    "[default with --preset annotated: fashion-mnist]",
)
@click.option("--labels", help="The (N, K) .npy of labels beside an .npy of pictures.")
@click.option("--class-names", help="Names of the K labels, with commas between them.")
@click.option("--size", type=click.IntRange(4), help="Cut pictures of a folder to squares of this size.")
@click.option("-o", "--output", default="runs/model", show_default=True, help="Folder of the run.")
@click.option("--init", metavar="MODEL", help="Start from this model's weights in place of random ones.")
@click.option(
    "--resume",
    metavar="FOLDER",
    help="Continue an interrupted run exactly; takes no other option but --device and --threads.",
)
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float, help="Learning rate at the start.")
@click.option("--lr-final", type=float, help="Learning rate at the end.")
@click.option("--lr-decay", help="cosine, linear-epoch or constant.")
@click.option("--optimizer", help="adam or adamw.")
@click.option("--weight-decay", type=float)
@click.option("--loss", help="huber, l1 or l2.")
@click.option("--p2-gamma", type=float, help="p2 weighting; 0 is off.")
@click.option("--min-snr", type=float, help="min-SNR weighting with this gamma.")
@click.option("--ema", "ema_decay", type=float, help="Decay of averaged weights, such as 0.999; 0 is off.")
@click.option("--flip/--no-flip", default=None, help="Random horizontal flips.")
@click.option("--context-dropout", type=float, help="Share of samples trained without their context.")
@click.option("--bf16/--no-bf16", default=None, help="Run the network in bfloat16.")
@click.option("--schedule", help="linear, cosine, quadratic, sigmoid or course.")
@click.option("--timesteps", type=int, help="Training timesteps T.")
@click.option("--beta-start", type=float, help="First beta of the schedule.  [default: 1e-4]")
@click.option("--beta-end", type=float, help="Last beta of the schedule.  [default: 0.02]")
@click.option("--prediction-type", help="epsilon, sample or v_prediction.")
@click.option(
    "--course-perturbation",
    is_flag=True,
    default=None,
    help="Perturb as the course's code does, (1 - abar) noise; for comparison.",
)
@click.option("--dim", type=int, help="Base width of the Annotated U-Net.")
@click.option("--dim-mults", help="Its widths by level, such as 1,2,4.")
@click.option("--block", help="Its blocks: convnext or resnet.")
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
def train(
    preset: str,
    data: str | None,
    labels: str | None,
    class_names: str | None,
    size: int | None,
    output: str,
    init: str | None,
    resume: str | None,
    holdout: float,
    device: str | None,
    threads: int | None,
    **options: Any,
) -> None:
    """Train a network on pictures. Presets are the published recipes; options change single values.

    \b
    annotated  Annotated U-Net, dim 28; linear schedule, T = 200; Huber loss; Adam, learning rate 1e-4
               to 1e-7 by a cosine; batches of 16; 10 epochs; horizontal flips
    course     ContextUnet, 64 features; T = 500; L2 loss; Adam, learning rate 1e-3 falling linearly;
               batches of 100; 32 epochs; contexts of 10% dropped

    \b
    fastdiff train -o runs/garments
    fastdiff train --preset course --data sprites.npy --labels labels.npy -o runs/sprites
    fastdiff train --data my_pictures/ --size 32 --dim 64 --epochs 50 --ema 0.999 -o runs/mine
    fastdiff train --init sprites --preset course --data tiles.npy --labels tiles_labels.npy -o runs/tuned
    fastdiff train --resume runs/mine

    The folder gets the model (model.safetensors, for `fastdiff sample`), a checkpoint to resume from, the loss
    curve, a grid of samples for every epoch, and a model card. Ctrl-C saves before it stops.
    """
    from fastdiff.checkpoints.load import load, stored_info
    from fastdiff.data.load import load_data
    from fastdiff.training import folder as runlog
    from fastdiff.training.loop import Run
    from fastdiff.training.trainer import Trainer, read_training

    set_threads(threads)
    chosen = parse_device(device)
    if resume is not None:
        _refuse_changes(click.get_current_context())
        path = Path(resume)
        if not path.exists() or not resume:
            raise InputError(f"no run to resume at {resume!r}; accepted: the folder of a run, or its checkpoint")
        tensors, kept = read_training(path / "checkpoint.safetensors" if path.is_dir() else path)
        recipe, source, command = _recipe_from(kept["recipe"]), kept["data"], kept["command"]
        folder = runlog.RunFolder(path if path.is_dir() else path.parent, resume=True)
    else:
        recipe = build_recipe(preset, options)
        source = _source(preset, data, labels, class_names, size, holdout)
        command = runlog.command_line()
        folder = runlog.RunFolder(output)
        if init is not None:
            command = f"{command}  # {init}: {stored_info(init).get('trained with', 'a model from elsewhere')}"
    pictures = load_data(**source)
    trainer = Trainer(recipe, pictures, chosen, load(init) if init is not None else None)
    if resume is not None:
        if pictures.fingerprint() != kept["fingerprint"]:
            raise InputError(f"data {source['source']!r} has changed since the run began; a resumed run needs the same")
        trainer.restore(folder.checkpoint, tensors, kept["steps_done"])
        folder.read_log(trainer.steps_done)
    _check_picture_size(trainer)
    click.echo(
        f"{len(pictures.images):,} pictures {'x'.join(map(str, pictures.image_shape))} of {pictures.name}, "
        f"{sum(p.numel() for p in trainer.network.parameters()):,} parameters, "
        f"{trainer.total_steps:,} steps in {recipe.epochs} epochs on {runlog.machine(chosen)}"
    )
    Run(trainer, folder, source, command).to_the_end()


def build_recipe(preset: str, options: dict[str, Any]) -> Recipe:
    """A preset with the options that were given."""
    from fastdiff.training.recipe import PRESETS

    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    recipe = PRESETS[preset]
    network = dict(recipe.network)
    for name, kind in (("dim", "annotated"), ("dim_mults", "annotated"), ("block", "annotated"), ("n_feat", "context")):
        value = options.pop(name, None)
        if value is None:
            continue
        if network["name"] != kind:
            raise InputError(
                f"--{name.replace('_', '-')} {value} with preset {preset!r}; it belongs to another network"
            )
        if name == "dim_mults":
            try:
                value = [int(part) for part in value.split(",")]
            except ValueError:
                raise InputError(f"--dim-mults {value!r}; accepted: whole numbers, such as 1,2,4") from None
        network[name] = value
    return recipe.with_options({**options, "network": network})


def _recipe_from(config: dict[str, Any]) -> Recipe:
    from fastdiff.training.recipe import Recipe

    names = {field.name for field in dataclasses.fields(Recipe)}
    if config.keys() != names:
        odd = sorted(config.keys() ^ names)
        raise InputError(f"the checkpoint's recipe differs from this version's in {', '.join(odd)}")
    return Recipe(**config)


def _source(
    preset: str, data: str | None, labels: str | None, class_names: str | None, size: int | None, holdout: float
) -> dict[str, Any]:
    """load_data's arguments, as plain values with absolute paths, so that a resumed run finds the data."""
    if data is None:
        if preset != "annotated":
            raise InputError(f"preset {preset!r} needs --data: an .npy of pictures with --labels, or a folder")
        data = "fashion-mnist"
    names = [name.strip() for name in class_names.split(",")] if class_names else []
    return {
        "source": data if data == "fashion-mnist" else str(Path(data).resolve()),
        "labels": None if labels is None else str(Path(labels).resolve()),
        "size": size,
        "class_names": names,
        "holdout": holdout,
    }


def _refuse_changes(context: click.Context) -> None:
    free = {"resume", "device", "threads"}
    flags = ", ".join(flag for name, flag in given_flags(context).items() if name not in free)
    if flags:
        raise InputError(f"--resume with {flags}; a resumed run keeps its own values: leave them out")


def _check_picture_size(trainer: Trainer) -> None:
    """One evaluation, so that a size the network cannot take is refused before the run."""
    import torch

    with torch.inference_mode():
        network = trainer.model.network
        training = network.training
        x = torch.zeros(1, *trainer.data.image_shape, device=trainer.device)
        network.eval()(x, torch.ones(1, device=trainer.device))
        network.train(training)
