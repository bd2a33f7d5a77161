"""fastdiff info."""

from __future__ import annotations

import json
from pathlib import Path
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
    fastdiff info sampler.onnx
    """
    from fastdiff.checkpoints.shipped import shipped_models

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
    from fastdiff.checkpoints.config import model_config
    from fastdiff.checkpoints.load import stored_info

    if name.lower().endswith(".onnx"):
        return describe_onnx(name)
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
        "classes": ", ".join(about["class_names"]) or "none",
    }
