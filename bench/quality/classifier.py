"""The classifiers whose features the Fréchet distance compares, and the pictures that it is to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdiff
from fastdiff.checkpoints.tensors import read_tensors
from fastdiff.data.images import ImageData, split
from fastdiff.data.load import load_data
from fastdiff.errors import InputError

FOLDER = Path(__file__).resolve().parent.parent / "classifiers"
NAMES = ("fashion-mnist", "sprites")
FEATURES = 64  # few enough for a covariance of full rank from some hundred pictures
HOLDOUT = 0.05


class Classifier(nn.Module):
    """(N, C, H, W), uint8 or floats in [0, 1] → (N, classes) logits, from `FEATURES` features of unit variance.

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
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(f"pictures of shape {tuple(images.shape)}; accepted: (N, {str(self.image_shape)[1:]}")
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        if self.training:
            return self._one_side(x)
        return (self._one_side(x) + self._one_side(x.flip(3))) / 2

    def _one_side(self, x: Tensor) -> Tensor:
        return self.norm(self.embed(self.layers(x * 2 - 1).flatten(1)))

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


def _read(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, config = read_tensors(folder / f"{name}.safetensors")
    assert config is not None
    return tensors, config


def read_data(name: str, data: str | None = None, labels: str | None = None) -> ImageData:
    """The pictures that the shipped model of that name was trained on, and those held out; raises InputError.

    The files are the sprites'. Their held-out pictures are those of the split by which the shipped model was trained
    (250, by its card): blocks of neighbours whatever their class, which load_data makes without labels.
    """
    if name == "fashion-mnist":
        return load_data(name)
    if data is None or labels is None:
        raise InputError(f"the data of {name!r} does not ship; give its pictures and labels with --data and --labels")
    load_data(data, labels, holdout=HOLDOUT)  # checks the labels; its split is another one
    kinds = torch.from_numpy(np.load(labels, allow_pickle=False).astype(np.float32))
    rows = split(name, torch.arange(len(kinds)).view(-1, 1, 1, 1), torch.zeros(len(kinds), 0), (), HOLDOUT)
    held, kept = rows.val_images.flatten(), rows.images.flatten()
    found = replace(load_data(data, holdout=HOLDOUT), labels=kinds[kept], val_labels=kinds[held])
    return found.named(tuple(fastdiff.load(name).class_names))
