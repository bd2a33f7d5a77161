"""Classes in the proportions of the held-out pictures, so that what is compared differs in nothing but its pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.data.images import ImageData, kinds

LONGEST = 10_000  # of a sequence that repeats; a class that is rarer than one in as many has no place in it


def held_out(data: ImageData) -> list[int]:
    """How many held-out pictures each class has; one number without classes."""
    found = kinds(data.val_labels)
    return [int((found == k).sum()) for k in range(max(1, data.labels.shape[1]))]


def mixed(counts: Sequence[int], n: int) -> list[int]:
    """n classes one after another, each as often as its share says, at every length; equal shares take turns."""
    total, taken = sum(counts), [0] * len(counts)
    order = []
    for length in range(1, n + 1):
        owed = [count * length - total * had for count, had in zip(counts, taken, strict=True)]
        order.append(owed.index(max(owed)))
        taken[order[-1]] += 1
    return order


def repeated(counts: Sequence[int]) -> list[int]:
    """The classes that a longer sequence repeats: after one of counts 2 and 1, say, 0, 1, 0 comes again."""
    shared = math.gcd(*counts)
    return mixed(counts, min(LONGEST, sum(counts) // shared))


def drawn(data: ImageData, n: int, seed: int, wanted: Sequence[int] = ()) -> Tensor:
    """Up to n training pictures at random, (n,) int64.

    Args:
        data: whose they are.
        n: how many, at most all.
        seed: of the draw.
        wanted: how many of class k are among them, at least, or all there are of it.
    """
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    found, first = kinds(data.labels)[shuffled], torch.zeros(len(shuffled), dtype=torch.bool)
    for k, count in enumerate(wanted):
        first[(found == k).nonzero()[:count, 0]] = True
    return torch.cat([shuffled[first], shuffled[~first]])[:n]
