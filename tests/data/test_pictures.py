"""Picture files: folders, zip archives and CSVs of labels; which files are read, how, and in how much memory."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import InputError
from fastdiff.data.load import load_data
from fastdiff.data.reading import parse_size
from fastdiff.images import cut_picture, open_picture, picture_array


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8) if array is None else array).save(path, **options)


@pytest.fixture
def pets(tmp_path):
    """cat/0.png ... dog/3.png, each of one gray."""
    for kind, first in (("cat", 0), ("dog", 100)):
        for k in range(4):
            save(tmp_path / "pets" / kind / f"{k}.png", np.full((8, 8, 3), first + k, np.uint8))
    return tmp_path / "pets"


def grays(found) -> list[int]:
    """The first value of each picture, those held out last."""
    return [int(image[0, 0, 0]) for image in (*found.images, *found.val_images)]


def zipped(folder, path, under=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                file.write(one, f"{under}{one.relative_to(folder).as_posix()}")
    return path


# --- which files ---


def test_hidden_files_and_those_of_macos_are_no_data(pets, tmp_path):
    save(pets / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(pets / "cat" / ".thumbnails" / "0.png")
    for name in ("cat/._0.png", "__MACOSX/cat/0.png", "cat/Thumbs.db", "cat/.DS_Store"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"\0\5\x16\7")
    for source in (pets, zipped(pets, tmp_path / "p.zip")):
        found = load_data(source)
        assert found.class_names == ("cat", "dog") and sorted(grays(found)) == [0, 1, 2, 3, 100, 101, 102, 103]


def test_links_are_followed_and_circles_are_not(pets, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "cats").symlink_to(pets / "cat")
    (data / "also").symlink_to(pets / "cat")
    (data / "back").symlink_to(data)
    (pets / "cat" / "up").symlink_to(tmp_path)  # from which data and pets are found again, once each
    found = load_data(data)
    assert found.class_names == ("also", "cats")
    (pets / "cat" / "up").unlink()
    assert sorted(grays(load_data(data))) == [0, 0, 1, 1, 2, 2, 3, 3]
    (data / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="lost.png"):
        load_data(data)


def test_an_archive_is_as_its_folder(pets, tmp_path):
    save(pets / "cat" / "wide.jpg", np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    folder = load_data(pets, size=(6, 4))
    for under in ("", "pets/", "a/b/"):
        found = load_data(zipped(pets, tmp_path / "pets.zip", under), size="6x4")
        assert torch.equal(found.pixels, folder.pixels) and torch.equal(found.labels, folder.labels)
        assert found.class_names == folder.class_names and found.name == "pets"


def test_a_folder_around_all_classes_is_no_class(pets, tmp_path):
    outer = tmp_path / "outer"
    pets.rename(outer.mkdir() or outer / "images")
    assert load_data(outer).class_names == ("cat", "dog")
    assert load_data(outer / "images" / "cat").class_names == ()


def test_parts_of_a_data_set_are_no_classes(pets, tmp_path):
    for part in ("cat", "dog"):
        (pets / part).rename(pets / {"cat": "Train", "dog": "val"}[part])
    for source in (pets, zipped(pets, tmp_path / "pets.zip")):
        with pytest.raises(InputError, match="the folders train and val are parts of a data set, no classes"):
            load_data(source)
    assert len(load_data(pets / "Train").images) == 3
    rows = [f"{part}/{k}.png,{'ab'[k % 2]}" for part in ("Train", "val") for k in range(4)]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    assert load_data(pets, tmp_path / "l.csv").class_names == ("a", "b")
    (pets / "plane").mkdir()
    save(pets / "plane" / "0.png")
    assert load_data(pets).class_names == ("Train", "plane", "val")


def test_names_of_windows_in_an_archive(pets, tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        for one in sorted(pets.rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.filename = f"pets\\{one.parent.name}\\{one.name}"  # ZipInfo() would put slashes on Windows
            file.writestr(info, one.read_bytes())
    found = load_data(tmp_path / "p.zip")
    assert found.class_names == ("cat", "dog") and sorted(grays(found)) == [0, 1, 2, 3, 100, 101, 102, 103]


@pytest.mark.parametrize("content, words", [(b"PK no zip", ["z.zip", "zip archive"]), (None, ["no pictures"])])
def test_bad_archives(content, words, tmp_path):
    if content is None:
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
            file.writestr("readme.txt", "hello")
    else:
        (tmp_path / "z.zip").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_data(tmp_path / "z.zip")
    assert all(word in str(caught.value) for word in words)


def test_a_damaged_member_is_a_corrupt_picture(pets, tmp_path):
    path = zipped(pets, tmp_path / "z.zip")
    with zipfile.ZipFile(path) as file:
        (info,) = (info for info in file.infolist() if info.filename == "dog/2.png")
    raw = bytearray(path.read_bytes())
    at = info.header_offset + 30 + len(info.filename) + 20
    raw[at : at + 30] = b"\xff" * 30
    path.write_bytes(raw)
    with pytest.raises(InputError, match="'dog/2.png'.*--skip-corrupt"):
        load_data(path)
    assert 102 not in grays(load_data(path, skip_corrupt=True))


# --- how they are read ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_photographs_stand_upright(orientation, ending, tmp_path):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8], upright[:8, :8] = (255, 0, 0), (255, 255, 255)  # every orientation is another
    stored = {  # the picture that EXIF's tag says how to turn back
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright[::-1, ::-1].transpose(1, 0, 2), 0),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    for k in range(2):
        save(tmp_path / f"{k}.{ending}", np.ascontiguousarray(stored), exif=exif, **quality)
    found = load_data(tmp_path)
    assert found.image_shape == (3, 16, 24)
    assert np.abs(found.images[0].permute(1, 2, 0).numpy().astype(int) - upright).max() < 30
    assert load_data(tmp_path, size="12x8").image_shape == (3, 8, 12)


def test_a_size_may_have_two_sides(tmp_path):
    array = np.zeros((30, 60, 3), np.uint8)
    array[:, 10:50] = 200  # the middle of 40 x 30
    for k in range(2):
        save(tmp_path / f"{k}.png", array)
    for size in ("16x12", (16, 12), "16X12"):
        found = load_data(tmp_path, size=size)
        assert found.image_shape == (3, 12, 16) and int(found.images.min()) >= 180
    assert parse_size("32") == parse_size(32) == parse_size(np.int64(32)) == (32, 32)
    for size in ("axb", "32x", "1x2x3", 3, (32,) * 3, 2.5, "", (), None, -8, 10**9):
        with pytest.raises(InputError, match="accepted: N or WxH"):
            parse_size(size)


def test_a_large_jpeg_is_cut_as_if_all_of_it_were_decoded(tmp_path):
    y, x = np.mgrid[:600, :800] / 100
    smooth = np.stack([np.sin(x + y), np.cos(x * y / 4), np.sin(3 * x) * np.cos(2 * y)], 2) * 100 + 128
    save(tmp_path / "0.jpg", smooth.astype(np.uint8), quality=95)
    whole = picture_array(cut_picture(open_picture(tmp_path / "0.jpg"), (32, 32)))
    part = open_picture(tmp_path / "0.jpg", least=32)
    assert part.size < (800, 600)  # fewer pixels were decoded
    assert np.abs(picture_array(cut_picture(part, (32, 32))).astype(int) - whole).max() <= 4


def test_alpha_is_kept_on_request(tmp_path):
    for k in range(2):
        save(tmp_path / "clear" / f"{k}.png", np.full((8, 8, 4), (10, 200, 30, 0), np.uint8))
        save(tmp_path / "opaque" / f"{k}.png", np.full((8, 8, 3), (10, 200, 30), np.uint8))
        save(tmp_path / "gray" / f"{k}.png", np.full((8, 8), 70, np.uint8))
    assert load_data(tmp_path / "clear").images[0, :, 0, 0].tolist() == [255] * 3  # what cannot be seen is white
    found = load_data(tmp_path, alpha=True)
    assert found.image_shape == (4, 8, 8)
    colors = {name: found.pixels[2 * k, :, 0, 0].tolist() for k, name in enumerate(found.class_names)}
    assert colors == {"clear": [10, 200, 30, 0], "gray": [70] * 3 + [255], "opaque": [10, 200, 30, 255]}
    assert load_data(tmp_path / "gray").image_shape == (1, 8, 8)
    assert load_data(tmp_path).image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    "array, ending",
    [
        (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, "png"),
        (np.arange(64, dtype=np.int32).reshape(8, 8) * 1000 - 7, "tif"),
        (np.linspace(-3, 5, 64).reshape(8, 8).astype(np.float32), "tif"),
        (np.arange(64).reshape(8, 8).astype(">u2"), "tif"),
    ],
)
def test_gray_of_more_than_eight_bits_keeps_its_values(array, ending, tmp_path):
    for k in range(2):
        save(tmp_path / f"{k}.{ending}", array)
    found = load_data(tmp_path)
    assert np.array_equal(found.pixels[0, 0].numpy(), array.astype(np.float32))
    assert found.value_range == (float(array.min()), float(array.max()))
    given = load_data(tmp_path, value_range=(-10, 10**5), size=4)  # resized, no value goes beyond those of the picture
    assert given.value_range == (-10, 10**5) and array.min() <= given.pixels.min() <= given.pixels.max() <= array.max()


def test_resizing_stays_within_the_values_of_a_picture(tmp_path):
    for k in range(2):
        save(tmp_path / f"{k}.png", (np.arange(64 * 64).reshape(64, 64) % 2 * 4095).astype(np.uint16))
        save(tmp_path / "e" / f"{k}.png", np.repeat(np.repeat(np.uint16([[0, 4095]] * 2), 32, 0), 32, 1))
    assert load_data(tmp_path, size=24, value_range=(0, 4095)).value_range == (0, 4095)


def test_pictures_of_two_kinds_are_refused(tmp_path):
    save(tmp_path / "scan.png", np.ones((8, 8), np.uint16))
    save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"'scan.png' has 16 bits or floats, and 'photo.png' 8"):
        load_data(tmp_path)
    (tmp_path / "photo.png").unlink()
    with pytest.raises(InputError, match="transparency"):
        load_data(tmp_path, alpha=True)


# --- files that cannot be read ---


def test_corrupt_files_are_named_and_left_out_on_request(pets):
    whole = (pets / "cat" / "1.png").read_bytes()
    (pets / "cat" / "1.png").write_bytes(whole[:45])  # its header is in order
    (pets / "dog" / "0.png").write_bytes(b"no picture")
    (pets / "dog" / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"'dog/0.png' as a picture.*, and 1 more file; skip_corrupt \(--skip-corr"):
        load_data(pets)
    found = load_data(pets, skip_corrupt=True)
    assert sorted(grays(found)) == [0, 2, 3, 101, 102]
    assert "3 corrupt files left out: dog/0.png, dog/3.png, cat/1.png" in found.summary()
    kinds = torch.cat([found.labels, found.val_labels]).argmax(1).tolist()
    assert sorted(zip(grays(found), kinds, strict=True)) == [(0, 0), (2, 0), (3, 0), (101, 1), (102, 1)]
    for path in pets.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="none of 8 pictures can be read"):
        load_data(pets, skip_corrupt=True)


def test_a_corrupt_first_picture_is_told_as_any_other(pets):
    for k in (0, 2):
        whole = (pets / "cat" / f"{k}.png").read_bytes()
        (pets / "cat" / f"{k}.png").write_bytes(whole[:45])
    with pytest.raises(InputError, match=r"'cat/0.png' as a picture.*, and 1 more file; skip_corrupt \(--skip-corr"):
        load_data(pets)


def test_another_size_is_no_corrupt_file(pets):
    save(pets / "dog" / "9.png", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"'dog/9.png' is 9x8 and 'cat/0.png' 8x8; give a size \(--size\)"):
        load_data(pets, skip_corrupt=True)


# --- classes by a CSV ---


@pytest.mark.parametrize(
    "text",
    [
        "cat/{k}.png,{kind}",
        "file,class\ncat/{k}.png,{kind}",
        "name;label\n./cat/{k}.png;{kind}",
        "id\tlabel\ncat\\{k}.png\t{kind}",
        "image,breed\ncat/{k},{kind}",
        "image,breed\npets/cat/{k}.png,{kind}",
        '\ufefffile,"the class"\n"cat/{k}.png"," {kind}"',
    ],
)
def test_a_csv_names_the_classes(text, pets, tmp_path):
    *header, row = text.split("\n")
    rows = [row.format(k=k, kind=["10", "9"][k % 2]).replace("cat", kind) for kind in ("cat", "dog") for k in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join([*header, *rows, ""]), encoding="utf-8")
    for source in (pets, zipped(pets, tmp_path / "pets.zip", "inner/")):
        found = load_data(source, tmp_path / "labels.csv")
        assert found.class_names == ("9", "10")  # numbers in their order
        kinds = torch.cat([found.labels, found.val_labels]).argmax(1).tolist()
        assert all(kind == 1 - gray % 2 for gray, kind in zip(grays(found), kinds, strict=True))


ROWS = [f"{kind}/{k}.png,{kind}" for kind in ("cat", "dog") for k in range(4)]


@pytest.mark.parametrize(
    "rows, words",
    [
        (ROWS[1:], ["has no class for: 'cat/0.png'"]),
        (ROWS[:2], ["'cat/2.png', 'cat/3.png', 'dog/0.png' and 3 more"]),
        ([*ROWS, "cat/9.png,cat"], ["files that are not there: 'cat/9.png'"]),
        (["cat/9.png,cat", *ROWS], ["files that are not there: 'cat/9.png'"]),  # no header
        ([*ROWS, "cat/0.png,dog"], ["'cat/0.png' two classes, 'cat' and 'dog'"]),
        ([*ROWS, "cat/0.png,cat,1"], ["3 columns", "two"]),
        ([], ["has no class for"]),
        (None, ["cannot be read as a CSV"]),
    ],
)
def test_bad_csvs(rows, words, pets, tmp_path):
    if rows is not None:
        (tmp_path / "l.csv").write_text("\n".join(rows))
    with pytest.raises(InputError) as caught:
        load_data(pets, tmp_path / "l.csv")
    assert all(word in str(caught.value) for word in words)


# --- memory ---


def test_one_photograph_is_open_at_a_time(tmp_path):
    """60 photographs of 1600x1200 are 345 MB at their full size; the process grows by that of a few."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for ending in ("jpg", "png"):
        Image.fromarray(noise).resize((1600, 1200)).save(tmp_path / f"photo.{ending}", compress_level=1)
    (tmp_path / "data").mkdir()
    for k in range(60):
        (tmp_path / "data" / f"{k}.{'png' if k % 4 == 0 else 'jpg'}").symlink_to(
            tmp_path / f"photo.{'png' if k % 4 == 0 else 'jpg'}"
        )
    code = (
        "import resource\nfrom fastdiff.data.load import load_data\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\nassert load_data('data', size=32).image_shape == (3, 32, 32)\nprint(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    threads = min(8, os.cpu_count() or 1)
    assert float(done.stdout) < 60 + 20 * threads  # MB; three copies of a picture for each thread


@pytest.mark.slow  # minutes
@pytest.mark.timeout(1800)
def test_ten_thousand_photographs_are_trained_on_in_two_gigabytes(tmp_path):
    random = np.random.default_rng(0)
    for k in range(4):
        small = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / f"{k}.jpg", quality=90)
    (tmp_path / "data").mkdir()
    for k in range(10_000):
        (tmp_path / "data" / f"{k:05d}.jpg").symlink_to(tmp_path / f"{k % 4}.jpg")
    words = "train --preset course --data data --size 32 --n-feat 8 --epochs 1 --batch-size 64 --threads 1 -o r".split()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(tmp_path / "said.txt", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastdiff", *words], cwd=tmp_path, stdout=said, stderr=said, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = (tmp_path / "said.txt").read_text()
    assert process.returncode == 0, text
    assert "9,500 pictures 3x32x32, 500 held out" in text
    assert used.ru_maxrss < 2 * 2**20  # kB


def test_pictures_that_are_not_read_are_said(tmp_path):
    """A phone's, say; other files are not."""
    for k in range(5):
        Image.new("L", (8, 8), 10 * k).save(tmp_path / f"{k}.jfif", "jpeg")
    for name in ("a.HEIC", "b.heic", "c.avif", "notes.txt", ".d.heic"):
        (tmp_path / name).write_bytes(b"x")
    found = load_data(tmp_path)
    assert len(found) + len(found.val_images) == 5
    assert found.summary().endswith("; not read: 2 of .heic; not read: 1 of .avif")


def test_the_folder_one_works_in_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(3):
        Image.new("L", (8, 8)).save(f"{k}.png")
    assert load_data(".").name == tmp_path.name


def test_a_csv_with_an_empty_class(tmp_path):
    (tmp_path / "p").mkdir()
    for k in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "p" / f"{k}.png")
    (tmp_path / "y.csv").write_text("0.png,a\n1.png,\n2.png,b\n")
    with pytest.raises(InputError, match="has no class for: '1.png'"):
        load_data(tmp_path / "p", tmp_path / "y.csv")
