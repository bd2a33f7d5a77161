"""The classifiers whose features the Fréchet distance compares: python -m fastdiff.bench.classifier fashion-mnist.

Trains one and writes bench/classifiers/NAME.safetensors with its card NAME.md. The sprites need their pictures and
labels: --data sprites_16x16.npy --labels sprite_labels.npy.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdiff
from fastdiff.checkpoints.tensors import read_tensors, write_tensors
from fastdiff.data.images import ImageData, split
from fastdiff.data.load import load_data
from fastdiff.errors import InputError, unknown_name
from fastdiff.files import write_atomically
from fastdiff.provenance import machine, source_version, versions

FOLDER = Path(__file__).resolve().parent / "classifiers"
NAMES = ("fashion-mnist", "sprites")
FEATURES = 64  # few enough for a covariance of full rank from some hundred pictures
EPOCHS = {"fashion-mnist": 8, "sprites": 40}
BATCH = 128
HOLDOUT = 0.05
FORMAT = 1


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


class Features(nn.Module):
    """A classifier's features, in the form that torchmetrics takes: `num_features`, images → (N, num_features)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self.num_features = FEATURES

    def train(self, mode: bool = True) -> Features:
        """Stays as it is: the statistics of its norms are those of its training."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


def load(name: str, folder: Path | None = None) -> Classifier:
    """The shipped classifier of that name, in eval mode; raises InputError where there is none, or no whole one."""
    path = (folder or FOLDER) / f"{name}.safetensors"
    if not path.is_file():
        raise unknown_name(
            "classifier", name, NAMES if folder is None else sorted(p.stem for p in path.parent.glob("*.s*"))
        )
    tensors, config = read_tensors(path)
    try:
        if config is None or config["format"] != FORMAT:
            raise ValueError("it has another format")
        made = Classifier(tuple(config["image_shape"]), len(config["class_names"]))
        made.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{str(path)!r} is not a classifier's file ({str(error).splitlines()[0]})") from error
    return made.eval().requires_grad_(False)


def features(name: str) -> Features:
    """Of the shipped classifier of that name; raises InputError."""
    return Features(load(name))


def stated_accuracy(name: str) -> tuple[float, int]:
    """The share of the held-out pictures that the shipped classifier names rightly, and their number."""
    _, config = read_tensors(FOLDER / f"{name}.safetensors")
    assert config is not None
    return config["accuracy"], config["held_out"]


def read_data(name: str, data: str | None = None, labels: str | None = None) -> ImageData:
    """The pictures that the shipped model of that name was trained on, and those held out; raises InputError.

    The sprites' labels may be missing. Their held-out pictures are those of the split by which the shipped model was
    trained (250, by its card): blocks of neighbours whatever their class, which load_data makes without labels.
    """
    if name == "fashion-mnist":
        return load_data(name) if data is None else load_data(data)
    if data is None:
        raise InputError(f"the data of {name!r} does not ship; give its pictures with --data")
    found = load_data(data, holdout=HOLDOUT)
    if labels is None:
        return found
    by_class = load_data(data, labels, holdout=HOLDOUT)  # checks the labels; its split is another one
    n = len(by_class.images) + len(by_class.val_images)
    kinds = torch.from_numpy(np.load(labels, allow_pickle=False).astype(np.float32))
    rows = split(name, torch.arange(n).view(n, 1, 1, 1), torch.zeros(n, 0), (), HOLDOUT)
    held, kept = rows.val_images.flatten(), rows.images.flatten()
    names = fastdiff.load(name).class_names or by_class.class_names
    return replace(found, labels=kinds[kept], val_labels=kinds[held]).named(tuple(names))


def batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of an epoch's batches, in random order; the few left over are left out."""
    order = torch.randperm(n, generator=generator)
    return (part for part in order.split(BATCH) if len(part) == min(BATCH, n))


