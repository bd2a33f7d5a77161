"""Memorisation: the nearest training pictures, and what copies and new pictures come out as."""

import numpy as np
import pytest
import torch

from fastdiff.evaluation import copies, pixels
from fastdiff.evaluation.copies import Copies, nearest

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 6, 4)])
@pytest.mark.parametrize("size", [3, 23])
def test_the_nearest(shape, size, pictures, monkeypatch):
    """Against every pair in float64, by chunks that do not divide the pool."""
    monkeypatch.setattr(copies, "CHUNK", 5)
    pool, x = pictures(size, shape, noise=0.3), pictures(4, shape, 1, 0.3)
    x[2] = pool[1].flip(2)
    done = []
    found = nearest(pixels.samples(x)(torch.arange(4)), pixels.samples(pool), size, CPU, done.append)
    unit, others = (one.double() / 127.5 - 1 for one in (x, pool))
    sides = torch.stack([others, others.flip(3)])
    rms = (unit[:, None, None] - sides).square().mean(dim=(3, 4, 5)).sqrt()  # (4, 2, size)
    best, side = rms.min(dim=1)
    expected, rows = best.sort(dim=1)
    k = min(5, size)
    assert sum(done) == size and found.rows.shape == (4, k)
    assert torch.equal(found.rows, rows[:, :k]) and torch.equal(found.mirrored, side.gather(1, rows[:, :k]).bool())
    torch.testing.assert_close(found.distances.double(), expected[:, :k], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.typical.double(), expected.mean(dim=1), rtol=1e-3, atol=1e-3)
    assert found.distances[2, 0] == 0 and found.rows[2, 0] == 1 and found.mirrored[2, 0]


def test_copies_and_new_pictures(data, pictures):
    given = data(n=300, m=200)
    seen = Copies.of(given, CPU)
    known, picture = seen.compare(given.images[:100].flip(3))
    assert (known["nearer"], known["very_near"], known["median"]) == (1, 1, 0)
    assert known["samples"] == 100 and picture.mode == "L" and picture.width > picture.height > 300
    new, _ = seen.compare(pictures(200, seed=5))
    assert 0.4 < new["nearer"] < 0.6 and new["very_near"] < 0.12  # of 0.5 and 0.05, from 200
    far, _ = seen.compare(torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8))
    assert far["nearer"] == 0 == far["very_near"]
    itself, _ = seen.compare(given.val_images)
    assert itself["nearer"] == 0.5  # ties count half
    assert seen.facts()["low"] < seen.facts()["median"]


def test_a_copy_comes_first_in_the_picture(data):
    """Although an empty picture is nearer to much: by proportion a copy to one alone is."""
    given = data(n=80)
    given.images[:60] = 128
    given.images[:60, :, 0, 0] = torch.arange(60, dtype=torch.uint8)[:, None] + 130
    images = torch.stack([torch.full((1, 8, 8), 128, dtype=torch.uint8), given.images[70]])
    _, picture = Copies.of(given, CPU).compare(images)
    corner = picture.crop((copies.SPACE // 2, copies.GAP, copies.SPACE // 2 + 56, copies.GAP + 56)).resize((8, 8), 0)
    assert np.array_equal(corner, given.images[70, 0])
