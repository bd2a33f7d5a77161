"""Trains the classifiers whose features the Fréchet distance compares."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.bench.quality import classifier
from fastdiff.bench.quality.classifier import FEATURES, FOLDER, FORMAT, NAMES, Classifier
from fastdiff.bench.report import command as command_line
from fastdiff.bench.report import save_text
from fastdiff.bench.tables import table
from fastdiff.checkpoints.tensors import write_tensors
from fastdiff.data.images import ImageData
from fastdiff.errors import InputError, unknown_name
from fastdiff.provenance import machine, source_version, versions

EPOCHS = {"fashion-mnist": 8, "sprites": 40}
BATCH = 128


def batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of an epoch's batches, in random order; the few left over are left out."""
    order = torch.randperm(n, generator=generator)
    return (part for part in order.split(BATCH) if len(part) == min(BATCH, n))


def train(data: ImageData, epochs: int, seed: int = 0, tell: bool = True) -> Classifier:
    """By Adam under a one-cycle rate; pictures are mirrored at random, and moved by up to a pixel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = Classifier(data.image_shape, data.labels.shape[1])
        network: Classifier = made.to(memory_format=torch.channels_last)
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


def confusions(network: Classifier, data: ImageData) -> list[list[str]]:
    """For each class its name, how many held-out pictures of it there are, and the share named rightly."""
    lines = []
    for k, name in enumerate(data.class_names):
        own = data.val_labels.argmax(dim=1) == k
        share = accuracy(network, data.val_images[own], data.val_labels[own]) if own.any() else float("nan")
        lines.append([name, f"{int(own.sum()):,}", f"{share:.1%}"])
    return lines


def card(name: str, data: ImageData, network: Classifier, right: float, epochs: int, minutes: float) -> str:
    parameters = sum(p.numel() for p in network.parameters())
    facts = [
        [
            "data",
            f"{data.name}: {len(data.images):,} pictures {'x'.join(map(str, data.image_shape))}, "
            f"{len(data.val_images):,} held out",
        ],
        ["accuracy on the held-out pictures, from the stored half-precision weights", f"{right:.2%}"],
        [
            "network",
            f"3 convolutions (32, 64, 96), {FEATURES} features, {len(data.class_names)} classes; "
            f"{parameters:,} parameters",
        ],
        ["epochs", f"{epochs} in {minutes:.0f} minutes"],
        ["fastdiff", source_version()],
        ["on", f"{machine(torch.device('cpu'))}; {versions()}"],
    ]
    return "\n".join(
        [
            f"# Classifier of {name}",
            "",
            f"Its {FEATURES} features are those of the Fréchet distance in `fastdiff bench quality`. Trained with",
            "",
            f"    {command_line()}",
            "",
            *table(["", ""], facts),
            "",
            "A picture's features are the mean of its own and its mirror image's, each of unit variance over the "
            "training pictures.",
            "",
            *table(["class", "held out", "accuracy"], confusions(network, data)),
        ]
    )


@click.command()
@click.argument("name")
@click.option("--data", help="A folder or file that fastdiff train --data takes.")
@click.option("--labels", help="The .npy of labels beside an .npy of pictures.")
@click.option(
    "--epochs", type=click.IntRange(1), help=f"Default: {', '.join(f'{v} for {k}' for k, v in EPOCHS.items())}."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: as many as cores]")
@click.option(
    "-o", "--output", type=Path, default=FOLDER, metavar="DIR", help="The folder for the weights and the card."
)
def command(
    name: str, data: str | None, labels: str | None, epochs: int | None, threads: int | None, output: Path
) -> None:
    """Train the classifier NAME: fashion-mnist or sprites.

    Writes NAME.safetensors and its card NAME.md. The sprites need their pictures and labels: --data sprites_16x16.npy
    --labels sprite_labels.npy.
    """
    if name not in NAMES:
        raise unknown_name("classifier", name, NAMES)
    if threads:
        torch.set_num_threads(threads)
    pictures = classifier.read_data(name, data, labels)
    if not pictures.labels.shape[1]:
        raise InputError(f"data {pictures.name!r} has no labels; accepted: pictures with --labels")
    epochs, began = epochs or EPOCHS[name], time.perf_counter()
    network = train(pictures, epochs)
    minutes = (time.perf_counter() - began) / 60
    stored = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict(stored)
    right = accuracy(network, pictures.val_images, pictures.val_labels)
    config = {
        "format": FORMAT,
        "image_shape": list(pictures.image_shape),
        "class_names": list(pictures.class_names),
        "accuracy": right,
        "held_out": len(pictures.val_images),
    }
    path = output / f"{name}.safetensors"
    write_tensors(path, {k: v.contiguous() for k, v in stored.items()}, config)
    text = card(name, pictures, network, right, epochs, minutes)
    save_text(text + "\n", path.with_suffix(".md"))
    click.echo(text)
