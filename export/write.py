"""`export_network`, `export_sampler`, `export_page`: from a Model to files that have been checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto

from fastdiff.engine.request import check_table
from fastdiff.errors import InputError
from fastdiff.export.assemble import Face, network_model, sampler_model
from fastdiff.export.runner import onnxruntime
from fastdiff.export.steady import steady_norms
from fastdiff.export.trace import trace
from fastdiff.export.verify import Check, checked, network_checks, sampler_checks
from fastdiff.export.web import check_page_folder, write_page
from fastdiff.files import check_writable, write_atomically
from fastdiff.model import Model
from fastdiff.samplers.prediction import choose_clip
from fastdiff.samplers.table import StepTable

STAGES = logging.getLogger("fastdiff.export")  # what is being done, at level INFO


def export_network(
    model: Model,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    prepared: bool = True,
) -> list[Check]:
    """Write the model's network as ONNX; returns how far ONNX Runtime is from torch.

    Inputs sample (batch, C, H, W) float32 in [-1, 1], timestep (batch,), int64 or, where the model's time is
    "fraction", float32 t / T, and context (batch, K) float32 where it takes one; output prediction. The batch is free,
    and so are height and width where the network allows. dtype: of its arithmetic, float32 or float16 (inputs and
    outputs stay float32). weights: how they are stored, float32 or float16, which halves the file; None is the dtype.
    prepared: linear attention folded where that saves operations.

    Raises InputError, leaving no file, for what cannot be exported, and where the distances exceed verify's bounds.
    """
    _check(path)
    STAGES.info("tracing the network")
    parts = trace(model, dtype, weights, prepared, free_size=True)
    return _write(network_model(parts), path, lambda written: network_checks(written, parts))


def export_sampler(
    model: Model,
    path: str | Path,
    table: StepTable | None = None,
    clip: Any = "model",
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    prepared: bool = True,
    stepwise: bool = False,
    noise: str = "philox",
    pictures: bool = False,
) -> list[Check]:
    """Write the model's whole sampling loop as ONNX; returns how far ONNX Runtime's images are from torch's.

    table: the sampler (see make_table); None leaves it open: then the file is stepwise, and the table an input.
    clip: as in `sample`. stepwise, noise, pictures: see assemble.Face. The rest is as in
    export_network. Raises InputError, leaving no file, likewise.
    """
    _check(path)
    face = _face(model, table, clip, stepwise or table is None, noise, pictures)
    STAGES.info("tracing the network")
    parts = trace(model, dtype, weights, prepared)
    return _write(sampler_model(parts, face), path, lambda written: sampler_checks(written, parts, face))


def export_page(
    model: Model,
    folder: str | Path,
    name: str,
    weights: str = "float16",
    prepared: bool = True,
    arguments: Sequence[str] = (),
) -> list[Check]:
    """Write a static page that samples from the model in a browser, into a new or empty folder; see export.web.

    name: the model's as `fastdiff sample` takes it, for the page's title and its command line, and arguments what else
    it takes to load that model. The rest is as in export_sampler.
    """
    check_page_folder(folder)
    onnxruntime()
    face = _face(model, None, "model", True, "philox", False)
    STAGES.info("tracing the network")
    parts = trace(model, torch.float32, weights, prepared)
    parts = replace(parts, denoise=steady_norms(parts.denoise))
    before, after = (one.network.state_dict().values() for one in (model, parts.model))
    rounded = any(not torch.equal(a.cpu().float(), b.float()) for a, b in zip(before, after, strict=True))
    about = {"name": Path(name).stem, "model": [name, *arguments], "rounded": rounded}
    STAGES.info("writing the page")
    with write_page(folder, about, model, sampler_model(parts, face)) as written:
        STAGES.info("checking its sampler against torch")
        return checked(sampler_checks(written, parts, face))


def _face(model: Model, table: StepTable | None, clip: Any, stepwise: bool, noise: str, pictures: bool) -> Face:
    if table is not None:
        check_table(model, table)
    return Face(table, choose_clip(clip, model.clip), stepwise, noise, pictures)


def _check(path: str | Path) -> None:
    """What can be told before the network is traced."""
    if check_writable(path).suffix.lower() != ".onnx":
        raise InputError(f"output {str(path)!r}; accepted: a name that ends in .onnx")
    onnxruntime()


def _write(model: ModelProto, path: str | Path, compare: Callable[[Path], Iterable[Check]]) -> list[Check]:
    done: list[Check] = []

    def write(temporary: Path) -> None:
        STAGES.info("writing the file")
        temporary.write_bytes(model.SerializeToString())
        STAGES.info("checking it against torch")
        done.extend(checked(compare(temporary)))

    write_atomically(path, write)
    return done