def train(data: ImageData, epochs: int, seed: int = 0, tell: bool = True) -> Classifier:
    """By Adam under a one-cycle rate; pictures are mirrored at random, and moved by up to a pixel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(data.image_shape, data.labels.shape[1]).to(memory_format=torch.channels_last)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        each = sum(1 for _ in batches(len(data.images), torch.Generator()))
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, epochs * each)
        kinds = data.labels.argmax(dim=1)
        for epoch in range(epochs):
            network.train()
            total = 0.0
            for rows in batches(len(kinds), generator):
                loss = F.cross_entropy(network(varied(data.images[rows], generator)), kinds[rows], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rate.step()
                total += float(loss.detach())
            if tell:
                right = accuracy(network, data.val_images, data.val_labels)
                print(f"epoch {epoch + 1}: loss {total / each:.4f}, accuracy {right:.2%}", flush=True)
    return network.eval().requires_grad_(False)


def varied(images: Tensor, generator: torch.Generator, most: int = 1) -> Tensor:
    """uint8 → floats in [0, 1], half of them mirrored, the batch moved by up to `most` pixels; edges are repeated."""
    x = images.float() / 255
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    height, width = x.shape[2:]
    return F.pad(x, (most,) * 4, mode="replicate")[:, :, down : down + height, right : right + width]


@torch.no_grad()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of the pictures whose class the network in eval mode names."""
    network.eval()
    kinds = labels.argmax(dim=1)
    found = torch.cat([network(part).argmax(dim=1) for part in images.split(500)])
    return float((found == kinds).double().mean())


def confusions(network: Classifier, data: ImageData) -> list[str]:
    """A line of Markdown for each class: how many held-out pictures of it there are, and the share named rightly."""
    lines = []
    for k, name in enumerate(data.class_names):
        own = data.val_labels.argmax(dim=1) == k
        share = accuracy(network, data.val_images[own], data.val_labels[own]) if own.any() else float("nan")
        lines.append(f"| {name} | {int(own.sum()):,} | {share:.1%} |")
    return lines


def card(name: str, data: ImageData, network: Classifier, right: float, epochs: int, minutes: float, words: str) -> str:
    parameters = sum(p.numel() for p in network.parameters())
    command = f"python -m fastdiff.bench.classifier {words}"
    return "\n".join([
        f"# Classifier of {name}", "",
        f"Its {FEATURES} features are those of the Fréchet distance in `fastdiff.bench.quality`. Trained with", "",
        f"    {command}", "",
        "| | |", "| --- | --- |",
        f"| data | {data.name}: {len(data.images):,} pictures {'x'.join(map(str, data.image_shape))}, "
        f"{len(data.val_images):,} held out |",
        f"| accuracy on the held-out pictures, from the stored half-precision weights | {right:.2%} |",
        f"| network | 3 convolutions (32, 64, 96), {FEATURES} features, {len(data.class_names)} classes; "
        f"{parameters:,} parameters |",
        f"| epochs | {epochs} in {minutes:.0f} minutes |",
        f"| fastdiff | {source_version()} |",
        f"| on | {machine(torch.device('cpu'))}; {versions()} |", "",
        "A picture's features are the mean of its own and its mirror image's, each of unit variance over the training "
        "pictures.", "",
        "| class | held out | accuracy |", "| --- | --- | --- |", *confusions(network, data),
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.classifier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", help="a folder or file that fastdiff train --data takes")
    parser.add_argument("--labels", help="the .npy of labels beside an .npy of pictures")
    parser.add_argument("--epochs", type=int, help=f"default {EPOCHS}")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder for the weights and the card")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        data = read_data(given.name, given.data, given.labels)
        if not data.labels.shape[1]:
            raise InputError(f"data {data.name!r} has no labels; accepted: pictures with --labels")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    epochs, began = given.epochs or EPOCHS[given.name], time.perf_counter()
    network = train(data, epochs)
    minutes = (time.perf_counter() - began) / 60
    stored = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict(stored)
    right = accuracy(network, data.val_images, data.val_labels)
    config = {"format": FORMAT, "image_shape": list(data.image_shape), "class_names": list(data.class_names),
              "accuracy": right, "held_out": len(data.val_images)}  # fmt: skip
    path = given.output / f"{given.name}.safetensors"
    write_tensors(path, {k: v.contiguous() for k, v in stored.items()}, config)
    words = [Path(word).name if "/" in word else word for word in (arguments or sys.argv[1:])]
    text = card(given.name, data, network, right, epochs, minutes, shlex.join(words))
    write_atomically(path.with_suffix(".md"), lambda p: p.write_text(text + "\n"))
    print(text)


if __name__ == "__main__":
    main()
