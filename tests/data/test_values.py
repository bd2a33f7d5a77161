"""Values of any range: what becomes -1 and 1, and back; what is kept of arrays, and where."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import InputError
from fastdiff.data import space
from fastdiff.data.images import ImageData
from fastdiff.data.load import load_data
from fastdiff.data.values import choose_range, in_float32
from fastdiff.images import from_unit, to_unit


@pytest.fixture
def loaded(tmp_path):
    """An array and options → what load_data makes of it, saved as x.npy."""

    def load(array: np.ndarray, **options) -> ImageData:
        np.save(tmp_path / "x.npy", array)
        return load_data(tmp_path / "x.npy", **options)

    return load


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.linspace(0.1, 0.9, 32), (0, 1)),
        (np.linspace(-0.1, 0.9, 32), (-1, 1)),
        (np.linspace(-1, 1, 32).astype(np.float16), (-1, 1)),
        (np.linspace(-3, 1, 32).astype(">f4"), (-3, 1)),
        (np.linspace(12, 4095, 32).astype(np.uint16), (12, 4095)),
        (np.linspace(12, 65535, 32).astype(">u2"), (12, 65535)),
        (np.arange(32) * 8, (0, 248)),  # int64
        (np.arange(32) % 2 == 1, (0, 1)),
    ],
)
def test_the_range_is_a_usual_one_or_that_of_the_values(array, expected, loaded):
    found = loaded(array.reshape(4, 2, 4))
    assert found.value_range == found.own_range == expected and found.pixels.dtype == torch.float32
    assert torch.equal(found.pixels.flatten(), torch.from_numpy(array.astype(np.float32)))
    low, high = expected
    reference = (found.images.double() - low) / (high - low) * 2 - 1
    # Two roundings of numbers of at most 1 + |low + high| / (high - low).
    assert (found.unit(found.images) - reference).abs().max() < 2.0**-23 * (2 + abs(low + high) / (high - low))
    assert f"values {low:g} to {high:g}" in found.summary()
    assert ("--range LOW,HIGH takes others" in found.summary()) == (expected not in ((0, 1), (-1, 1)))


def test_eight_bits_are_as_they_ever_were(loaded):
    found = loaded(np.arange(256, dtype=np.uint8).reshape(4, 8, 8))
    assert found.value_range == (0, 255) and found.own_range is None and "values" not in found.summary()
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(found.unit(every), every.float() / 127.5 - 1)


def test_masks_of_zeros_and_ones_are_told_of(loaded):
    mask = (np.arange(256, dtype=np.uint8) % 2).reshape(4, 8, 8)
    found = loaded(mask)
    assert found.value_range == (0, 255) and "--range 0,1 takes 1 as white" in found.summary()
    white = loaded(mask, value_range=(0, 1))
    assert "takes 1" not in white.summary() and white.unit(white.images).unique().tolist() == [-1, 1]
    assert "takes 1" not in loaded(mask * 2).summary()


def test_a_given_range(loaded):
    masks = (np.arange(256) % 2).astype(np.uint8).reshape(4, 8, 8)
    found = loaded(masks, value_range=[0, 1])
    assert found.pixels.dtype == torch.uint8 and found.own_range == (0, 1)
    assert set(found.unit(found.images).flatten().tolist()) == {-1.0, 1.0}
    assert loaded(np.full((4, 2, 2), 7.0), value_range=(0, 10)).value_range == (0, 10)
    assert loaded(np.float32([0, 0.1, 0.1, 0]).reshape(4, 1, 1), value_range=(0, 0.1)).value_range == (0, 0.1)


@pytest.mark.parametrize(
    "array, options, words",
    [
        (np.arange(-3, 29), {"value_range": (0, 25)}, ["6 of 32 values", "range 0 to 25", "go from -3 to 28"]),
        (np.arange(32, dtype=np.uint8), {"value_range": (0, 30)}, ["1 of 32 values"]),
        (np.full(32, 7.5), {}, ["all values", "7.5", "--range"]),
        (np.where(np.arange(32) < 2, np.nan, 1.0), {}, ["2 of 32 values", "NaN"]),
        (np.where(np.arange(32) < 2, -np.inf, 1.0), {"value_range": (0, 1)}, ["2 of 32 values", "infinite"]),
        (np.where(np.arange(32) < 2, 1e300, 1.0), {}, ["too large for float32"]),
        (np.zeros(32), {"value_range": (1, 0)}, ["value_range = (1, 0)", "low < high"]),
        (np.zeros(32), {"value_range": (0, float("inf"))}, ["inf"]),
        (np.zeros(32), {"value_range": (0, 1, 2)}, ["(0, 1, 2)"]),
        (np.zeros(32), {"value_range": "ab"}, ["'ab'"]),
    ],
)
def test_values_that_do_not_fit(array, options, words, loaded):
    with pytest.raises(InputError) as caught:
        loaded(array.reshape(4, 2, 4), **options)
    for word in words:
        assert word in str(caught.value)


def test_the_range_is_that_of_training_and_validation_together():
    kept, held = np.full((2, 1, 2, 2), 5, np.float32), np.full((1, 1, 2, 2), 9, np.float32)
    assert choose_range("x", [kept, held], None)[0] == (5, 9)


def test_sixteen_bits_go_there_and_back_exactly():
    every = np.arange(2**16, dtype=np.uint16).reshape(1, 1, 256, 256)
    values = torch.from_numpy(in_float32(every))
    back = from_unit(to_unit(values, (0, 65535)), (0, 65535)).round()
    assert torch.equal(back.long(), torch.from_numpy(every.astype(np.int64)))


finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=200, deadline=None)
@given(st.tuples(finite, finite).filter(lambda pair: pair[0] + 1e-3 * (1 + abs(pair[0])) < pair[1]), st.floats(0, 1))
def test_every_range_goes_there_and_back(value_range, place):
    low, high = value_range
    value = torch.tensor([low, high, low + place * (high - low)])
    unit, scale = to_unit(value, value_range), (abs(low) + abs(high)) / (high - low)
    assert unit.dtype == torch.float32 and torch.allclose(unit[:2], torch.tensor([-1.0, 1.0]), atol=2.0**-21 * scale)
    assert torch.allclose(from_unit(unit, value_range), value, rtol=0, atol=2.0**-21 * (abs(low) + abs(high)))


# --- what is kept of the pictures ---


def test_a_split_copies_no_more_than_what_is_held_out(loaded):
    array = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    found = loaded(array)
    assert len(found) == len(found.rows) == len(found.labels) == 38 and len(found.pixels) == 40
    expected = torch.from_numpy(array).permute(0, 3, 1, 2)
    assert torch.equal(found.pixels, expected) and torch.equal(found.images, expected[found.rows])
    pixels, labels = found.take(torch.tensor([3, 0, 37]))
    assert torch.equal(pixels, found.images[[3, 0, 37]]) and labels.shape == (3, 0) and pixels.is_contiguous()
    whole = ImageData("x", found.pixels, torch.zeros(40, 0), (), found.val_images, torch.zeros(2, 0))
    assert whole.images is whole.pixels and len(whole) == 40


def test_a_fingerprint_is_that_of_pictures_labels_and_range():
    random = torch.Generator().manual_seed(0)
    pixels, labels = torch.randint(0, 256, (600, 3, 4, 4), dtype=torch.uint8, generator=random), torch.eye(600)[:, :2]
    held = (pixels[:1], labels[:1])
    made = ImageData("x", pixels, labels, ("a", "b"), *held)
    whole = zlib.crc32(labels.numpy().tobytes(), zlib.crc32(pixels.numpy().tobytes()))
    assert made.fingerprint() == whole  # the parts in which it is read do not matter
    other = pixels.clone()
    other[599, 2, 3, 3] ^= 1
    rows = torch.arange(1, 600)
    different = [
        ImageData("x", other, labels, ("a", "b"), *held),
        ImageData("x", pixels, labels.flip(1), ("a", "b"), *held),
        ImageData("x", pixels, labels, ("a", "b"), *held, value_range=(0, 254)),
        ImageData("x", pixels.float(), labels, ("a", "b"), *held),
        ImageData("x", pixels, labels[1:], ("a", "b"), *held, rows=rows),
    ]
    assert len({whole, *(one.fingerprint() for one in different)}) == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.uint16, np.float64])
def test_large_arrays_are_mapped(dtype, loaded, tmp_path, monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (70, 6, 5, 3)).astype(dtype)
    held = loaded(array)
    monkeypatch.setattr(space, "LARGE", 1000)
    monkeypatch.setattr(space, "BLOCK", 500)  # several blocks
    made: list[np.ndarray] = []
    tensor = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: made.append(array) or tensor(array))
    mapped = loaded(array)
    big = [one for one in made if one.nbytes > 1000 and one.dtype != np.int64]
    assert big and all(isinstance(one, np.memmap) for one in big)
    assert torch.equal(mapped.pixels, held.pixels) and mapped.value_range == held.value_range
    assert mapped.fingerprint() == held.fingerprint()
    mapped.pixels[:] = 0  # a copy on write
    assert np.array_equal(np.load(tmp_path / "x.npy"), array)
    np.savez_compressed(tmp_path / "x.npz", array)
    assert torch.equal(load_data(tmp_path / "x.npz").pixels, held.pixels)


def test_no_room_is_said(monkeypatch):
    with pytest.raises(InputError, match=r"no room for an array of 1,048,576.0 GiB in .*TMPDIR"):
        space.room((2**20, 2**10, 2**20), np.uint8)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 300))
def test_blocks_cover_everything_once(count, width, block):
    array, before = np.zeros((count, width), np.uint8), space.BLOCK
    space.BLOCK = block
    try:
        for part in space.blocks(array):
            assert array[part].nbytes <= max(block, width)
            array[part] += 1
    finally:
        space.BLOCK = before
    assert (array == 1).all()
