"""Pictures: values, places in the grid, animations, files whole or not at all."""

import base64
import io
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import InputError
from fastdiff.files import check_writable, write_atomically
from fastdiff.images import (
    animation,
    check_picture_name,
    fit_picture,
    grid,
    open_picture,
    read_picture,
    save_gif,
    save_picture,
    to_uint8,
)


def test_to_uint8():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, float("nan"), float("inf")])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 0, 255]
    exact = torch.arange(256) / 127.5 - 1
    assert to_uint8(exact).tolist() == list(range(256))


def test_grid_places_images_row_by_row():
    images = torch.stack([torch.full((1, 2, 3), k / 127.5 - 1) for k in range(5)])
    picture = np.asarray(grid(images, columns=3, scale=1, gap=1))
    assert picture.shape == (2 * 3 + 1, 3 * 4 + 1)
    for k in range(5):
        assert (picture[1 + k // 3 * 3 : 3 + k // 3 * 3, 1 + k % 3 * 4 : 4 + k % 3 * 4] == k).all()
    assert (picture[4:6, 9:12] == 255).all()  # an empty place


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels(channels, mode):
    assert grid(torch.zeros(2, channels, 4, 4)).mode == mode


@pytest.mark.parametrize("channels", [2, 5])
def test_no_channel_is_hidden(channels):
    images = torch.arange(3 * channels).view(3, channels, 1, 1).expand(-1, -1, 4, 6) / 127.5 - 1
    picture = np.asarray(grid(images, columns=2, scale=1, gap=1))
    assert picture.shape == (2 * 5 + 1, 2 * (6 * channels + 1) + 1)
    for k in range(3):
        for c in range(channels):
            top, left = 1 + k // 2 * 5, 1 + k % 2 * (6 * channels + 1) + c * 6
            assert (picture[top : top + 4, left : left + 6] == k * channels + c).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_of_a_picture_is_read(mode, tmp_path):
    gray = np.uint8([[0, 255], [255, 0]]).repeat(4, 0).repeat(4, 1)
    if mode in ("I;16", "I", "F"):
        picture = Image.fromarray(gray.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        picture = Image.fromarray(gray).convert("P" if mode == "PA" else mode).convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.tif" if mode == "PA" else "a.tiff")
    picture.save(path, **({"quality": 100} if mode in ("CMYK", "YCbCr") else {}))
    found = open_picture(path)
    expected = {"1": "L", "L": "L", "LA": "L", "I;16": "F", "I": "F", "F": "F"}.get(mode, "RGB")
    assert found.mode == expected and np.abs(np.asarray(found.convert("L")).astype(int) - gray).max() <= 2
    assert open_picture(path, alpha=True).mode == ("F" if expected == "F" else "RGBA")
    assert torch.allclose(fit_picture(path, (1, 8, 8))[0], torch.from_numpy(gray / 127.5 - 1).float(), atol=0.02)
    assert fit_picture(path, (3, 8, 8)).shape == read_picture(path).shape == (3, 8, 8)


def test_a_picture_of_sixteen_bits_fits_a_models_range(tmp_path):
    Image.fromarray(np.uint16([[0, 1000], [2000, 5000]])).save(tmp_path / "a.png")
    found = fit_picture(tmp_path / "a.png", (1, 2, 2), (0, 4000))
    assert found.tolist() == [[[-1, -0.5], [0, 1]]]  # 5000 lies outside
    assert read_picture(tmp_path / "a.png")[2].flatten().tolist() == pytest.approx([-1, -0.6, -0.2, 1])
    Image.fromarray(np.full((2, 2), 70, np.uint16)).save(tmp_path / "flat.png")
    assert read_picture(tmp_path / "flat.png").eq(0).all()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert fit_picture(tmp_path / "clear.png", (4, 2, 2))[:, 0, 0].tolist() == [1, -1, -1, -1]
    for shape, words in (((2, 2, 2), "2 channels; accepted: 1, 3 or 4"), ((4, 2, 2), "8 bits")):
        with pytest.raises(InputError, match=words):
            fit_picture(tmp_path / "a.png", shape)


def test_color_survives_a_png(tmp_path):
    image = torch.rand(1, 3, 5, 7) * 2 - 1
    save_picture(grid(image, scale=1, gap=0), tmp_path / "a.png")
    assert torch.allclose(read_picture(tmp_path / "a.png"), image[0], atol=1 / 127)


def test_gif(tmp_path):
    frames = [grid(torch.full((4, 1, 4, 4), v)) for v in (-1.0, 0.0, 1.0)]
    save_gif(frames, tmp_path / "a.gif", milliseconds=50)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.info["loop"] == 0 and gif.info["duration"] == 50
        gif.seek(2)
        assert gif.info["duration"] == 1500


def test_an_animation_shows_itself_and_is_what_it_saves(tmp_path):
    frames = torch.linspace(-1, 1, 3)[:, None, None, None, None].expand(3, 4, 3, 4, 6)
    shown = animation(frames, columns=4, scale=2, gap=0, milliseconds=50, hold=700)
    assert repr(shown) == "Animation(3 frames of 48x8)"
    (encoded,) = re.findall(r'src="data:image/gif;base64,([^"]+)"', shown._repr_html_())
    shown.save(tmp_path / "a.gif")
    save_gif([grid(f, 4, scale=2, gap=0) for f in frames], tmp_path / "b.gif", milliseconds=50, hold=700)
    bytes_ = base64.b64decode(encoded)
    assert bytes_ == (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(io.BytesIO(bytes_)) as gif:
        assert gif.n_frames == 3 and gif.size == (48, 8)
        for k, value in enumerate((0, 128, 255)):
            gif.seek(k)
            assert (np.asarray(gif.convert("RGB")) == value).all()
            assert gif.info["duration"] == (700 if k == 2 else 50)


def test_bad_grids_and_animations(tmp_path):
    images = torch.zeros(2, 1, 4, 4)
    for call, message in (
        (lambda: grid(images[0]), r"images of shape \(1, 4, 4\)"),
        (lambda: grid(images[:0]), "none of them 0"),
        (lambda: grid(images, 0), "columns = 0"),
        (lambda: grid(images, scale=1.5), "scale = 1.5"),
        (lambda: grid(images, gap=-1), "gap = -1"),
        (lambda: save_gif([], tmp_path / "a.gif"), "no pictures"),
        (lambda: save_gif(images, tmp_path / "a.gif"), "a frame of type Tensor; accepted: pictures, see fastdiff.grid"),
        (lambda: save_gif([grid(images), "a.png"], tmp_path / "a.gif"), "a frame of type str"),
        (lambda: save_gif([grid(images)], tmp_path / "a.png"), "ends in .gif"),
        (lambda: save_gif([grid(images), grid(images, 1)], tmp_path / "a.gif"), "frames of 6.*; accepted: all of one"),
        (lambda: save_gif([grid(images)], tmp_path / "a.gif", milliseconds=0), "milliseconds = 0"),
        (lambda: animation(images[None], hold=-1), "hold = -1"),
        (lambda: animation(images), r"frames of shape \(2, 1, 4, 4\); accepted: \(m, n, C, H, W\)"),
        (lambda: animation(images[None][:0]), "none of them 0"),
        (lambda: animation([grid(images)]), "frames = a value of type list; accepted: a tensor"),
        (lambda: animation(images[None], 0), "columns = 0"),
        (lambda: animation(images[None]).save(tmp_path / "a.png"), "ends in .gif"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert not os.listdir(tmp_path)


def test_a_middle_square_is_cut(tmp_path):
    picture = Image.new("RGB", (12, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (4, 0, 8, 4))
    picture.save(tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png", 4), torch.tensor([-1.0, -1, 1])[:, None, None].expand(3, 4, 4))


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "a.bin", fail)
    assert not os.listdir(tmp_path)


def test_names_and_places(tmp_path):
    with pytest.raises(InputError, match="a.xyz"):
        check_picture_name("a.xyz")
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        check_writable(tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match="as a picture"):
        read_picture(tmp_path / "file")
    check_writable(tmp_path / "new" / "deep" / "a.png")
    assert os.listdir(tmp_path) == ["file"]  # looking leaves no trace
    write_atomically(tmp_path / "new" / "deep" / "a", lambda path: path.write_text("x"))
    assert os.listdir(tmp_path / "new" / "deep") == ["a"]


def test_a_small_file_of_a_giant_picture_is_refused(tmp_path, taken):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "x.png")
    with (
        taken() as memory,
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InputError, match="10000x10000"),
    ):
        read_picture(tmp_path / "x.png")
    assert memory() < 8 * 2**20
