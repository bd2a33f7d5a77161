"""The Fréchet distance against its closed form, precision and recall against their definitions."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.evaluation import measures
from fastdiff.evaluation.measures import frechet, precision_recall


def root(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric matrix that has no negative eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def test_the_distance_is_the_closed_form():
    """By the root of a symmetric product in place of the eigenvalues of one that is not."""
    a, b = torch.randn(300, 9).double(), torch.randn(260, 9).double() @ torch.randn(9, 9).double() + 0.3
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    half = root(first)
    moved = np.square(np.asarray(a.mean(0) - b.mean(0))).sum()
    expected = moved + np.trace(first + second - 2 * root(half @ second @ half))
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(InputError, match=r"needs torchmetrics \(.*pip install '\.\[eval\]'"):
        frechet(torch.zeros(3, 2), torch.zeros(3, 2))


def share(points: np.ndarray, others: np.ndarray, k: int) -> float:
    """Kynkäänniemi et al. 2019, eq. 1 to 3, as written."""
    among = 0
    for point in points:
        for i, other in enumerate(others):
            nearest = sorted(np.linalg.norm(other - another) for j, another in enumerate(others) if j != i)
            if np.linalg.norm(point - other) <= nearest[k - 1]:
                among += 1
                break
    return among / len(points)


@given(
    n=st.integers(4, 14),
    m=st.integers(4, 14),
    size=st.integers(1, 3),
    k=st.integers(1, 3),
    # Few values, for ties and repeated features.
    values=st.sampled_from([2, 3, 1000]),
    seed=st.integers(0, 1000),
    chunk=st.sampled_from([3, 1000]),
)
def test_precision_and_recall_are_as_defined(n, m, size, k, values, seed, chunk):
    dice = np.random.default_rng(seed)
    made, real = (dice.integers(0, values, (count, size)).astype(float) for count in (n, m))
    before, measures.CHUNK = measures.CHUNK, chunk
    try:
        found = precision_recall(torch.from_numpy(made), torch.from_numpy(real), k)
    finally:
        measures.CHUNK = before
    assert found == (share(made, real, k), share(real, made, k))


def test_precision_and_recall_of_closed_cases():
    x = torch.randn(50, 5).double()
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 1000) == (0, 0)
    # Samples of a part of what is real: each lies among it, and much of it lies among none of them.
    real = torch.cat([x, x + 1000])
    assert precision_recall(x, real) == (1, 0.5)
    assert precision_recall(torch.zeros(5, 2), torch.zeros(5, 2)) == (1, 1)  # where all radii are 0
