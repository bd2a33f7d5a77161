"""The models that come with the package, and the file of a model by any name. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from fastdiff.checkpoints.diffusers_files import is_folder
from fastdiff.errors import unknown_name, wrong_type

SHIPPED = Path(__file__).parent.parent / "models"


def shipped_models() -> dict[str, Path]:
    """Name → checkpoint of the models that come with the package."""
    return {path.parent.name: path for path in sorted(SHIPPED.glob("*/model.safetensors"))}


def locate(name_or_path: str | Path) -> Path:
    """The file of a shipped model or of a training run's folder, or the path itself, of a file or of diffusers' folder.

    Raises:
        InputError: if there is none.
    """
    if not isinstance(name_or_path, (str, Path)):
        raise wrong_type("model", name_or_path, "a shipped model's name or a path")
    shipped = shipped_models()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path = Path(name_or_path)
    try:
        if path.is_dir() and (path / "model.safetensors").is_file():
            return path / "model.safetensors"  # the folder of a training run
        if path.is_dir() and is_folder(path):
            return path
        found = path.is_file()
    except OSError:  # a name too long
        found = False
    if not found:
        raise unknown_name("model (neither a file nor a shipped model)", str(name_or_path), shipped)
    return path
