"""A static page that samples in the visitor's browser: the files of `fastdiff export MODEL --web DIR`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from fastdiff.engine.request import check_table
from fastdiff.errors import InputError
from fastdiff.export import metadata
from fastdiff.files import check_folder, reason, write_folder
from fastdiff.model import Model
from fastdiff.samplers.samplers import DEFAULT, SAMPLERS
from fastdiff.samplers.table import StepTable
from fastdiff.temporary import is_temporary

PAGE = Path(__file__).parent / "page"
# onnxruntime-web 1.30.0 from npm: its ort.wasm.bundle.min.mjs (named .js, which every server knows the type of) and
# its ort-wasm-simd-threaded.wasm, which needs no threads.
RUNTIME = {
    "ort.js": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
FILES = (
    "index.html",
    "asked.js",
    "picture.js",
    "page.js",
    "worker.js",
    "style.css",
    "onnxruntime-LICENSE.txt",
    "onnxruntime-ThirdPartyNotices.txt",
    *RUNTIME,
)
MADE = ("model.onnx", "model.json")  # for each model
LAST = "index.html"  # a folder gets it when it has all others
STEPS = (5, 10, 15, 25, 50, 100)


def choices(model: Model) -> dict[str, Any]:
    """What the page offers: for each sampler and number of steps the table, as float32 values.

    Tables that the model refuses are left out: of too many steps, or with times between a network's whole ones.
    """
    total = model.schedule.num_timesteps
    counts = [*(n for n in STEPS if n < total), total]

    def columns(table: StepTable) -> dict[str, Any]:
        rows = table.rows.astype(np.float32)
        return {
            # The shortest decimals that name the same float32 numbers.
            "rows": [[float(str(v)) for v in row] for row in rows],
            "times": table.time.tolist(),
            "init_noise_sigma": float(table.init_noise_sigma),
        }

    def tables(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for n in counts:
            try:
                table = check_table(model, model.table(name, n))
            except InputError:
                continue
            yield str(n), columns(table)

    offered = {name: dict(tables(name)) for name, sampler in SAMPLERS.items() if not sampler.collapses}
    return {name: found for name, found in offered.items() if found}


@contextmanager
def write_page(folder: str | Path, about: dict[str, Any], model: Model, sampler: ModelProto) -> Iterator[Path]:
    """Make the page; within the context its model.onnx can be looked at, and after it the folder gets its files.

    Args:
        folder: new or empty; if something fails it is left as it was.
        about: name, the title; model, the words after `fastdiff sample`; rounded, whether the weights are not quite
            the model's.
        model: what the page samples from.
        sampler: made from a stepwise Face without a table.
    """
    with write_folder(check_page_folder(folder), LAST) as made:
        for file in FILES:
            shutil.copyfile(PAGE / file, made / file)
        for file, digest in RUNTIME.items():
            if hashlib.sha256((made / file).read_bytes()).hexdigest() != digest:
                raise InputError(f"{file!r} of this installation is damaged; install fastdiff again")
        (made / "model.onnx").write_bytes(sampler.SerializeToString())
        description = json.loads({p.key: p.value for p in sampler.metadata_props}[metadata.KEY])
        size = (made / "model.onnx").stat().st_size
        start = {"sampler": DEFAULT, "steps": SAMPLERS[DEFAULT].default_steps(model.schedule.num_timesteps)}
        hints = {name: sampler.title for name, sampler in SAMPLERS.items()}
        page = {**description, **about, "model_bytes": size, "samplers": choices(model), "start": start, "hints": hints}
        (made / "model.json").write_text(json.dumps(page))
        yield made / "model.onnx"


def check_page_folder(folder: str | Path) -> Path:
    """A folder that is not there or empty, before any long work, or holds a page that was not finished.

    Raises:
        InputError: for another, or one that cannot be written to.
    """
    try:
        folder = Path(folder).resolve()
        there = folder.exists()
        names = {one.name for one in folder.iterdir()} if there else set()
    except (OSError, RuntimeError) as error:  # RuntimeError for links in a circle
        raise InputError(f"cannot write the page to {str(folder)!r}: {reason(error)}") from error
    names = {name for name in names if not is_temporary(name)}
    if LAST in names or not names <= {*FILES, *MADE}:
        raise InputError(f"cannot write the page to {str(folder)!r}: it exists; accepted: a new or empty folder")
    return check_folder(folder)
