"""The files' graphs: a captured network alone, or in the body of an ONNX Loop over the step table.

A step is a row of samplers.table; columns that a table does not use have no operators. The network's weights are
initializers of the Loop's body: only there does ONNX Runtime prepack them for its convolutions. In the outer graph they
make a step 1.5 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper

from fastdiff.capture.graph import SELF_CONDITION
from fastdiff.engine.context import ContextKind
from fastdiff.errors import InputError
from fastdiff.export import metadata, philox
from fastdiff.export.graph import BOOL, FLOAT, INT64, UINT8, Graph, either, finish_model, store_weights, value
from fastdiff.export.network import write
from fastdiff.export.parts import Parts
from fastdiff.export.pixels import clipped, to_pictures
from fastdiff.export.writer import ELEMENTS
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.table import COEFFICIENTS, HISTORY, StepTable

DEPTH = len(HISTORY)  # how far back a table may reach
# All inputs that a sampler may have, in order; a file has those that its face and its model need.
INPUTS = (
    "x",
    "history",
    "start",
    "stop",
    "seed",
    "first",
    "n",
    "noise",
    "init_noise_sigma",
    "context",
    "guidance_scale",
    "rows",
    "times",
)


def network_model(parts: Parts) -> ModelProto:
    """The network: sample (batch, C, H, W) float32, timestep (batch,)[, context (batch, ...)] → prediction.

    One with self-conditioning takes x_self_cond as well, last, as sample. Of a network that learned the variance the
    prediction has 2 C channels, the variance's last.
    """
    g = Graph()
    channels, height, width = parts.model.image_shape
    inputs = [
        value("sample", FLOAT, ("batch", channels, height, width)),
        value("timestep", ELEMENTS[parts.time], ("batch",)),
    ]
    rows, contexts = write(g, parts.graphs.time, ["timestep"]), []
    if parts.context is not None:
        inputs.append(value("context", _element(parts.context), ("batch", *parts.context.shape)))
        contexts = write(g, parts.graphs.context, ["context"])
    images = ["sample"]
    if parts.model.self_condition:
        inputs.append(value(SELF_CONDITION, FLOAT, ("batch", channels, height, width)))
        images.append(SELF_CONDITION)
    g.named(_predicted(g, parts, images, rows, contexts), "prediction")
    outputs = [value("prediction", FLOAT, ("batch", channels * (1 + parts.learned_variance), height, width))]
    store_weights(g, parts.weights)
    description = metadata.describe(parts, kind="network")
    return finish_model(g.finish("network", inputs, outputs), metadata.to_properties(description))


def _predicted(g: Graph, parts: Parts, images: Sequence[str], rows: Sequence[str], contexts: Sequence[str]) -> str:
    """The prediction in float32 for x, and perhaps the x0 before, in float32, by the rest of the network."""
    step = parts.graphs.step
    given = [x if parts.dtype == torch.float32 else g("Cast", x, to=ELEMENTS[parts.dtype]) for x in images]
    (out,) = write(g, step, [*given, *rows, *contexts], parts.steady)
    return out if step.results[0].meta["dtype"] == torch.float32 else g("Cast", out, to=FLOAT)


def _element(context: ContextKind) -> int:
    """Of contexts: int64 class numbers, or float32."""
    return FLOAT if context.classes is None else INT64


@dataclass(frozen=True)
class Face:
    """What a sampler's file takes and gives.

    Attributes:
        table: the sampler; None for a file whose inputs `rows` (R, 12), `times` (R,) and, where the graph makes x_T,
            `init_noise_sigma` are the table. Such a file reads all columns, S only of a network that learned the
            variance, and remembers three rows. Its times are int64 for a network of integer timesteps, since that is
            how the network was captured: a table with times between them needs a file of its own, whose times, which
            it holds, are float32.
        clip: as in `sample`.
        stepwise: the inputs are `x`, `history`, `start` and `stop`, the outputs x and history after rows start ..
            stop - 1. history is what the rows before remembered, (depth, n, C, H, W) float32, the newest first, zeros
            before row 0; where neither the table nor self-conditioning uses it there is none. With start 0 the graph
            makes x from the seed and takes only the number of images from `x`.
        noise: "philox", made in the graph from `seed` and `first`; or "input", (draws, n, C, H, W) float32: x_T's
            and one draw a row, or stepwise, where x_T is the caller's `x`, scaled by init_noise_sigma already, one draw
            for each of the rows start .. stop - 1.
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

    def depth(self, self_condition: bool) -> int:
        """How many rows back a row, or the network with self-conditioning, may use what was remembered."""
        return DEPTH if self.table is None else max(self.table.depth, int(self_condition))

    def columns(self, learned_variance: bool) -> list[str]:
        """The names of those columns that a step reads, in the order of COEFFICIENTS.

        Args:
            learned_variance: the network's.
        """
        table = self.table
        if table is None:
            return [name for name in COEFFICIENTS if name != "S" or learned_variance]
        unused = {name for name in COEFFICIENTS if name not in ("b", "v", "S") and not getattr(table, name).any()}
        if table.depth == 0:
            unused |= {"u", "v"}
        if np.all(table.v == 1):
            unused.add("v")
        if not (table.learned_variance and table.s.any()):
            unused.add("S")
        return [name for name in COEFFICIENTS if name not in unused]


