"""The project's own classifiers, whose features are compared unless others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.checkpoints.tensors import read_tensors
from fastdiff.errors import InputError

FOLDER = Path(__file__).resolve().parent / "classifiers"
NAMES = ("fashion-mnist", "sprites")
FEATURES = 64  # few enough for a covariance of full rank from some hundred pictures


class Classifier(nn.Module):
    """(N, C, H, W) floats in [-1, 1] → (N, classes) logits, from `FEATURES` features of unit variance.

    Outside of training a picture's features are the mean of its own and its mirror image's: the shipped models were
    trained on both, and the test sets hold only one of them.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.layers = nn.Sequential()
        for before, after in ((channels, 32), (32, 64), (64, 96)):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            self.layers.extend([convolution, nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU()])
        self.embed = nn.Linear(96 * (height // 8) * (width // 8), FEATURES, bias=False)
        self.norm = nn.BatchNorm1d(FEATURES, affine=False)
        self.classes = nn.Linear(FEATURES, classes)
        self.image_shape = tuple(image_shape)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) floats in [-1, 1] → (N, FEATURES); raises InputError for another shape."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(f"pictures of shape {tuple(images.shape)}; accepted: (N, {str(self.image_shape)[1:]}")
        if self.training:
            return self._one_side(images)
        return (self._one_side(images) + self._one_side(images.flip(3))) / 2

    def _one_side(self, x: Tensor) -> Tensor:
        return self.norm(self.embed(self.layers(x).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(F.dropout(F.relu(self.features(images)), 0.2, self.training))


def load(name: str, folder: Path = FOLDER) -> Classifier:
    """The classifier of that name, in eval mode."""
    tensors, config = _read(name, folder)
    made = Classifier(tuple(config["image_shape"]), len(config["class_names"]))
    made.load_state_dict(tensors)
    return made.eval().requires_grad_(False)


def stated_accuracy(name: str) -> tuple[float, int]:
    """The share of the held-out pictures that the shipped classifier names rightly, and their number."""
    _, config = _read(name, FOLDER)
    return config["accuracy"], config["held_out"]


def shapes() -> dict[tuple[int, int, int], str]:
    """(C, H, W) → the name of the classifier of such pictures."""
    return {tuple(_read(name, FOLDER)[1]["image_shape"]): name for name in NAMES}


def _read(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, config = read_tensors(folder / f"{name}.safetensors")
    assert config is not None
    return tensors, config
