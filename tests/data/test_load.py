"""Every kind of data source, and what is said where there is none."""

import base64
import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import InputError
from fastdiff.data import cifar, load, sources
from fastdiff.data import fashion as data
from fastdiff.data.images import ImageData, split
from fastdiff.data.load import load_data
from fastdiff.data.source import Pictures, Source
from fastdiff.data.sources import SOURCES


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion_files():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": idx_bytes(rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)),
        "train-labels-idx1-ubyte": idx_bytes((np.arange(20) % 10).astype(np.uint8)),
        "t10k-images-idx3-ubyte": idx_bytes(rng.integers(0, 256, (7, 28, 28), dtype=np.uint8)),
        "t10k-labels-idx1-ubyte": idx_bytes((np.arange(7) % 10).astype(np.uint8)),
    }


@pytest.mark.parametrize("packed", [True, False])
def test_idx_folder(packed, fashion_files, tmp_path):
    for name, content in fashion_files.items():
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    found = load_data(str(tmp_path))
    assert found.images.shape == (20, 1, 28, 28) and found.val_images.shape == (7, 1, 28, 28)
    assert found.images.dtype == torch.uint8
    raw = np.frombuffer(fashion_files["train-images-idx3-ubyte"][16:], np.uint8).reshape(20, 28, 28)
    assert np.array_equal(found.images[:, 0].numpy(), raw)
    assert found.labels.argmax(1).tolist() == [k % 10 for k in range(20)] and float(found.labels.sum()) == 20


