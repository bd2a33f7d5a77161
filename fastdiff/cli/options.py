"""Options that several commands share, how their texts become values, and how values become text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fastdiff.cli.completion import complete
from fastdiff.engine.placement import DTYPES, check_threads, choose_device
from fastdiff.errors import InputError, NotFinite, unknown_name, warn_caller, whole_number
from fastdiff.samplers.prediction import PREDICTION_TYPES
from fastdiff.samplers.samplers import DEFAULT, SAMPLERS, STEPS
from fastdiff.samplers.schedule import NAMES as SCHEDULES
from fastdiff.samplers.sigmas import SIGMAS
from fastdiff.samplers.spacing import SPACING, SPACINGS

if TYPE_CHECKING:
    import torch

    from fastdiff.model import Model

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

ONNX = ".onnx"
GIF_FRAMES, MAX_GIF_FRAMES = 40, 1_000_000

device_option = click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda, cuda:1, ...  [default: cuda where there is one]",
    shell_complete=complete(("cpu", "cuda")),
)
threads_option = click.option(
    "--threads",
    type=int,
    callback=lambda context, option, number: None if number is None else check_threads(number),
    help="CPU threads.  [default: as many as cores]",
)


def as_one(*options: Decorator) -> Decorator:
    """Several options as one, in the order in which the help shows them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def listed(names: Iterable[str], last: str = " or ") -> str:
    """ "a, b or c"."""
    *others, final = names
    return f"{', '.join(others)}{last}{final}" if others else final


def sampler_list() -> str:
    """The samplers with their titles, for the end of a command's help."""
    width = max(map(len, SAMPLERS))
    return "\b\nSamplers\n" + "\n".join(f"  {name:{width}}  {one.title}" for name, one in SAMPLERS.items())


def eta_help() -> str:
    takers = listed(name for name, sampler in SAMPLERS.items() if sampler.takes_eta)
    return f"Noise of {takers}, 0 (none) to 1 (the most; ddim then is ddpm)."


def steps_help() -> str:
    """Of --steps, with the samplers' default steps."""
    whole = [name for name, sampler in SAMPLERS.items() if sampler.steps is None]
    others = [f"{one.steps} with {name}" for name, one in SAMPLERS.items() if one.steps not in (STEPS, None)]
    defaults = f"{', '.join([str(STEPS), *others])}, or T if that is less; T with {listed(whole, last=' and ')}"
    return f"The sampler's steps, 1 to the model's timesteps T.  [default: {defaults}]"


# Which timesteps a run visits; parse_timesteps reads the last.
node_options = as_one(
    click.option(
        "--spacing",
        help=f"Which timesteps are taken: {listed(SPACINGS)}.  [default: {SPACING}, or the scheduler's own]",
        shell_complete=complete(SPACINGS),
    ),
    click.option(
        "--sigmas",
        help=f"Spread the noise levels anew: {listed(SIGMAS)}.  [default: those of the timesteps]",
        shell_complete=complete(SIGMAS),
    ),
    click.option(
        "--at-timesteps",
        "at_timesteps",
        metavar="T,T,...",
        help="The timesteps themselves, in place of --steps, --spacing and --sigmas: 999,749,499,249.",
    ),
)


# The sampler, its steps and its eta.
sampler_options = as_one(
    click.option(
        "--sampler",
        help=f"{listed(SAMPLERS)}.  [default: {DEFAULT}, or the scheduler that the model brings]",
        shell_complete=complete(SAMPLERS),
    ),
    click.option("--steps", type=int, help=steps_help()),
    click.option("--eta", type=float, default=0.0, show_default=True, help=eta_help()),
)


# Where and how the network runs.
engine_options = as_one(
    click.option(
        "--dtype",
        help=f"What the network computes in: {listed(DTYPES)}.  [default: float32]",
        shell_complete=complete(DTYPES),
    ),
    click.option("--form", help="How the network runs, such as eager.  [default: the fastest for the device]"),
    device_option,
    threads_option,
)


NODES = ("spacing", "sigmas", "at_timesteps")


def chosen_nodes(options: dict[str, Any]) -> dict[str, Any]:
    """What node_options say, for Model.table, taken out of the options."""
    spacing, sigmas, timesteps = (options.pop(name, None) for name in NODES)
    return {"spacing": spacing, "sigmas": sigmas, "timesteps": parse_timesteps(timesteps)}


