"""Names in the folders that diffusers saves. Imports no torch."""

from __future__ import annotations

from pathlib import Path

INDEX, NETWORK, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
PARTS = ("unet_ema", "unet")  # folders of a network, averaged weights first


def is_folder(path: Path) -> bool:
    """Whether diffusers saved it: a pipeline, a training run's checkpoint, or a network alone."""
    return any((path / file).is_file() for file in (INDEX, NETWORK, *(f"{part}/{NETWORK}" for part in PARTS)))
