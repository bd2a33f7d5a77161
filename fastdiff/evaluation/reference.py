"""The real pictures that samples are compared with, as features, and the comparison."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.data.images import ImageData, kinds
from fastdiff.errors import InputError
from fastdiff.evaluation import pixels
from fastdiff.evaluation.features import Features, Tick, silent
from fastdiff.evaluation.measures import NEIGHBOURS, frechet, precision_recall
from fastdiff.evaluation.proportions import drawn, held_out, mixed

FLOORS = 5  # draws of training pictures
TRAINING = 10_000  # training pictures at most for the second distance
FEWEST = NEIGHBOURS + 1  # pictures on either side, by precision and recall


@dataclass(frozen=True)
class Reference:
    """Features of the held-out and of training pictures, and what training pictures reach in the place of samples.

    Attributes:
        features: what made them.
        data: the pictures.
        n: how many samples are compared with them.
        real: (m, D) float64 of all held-out pictures.
        training: (up to TRAINING, D), at random.
        training_kinds: (the same,) the class of each, -1 of none.
        floors: by whether samples have the held-out pictures' classes in their proportions, the measures of FLOORS
            draws of n training pictures, which have them then too and are any else: what perfect samples reach.
    """

    features: Features
    data: ImageData
    n: int
    real: Tensor
    training: Tensor
    training_kinds: Tensor
    floors: dict[bool, dict[str, Any]]

    @classmethod
    def of(cls, features: Features, data: ImageData, n: int, floors: Iterable[bool], tick: Tick = silent) -> Reference:
        """Computes them, and those floors; raises InputError for fewer than FEWEST held-out pictures."""
        check_held_out(data)
        known = pixels.some(len(data), TRAINING)
        real = features.of(pixels.held_out(data), pixels.everything(len(data.val_labels)), tick)
        training = features.of(pixels.training(data), known, tick)
        found = {alike: _floor(features, data, n, alike, real, tick) for alike in floors}
        return cls(features, data, n, real, training, kinds(data.labels[known]), found)

    def facts(self) -> dict[str, Any]:
        """For reports."""
        names, counts = self.data.class_names, held_out(self.data)
        return {
            "images": self.n,
            "real": len(self.real),
            "real_of_each_class": dict(zip(names, counts, strict=True)) if names else {},
            "training": len(self.training),
            "compared": min(self.n, len(self.real)),
        }

    def compare(self, made: Tensor) -> dict[str, Any]:
        """The measures of n samples.

        Args:
            made: (n, D) their features, in the order of the samples.

        Returns:
            distance and to_training: Fréchet distances to held-out and to training pictures; halves: of the first
            and of the last half of the samples, to held-out ones; precision and recall.

        Raises:
            InputError: if the distance is not finite.
        """
        distance = frechet(made, self.real)
        if not math.isfinite(distance):
            raise InputError(f"the Fréchet distance is {distance}; accepted: features that have one")
        halves = [frechet(half, self.real) for half in made.tensor_split(2)]
        return {
            "distance": distance,
            "halves": halves,
            "to_training": frechet(made, self.training),
            **_shares(made, self.real),
        }

    def by_class(self, made: Tensor, classes: Sequence[tuple[str, int]], order: Sequence[int]) -> list[dict[str, Any]]:
        """The measures of each class by itself, left out where they would mean nothing.

        Args:
            made: (n, D) features of samples.
            classes: each one's name, and its column in the data's labels.
            order: the samples' classes, as places in `classes`; it repeats.

        Returns:
            A row for each class: its counts; distance where both sides have more pictures than features, so that their
            covariances have full rank; precision and recall where both have FEWEST; and floor, the same of as many
            training pictures of that class, or as there are.
        """
        given, found, rows = torch.tensor(order)[torch.arange(len(made)) % len(order)], kinds(self.data.val_labels), []
        for k, (name, column) in enumerate(classes):
            mine, real = made[given == k], self.real[found == column]
            known = self.training[self.training_kinds == column][: len(mine)]
            row = {"class": name, "images": len(mine), "real": len(real)}
            rows.append({**row, **_within(mine, real), "floor": _within(known, real)})
        return rows


def check_held_out(data: ImageData) -> None:
    """Raise InputError for fewer held-out pictures than the measures take."""
    if len(data.val_images) < FEWEST:
        raise InputError(
            f"data {data.name!r} has {len(data.val_images)} held-out pictures; accepted: at least {FEWEST}, of which "
            "some hundreds say something"
        )


def work(data: ImageData, n: int, floors: int) -> int:
    """How many pictures `Reference.of` takes features of, for so many floors."""
    return len(data.val_labels) + min(TRAINING, len(data)) + floors * FLOORS * min(n, len(data))


def _floor(features: Features, data: ImageData, n: int, alike: bool, real: Tensor, tick: Tick) -> dict[str, Any]:
    wanted: Counter[int] = Counter(mixed(held_out(data), min(n, len(data)))) if alike else Counter()
    draws = [drawn(data, n, seed, [wanted[k] for k in range(data.labels.shape[1])]) for seed in range(FLOORS)]
    made = [features.of(pixels.training(data), rows, tick) for rows in draws]
    distances = [frechet(one, real) for one in made]
    shares = [_shares(one, real) for one in made]
    return {
        "pictures": len(draws[0]),
        "alike": alike,
        "draws": FLOORS,
        "distance": statistics.mean(distances),
        "lowest": min(distances),
        "highest": max(distances),
        **{name: statistics.mean(one[name] for one in shares) for name in shares[0]},
    }


def _within(made: Tensor, real: Tensor) -> dict[str, float]:
    """The measures of one class, as far as there are enough pictures of it."""
    fewer, found = min(len(made), len(real)), {}
    if fewer > real.shape[1]:
        found["distance"] = frechet(made, real)
    return {**found, **_shares(made, real)} if fewer >= FEWEST else found


def _shares(made: Tensor, real: Tensor) -> dict[str, float]:
    """Precision and recall of as many pictures on either side."""
    count = min(len(made), len(real))
    precision, recall = precision_recall(made[:count], real[pixels.some(len(real), count)])
    return {"precision": precision, "recall": recall}
