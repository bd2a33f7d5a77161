"""From a Model to checked files: `export_network`, `export_sampler`, `export_page`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from onnx import ModelProto

from fastdiff.engine.request import check_table
from fastdiff.errors import InputError
from fastdiff.export.assemble import Face, network_model, sampler_model
from fastdiff.export.parts import capture
from fastdiff.export.runner import onnxruntime
from fastdiff.export.verify import Check, checked, network_checks, sampler_checks
from fastdiff.export.web import check_page_folder, write_page
from fastdiff.files import check_writable, write_atomically
from fastdiff.model import Model, check_model
from fastdiff.samplers.prediction import Clip, choose_clip
from fastdiff.samplers.table import StepTable

STAGES = logging.getLogger("fastdiff.export")  # what is being done, at level INFO


def export_network(
    model: Model,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    prepared: bool = True,
    context_shape: Sequence[int] | None = None,
) -> list[Check]:
    """Write the model's network as an ONNX file, and check it against torch.

    Its inputs are sample (batch, C, H, W) float32 in [-1, 1]; timestep (batch,) int64, or float32 t / T if the model's
    time is "fraction"; if the network takes one, context, (batch, K) or (batch, L, D) float32 or (batch,) int64 class
    numbers; and with self-conditioning x_self_cond, as sample. Its output is prediction, as sample, or with a learned
    variance (batch, 2 C, H, W). The batch is free; height and width are the model's.

    Args:
        model: with the network.
        path: of the file, ending in .onnx.
        dtype: torch.float32 or torch.float16, of the arithmetic; inputs and outputs stay float32.
        weights: "float32" or "float16", how weights are stored; float16 halves the file. None is as dtype.
        prepared: fold linear attention where that saves operations.
        context_shape: of a sample's context, (L, D) for tokens, where the model does not declare one.

    Returns:
        The comparisons of ONNX Runtime with torch.

    Raises:
        InputError: for what cannot be exported, or if a distance exceeds its bound; no file is left.
    """
    check_model(model)
    _check(path)
    STAGES.info("capturing the network")
    parts = capture(model, dtype, weights, prepared, context_shape=context_shape)
    return _write(network_model(parts), path, lambda written: network_checks(written.read_bytes(), parts))


def export_sampler(
    model: Model,
    path: str | Path,
    table: StepTable | None = None,
    *,
    clip: Clip | Literal["model"] = "model",
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    prepared: bool = True,
    stepwise: bool = False,
    noise: str = "philox",
    pictures: bool = False,
    context_shape: Sequence[int] | None = None,
) -> list[Check]:
    """Write the model's whole sampling loop as an ONNX file, and check its images against torch's.

    Args:
        model, path, dtype, weights, prepared, context_shape: as in export_network.
        table: the sampler (see make_table); with None the file is stepwise and the table its inputs, see
            assemble.Face.
        clip: as in `sample`.
        stepwise, noise, pictures: what the file takes and gives, see assemble.Face.

    Returns:
        The comparisons of ONNX Runtime with torch.

    Raises:
        InputError: as export_network.
    """
    check_model(model)
    _check(path)
    face = _face(model, table, clip, stepwise or table is None, noise, pictures)
    STAGES.info("capturing the network")
    between = table is not None and not table.whole_times
    parts = capture(model, dtype, weights, prepared, fractional=between, context_shape=context_shape)
    return _write(sampler_model(parts, face), path, lambda written: sampler_checks(written, parts, face))


def export_page(
    model: Model,
    folder: str | Path,
    name: str,
    *,
    weights: str = "float16",
    prepared: bool = True,
    arguments: Sequence[str] = (),
) -> list[Check]:
    """Write a static page that samples from the model in a browser, and check its file; see export.web.

    Args:
        model, weights, prepared: as in export_network.
        folder: new or empty.
        name: the model's, as `fastdiff sample` takes it; for the page's title and its command line.
        arguments: what else `fastdiff sample` needs to load that model.

    Returns:
        The comparisons of ONNX Runtime with torch.

    Raises:
        InputError: as export_network; no folder is left.
    """
    check_model(model)
    check_page_folder(folder)
    onnxruntime()
    face = _face(model, None, "model", True, "philox", False)
    STAGES.info("capturing the network")
    parts = capture(model, torch.float32, weights, prepared, steady=True)
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
        if table.returns.any():
            raise InputError("a table that resamples cannot be exported; accepted: one made with resample = 1")
    return Face(table, choose_clip(clip, model.clip), stepwise, noise, pictures)


def _check(path: str | Path) -> None:
    """Checks what it can before the network is captured."""
    if check_writable(path).suffix.lower() != ".onnx":
        raise InputError(f"output {str(path)!r}; accepted: a name that ends in .onnx")
    onnxruntime()


def _write(model: ModelProto, path: str | Path, compare: Callable[[Path], Iterable[Check]]) -> list[Check]:
    """Writes the file under a temporary name, compares it, and gives it its name."""
    done: list[Check] = []

    def write(temporary: Path) -> None:
        STAGES.info("writing the file")
        temporary.write_bytes(model.SerializeToString())
        STAGES.info("checking it against torch")
        done.extend(checked(compare(temporary)))

    write_atomically(path, write)
    return done