def test_the_debian_package_is_found():
    if not data.DEBIAN_FASHION.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    found = load_data("fashion-mnist")
    assert found.images.shape == (60000, 1, 28, 28) and found.val_images.shape == (10000, 1, 28, 28)
    assert found.labels.sum(0).tolist() == [6000.0] * 10 and found.class_names[9] == "ankle-boot"
    for name, digest in data.FASHION_SHA256.items():  # the sums that a download is checked with
        content = gzip.decompress((data.DEBIAN_FASHION / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest


@pytest.fixture
def downloading(monkeypatch, tmp_path, fashion_files):
    """No Debian package, an empty cache, and a server of our own files."""
    served = tmp_path / "served"
    served.mkdir()
    for name, content in fashion_files.items():
        (served / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(data, "DEBIAN_FASHION", tmp_path / "none")
    monkeypatch.setattr(data, "FASHION_URL", served.as_uri() + "/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in fashion_files.items()}
    monkeypatch.setattr(data, "FASHION_SHA256", sums)
    return served, tmp_path / "cache" / "fastdiff" / "fashion-mnist"


def test_download_once_then_from_the_cache(downloading):
    served, cache = downloading
    first = load_data("fashion-mnist")
    assert len(list(cache.iterdir())) == 4
    for file in served.iterdir():
        file.unlink()
    assert torch.equal(load_data("fashion-mnist").images, first.images)


def test_a_download_with_a_wrong_checksum_leaves_nothing(downloading):
    served, cache = downloading
    (served / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(InputError, match="SHA-256"):
        load_data("fashion-mnist")
    assert not cache.exists() or not list(cache.iterdir())


def test_no_network(downloading):
    for file in downloading[0].iterdir():
        file.unlink()
    with pytest.raises(
        InputError, match="cannot download .*; install Debian's dataset-fashion-mnist, or give the folder"
    ):
        load_data("fashion-mnist")


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_binary(inner, tmp_path):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for k, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        rows = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        rows[:, 0] = k
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    found = load_data(str(tmp_path))
    assert found.images.shape == (8, 3, 32, 32) and found.val_images.shape == (4, 3, 32, 32)
    assert found.labels.argmax(1).tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(found.val_images.numpy().reshape(4, -1), rows[:, 1:])


def test_cifar_python(tmp_path):
    for name in ("data_batch_1", "test_batch"):
        batch = {b"data": np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8), b"labels": [3, 9]}
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    found = load_data(str(tmp_path))
    assert found.images.shape == (2, 3, 32, 32) and found.labels.argmax(1).tolist() == [3, 9]


def test_cifar_python_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not allowed"):
        load_data(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_picture_folder_with_classes(tmp_path):
    for k, name in enumerate(["cat", "dog"]):
        (tmp_path / name).mkdir()
        for j in range(6):
            Image.new("RGB", (10 + j, 8), (40 * k + 50, 2, 3)).save(tmp_path / name / f"{j}.png")
    found = load_data(str(tmp_path), size=8)
    assert found.class_names == ("cat", "dog") and found.image_shape == (3, 8, 8)
    assert len(found.images) + len(found.val_images) == 12 and len(found.val_images) >= 1
    for picture, label in zip(found.images, found.labels, strict=True):
        assert int(picture[0, 0, 0]) == 50 + 40 * int(label.argmax())


def test_gray_pictures_stay_gray(tmp_path):
    for j in range(3):
        Image.new("L", (8, 8), 10 * j).save(tmp_path / f"{j}.png")
    found = load_data(str(tmp_path))
    assert found.image_shape == (1, 8, 8) and found.labels.shape[1] == 0


def test_npy_pair(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (2000, 4, 4, 3), dtype=np.uint8))
    np.save(tmp_path / "y.npy", np.eye(5, dtype=np.uint8)[np.arange(2000) % 5])
    found = load_data(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))
    assert found.image_shape == (3, 4, 4) and found.class_names == ("class0", "class1", "class2", "class3", "class4")
    assert len(found.val_images) == 100 and len(found.images) == 1900  # two blocks of 50 neighbours
    named = load_data(str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"), class_names=tuple("abcde"))
    assert named.class_names == tuple("abcde")


@pytest.mark.parametrize(
    "sizes, holdout, held",
    [
        ([10] * 100, 0.05, 50),
        ([10] * 100, 0.06, 60),
        ([50], 0.4, 20),
        ([50], 0.3, 15),
        ([1000, 3], 0.05, 50),
        ([40], 0.5, 20),
    ],
)
def test_the_share_that_is_held_out(sizes, holdout, held):
    """Also of many classes that are each too small for it."""
    labels = torch.eye(len(sizes))[torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))]
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    found = split("x", images, labels, tuple(map(str, range(len(sizes)))), holdout)
    assert len(found.val_images) == held and len(found) == len(labels) - held


def test_a_split_stays_as_it_was():
    """Runs go on with it: of 1,000 pictures the last 50, of 45 the 40th and so on."""
    sizes = (1000, 45, 2100)
    labels = torch.eye(3)[torch.arange(3).repeat_interleave(torch.tensor(sizes))]
    found = split("x", torch.zeros(3145, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c"), 0.05)
    held = sorted(set(range(3145)) - set(found.rows.tolist()))
    assert held == [*range(950, 1000), 1000 + 38, 1000 + 39, *range(1995, 2045), *range(2995, 3045)]


def test_pictures_without_a_class_are_said(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((30, 4, 4), np.uint8))
    np.save(tmp_path / "y.npy", np.float32(np.eye(3)[np.arange(30) % 3] * (np.arange(30) > 9)[:, None]))
    assert "10 of them without a class" in load_data(tmp_path / "x.npy", tmp_path / "y.npy").summary()


def test_the_holdout_is_whole_blocks_of_neighbours(tmp_path):
    x = np.zeros((2000, 1, 4), np.uint8)
    x[:, 0, :2] = np.stack([np.arange(2000) // 256, np.arange(2000) % 256], axis=1)
    np.save(tmp_path / "x.npy", x)
    held = load_data(str(tmp_path / "x.npy")).val_images.long()
    index = (held[:, 0, 0, 0] * 256 + held[:, 0, 0, 1]).tolist()
    assert index == [*range(950, 1000), *range(1950, 2000)]


def test_bad_data_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for j in (4, 5):
        Image.new("L", (j, 8)).save(tmp_path / "mixed" / f"{j}.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    np.save(tmp_path / "f.npy", np.zeros((4, 4), np.float32))
    np.save(tmp_path / "c.npy", np.zeros((4, 4, 4), np.complex64))
    np.savez(tmp_path / "several", np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "x.npy", np.zeros((4, 4, 4), np.uint8))
    np.save(tmp_path / "o.npy", np.array(["a"], dtype=object), allow_pickle=True)
    cases = [
        (dict(source="empty"), ["empty", "holds no data"]),
        (dict(source="mixed"), ["5x8", "4x8", "--size"]),
        (dict(source="broken"), ["a.png", "as a picture"]),
        (dict(source="one"), ["1 pictures", "at least 2"]),
        (dict(source="idx"), ["IDX"]),
        (dict(source="f.npy"), ["float32 of shape (4, 4)", "(N, H, W)"]),
        (dict(source="c.npy"), ["complex64", "whole numbers or floats"]),
        (dict(source="several.npy"), ["no single array"]),
        (dict(source="x.npy", labels="several.npy"), ["no single array"]),
        (dict(source="o.npy"), [".npy"]),
        (dict(source="x.npy", labels="x.npy"), ["(4, 4, 4)", "(4, K)"]),
        (dict(source="x.npy", class_names=("a",)), ["class names ['a']", "which has no classes"]),
        (dict(source="nowhere"), ["no data at", "nowhere", "fashion-mnist", "a folder of CIFAR-10"]),
        (dict(source="mixed", labels="x.npy"), ["x.npy", "cannot be read as a CSV"]),
        (dict(source="x.npy", size=8), ["size = 8", "only with a .zip of pictures or a folder of pictures"]),
        (dict(source="x.npy", alpha=True), ["alpha = True", "a folder of pictures"]),
        (dict(source="mixed", size=3), ["size = 3", "WxH"]),
        (dict(source="x.npy", holdout=0.9), ["0.9"]),
    ]
    for options, words in cases:
        options = {k: str(tmp_path / v) if k in ("source", "labels") else v for k, v in options.items()}
        with pytest.raises(InputError) as caught:
            load_data(**options)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)


def test_the_unpickler_is_closed():
    with pytest.raises(pickle.UnpicklingError):
        cifar.ArraysOnly(io.BytesIO(pickle.dumps(print))).load()


@pytest.mark.parametrize("classes, each", [(10, 10), (20, 50), (5, 10), (2, 3)])
def test_no_class_is_lost_to_validation(classes, each, tmp_path):
    for k in range(classes):
        (tmp_path / f"{k:02d}").mkdir()
        for j in range(each):
            Image.new("L", (4, 4), j).save(tmp_path / f"{k:02d}" / f"{j}.png")
    found = load_data(str(tmp_path))
    kept = found.labels.sum(0)
    assert float(kept.min()) >= 0.9 * each - 1 and len(found.val_images) >= 1
    assert len(found.images) + len(found.val_images) == classes * each


@pytest.mark.parametrize(
    "change, words",
    [
        ({"train-labels-idx1-ubyte": idx_bytes(np.arange(7, dtype=np.uint8))}, ["for 20 pictures", "shape (7,)"]),
        ({"train-images-idx3-ubyte": idx_bytes(np.zeros(20, np.uint8))}, ["3 dimensions"]),
        (
            {
                "train-images-idx3-ubyte": idx_bytes(np.zeros((0, 28, 28), np.uint8)),
                "train-labels-idx1-ubyte": idx_bytes(np.zeros(0, np.uint8)),
                "t10k-labels-idx1-ubyte": idx_bytes(np.zeros(7, np.uint8)),
            },
            ["(0, 1, 28, 28)", "at least one"],
        ),
        ({"t10k-labels-idx1-ubyte": idx_bytes(np.full(7, 25, np.uint8))}, ["label 25", "0 to 9"]),
        (
            {"train-labels-idx1-ubyte.gz": gzip.compress(b"x" * 99)[:12] + b"broken", "train-labels-idx1-ubyte": None},
            ["IDX"],
        ),
    ],
)
def test_idx_files_that_do_not_fit_together(change, words, fashion_files, tmp_path):
    for name, content in {**fashion_files, **change}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_data(str(tmp_path))
    for word in words:
        assert word in str(caught.value)


def test_other_idx_data_is_named_by_number(fashion_files, tmp_path):
    for name, content in fashion_files.items():
        (tmp_path / name).write_bytes(content)
    assert load_data(str(tmp_path)).class_names[0] == "class0"
    assert load_data(str(tmp_path), class_names=tuple("0123456789")).class_names[9] == "9"


# --- which source, and what is said of them ---


def test_a_source_is_one_entry(monkeypatch, tmp_path):
    """An entry alone: its words are in the errors, its options are taken and refused, its test set is kept."""

    def read(source, size):
        images = np.full((6, 3, size, size), 7, np.uint8)
        return Pictures("dots", images, np.arange(6) % 2, ("a", "b"), images[:2], np.array([[1, 0], [0.5, 0.5]]))

    dots = Source("a file of dots", lambda source: source.endswith(".dots"), read, options=("size",))
    for module in (load, sources):
        monkeypatch.setattr(module, "SOURCES", (*SOURCES, dots))
    found = load_data("x.dots", size=4)
    assert found.image_shape == (3, 4, 4) and found.class_names == ("a", "b") and len(found.images) == 6
    assert found.labels.argmax(1).tolist() == [0, 1] * 3 and found.val_labels.tolist() == [[1, 0], [0.5, 0.5]]
    with pytest.raises(InputError, match="labels = 'y.npy' with data 'x.dots'; accepted only with an .npy of pictures"):
        load_data("x.dots", "y.npy", size=4)
    np.save(tmp_path / "x.npy", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="accepted only with .*a folder of pictures .* or a file of dots"):
        load_data(tmp_path / "x.npy", size=4)
    with pytest.raises(InputError, match="or a file of dots$"):
        load_data("nowhere")


def test_the_documentation_names_every_source():
    for source in SOURCES:
        assert source.accepts in load_data.__doc__


def test_sources_are_known_without_torch():
    code = "import sys, fastdiff.data.sources as s; assert len(s.SOURCES) > 4 and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fashion_mnist_is_known_by_its_labels(fashion_files, monkeypatch, tmp_path):
    for name, content in fashion_files.items():
        (tmp_path / name).write_bytes(content)
    digest = hashlib.sha256(fashion_files["train-labels-idx1-ubyte"]).hexdigest()
    monkeypatch.setattr(data, "FASHION_SHA256", {**data.FASHION_SHA256, "train-labels-idx1-ubyte": digest})
    found = load_data(tmp_path)
    assert found.class_names == data.CLASSES and found.name == tmp_path.name


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((6, 8, 12), (1, 8, 12)),
        ((6, 8, 12, 3), (3, 8, 12)),
        ((6, 3, 8, 12), (3, 8, 12)),
        ((6, 1, 28, 28), (1, 28, 28)),
        ((6, 4, 4, 3), (3, 4, 4)),  # both could be channels: the last axis is
        ((6, 2, 8, 12), (2, 8, 12)),
        ((6, 8, 12, 2), (2, 8, 12)),
        ((6, 8, 12, 6), (6, 8, 12)),
        ((6, 6, 8, 12), (6, 8, 12)),
    ],
)
def test_the_channels_of_an_array_may_be_first_or_last(shape, expected, tmp_path):
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    np.save(tmp_path / "x.npy", array)
    found = load_data(tmp_path / "x.npy")
    assert found.image_shape == expected
    channel = array[0] if array.ndim == 3 else array[0, 0] if shape[1:] == expected else array[0, ..., 0]
    assert np.array_equal(found.images[0, 0].numpy(), channel)


def test_data_shows_itself_in_a_few_lines():
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    found = ImageData(
        "<tiles>", images, torch.ones(40, 30), tuple(f"c{k}" for k in range(30)), images[:5], torch.ones(5, 30)
    )
    assert repr(found).splitlines() == [
        "ImageData of <tiles>: 40 pictures 3x16x16, 5 held out",
        f"classes: {', '.join(f'c{k}' for k in range(20))}, and 10 more",
    ]
    shown = found._repr_html_()
    assert "&lt;tiles&gt;" in shown and "<tiles>" not in shown
    with Image.open(io.BytesIO(base64.b64decode(shown.split("base64,")[1].split(chr(34))[0]))) as picture:
        assert picture.size == (137 * 5, 69 * 5)  # 8 columns, 4 rows, enlarged to some 640 pixels
        assert np.array_equal(np.asarray(picture)[5, 5], images[0, :, 0, 0].numpy())
    bare = ImageData("bare", images[:2, :1], torch.zeros(2, 0), (), images[:1, :1], torch.zeros(1, 0))
    assert repr(bare).endswith("classes: none")


@pytest.mark.parametrize(
    "images, labels, words",
    [
        (np.zeros((4, 8, 8), np.uint8), None, r"shape \(4, 8, 8\) and dtype uint8; accepted: \(N, C, H, W\) uint8"),
        (np.zeros((4, 1, 8, 8), np.complex64), None, "dtype complex64"),
        (np.zeros((4, 1, 8, 8), np.uint8), np.zeros(3), r"labels of shape \(3,\) for 4 pictures; accepted: \(4,\) or"),
        (np.zeros((4, 1, 8, 8), np.uint8), np.zeros((4, 2, 2)), r"labels of shape \(4, 2, 2\)"),
    ],
)
def test_a_sources_arrays_fit_together(images, labels, words):
    with pytest.raises(InputError, match=words):
        Pictures("mine", images, labels)
