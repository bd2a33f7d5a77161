"""Models into fastdiff's own format: one safetensors file whose metadata entry "fastdiff" is JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastdiff.checkpoints.config import model_config
from fastdiff.checkpoints.tensors import write_tensors
from fastdiff.model import Model, check_model


def save(
    model: Model, path: str | Path, *, dtype: torch.dtype | None = None, info: Mapping[str, Any] | None = None
) -> None:
    """Write a model as one safetensors file, whole or not at all.

    Args:
        model: a Model of AnnotatedUnet or ContextUnet.
        path: the file; missing folders are made.
        dtype: of the stored weights; torch.float16 halves the file. Default: as they are.
        info: plain values (JSON) about the model's making, which `fastdiff info` shows.

    Raises:
        InputError: the network is of another class.
    """
    check_model(model)
    tensors = {
        name: value.detach().to("cpu", dtype if dtype and value.is_floating_point() else value.dtype).contiguous()
        for name, value in model.network.state_dict().items()
    }
    write_tensors(path, tensors, {**model_config(model), "info": dict(info or {})})
