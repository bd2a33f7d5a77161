"""Arrays of pictures and labels: .npy, .npz, torchvision's folders."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import InputError
from fastdiff.data.fashion import CLASSES
from fastdiff.data.load import load_data
from fastdiff.data.npy import channels_first


def pictures(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- labels ---


@pytest.mark.parametrize(
    "labels, kinds",
    [
        (np.arange(12) % 3, "classes"),
        ((np.arange(12) % 3)[:, None], "classes"),  # as MedMNIST has them
        ((np.arange(12) % 3).astype(np.uint8), "classes"),
        ((np.arange(12) % 3).astype(np.float64), "classes"),
        ((np.arange(12) % 3).astype(np.float32)[:, None], "classes"),
        ((np.arange(12) % 2)[:, None], "classes"),
        (np.arange(12) % 2 == 1, "classes"),
        ((np.arange(12) % 2).astype(np.float32)[:, None], "weights"),
        (np.linspace(0, 1, 12)[:, None], "weights"),
        (np.eye(3, dtype=np.uint8)[np.arange(12) % 3], "weights"),
        (np.eye(3)[np.arange(12) % 3] / 2, "weights"),
    ],
)
def test_labels_are_class_numbers_or_weights(labels, kinds, tmp_path):
    np.save(tmp_path / "x.npy", pictures(12, 8, 8))
    np.save(tmp_path / "y.npy", labels)
    found = load_data(tmp_path / "x.npy", tmp_path / "y.npy", holdout=0.5)
    both = torch.zeros(12, found.labels.shape[1])
    kept = torch.zeros(12, dtype=torch.bool)
    kept[found.rows] = True
    both[kept], both[~kept] = found.labels, found.val_labels
    if kinds == "weights":
        assert torch.equal(both, torch.from_numpy(labels).float())
    else:
        assert found.class_names == tuple(f"class{k}" for k in range(int(labels.max()) + 1))
        assert both.argmax(1).tolist() == labels.flatten().astype(int).tolist() and both.sum(1).eq(1).all()


@pytest.mark.parametrize(
    "labels, words",
    [
        (np.arange(11), "int64 of shape \\(11,\\); accepted: \\(12,\\) class numbers, or \\(12, K\\)"),
        (np.arange(12) / 2, "not whole"),
        (np.full(12, np.nan), "not whole"),
        (np.arange(12) - 1, "label -1; accepted: 0 to 10"),
        (np.arange(12) * 10**9, "label 11000000000; accepted: 0 to 9999"),
        (np.array(list("abcabcabcabc")), "<U1 of shape"),
        (np.zeros((12, 2, 2)), "shape \\(12, 2, 2\\)"),
    ],
)
def test_bad_labels(labels, words, tmp_path):
    np.save(tmp_path / "x.npy", pictures(12, 8, 8))
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(InputError, match=words):
        load_data(tmp_path / "x.npy", tmp_path / "y.npy")


# --- channels ---


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(10, 20), st.integers(10, 20), st.booleans())
def test_fewer_channels_than_rows_and_columns_are_found_on_either_side(channels, height, width, first):
    array = np.empty((2, channels, height, width) if first else (2, height, width, channels), np.uint8)
    made = channels_first(array)
    assert made.shape == (2, channels, height, width) and np.shares_memory(made, array)


# --- .npz ---


def test_medmnist_holds_out_its_validation_set(tmp_path):
    parts = {"train": 12, "val": 4, "test": 5}
    arrays = {f"{part}_images": pictures(n, 8, 8, 3, seed=n) for part, n in parts.items()}
    labels = {f"{part}_labels": (np.arange(n) % 3)[:, None].astype(np.uint8) for part, n in parts.items()}
    np.savez_compressed(tmp_path / "pathmnist.npz", **arrays, **labels)
    found = load_data(tmp_path / "pathmnist.npz")
    assert found.summary() == (
        "pathmnist: 12 pictures 3x8x8, 4 held out; held out are its val_images; its test_images are not used"
    )
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), arrays["train_images"])
    assert np.array_equal(found.val_images.permute(0, 2, 3, 1).numpy(), arrays["val_images"])
    assert found.labels.argmax(1).tolist() == [0, 1, 2] * 4 and found.val_labels.argmax(1).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "arrays, size, held",
    [
        ({"train_images": (12, 8, 8), "test_images": (5, 8, 8)}, 12, 5),
        ({"x_train": (12, 8, 8), "y_train": (12,), "x_test": (5, 8, 8), "y_test": (5,)}, 12, 5),  # as Keras has MNIST
        ({"arr_0": (12, 8, 8, 2)}, 11, 1),
        ({"pixels": (12, 6, 8, 8), "kinds": (12, 1)}, 11, 1),
        ({"train_images": (12, 8, 8), "train_labels": (12, 5)}, 11, 1),
    ],
)
@pytest.mark.parametrize("dtype, order", [(np.uint8, "C"), (np.float64, "F")])
def test_other_archives_of_arrays(arrays, size, held, dtype, order, tmp_path):
    made = {
        name: np.asarray(pictures(*shape), dtype, order=order) if len(shape) > 2 else pictures(*shape) % 2
        for name, shape in arrays.items()
    }
    np.savez(tmp_path / "x.npz", **made, names=np.array(["cat", "dog"] * 6), more=np.array([{}] * 12))
    found = load_data(tmp_path / "x.npz")
    assert (len(found), len(found.val_images)) == (size, held)
    (name, shape), *_ = arrays.items()
    assert np.array_equal(found.pixels.numpy(), channels_first(made[name]))
    assert bool(found.labels.shape[1]) == (len(arrays) > 2 or "kinds" in arrays or "train_labels" in arrays)


def test_bad_archives_of_arrays(tmp_path):
    path = tmp_path / "x.npz"

    def header_alone(shape):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return head.getvalue()

    def short(shape):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("arr_0.npy", header_alone(shape) + bytes(100))

    four = pictures(4, 8, 8)
    cases = [
        (lambda: path.write_bytes(b"nothing"), ["cannot be read as an .npz"]),
        (lambda: short((10, 8, 8)), ["arr_0 ends too early"]),
        (lambda: short((2**20, 2**10, 2**10)), ["arr_0 ends too early"]),  # a terabyte, by what it says
        (lambda: np.savez(path, a=np.zeros((4, 8, 8)), b=np.zeros((4, 8, 8))), ["a (4, 8, 8), b", "train_images"]),
        (lambda: np.savez(path, a=np.zeros(4)), ["a (4,)", "one array of pictures"]),
        (lambda: np.savez(path, a=np.array([{}], object)), ["holds no arrays of numbers"]),
        (lambda: np.savez(path, train_images=np.zeros((4, 8))), ["train_images of", "(N, H, W)"]),
        (
            lambda: np.savez(path, train_images=four, train_labels=np.zeros(3)),
            ["train_labels of", "(4,) class"],
        ),
        (
            lambda: np.savez(path, train_images=four, test_images=four, test_labels=np.zeros(4)),
            ["labels for one of training and validation"],
        ),
        (
            lambda: np.savez(path, train_images=four, val_images=pictures(4, 8, 9)),
            ["(4, 1, 8, 8)", "(4, 1, 8, 9)", "one size"],
        ),
        (lambda: np.savez(path), ["holds no arrays of numbers"]),
        (
            lambda: np.savez(path, train_images=four, train_labels=np.array(["cat"] * 4)),
            [".npz' holds train_labels of <U3; accepted: numbers of classes"],
        ),
    ]
    for write, words in cases:
        write()
        with pytest.raises(InputError) as caught:
            load_data(path)
        assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)


# --- torchvision's folders ---


def write_idx(folder, count=20):
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", pictures(count, 8, 8)), ("labels-idx1", (np.arange(count) % 10))):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


def test_torchvisions_folders(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "other").mkdir()
    for source in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        found = load_data(source)
        assert found.name == "MNIST" and found.image_shape == (1, 8, 8) and len(found) == len(found.val_images) == 20
    write_idx(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(InputError, match="holds FashionMNIST, MNIST; accepted: one of these folders"):
        load_data(tmp_path)
    assert load_data(tmp_path / "FashionMNIST").name == "FashionMNIST"
    assert len(CLASSES) == 10


def test_classes_that_take_more_than_the_pictures(tmp_path, taken):
    """A weight for each class of each picture: 20,000 numbers of classes would take 800 MB."""
    np.save(tmp_path / "x.npy", np.zeros((20_000, 1, 2), np.uint8))
    np.save(tmp_path / "y.npy", np.arange(20_000) % 9999)
    with taken() as memory, pytest.raises(InputError, match="has 9,999 classes for 20,000 pictures"):
        load_data(tmp_path / "x.npy", tmp_path / "y.npy")
    assert memory() < 64 * 2**20
