"""The files' graphs: a captured network alone, or in the body of an ONNX Loop over the step table.

A step is x0 = clip(p x + q out), x <- a x + b x0 + c x0_prev + s noise (see samplers.table). The network's weights are
initializers of the Loop's body: only there does ONNX Runtime prepack them for its convolutions. In the outer graph they
make a step 1.5 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper

from fastdiff.errors import InputError
from fastdiff.export import metadata, philox
from fastdiff.export.graph import BOOL, FLOAT, INT64, UINT8, Graph, either, finish_model, store_weights, value
from fastdiff.export.network import write
from fastdiff.export.parts import Parts
from fastdiff.export.pixels import clipped, to_pictures
from fastdiff.export.writer import ELEMENTS
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.table import StepTable

COLUMNS = 6  # p, q, a, b, c, s
# All inputs that a sampler may have, in order; a file has those that its face and its model need.
INPUTS = ("x", "x0_prev", "start", "stop", "seed", "first", "n", "noise", "context", "guidance_scale", "rows", "times")


def network_model(parts: Parts) -> ModelProto:
    """The network: sample (batch, C, H, W) float32, timestep (batch,)[, context (batch, K)] → prediction."""
    g = Graph()
    images = ("batch", *parts.model.image_shape)
    inputs = [
        value("sample", FLOAT, images),
        value("timestep", INT64 if parts.model.time == "index" else FLOAT, ("batch",)),
    ]
    rows, contexts = write(g, parts.graphs.time, ["timestep"]), []
    if parts.width:
        inputs.append(value("context", FLOAT, ("batch", parts.width)))
        contexts = write(g, parts.graphs.context, ["context"])
    g.named(_predicted(g, parts, "sample", rows, contexts), "prediction")
    outputs = [value("prediction", FLOAT, images)]
    store_weights(g, parts.weights)
    description = metadata.describe(parts, kind="network")
    return finish_model(g.finish("network", inputs, outputs), metadata.to_properties(description))


def _predicted(g: Graph, parts: Parts, x: str, rows: Sequence[str], contexts: Sequence[str]) -> str:
    """The prediction in float32 for x in float32, by the rest of the network."""
    step = parts.graphs.step
    given = x if parts.dtype == torch.float32 else g("Cast", x, to=ELEMENTS[parts.dtype])
    (out,) = write(g, step, [given, *rows, *contexts], parts.steady)
    return out if step.results[0].meta["dtype"] == torch.float32 else g("Cast", out, to=FLOAT)


@dataclass(frozen=True)
class Face:
    """What a sampler's file takes and gives.

    Attributes:
        table: the sampler; None for a file whose inputs `rows` (R, 6) and `times` (R,) are the table.
        clip: as in `sample`.
        stepwise: the inputs are `x`, `x0_prev`, `start` and `stop`, the outputs x and x0_prev after rows start ..
            stop - 1. With start 0 the graph makes x from the seed and takes only the number of images from `x`.
        noise: "philox", made in the graph from `seed` and `first`; or "input", (draws, n, C, H, W) float32: x_T and
            one draw a row, or stepwise, where x_T is the caller's `x`, one draw for each of the rows start ..
            stop - 1.
        pictures: whether the output is uint8 (n, H, W, C), not float32 (n, C, H, W).

    Raises:
        InputError: for another noise, or pictures from a stepwise sampler.
    """

    table: StepTable | None
    clip: Clip = None
    stepwise: bool = False
    noise: str = "philox"
    pictures: bool = False

    def __post_init__(self) -> None:
        if self.noise not in metadata.NOISES:
            raise InputError(f"noise = {self.noise!r}; accepted: {', '.join(metadata.NOISES)}")
        if self.pictures and self.stepwise:
            raise InputError("uint8 pictures from a stepwise sampler, whose x goes on; accepted: a whole one")

    @property
    def random(self) -> bool:
        """Whether a row may draw noise."""
        return self.table is None or bool(self.table.s.any())

    @property
    def history(self) -> bool:
        """Whether a row may use the x0 of the row before."""
        return self.table is None or bool(self.table.c.any())


def sampler_model(parts: Parts, face: Face) -> ModelProto:
    """The sampling loop; see Face for its inputs and outputs."""
    return _Sampler(parts, face).model()


class _Sampler:
    """A sampler's graph under construction: `outer` around the loop, `body` a step."""

    def __init__(self, parts: Parts, face: Face) -> None:
        self.parts, self.face = parts, face
        self.outer, self.body = Graph("outer/"), Graph("step/")
        self.shape = parts.model.image_shape
        self.inputs: list[ValueInfoProto] = []

    def model(self) -> ModelProto:
        """The file."""
        outer, face, shape = self.outer, self.face, self.shape
        images = ("n", *shape)
        carried = ["x", "x0_prev"] if face.history else ["x"]
        if face.stepwise:
            for name in carried:
                self._input(name, FLOAT, images)
            self.start, stop = self._input("start", INT64, ()), self._input("stop", INT64, ())
            trips = outer("Sub", stop, self.start)
        self.draws = ""
        if face.noise == "input" and (face.random or not face.stepwise):
            self.draws = self._input("noise", FLOAT, ("draws", *images))
        self._count()
        if face.noise == "philox":
            seed, first = self._input("seed", INT64, ()), self._input("first", INT64, ())
            self.stream = philox.streams(outer, seed, first, self.n)
        begin = [self._first_x()]
        if face.history:
            begin.append("x0_prev" if face.stepwise else outer("Mul", begin[0], outer.constant(0, np.float32)))
        self._table()
        if not face.stepwise:
            trips = outer("Squeeze", outer("Shape", self.rows, end=1), outer.constant([0]))
        self._contexts()
        step = self._step()
        store_weights(self.body, self.parts.weights)
        scalars = [value("step/row", INT64, ()), value("step/go", BOOL, ())]
        state = [value(f"step/{name}", FLOAT, images) for name in carried]
        results = [value("step/on", BOOL, ()), *(value(name, FLOAT, images) for name in step)]
        body = self.body.finish("step", [*scalars, *state], results)
        ended = outer.several("Loop", len(carried), trips, "", *begin, body=body)
        return self._finished(ended, carried)

    def _finished(self, ended: list[str], carried: list[str]) -> ModelProto:
        """The model, with the loop's results as outputs and the metadata."""
        outer, face, images = self.outer, self.face, ("n", *self.shape)
        if face.stepwise:
            outputs = [value(outer.named(v, f"next_{k}"), FLOAT, images) for v, k in zip(ended, carried, strict=True)]
        elif face.pictures:
            name = outer.named(to_pictures(outer, ended[0]), "images")
            outputs = [value(name, UINT8, ("n", *self.shape[1:], self.shape[0]))]
        else:
            outputs = [value(outer.named(ended[0], "images"), FLOAT, images)]
        table = face.table
        description = metadata.describe(
            self.parts,
            kind="sampler",
            sampler=None
            if table is None
            else {
                "name": table.sampler,
                "steps": len(table),
                "timesteps": table.timestep.astype(int).tolist(),
            },
            clip=face.clip,
            stepwise=face.stepwise,
            noise=face.noise,
            random=face.random,
            pictures=face.pictures,
        )
        order = {name: place for place, name in enumerate(INPUTS)}
        graph = outer.finish("sampler", sorted(self.inputs, key=lambda given: order[given.name]), outputs)
        return finish_model(graph, metadata.to_properties(description))

    def _input(self, name: str, dtype: int, shape: tuple[int | str, ...]) -> str:
        self.inputs.append(value(name, dtype, shape))
        return name

    def _count(self) -> None:
        """The number of images: an input, or the size of the images given."""
        source = "x" if self.face.stepwise else self.draws
        if not source:
            self.n = self._input("n", INT64, ())
            return
        axis = 0 if self.face.stepwise else 1
        self.n = self.outer("Squeeze", self.outer("Shape", source, start=axis, end=axis + 1), self.outer.constant([0]))

    def _first_x(self) -> str:
        """x before the first row."""
        outer, face = self.outer, self.face
        if face.noise == "input":
            return "x" if face.stepwise else outer("Gather", self.draws, outer.constant(0), axis=0)
        if not face.stepwise:
            return philox.normals(outer, self.stream, outer.constant(0), self.shape)
        begins = outer("Equal", self.start, outer.constant(0))
        made, kept = Graph("begin/"), Graph("go_on/")
        fresh = philox.normals(made, self.stream, made.constant(0), self.shape)
        return either(outer, begins, (made, fresh), (kept, kept("Identity", "x")), ("n", *self.shape))

    def _table(self) -> None:
        """The rows' coefficients, and what the network makes of each row's time."""
        outer, table = self.outer, self.face.table
        dtype = np.int64 if self.parts.model.time == "index" else np.float32
        if table is None:
            self.rows = self._input("rows", FLOAT, ("steps", COLUMNS))
            times = self._input("times", INT64 if dtype is np.int64 else FLOAT, ("steps",))
        else:
            self.rows = outer.constant(table.rows[:, :COLUMNS], np.float32)
            times = outer.constant(table.time, dtype)
        self.times = write(outer, self.parts.graphs.time, [times])

    def _contexts(self) -> None:
        """What the network makes of the contexts.

        With a guidance scale other than 1 the batch is tiled twice, zero contexts first.
        """
        outer, parts = self.outer, self.parts
        self.contexts: list[str] = []
        if not parts.width:
            return
        context = self._input("context", FLOAT, ("contexts", parts.width))
        scale = self._input("guidance_scale", FLOAT, ())
        n, two = outer("Unsqueeze", self.n, outer.constant([0])), outer.constant([2])
        guided = outer("Cast", outer("Not", outer("Equal", scale, outer.constant(1, np.float32))), to=INT64)
        self.tiles = outer("Add", outer("Unsqueeze", guided, outer.constant([0])), outer.constant([1]))
        each = outer("Expand", context, outer("Concat", n, outer.constant([1]), axis=0))
        both = outer("Concat", outer("Mul", each, outer.constant(0, np.float32)), each, axis=0)
        begin = outer("Mul", n, outer("Sub", two, self.tiles))
        used = outer("Slice", both, begin, outer("Mul", n, two), outer.constant([0]))
        self.contexts = write(outer, parts.graphs.context, [used])

    def _step(self) -> list[str]:
        """The body's outputs besides the condition: x, and x0 if a row may use it."""
        g, face = self.body, self.face
        g.nodes.append(helper.make_node("Identity", ["step/go"], ["step/on"]))
        row = g("Add", "step/row", self.start) if face.stepwise else "step/row"
        p, q, a, b, c, s = g.several("Split", COLUMNS, g("Gather", self.rows, row, axis=0), num_outputs=COLUMNS, axis=0)
        x = "step/x"
        x0 = clipped(g, g("Add", g("Mul", x, p), g("Mul", self._prediction(row), q)), face.clip, self.shape)
        following = g("Add", g("Mul", x, a), g("Mul", x0, b))
        if face.history:
            following = g("Add", following, g("Mul", "step/x0_prev", c))
        if face.random:
            following = g("Add", following, self._noise(row, s))
        return [following, x0] if face.history else [following]

    def _prediction(self, row: str) -> str:
        g, x = self.body, "step/x"
        row = g("Unsqueeze", row, g.constant([0]))
        rows = [g("Gather", one, row, axis=0) for one in self.times]  # (1, ...) of each
        if not self.parts.width:
            return _predicted(g, self.parts, x, rows, [])
        tiled = g("Tile", x, g("Concat", self.tiles, g.constant([1, 1, 1]), axis=0))
        out = _predicted(g, self.parts, tiled, rows, self.contexts)
        # If the batch is not tiled, both slices are the same, and their difference is exactly zero.
        zero, end = g.constant([0]), g.constant([np.iinfo(np.int64).max])
        count = g("Unsqueeze", self.n, zero)
        without, within = g("Slice", out, zero, count, zero), g("Slice", out, g("Neg", count), end, zero)
        return g("Add", without, g("Mul", g("Sub", within, without), "guidance_scale"))

    def _noise(self, row: str, s: str) -> str:
        """s times the row's normals, which are made only where s is not 0."""
        g, face = self.body, self.face
        drawn, none = Graph("draw/"), Graph("no_draw/")
        if face.noise == "philox":
            z = philox.normals(drawn, self.stream, drawn("Add", row, drawn.constant(1)), self.shape)
        else:
            index = "step/row" if face.stepwise else drawn("Add", row, drawn.constant(1))
            z = drawn("Gather", self.draws, index, axis=0)
        nothing = none("Mul", "step/x", none.constant(0, np.float32))
        some = g("Not", g("Equal", g("Squeeze", s, g.constant([0])), g.constant(0, np.float32)))
        return either(g, some, (drawn, drawn("Mul", z, s)), (none, nothing), ("n", *self.shape))
