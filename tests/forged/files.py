"""Small whole files of every kind that fastdiff reads, and what reads them."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdiff import AnnotatedUnet, ContextUnet, Model, Recipe, Trainer, load, load_data, make_schedule, read_picture
from fastdiff import save as save_model
from fastdiff.checkpoints.load import states_itself, stored_info
from fastdiff.data.images import ImageData
from fastdiff.data.npy import numbers
from fastdiff.export import OnnxSampler, export_sampler
from fastdiff.shards.folder import ShardFolder
from fastdiff.shards.manifest import Samples, model_facts, new_manifest, read_manifest
from fastdiff.training.checkpoint import read_checkpoint
from fastdiff.training.folder import RunFolder


@dataclass(frozen=True)
class Reader:
    """What reads files of one kind.

    Attributes:
        make: writes a whole one into a folder; returns the file that is forged.
        read: is given that file, forged.
        never: whether it raises nothing at all, for what it reads is only a log.
        more: bytes of memory that it may take besides ten times the file's size.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    never: bool = False
    more: int = 64 * 2**20


def annotated() -> AnnotatedUnet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AnnotatedUnet(dim=4, dim_mults=(1, 2), edition="mindspore")


def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ContextUnet(1, 8, 2, 16, True)
    schedule = make_schedule("course", 20)
    shape: Any = {"image_shape": (1, 16, 16), "time": "fraction"}
    return Model(network, schedule, class_names=("a", "b"), clip=("dynamic", 0.9), value_range=(0, 4095), **shape)


