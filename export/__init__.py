"""ONNX: a model's network, its whole sampling loop, a page for browsers, and the runner. See `fastdiff export --help`.

>>> fastdiff.export.export_sampler(model, "sampler.onnx", table)
>>> images = fastdiff.export.OnnxSampler("sampler.onnx").sample(64, seed=0)  # (64, C, H, W) float32 in [-1, 1]

`table` is the sampler as a StepTable; fastdiff.make_table makes one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "OnnxSampler": "runner",
    "export_network": "write",
    "export_page": "write",
    "export_sampler": "write",
}
__all__ = list(_PUBLIC)
NEEDED = ("onnx", "onnxruntime")

if TYPE_CHECKING:
    from fastdiff.export.runner import OnnxSampler as OnnxSampler
    from fastdiff.export.write import export_network as export_network
    from fastdiff.export.write import export_page as export_page
    from fastdiff.export.write import export_sampler as export_sampler


def __getattr__(name: str) -> Any:
    """Loaded when first used; the base install has none of the packages that they need."""
    from fastdiff.errors import InputError, install

    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastdiff.export' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"fastdiff.export.{_PUBLIC[name]}")
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise InputError(
            f"{name} needs the package {error.name!r}, which is not installed; {install('onnx')}, "
            "or [onnx-gpu] for ONNX Runtime on a GPU"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
