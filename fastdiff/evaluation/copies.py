"""Whether a model repeats its training pictures: how near its samples lie to them, next to held-out pictures.

Pictures are compared by their pixels, mirror images included. A copy is near by pixels whatever network looks at it,
while features that tell classes apart put any two sneakers side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageColor
from torch import Tensor

from fastdiff.data.images import ImageData
from fastdiff.evaluation import pixels
from fastdiff.evaluation.features import Tick, silent
from fastdiff.evaluation.pixels import Pictures
from fastdiff.images import grid

MOST = 1000  # samples, and held-out pictures, that are looked for among the training pictures
CHUNK, FLOATS = 2000, 1 << 24  # training pictures at once, and floats of pictures
LOW = 0.05  # the quantile of the held-out pictures' distances below which a sample is very near
TYPICAL = 50  # training pictures whose mean distance says what is near for a sample
SHOWN, PANELS, NEIGHBOURS = 16, 2, 5  # samples of the picture, in columns of them, and training pictures beside each
SIDE = 56  # pixels of an image in it, about
GAP, SPACE, GROUND = 4, 16, "#b4b4b4"  # pixels between images, and between groups of them, on gray


class Nearest(NamedTuple):
    """The up to NEIGHBOURS nearest of a pool for each of n pictures, the nearest first.

    Attributes:
        distances: (n, k) float32, root mean square of the difference of pixels in [-1, 1].
        rows: (n, k) int64 in the pool.
        mirrored: (n, k) whether it is that one's mirror image.
        typical: (n,) the mean of the distances to the TYPICAL nearest.
    """

    distances: Tensor
    rows: Tensor
    mirrored: Tensor
    typical: Tensor


@torch.no_grad()
def nearest(x: Tensor, pool: Pictures, size: int, device: torch.device, tick: Tick = silent) -> Nearest:
    """Find them.

    Args:
        x: (n, C, H, W) float32 in [-1, 1].
        pool: pictures of that shape.
        size: how many.
        device: where the products are computed.
        tick: called with the number of pictures of the pool that are done.
    """
    # A picture's distance to a mirror image is that of its own mirror image to the other.
    sides = [side.flatten(1).to(device) for side in (x, x.flip(3))]
    best = torch.empty(len(x), 0, device=device)
    rows = torch.empty(len(x), 0, dtype=torch.int64, device=device)
    for part in pixels.everything(size).split(max(1, min(CHUNK, FLOATS // x[0].numel()))):
        y = pool(part).flatten(1).to(device)
        # ||x - y||² without ||x||², which does not change the order
        found = torch.minimum(*(y.square().sum(dim=1) - 2 * side @ y.T for side in sides))
        best = torch.cat([best, found], dim=1)
        rows = torch.cat([rows, part.to(device).expand(len(x), -1)], dim=1)
        best, at = best.topk(min(TYPICAL, best.shape[1]), dim=1, largest=False)
        rows = rows.gather(1, at)
        tick(len(part))
    typical = ((best + sides[0].square().sum(dim=1, keepdim=True)) / sides[0].shape[1]).clamp(min=0).sqrt().mean(dim=1)
    return Nearest(*_exactly(x, pool, rows[:, :NEIGHBOURS].cpu()), typical.cpu())


def _exactly(x: Tensor, pool: Pictures, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distances themselves, rows and sides of those few, in order: by products, copies would not be at 0."""
    few = max(1, FLOATS // (rows.shape[1] * x[0].numel()))
    sides = [_sides(*part, pool) for part in zip(x.split(few), rows.split(few), strict=True)]
    plain, mirrored = (torch.cat(parts) for parts in zip(*sides, strict=True))
    distances, order = torch.minimum(plain, mirrored).sort(dim=1, stable=True)
    return distances, rows.gather(1, order), (mirrored < plain).gather(1, order)


def _sides(x: Tensor, rows: Tensor, pool: Pictures) -> tuple[Tensor, ...]:
    """(n, k): to the pictures themselves, and to their mirror images."""
    others = pool(rows.flatten()).unflatten(0, tuple(rows.shape))  # (n, k, C, H, W)
    return tuple((x[:, None] - side).square().flatten(2).mean(dim=2).sqrt() for side in (others, others.flip(-1)))


@dataclass(frozen=True)
class Copies:
    """The held-out pictures' distances to training pictures, with which the samples' are compared.

    Attributes:
        data: the pictures.
        held: (m,) each held-out picture's distance to its nearest training picture.
        device: where distances are computed.
    """

    data: ImageData
    held: Tensor
    device: torch.device

    @classmethod
    def of(cls, data: ImageData, device: torch.device, tick: Tick = silent) -> Copies:
        few = pixels.held_out(data)(pixels.some(len(data.val_labels), MOST))
        found = nearest(few, pixels.training(data), len(data.labels), device, tick)
        return cls(data, found.distances[:, 0], device)

    def facts(self) -> dict[str, Any]:
        """For reports."""
        return {"pictures": len(self.held), "median": float(self.held.median()), "low": float(self.held.quantile(LOW))}

    def compare(self, images: Tensor, tick: Tick = silent) -> tuple[dict[str, Any], Image.Image]:
        """How near the first MOST samples are to training pictures, and the nearest ones as a picture.

        Args:
            images: (n, C, H, W) samples.
            tick: called with the number of training pictures that are done.

        Returns:
            nearer: how often a sample is nearer to its nearest training picture than a held-out picture to its own, of
            all pairs of a sample and a held-out picture, ties counting half: the statistic of Meehan et al. 2020,
            section 3.1, over its largest value. 0.5 of samples that are as new as held-out pictures, 1 of copies.
            very_near: the share of samples that are nearer than all but the nearest LOW of the held-out pictures.
            median: of the distances. And the picture.
        """
        x = pixels.samples(images)(pixels.everything(min(MOST, len(images))))
        found = nearest(x, pixels.training(self.data), len(self.data.labels), self.device, tick)
        mine, held = found.distances[:, 0], self.held
        wins = (mine[:, None] < held).double().mean() + (mine[:, None] == held).double().mean() / 2
        facts = {
            "samples": len(mine),
            "nearer": float(wins),
            "very_near": float((mine < held.quantile(LOW)).double().mean()),
            "median": float(mine.median()),
        }
        return facts, self._picture(x, found)

    def _picture(self, x: Tensor, found: Nearest) -> Image.Image:
        """Samples, each with its nearest training pictures to its right, in columns of such lines.

        The order is that of the distance to the nearest over the typical one (Carlini et al. 2023, whose threshold
        adapts so): what is hardly more than its background lies near to everything, a copy to one picture alone.
        """
        order = (found.distances[:, 0] / found.typical.clamp(min=1e-9)).argsort(stable=True)[:SHOWN]
        others = pixels.training(self.data)(found.rows[order].flatten())
        others = torch.where(found.mirrored[order].flatten()[:, None, None, None], others.flip(3), others)
        scale = max(1, round(SIDE / max(x.shape[2:])))
        lines = [
            [grid(one[None], gap=0, scale=scale) for one in (sample, *near)]
            for sample, near in zip(x[order], others.unflatten(0, (len(order), -1)), strict=True)
        ]
        return _sheet(lines)


def _sheet(lines: list[list[Image.Image]]) -> Image.Image:
    """Lines of images of one size, each line's first set apart, in PANELS columns of lines."""
    width, height = lines[0][0].size
    deep = -(-len(lines) // PANELS)
    wide = len(lines[0]) * (width + GAP) + 2 * SPACE
    size = (-(-len(lines) // deep) * wide, deep * (height + GAP) + GAP)
    sheet = Image.new(lines[0][0].mode, size, ImageColor.getcolor(GROUND, lines[0][0].mode))
    for at, line in enumerate(lines):
        for k, one in enumerate(line):
            left = at // deep * wide + SPACE // 2 + k * (width + GAP) + (SPACE if k else 0)
            sheet.paste(one, (left, GAP + at % deep * (height + GAP)))
    return sheet