def _written(path: Path, write: Callable[[Path], object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return path


INFO = {"trained with": "x", "n": 3}


def _own(folder: Path) -> Path:
    return _written(folder / "m.safetensors", lambda path: save_model(model(), path, info=INFO))


def _about(path: Path) -> None:
    states_itself(path)
    stored_info(path)


def _training(folder: Path) -> Path:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    data = ImageData("x", images, torch.zeros(4, 0), (), images[:1], torch.zeros(1, 0))
    network = {"name": "annotated", "dim": 4, "dim_mults": [1, 2]}
    trainer = Trainer(Recipe(network=network, batch_size=4, epochs=1, ema_decay=0.5), data, device="cpu")
    trainer.step()
    extra = {"data": {"source": "x"}, "command": "fastdiff train", "wishes": {"log": []}, "accumulate": 1}
    return _written(folder / "checkpoint.safetensors", lambda path: trainer.save(path, extra))


def _resumed(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    data = ImageData("x", images, torch.zeros(4, 0), (), images[:1], torch.zeros(1, 0))
    if not checkpoint.recipe.network or checkpoint.recipe.epochs * checkpoint.recipe.timesteps < 10**6:
        Trainer.resume(checkpoint, data, device="cpu")


def _torch(path: Path, **options: Any) -> None:
    content = {"model": annotated().state_dict(), "step": 3, "lr": np.float64(0.1), "list": [1, (2.0, None)]}
    torch.save(content, path, **options)


def _diffusers(name: str) -> Callable[[Path], Path]:
    """A pipeline's folder; the file `name` of it is forged."""

    def make(folder: Path) -> Path:
        import diffusers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = diffusers.UNet2DModel(
                sample_size=8,
                in_channels=1,
                out_channels=1,
                block_out_channels=(8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            )
        diffusers.DDPMPipeline(unet, diffusers.DDIMScheduler(50)).save_pretrained(folder / "ddpm")
        return folder / "ddpm" / name

    return make


def _ddpm(path: Path) -> None:
    load(next(parent for parent in path.parents if parent.name == "ddpm"))


def _manifest(folder: Path) -> Path:
    samples = Samples("ddim", 5, 0.0, "trailing", None, 0, 0, 16, [[1.0, 0.0]], 2.0)
    made = model()
    configuration = {"batch_size": 4, "threads": 1, "dtype": "float32", "form": "eager", "device": "cpu"}
    files = {"format": "npz", "shard_size": 8}
    manifest = new_manifest("0.1", model_facts(made, "m"), samples.values(made), files, configuration)
    return _written(folder / "manifest.json", lambda path: path.write_text(json.dumps(manifest)))


def _note(path: Path) -> None:
    manifest: Any = {"configuration": {"batch_size": 4}, "smaller_batches": {}, "notes": []}
    ShardFolder(path.parent, "npz", 16, (1, 16, 16)).take_notes(manifest)


def _log(folder: Path) -> Path:
    lines = "step,epoch,lr,loss,val_loss,seconds\n1,0.5,0.001,0.5,,1.5\n2,1.0,0.001,0.4,0.45,3.0\n"
    return _written(folder / "run" / "log.csv", lambda path: path.write_text(lines))


def _read_log(path: Path) -> None:
    run = RunFolder(path.parent)
    run.read_log(2)
    run.seconds()
    run.series("loss")


def _sampled(path: Path) -> None:
    OnnxSampler(path, threads=1).sample(1, context=[1.0, 0.0])


def _onnx(folder: Path) -> Path:
    made = model()
    return _written(folder / "s.onnx", lambda path: export_sampler(made, path, made.table("ddim", 2)))


PICTURES = 32 * 89_478_485  # the most pixels of a picture, as float32 and as bytes
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def _idx(folder: Path) -> Path:
    for part in ("train", "t10k"):
        images = struct.pack(">HBBIII", 0, 8, 3, 2, 8, 8) + bytes(128)
        labels = struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1"
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return folder / "train-images-idx3-ubyte.gz"


def _cifar(folder: Path) -> Path:
    batch = {b"data": IMAGES.reshape(-1)[: 3 * 32 * 32 // 4].repeat(4)[None].repeat(2, 0), b"labels": [3, 4]}
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    return folder / "data_batch_1"


def _picture(name: str, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: _written(folder / name, lambda path: Image.fromarray(IMAGES[0]).save(path, **options))


def _zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for k, picture in enumerate(IMAGES):
            with file.open(f"{'ab'[k % 2]}/{k}.png", "w") as entry:
                Image.fromarray(picture).save(entry, "png")
    return folder / "x.zip"


def _csv(folder: Path) -> Path:
    for k, picture in enumerate(IMAGES):
        Image.fromarray(picture).save(folder / f"{k}.png")
    rows = "".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(len(IMAGES)))
    return _written(folder / "labels.csv", lambda path: path.write_text(f"file,class\n{rows}"))


def _data(path: Path) -> None:
    load_data(path, download=False)


def _data_folder(path: Path) -> None:
    load_data(path.parent, download=False)


def readers(mindspore_file: Callable[..., bytes]) -> dict[str, Reader]:
    """All of them by name; mindspore_file: of tests/mindspore.py."""
    return {
        "safetensors": Reader(_own, load),
        "what a file says of itself": Reader(_own, _about),
        "training checkpoint": Reader(_training, _resumed),
        "foreign safetensors": Reader(
            lambda folder: _written(
                folder / "a.safetensors",
                lambda path: save_file(annotated().state_dict(), path),
            ),
            load,
        ),
        "torch.save": Reader(lambda folder: _written(folder / "a.pt", _torch), load),
        "torch.save, not zipped": Reader(
            lambda folder: _written(folder / "a.pt", partial(_torch, _use_new_zipfile_serialization=False)),
            load,
        ),
        "MindSpore": Reader(
            lambda folder: _written(
                folder / "a.ckpt", lambda path: path.write_bytes(mindspore_file(annotated().state_dict()))
            ),
            load,
        ),
        "diffusers, network": Reader(_diffusers("unet/config.json"), _ddpm),
        "diffusers, scheduler": Reader(_diffusers("scheduler/scheduler_config.json"), _ddpm),
        "diffusers, index": Reader(_diffusers("model_index.json"), _ddpm),
        "manifest": Reader(_manifest, lambda path: read_manifest(path.parent)),
        "note": Reader(
            lambda folder: _written(
                folder / "samples-00000000-00000008.note.json",
                lambda path: path.write_text(json.dumps({"batch_size": 2, "notes": ["x"]})),
            ),
            _note,
            never=True,
        ),
        "log": Reader(_log, _read_log, never=True),
        "ONNX": Reader(_onnx, _sampled),
        "npy": Reader(lambda folder: _written(folder / "x.npy", lambda path: np.save(path, IMAGES)), _data),
        "npz": Reader(
            lambda folder: _written(
                folder / "x.npz", lambda path: np.savez_compressed(path, images=IMAGES, labels=np.arange(6) % 2)
            ),
            _data,
        ),
        "context": Reader(
            lambda folder: _written(folder / "c.npy", lambda path: np.save(path, np.zeros((3, 4), np.float32))),
            lambda path: numbers(str(path)),
        ),
        "IDX": Reader(_idx, _data_folder),
        "CIFAR-10": Reader(_cifar, _data_folder),
        "zip of pictures": Reader(_zipped, _data),
        "CSV of classes": Reader(_csv, lambda path: load_data(path.parent, path)),
        "png": Reader(_picture("x.png"), read_picture, more=PICTURES),
        "jpg": Reader(_picture("x.jpg"), read_picture, more=PICTURES),
        "gif": Reader(_picture("x.gif"), read_picture, more=PICTURES),
        "tif": Reader(_picture("x.tif", compression="tiff_lzw"), read_picture, more=PICTURES),
        "webp": Reader(_picture("x.webp", lossless=True), read_picture, more=PICTURES),
    }
