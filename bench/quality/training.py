"""Trains the classifiers whose features the Fréchet distance compares."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastdiff.bench.quality.data import read_data
from fastdiff.checkpoints.tensors import write_tensors
from fastdiff.data.images import ImageData
from fastdiff.errors import unknown_name
from fastdiff.evaluation import pixels
from fastdiff.evaluation.classifier import FEATURES, FOLDER, NAMES, Classifier
from fastdiff.files import save_text
from fastdiff.markdown import table
from fastdiff.provenance import command as command_line
from fastdiff.provenance import machine, source_version, versions
from fastdiff.terminal import say, show

EPOCHS = {"fashion-mnist": 8, "sprites": 40}
BATCH = 128
NEWLINE = "\n"


def train(data: ImageData, epochs: int, seed: int = 0) -> Classifier:
    """By Adam under a one-cycle rate; pictures are mirrored at random, and moved by up to a pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = Classifier(data.image_shape, data.labels.shape[1])
        network: Classifier = made.to(memory_format=torch.channels_last)
        pairs = TensorDataset(pixels.everything(len(data.labels)), data.labels.argmax(dim=1))
        loader = DataLoader(pairs, min(BATCH, len(pairs)), shuffle=True, drop_last=True)
        pictures = pixels.training(data)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, epochs * len(loader))
        for epoch in range(epochs):
            network.train()
            for rows, kinds in loader:
                loss = F.cross_entropy(network(varied(pictures(rows))), kinds, label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rate.step()
            share = recognised(network, data).mean()
            say(f"epoch {epoch + 1}: loss {loss.item():.4f}, accuracy {share:.2%}")
    return network.eval().requires_grad_(False)


def varied(x: Tensor) -> Tensor:
    """The pictures, half of them mirrored, the batch moved by up to a pixel; edges are repeated."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    down, right = torch.randint(0, 3, (2,)).tolist()
    height, width = x.shape[2:]
    return F.pad(x, (1, 1, 1, 1), mode="replicate")[:, :, down : down + height, right : right + width]


@torch.no_grad()
def recognised(network: Classifier, data: ImageData) -> Tensor:
    """For each held-out picture 1 where the network, which is put into eval mode, names its class, else 0."""
    network.eval()
    pictures, rows = pixels.held_out(data), pixels.everything(len(data.val_labels))
    found = torch.cat([network(pictures(part)).argmax(dim=1) for part in rows.split(500)])
    return (found == data.val_labels.argmax(dim=1)).double()


def card(name: str, data: ImageData, network: Classifier, right: Tensor, epochs: int, minutes: float) -> str:
    """The model card; right: what `recognised` says of the held-out pictures."""
    counted = data.val_labels.sum(dim=0)
    shares = (data.val_labels.double() * right[:, None]).sum(dim=0) / counted
    classes = [
        [kind, f"{int(count):,}", f"{share:.1%}"]
        for kind, count, share in zip(data.class_names, counted, shares, strict=True)
    ]
    parameters = sum(p.numel() for p in network.parameters())
    size = f"3 convolutions (32, 64, 96), {FEATURES} features, {len(classes)} classes; {parameters:,} parameters"
    facts = [
        ["data", data.summary()],
        ["accuracy on the held-out pictures, from the stored half-precision weights", f"{right.mean():.2%}"],
        ["network", size],
        ["epochs", f"{epochs} in {minutes:.0f} minutes"],
        ["fastdiff", source_version()],
        ["on", f"{machine(torch.device('cpu'))}; {versions()}"],
    ]
    return f"""# Classifier of {name}

Its {FEATURES} features are those of `fastdiff eval` and `fastdiff bench quality`. Trained with

    {command_line()}

{NEWLINE.join(table(["", ""], facts))}

A picture's features are the mean of its own and its mirror image's, each of unit variance over the training pictures.

{NEWLINE.join(table(["class", "held out", "accuracy"], classes))}
"""


@click.command()
@click.argument("name")
@click.option("--data", help="The sprites' pictures, sprites_16x16.npy.")
@click.option("--labels", help="The sprites' labels, sprite_labels.npy.")
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
    """Train the classifier NAME, fashion-mnist or sprites; writes NAME.safetensors and its card NAME.md."""
    if name not in NAMES:
        raise unknown_name("classifier", name, NAMES)
    if threads:
        torch.set_num_threads(threads)
    pictures = read_data(name, data, labels)
    epochs, began = epochs or EPOCHS[name], time.perf_counter()
    network = train(pictures, epochs)
    minutes = (time.perf_counter() - began) / 60
    stored = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    network.load_state_dict(stored)
    right = recognised(network, pictures)
    config = {
        "image_shape": list(pictures.image_shape),
        "class_names": list(pictures.class_names),
        "accuracy": float(right.mean()),
        "held_out": len(right),
    }
    path = output / f"{name}.safetensors"
    write_tensors(path, {k: v.contiguous() for k, v in stored.items()}, config)
    text = card(name, pictures, network, right, epochs, minutes)
    save_text(text, path.with_suffix(".md"))
    show(text, newline=False)