def sampler_model(parts: Parts, face: Face) -> ModelProto:
    """The sampling loop; see Face for its inputs and outputs.

    Raises:
        InputError: for a table with times between timesteps and a network captured for whole ones.
    """
    if face.table is not None and not face.table.whole_times and parts.time == torch.int64:
        raise InputError(
            f"a table of {face.table.sampler!r} with times between timesteps; capture with fractional=True"
        )
    return _Sampler(parts, face).model()


class _Sampler:
    """A sampler's graph under construction: `outer` around the loop, `body` a step."""

    def __init__(self, parts: Parts, face: Face) -> None:
        self.parts, self.face = parts, face
        self.outer, self.body = Graph("outer/"), Graph("step/")
        self.shape, self.depth = parts.model.image_shape, face.depth(parts.model.self_condition)
        self.columns = face.columns(parts.learned_variance)
        self.inputs: list[ValueInfoProto] = []

    def model(self) -> ModelProto:
        """The file."""
        outer, face, shape = self.outer, self.face, self.shape
        images = ("n", *shape)
        carried = ["x", *(f"m_{back}" for back in range(1, self.depth + 1))]
        if face.stepwise:
            self._input("x", FLOAT, images)
            if self.depth:
                self._input("history", FLOAT, (self.depth, *images))
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
        if face.stepwise:
            begin += [outer("Gather", "history", outer.constant(back), axis=0) for back in range(self.depth)]
        elif self.depth:
            begin += [outer("Mul", begin[0], outer.constant(0, np.float32))] * self.depth
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
        return self._finished(outer.several("Loop", len(carried), trips, "", *begin, body=body))

    def _finished(self, ended: list[str]) -> ModelProto:
        """The model, with the loop's results as outputs and the metadata."""
        outer, face, images = self.outer, self.face, ("n", *self.shape)
        if face.stepwise:
            outputs = [value(outer.named(ended[0], "next_x"), FLOAT, images)]
            if self.depth:
                remembered = [outer("Unsqueeze", one, outer.constant([0])) for one in ended[1:]]
                history = outer.named(outer("Concat", *remembered, axis=0), "next_history")
                outputs.append(value(history, FLOAT, (self.depth, *images)))
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
                "timesteps": [int(one) if one.is_integer() else one for one in table.timestep.tolist()],
                "init_noise_sigma": float(table.init_noise_sigma),
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
            if face.stepwise:
                return "x"
            return self._scaled(outer, outer("Gather", self.draws, outer.constant(0), axis=0))
        if not face.stepwise:
            return self._scaled(outer, philox.normals(outer, self.stream, outer.constant(0), self.shape))
        begins = outer("Equal", self.start, outer.constant(0))
        made, kept = Graph("begin/"), Graph("go_on/")
        fresh = self._scaled(made, philox.normals(made, self.stream, made.constant(0), self.shape))
        return either(outer, begins, (made, fresh), (kept, kept("Identity", "x")), ("n", *self.shape))

    def _scaled(self, g: Graph, noise: str) -> str:
        """init_noise_sigma times the noise of draw 0."""
        table = self.face.table
        if table is None:
            return g("Mul", noise, self._input("init_noise_sigma", FLOAT, ()))
        scale = table.init_noise_sigma
        return noise if scale == 1 else g("Mul", noise, g.constant(scale, np.float32))

    def _table(self) -> None:
        """The rows' coefficients, and what the network makes of each row's time."""
        outer, table, dtype = self.outer, self.face.table, self.parts.time
        if table is None:
            # All columns are given; of those that are not read the last alone, S, may be there.
            rows = self._input("rows", FLOAT, ("steps", len(COEFFICIENTS)))
            upto = outer.constant([len(self.columns)])
            self.rows = outer("Slice", rows, outer.constant([0]), upto, outer.constant([1]))
            times = self._input("times", ELEMENTS[dtype], ("steps",))
        else:
            used = np.stack([getattr(table, name) for name in self.columns], axis=1)
            self.rows = outer.constant(used, np.float32)
            times = outer.constant(torch.tensor(table.time, dtype=dtype).numpy(), None)
        self.times = write(outer, self.parts.graphs.time, [times])

    def _contexts(self) -> None:
        """What the network makes of the contexts.

        With a guidance scale other than 1 the batch is tiled twice, contexts without a class first.
        """
        outer, parts, kind = self.outer, self.parts, self.parts.context
        self.contexts: list[str] = []
        if kind is None:
            return
        context = self._input("context", _element(kind), ("contexts", *kind.shape))
        n = outer("Unsqueeze", self.n, outer.constant([0]))
        each = outer("Expand", context, outer("Concat", n, *[outer.constant([1])] * len(kind.shape), axis=0))
        if parts.null is None:
            self.contexts = write(outer, parts.graphs.context, [each])
            return
        scale, two = self._input("guidance_scale", FLOAT, ()), outer.constant([2])
        guided = outer("Cast", outer("Not", outer("Equal", scale, outer.constant(1, np.float32))), to=INT64)
        self.tiles = outer("Add", outer("Unsqueeze", guided, outer.constant([0])), outer.constant([1]))
        null = outer.constant(parts.null, np.float32 if kind.classes is None else np.int64)
        both = outer("Concat", outer("Expand", null, outer("Shape", each)), each, axis=0)
        begin = outer("Mul", n, outer("Sub", two, self.tiles))
        used = outer("Slice", both, begin, outer("Mul", n, two), outer.constant([0]))
        self.contexts = write(outer, parts.graphs.context, [used])

    def _step(self) -> list[str]:
        """The body's outputs besides the condition: x, and what the rows up to this one remember."""
        g, face = self.body, self.face
        g.nodes.append(helper.make_node("Identity", ["step/go"], ["step/on"]))
        row = g("Add", "step/row", self.start) if face.stepwise else "step/row"
        count = len(self.columns)
        read = g.several("Split", count, g("Gather", self.rows, row, axis=0), num_outputs=count, axis=0)
        k = dict(zip(self.columns, read, strict=True))

        def weighted(*terms: tuple[str, str]) -> str:
            """The sum of the values by their columns, without those of columns that are not in use."""
            used = [g("Mul", value, k[name]) for name, value in terms if name in k]
            total = used[0]
            for one in used[1:]:
                total = g("Add", total, one)
            return total

        x, (out, variance) = "step/x", self._outputs(row)
        x0 = clipped(g, weighted(("p", x), ("q", out)), face.clip, self.shape)
        remembered = [f"step/m_{back}" for back in range(1, self.depth + 1)]
        past = zip(HISTORY, remembered, strict=False)
        following = weighted(("a", x), ("b", x0), ("o", out), *past)
        if face.random:
            following = g("Add", following, self._noise(row, k, variance))
        if not self.depth:
            return [following]
        if "v" in k:
            x0 = weighted(("u", x), ("v", x0))
        elif "u" in k:
            x0 = g("Add", weighted(("u", x)), x0)
        return [following, x0, *(g("Identity", one) for one in remembered[:-1])]

    def _outputs(self, row: str) -> tuple[str, str]:
        """The prediction, guided, and the variance, under guidance the conditional half's; "" where none is learned."""
        g, parts = self.body, self.parts
        images = ["step/x", *(["step/m_1"] if parts.model.self_condition else [])]
        row = g("Unsqueeze", row, g.constant([0]))
        rows = [g("Gather", one, row, axis=0) for one in self.times]  # (1, ...) of each
        if parts.null is None:
            return self._channels(_predicted(g, parts, images, rows, self.contexts))
        tiled = [g("Tile", one, g("Concat", self.tiles, g.constant([1, 1, 1]), axis=0)) for one in images]
        out = _predicted(g, parts, tiled, rows, self.contexts)
        # If the batch is not tiled, both slices are the same, and their difference is exactly zero.
        zero, end = g.constant([0]), g.constant([np.iinfo(np.int64).max])
        count = g("Unsqueeze", self.n, zero)
        without, _ = self._channels(g("Slice", out, zero, count, zero))
        within, variance = self._channels(g("Slice", out, g("Neg", count), end, zero))
        return g("Add", without, g("Mul", g("Sub", within, without), "guidance_scale")), variance

    def _channels(self, out: str) -> tuple[str, str]:
        """The prediction and the variance in the network's output; "" where none is learned."""
        if not self.parts.learned_variance:
            return out, ""
        prediction, variance = self.body.several("Split", 2, out, num_outputs=2, axis=1)
        return prediction, variance

    def _noise(self, row: str, k: dict[str, str], variance: str) -> str:
        """std times the row's normals, which are made only where s is not 0; k: the row's coefficients by name."""
        g, face, s = self.body, self.face, k["s"]
        drawn, none = Graph("draw/"), Graph("no_draw/")
        if face.noise == "philox":
            z = philox.normals(drawn, self.stream, drawn("Add", row, drawn.constant(1)), self.shape)
        else:
            index = "step/row" if face.stepwise else drawn("Add", row, drawn.constant(1))
            z = drawn("Gather", self.draws, index, axis=0)
        std = s
        if "S" in k:
            share = drawn("Mul", drawn("Add", variance, drawn.constant(1, np.float32)), drawn.constant(0.5, np.float32))
            std = drawn("Mul", s, drawn("Exp", drawn("Mul", share, drawn("Log", drawn("Div", k["S"], s)))))
        nothing = none("Mul", "step/x", none.constant(0, np.float32))
        some = g("Not", g("Equal", g("Squeeze", s, g.constant([0])), g.constant(0, np.float32)))
        return either(g, some, (drawn, drawn("Mul", z, std)), (none, nothing), ("n", *self.shape))
