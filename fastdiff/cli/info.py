"""fastdiff info."""

from __future__ import annotations

import json
from typing import Any

import click

from fastdiff.cli.options import foreign_options, load_model


@click.command(short_help="What a checkpoint is.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@foreign_options
def info(model: str | None, as_json: bool, schedule: str | None, timesteps: int | None, image_size: int | None) -> None:
    """Tell what MODEL is: its network, schedule, prediction type, image shape and classes.

    Without MODEL, list the models that come with the package.

    \b
    fastdiff info
    fastdiff info sprites
    fastdiff info my_tutorial_model.pt
    """
    from fastdiff.checkpoint import shipped_models

    if model is None:
        for name, path in shipped_models().items():
            click.echo(f"{name:16} {path.stat().st_size / 1e6:.1f} MB")
        return
    facts = describe(model, schedule, timesteps, image_size)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:{width}}  {value}")


def describe(name: str, schedule: str | None, timesteps: int | None, image_size: int | None) -> dict[str, Any]:
    from fastdiff.checkpoint import model_config, stored_info

    model = load_model(name, schedule, timesteps, image_size)
    config = model_config(model)
    network = config["network"]
    options = ", ".join(f"{k}={v}" for k, v in network.items() if k != "name")
    parts = config["schedule"]
    end = float(model.schedule.alphas_cumprod[-1])
    tensors = model.network.state_dict()
    return {
        "network": f"{type(model.network).__name__}({options})",
        "parameters": f"{sum(p.numel() for p in model.network.parameters()):,} in {len(tensors)} tensors",
        "schedule": f"{parts['name']}, {model.schedule.num_timesteps} timesteps, alphas_cumprod ends at {end:.2g}",
        "prediction_type": model.prediction_type,
        "image_shape": "x".join(map(str, model.image_shape)) + " (channels, height, width)",
        "time": f"{model.time} ({'t / T' if model.time == 'fraction' else 'integer t'})",
        "classes": ", ".join(model.class_names) or "none",
        "clip": str(model.clip),
        **stored_info(name),
    }
