"""What runs a network on the CPU: the published one, ours through an Engine, and ONNX Runtime's."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.bench.reference import AnnotatedReference, ContextReference
from fastdiff.engine import Engine, Kind
from fastdiff.forms import FORMS

CPU = torch.device("cpu")
PUBLISHED = "published"

Call = Callable[[Tensor, int], Tensor]  # (x, row of the table) → the prediction


def published(model: fastdiff.Model) -> nn.Module:
    """The published network with the model's weights."""
    options = model.network.options
    if isinstance(model.network, fastdiff.AnnotatedUnet):
        chosen = ("dim", "init_dim", "dim_mults", "channels", "edition")
        made: nn.Module = AnnotatedReference(**{k: options[k] for k in chosen})
    else:
        chosen = ("in_channels", "n_feat", "n_cfeat", "height")
        shortcut = "trained" if options["shortcut"] else "zero"
        made = ContextReference(**{k: options[k] for k in chosen}, shortcut=shortcut)
    made.load_state_dict(model.network.state_dict())
    return made.eval()


def by_publication(model: fastdiff.Model, table: fastdiff.StepTable) -> Call:
    """As the tutorials call it, time embeddings computed in every call."""
    network = published(model)
    if model.time == "index":
        return lambda x, row: network(x, torch.full((len(x),), int(table.time[row])))
    return lambda x, row: network(x, torch.tensor([table.time[row]], dtype=torch.float32)[:, None, None, None])


def by_engine(model: fastdiff.Model, table: fastdiff.StepTable, batch: int, form: str | None) -> Call:
    """What a step of the engine calls, on the engine's own buffers; form None is what users get."""
    engine = Engine(model, table, batch, device=CPU, form=form)
    prediction, _ = engine._step(Kind(guided=False, context=None, noise="none", history=False), table)
    with engine._settings():
        prediction.load_context(None)

    def call(x: Tensor, row: int) -> Tensor:
        engine.x.copy_(x)
        engine.index.fill_(row)
        with engine._settings():
            return prediction(engine.x, engine.index)

    return call


class _Denoise(nn.Module):
    """The network with its embeddings as inputs, as the engine has them."""

    def __init__(self, network: nn.Module, times: int) -> None:
        super().__init__()
        self.network, self.times = network, times

    def forward(self, x: Tensor, embeddings: list[Tensor]) -> Tensor:
        return self.network.denoise(x, tuple(embeddings[: self.times]), tuple(embeddings[self.times :]))


_exported: dict[Any, bytes] = {}


def by_onnxruntime(model: fastdiff.Model, table: fastdiff.StepTable, batch: int, threads: int) -> Call:
    """The plainly exported network, of that batch size."""
    import onnxruntime

    network = model.network.eval()
    dtype = torch.int64 if model.time == "index" else torch.float32
    times = network.embed_time(torch.tensor(table.time, dtype=dtype))
    context = network.embed_context(None)

    def inputs(row: int) -> list[Tensor]:
        return [*(t[row : row + 1].contiguous() for t in times), *context]

    key = type(network), str(network.options), batch
    if key not in _exported:
        example = (torch.zeros(batch, *model.image_shape), inputs(0))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own
            program = torch.onnx.export(_Denoise(network, len(times)).eval(), example, dynamo=True, verbose=False)
            program.save(str(Path(folder) / "network.onnx"), external_data=False)
            _exported[key] = (Path(folder) / "network.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(_exported[key], options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(x: Tensor, row: int) -> Tensor:
        given = dict(zip(names, (x.numpy(), *(t.numpy() for t in inputs(row))), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    return call


def contenders(model: fastdiff.Model, batch: int, threads: int) -> dict[str, Callable[[], Call]]:
    """Name → what makes the contender, which may fail. The first of ours is the form that users get."""
    table = fastdiff.make_table("ddim", model.schedule, 25, prediction_type=model.prediction_type, time=model.time)
    names = [form.name for form in FORMS.values() if not form.captured and form.missing(CPU, torch.float32) is None]
    return {
        PUBLISHED: partial(by_publication, model, table),
        f"fastdiff, {names[0]}, the default": partial(by_engine, model, table, batch, None),
        **{f"fastdiff, {name}": partial(by_engine, model, table, batch, name) for name in names[1:]},
        "ONNX Runtime": partial(by_onnxruntime, model, table, batch, threads),
    }
