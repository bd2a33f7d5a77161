"""fastdiff info."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fastdiff.cli.completion import complete_model
from fastdiff.cli.options import ONNX, foreign_options, load_model
from fastdiff.errors import printable
from fastdiff.terminal import say, show

SOME = ("context", "self_condition", "values", "sampled by")  # facts that not every model has


@click.command(short_help="What a checkpoint is.")
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@foreign_options
def info(model: str | None, as_json: bool, **foreign: Any) -> None:
    """Tell what MODEL is: its network, schedule, prediction type, image shape and classes.

    Without MODEL, list the models that come with the package.

    \b
    fastdiff info
    fastdiff info sprites
    fastdiff info my_tutorial_model.pt
    fastdiff info sampler.onnx
    """
    from fastdiff.checkpoints.shipped import shipped_models

    if model is None:
        for name, path in shipped_models().items():
            say(f"{name:16} {path.stat().st_size / 1e6:.1f} MB")
        return
    facts, said = (describe_onnx(model), {}) if model.lower().endswith(ONNX) else describe(model, **foreign)
    if as_json:
        show(json.dumps({**facts, **said}, indent=2).replace("\x7f", r"\u007f"))
        return
    _list(facts)
    if said:
        say("The file says:")
        _list(said, indent="  ")


def _list(facts: Mapping[str, Any], indent: str = "") -> None:
    width = max(map(len, map(printable, facts)))
    for name, value in facts.items():
        say(f"{indent}{printable(name):{width}}  {value}")


def describe(name: str, **foreign: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint holds, and what it says about its making, under no name of the former."""
    from fastdiff.checkpoints.config import model_config
    from fastdiff.checkpoints.load import FILE, stored_info

    model = load_model(name, foreign)
    config = model_config(model)
    parts = config["schedule"]
    end = float(model.schedule.alphas_cumprod[-1])
    tensors = model.network.state_dict()
    facts = {
        "network": _described(config["network"], model.network),
        "parameters": f"{sum(p.numel() for p in model.network.parameters()):,} in {len(tensors)} tensors",
        "schedule": f"{parts['name']}, {model.schedule.num_timesteps} timesteps, alphas_cumprod ends at {end:.2g}",
        "prediction_type": model.prediction_type + (", and the noise's variance" if model.learned_variance else ""),
        "image_shape": "x".join(map(str, model.image_shape)) + " (channels, height, width)",
        "time": f"{model.time} ({'t / T' if model.time == 'fraction' else 'integer t'})",
        "classes": describe_classes(model.class_names, model.context_width, model.num_classes),
        "clip": str(model.clip),
    }
    if model.needs_context is not None and model.num_classes is None:
        facts["context"] = f"{model.needs_context}, needed for each sample: tokens (L, D), say, as --context FILE.npy"
    if model.self_condition:
        facts["self_condition"] = "each step is given the image that the step before predicted"
    if model.value_range is not None:
        low, high = model.value_range
        facts["values"] = f"-1 and 1 are {low:.7g} and {high:.7g} of the data; so --npy writes them"
    if model.scheduler is not None:
        scheduler = model.scheduler
        facts["sampled by"] = f"{scheduler.name} of diffusers, {scheduler.steps} steps; or a --sampler"
    said = stored_info(name)
    if FILE in said:
        facts[FILE] = said.pop(FILE)
    return facts, {key: value for key, value in said.items() if key not in (*facts, *SOME)}


def _described(config: Mapping[str, Any], network: Any) -> str:
    """A network's class and options, of diffusers' many those that were chosen."""
    from fastdiff.checkpoints.config import DIFFUSERS, EDM

    if config["name"] == EDM:
        inner = _described(config["network"], network.network.network)
        return f"{inner}, with EDM's preconditioning (sigma_data {config['sigma_data']:g})"
    options = {name: value for name, value in config.items() if name != "name"}
    if config["name"] == DIFFUSERS:
        defaults = inspect.signature(type(network)).parameters
        options = {k: v for k, v in config["options"].items() if k in defaults and v != defaults[k].default}
    return f"{type(network).__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


def describe_classes(names: Sequence[str], width: int | None, classes: int | None) -> str:
    """The classes' names, or where they have none how many class numbers there are, or numbers of a context."""
    if classes is not None and not names:
        return f"{classes}, without names: a context is a number from 0 to {classes - 1}, or --class-names names them"
    if names or not width:
        return ", ".join(names) or "none"
    return f"{width}, without names: a context is {width} numbers, or --class-names names them"


def describe_onnx(path: str) -> dict[str, Any]:
    """What a file of `fastdiff export` says of itself, and its inputs and outputs."""
    from fastdiff.export.runner import open_file

    session, about = open_file(path)

    def ends(values: Any) -> str:
        return ", ".join(f"{v.name} ({', '.join(map(str, v.shape))})" for v in values)

    sampler, schedule = about.get("sampler"), about["schedule"]
    loop = f"{sampler['name']}, {sampler['steps']} steps" if sampler else "any, the table is an input"
    return {
        "file": f"ONNX {about['kind']}, {Path(path).stat().st_size / 1e6:.1f} MB, made by {about['made_by']}",
        **({"sampler": loop, "clip": str(about["clip"])} if about["kind"] == "sampler" else {}),
        "inputs": ends(session.get_inputs()),
        "outputs": ends(session.get_outputs()),
        "dtype": f"{about['dtype']}, weights stored as {about['weights']}",
        "schedule": f"{schedule['name']}, {about['timesteps']} timesteps",
        "prediction_type": about["prediction_type"],
        "image_shape": "x".join(map(str, about["image_shape"])) + " (channels, height, width)",
        "time": about["time"],
        "classes": describe_classes(about["class_names"], about["context_width"], about["num_classes"]),
    }
