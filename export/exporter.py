"""torch's own ONNX exporter, run quietly, its graph cleaned and its errors cut to one sentence."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from onnx import GraphProto
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim

from fastdiff.errors import InputError
from fastdiff.export.graph import OPSET

SMALL = 16  # elements; shapes and scalars have fewer


def export_part(
    name: str, part: nn.Module, given: tuple[Tensor, ...], sizes: dict[int, Any] | None = None
) -> tuple[GraphProto, list[torch.Size]]:
    """Export a part, its first dimension free.

    Args:
        name: of the part, for the graph and for errors.
        part: the module.
        given: an example of its arguments.
        sizes: further free dimensions of the first argument, as torch.export's dynamic shapes.

    Returns:
        The graph, and the shapes of its inputs.

    Raises:
        InputError: if the part cannot be exported, or needs operators that are not ONNX's own.
    """
    free: list[dict[int, Any]] = [{0: Dim("batch")} for _ in given]
    free[0].update(sizes or {})
    with quiet():
        try:
            program = torch.onnx.export(
                part.eval(),
                given,
                dynamic_shapes=tuple(free),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as problem:
            raise InputError(f"the network's {name} part cannot be exported: {_reason(problem)}") from problem
        assert program is not None and program.exported_program is not None
        model = program.model_proto
        # Only what is as small as a shape is folded; weights keep their values.
        optimizer.fold_constants(model, input_size_limit=SMALL, output_size_limit=SMALL)
        optimizer.remove_unused_nodes(model)
    graph = model.graph
    graph.name = name
    del graph.value_info[:]
    for node in graph.node:
        if node.domain:
            raise InputError(f"the network's {name} part has the operator {node.domain}.{node.op_type}; not in ONNX")
        node.doc_string = ""  # it and the properties name lines of source code
        del node.metadata_props[:]
    traced = program.exported_program
    placeholders = {node.name: node.meta["val"].shape for node in traced.graph.nodes if node.op == "placeholder"}
    return graph, [placeholders[user] for user in traced.graph_signature.user_inputs]


def _reason(problem: BaseException) -> str:
    """One line about an error of the exporter: its innermost cause, and the user's line of code.

    The error's text is pages long. torch states the line of code nowhere else, so it is searched for there.
    """
    while problem.__cause__ is not None:
        problem = problem.__cause__
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    where = re.search(r'File "(.+)", line (\d+), in .+\n *(.+)', str(problem))
    line = f" ({Path(where[1]).name}, line {where[2]}: {where[3].strip()})" if where else ""
    return f"{type(problem).__name__}: {lines[0] if lines else problem}{line}"


def _own_levels() -> list[str]:
    """torch's loggers that have a level of their own, which torch's level does not reach."""
    known = logging.Logger.manager.loggerDict
    return [name for name, one in known.items() if name.startswith("torch.") and getattr(one, "level", 0) > 0]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's messages about its inner workings and about torchvision's absence."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", *_own_levels())]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        nowhere = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