def parse_timesteps(text: str | None) -> list[float] | None:
    """999,749.5 as numbers."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--at-timesteps {text!r}; accepted: numbers such as 999,749,499,249") from None


# Those of foreign_options without which it cannot be sampled from.
unsaid_options = as_one(
    click.option(
        "--schedule",
        help=f"Training schedule, for a file that does not say: {listed(SCHEDULES)}.  "
        "[default: the tutorial's or the course's]",
        shell_complete=complete(SCHEDULES),
    ),
    click.option(
        "--timesteps",
        type=int,
        help="Training timesteps T of --schedule, at least 1.  [default: the tutorial's 200, the course's 500]",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(1),
        help="Side of the images in pixels, for a file that does not say.  [default: the Annotated tutorial's 28]",
    ),
    click.option(
        "--prediction-type",
        help=f"What the network predicts, for a file that does not say: {listed(PREDICTION_TYPES)}.  "
        "[default: the tutorial's and the course's epsilon]",
        shell_complete=complete(PREDICTION_TYPES),
    ),
)
# What a state dict from elsewhere does not say about itself; load_model takes them.
foreign_options = as_one(
    unsaid_options,
    click.option(
        "--class-names", metavar="NAME,NAME,...", help="Names of the model's classes, for a file without them."
    ),
)
FOREIGN = ("schedule", "timesteps", "image_size", "prediction_type", "class_names")


def load_model(name: str, options: dict[str, Any]) -> Model:
    """The model of that name or path, with what foreign_options say of it, which are taken out of the options."""
    from fastdiff.checkpoints.load import load
    from fastdiff.samplers.schedule import make_schedule

    schedule, timesteps, size, kind, names = (options.pop(one, None) for one in FOREIGN)
    if name.lower().endswith(ONNX):
        raise InputError(f"{name!r} is an ONNX file; accepted here: a shipped model's name or a checkpoint")
    if (schedule is None) != (timesteps is None):
        raise InputError("--schedule and --timesteps belong together; give both or neither")
    return load(
        name,
        schedule=None if schedule is None else make_schedule(schedule, timesteps),
        image_size=size,
        prediction_type=kind,
        class_names=class_names(names),
    )


def class_names(text: str | None) -> list[str]:
    """Of --class-names, "cat, dog"; none of an option that was not given."""
    return [name.strip() for name in text.split(",")] if text else []


def parse_dtype(name: str, accepted: Iterable[str] = DTYPES) -> torch.dtype:
    import torch

    if name not in accepted:
        raise unknown_name("dtype", name, accepted)
    return getattr(torch, name)


def parse_gif_frames(text: str | None) -> int | None:
    """The most frames an animation may have, GIF_FRAMES unless given; None for "all"."""
    if text is None:
        return GIF_FRAMES
    if text == "all":
        return None
    number = whole_number(text)
    if number is None or not 1 <= number <= MAX_GIF_FRAMES:
        raise InputError(f"--gif-frames {text!r}; accepted: a whole number from 1 to {MAX_GIF_FRAMES}, or all")
    return number


def parse_clip(text: str | None) -> Any:
    """off, a bound, dynamic, or dynamic=0.99; the model's own where nothing is said."""
    if text is None:
        return "model"
    if text == "off":
        return None
    word, _, quantile = text.partition("=")
    try:
        return ("dynamic", float(quantile or 0.995)) if word == "dynamic" else float(text)
    except ValueError:
        raise InputError(f"clip {text!r}; accepted: off, a bound such as 1, dynamic, dynamic=0.99") from None


def say_clip(text: str | None, model: Model) -> None:
    """Note that the model's own clip is used, where nothing is said."""
    if text is None and model.clip is not None:
        warn_caller(
            f"the predicted image is clipped, by {model.clip}, as the model has it; --clip off leaves it as it is"
        )


def given_flags(context: click.Context) -> dict[str, str]:
    """Name → flag of the options that were typed, in the order of the command's help."""
    typed = click.core.ParameterSource.COMMANDLINE
    return {
        str(option.name): option.opts[-1]
        for option in context.command.params
        if context.get_parameter_source(str(option.name)) == typed
    }


@contextmanager
def refusing_nan(more: str = "") -> Iterator[None]:
    """Within the context images that hold NaN or infinity are an error, not a note; more: what else may be done."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotFinite)
            yield
    except NotFinite as error:
        raise InputError(
            f"{error}. They are not written: float32 or bfloat16 (--dtype) may hold what float16 does not, and --clip "
            f"1 keeps images from growing{more}"
        ) from error


def parse_device(text: str | None) -> torch.device:
    """Checked; raises InputError for one that is not here."""
    return choose_device(text)
