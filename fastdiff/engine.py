"""The engine: prepare once, then replay. Any number of samples, streamed through batches of one size."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff import graphs
from fastdiff.context import Contexts, resolve_context
from fastdiff.errors import InputError, finite, whole
from fastdiff.forms import Form, choose_form
from fastdiff.graphs import CapturedStep
from fastdiff.kernels import philox
from fastdiff.kernels.ahead import compile_ahead
from fastdiff.kernels.dispatch import triton_for
from fastdiff.model import Model, check_table
from fastdiff.noise import LIMIT, NoiseSource
from fastdiff.numerics import CUDNN_ALGORITHMS, fixed_numerics
from fastdiff.placement import choose_device, choose_dtype, out_of_memory
from fastdiff.prediction import check_clip
from fastdiff.prepared import Prediction, TimeInputs
from fastdiff.provenance import device_name, versions
from fastdiff.step import State, advance
from fastdiff.table import StepTable

DEFAULT_BATCH = 64

Step = Callable[[], None]


class Kind(NamedTuple):
    """What makes one step body differ from another; all else is data that the body reads."""

    guided: bool
    context: int | None  # the width of the contexts
    noise: str  # "none", "philox" or "given"
    history: bool


@dataclasses.dataclass(frozen=True)
class _Request:
    """A stream's arguments, checked."""

    seed: int
    contexts: Contexts | None
    guidance_scale: float | None
    table: StepTable
    noise: NoiseSource | None
    on_step: Callable[[int], None] | None
    kind: Kind


class Engine:
    """Samples from one model, fast: `engine.sample(n)`, or `engine.stream(n)` for any number.

    >>> engine = fastdiff.Engine(model, fastdiff.make_table("ddim", model.schedule, 25), batch_size=256)
    >>> images = engine.sample(1000, seed=0)  # (1000, C, H, W) float32 on the CPU

    table: the sampler; another one may be given to each call. batch_size: samples run together, 64 unless given.
    dtype: the network's, float32 (TF32 off) unless given; x itself stays float32. device: None is the CUDA device
    where there is one, else the CPU. clip: as in `sample`. form: how the network runs, see forms.FORMS; None is the
    fastest there is for the device and dtype.

    The network is copied and prepared when the engine is made; later changes to its weights do not show. On a CUDA
    device a step is captured when its kind (guided or not, with a context or not) first runs; the table, the number
    of steps, the seed, eta, the guidance scale and the contexts are data of that capture, not new ones.

    With one configuration (`engine.configuration()`) a sample's pixels are the same bits whatever is asked for with
    it: sample i lies at place i % batch_size of its batch, which is always run whole.

    One engine serves one thread at a time. Several may run in threads of their own, those of a CUDA device all on one
    stream (as they do unless the threads choose others); while any runs, torch's TF32 is off in the whole process.

    Raises InputError for values outside these.
    """

    def __init__(
        self,
        model: Model,
        table: StepTable,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        clip: Any = None,
        form: str | None = None,
    ) -> None:
        self.table = check_table(model, table)
        self.batch_size = DEFAULT_BATCH if batch_size is None else whole("batch_size", batch_size, 1, LIMIT - 1)
        self.dtype, self.device = choose_dtype(dtype), choose_device(device)
        self.clip = model.clip if clip is None else check_clip(clip)
        self.form: Form = choose_form(form, self.device, self.dtype)
        self.notes: list[str] = []  # what happened that a manifest should tell
        with self._settings():
            self.network = self.form.prepare(model.network, self.device, self.dtype)
            # The prepared copy in the model's place, so that an engine does not keep the user's own network alive.
            self.model = dataclasses.replace(model, network=self.network)
            self.time = TimeInputs(self.network, self.device, self.dtype, model.time == "index")
            try:
                self._allocate()
            except Exception as problem:
                if not out_of_memory(problem):
                    raise
                raise InputError(
                    f"batch_size = {self.batch_size} does not fit in memory; accepted: a smaller one"
                ) from problem
            if self.time.separable and triton_for(self.device, self.dtype):
                self._compile()

    def _compile(self) -> None:
        """Compile the Triton kernels of a step without a context; the few that others add compile as they first run."""
        prediction, step = self._step(self._kind(self.table), self.table)
        prediction.load_context(None)

        def begin_and_step() -> None:
            philox.normals(0, 0, 0, tuple(self.x.shape), self.device)
            step()

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        with tqdm(desc="compiling Triton kernels", unit="kernel", delay=1, leave=False) as bar:
            try:
                compile_ahead(begin_and_step, self.device, progress=show)
            except Exception as problem:
                if not out_of_memory(problem):  # in which case the batch is halved when it runs
                    raise
        self.steps.clear()

    def _allocate(self) -> None:
        """The buffers of a batch, and no step bodies yet."""
        shape = (self.batch_size, *self.model.image_shape)

        def images() -> Tensor:
            empty = torch.zeros(shape, dtype=torch.float32, device=self.device)
            return empty.contiguous(memory_format=torch.channels_last)

        self.x, self.x0_prev, self.noise = images(), images(), images()
        self.rows = torch.zeros(self.model.schedule.num_timesteps, 6, dtype=torch.float32, device=self.device)
        self.index = torch.zeros((), dtype=torch.int64, device=self.device)
        self.key = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.guidance_scale = torch.ones((), dtype=torch.float32, device=self.device)
        # A device's copies are fast into pinned memory alone, of which there is little: so none of it is given away.
        on_cuda = self.device.type == "cuda"
        self.landing = torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=True) if on_cuda else None
        self.loaded: StepTable | None = None
        self.steps: dict[Kind, tuple[Prediction, Step]] = {}

    def sample(
        self, n: int, seed: int = 0, first: int = 0, context: Any = None, guidance_scale: float | None = None,
        table: StepTable | None = None,
    ) -> Tensor:  # fmt: skip
        """n images, (n, C, H, W) float32 on the CPU; the arguments are those of `stream`."""
        return torch.cat(list(self.stream(n, seed, first, context, guidance_scale, table)))

    def stream(
        self,
        n: int,
        seed: int = 0,
        first: int = 0,
        context: Any = None,
        guidance_scale: float | None = None,
        table: StepTable | None = None,
        noise: NoiseSource | None = None,
        origin: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Images of samples first .. first + n - 1 of the seed, a batch at a time, (m, C, H, W) float32 on the CPU.

        The batches begin at multiples of batch_size counted from `origin`, so the first and the last may be cut
        short; memory does not grow with n. context: (K,), (n, K) with row r for sample first + r, {class name:
        weight}, or a callable (first sample, count) → (count, K). noise: a source in place of Philox. on_step is
        called after each step with the row's number; the batch's x at that moment is `current()`.

        The arguments are checked at the call, before the first batch is asked for; raises InputError.
        """
        n = whole("n", n, 1, LIMIT - 1)
        seed, first = whole("seed", seed, 0, LIMIT - 1), whole("first", first, 0, LIMIT - n)
        origin = whole("origin", origin, 0, first)
        table = self.table if table is None else check_table(self.model, table)
        contexts = resolve_context(self.model, context, n, first)
        if guidance_scale is not None:
            guidance_scale = finite("guidance_scale", guidance_scale)
            if contexts is None:
                raise InputError(
                    f"guidance_scale = {guidance_scale} without a context; give a context to guide towards"
                )
        width = None if contexts is None else contexts.width
        kind = self._kind(table, guidance_scale not in (None, 1), width, noise is not None)
        return self._stream(first, n, origin, _Request(seed, contexts, guidance_scale, table, noise, on_step, kind))

    def _kind(
        self, table: StepTable, guided: bool = False, context: int | None = None, given_noise: bool = False
    ) -> Kind:
        """The kind of step for a request; captured ones all draw noise and keep x0, so that one serves any sampler."""
        return Kind(
            guided,
            context,
            noise="given" if given_noise else "philox" if self.form.captured or table.s.any() else "none",
            history=self.form.captured or bool(table.c.any()),
        )

    def _stream(self, first: int, n: int, origin: int, ask: _Request) -> Iterator[Tensor]:
        at, end = first, first + n
        while at < end:
            start = at - (at - origin) % self.batch_size
            upto = min(end, start + self.batch_size)
            images = None
            try:
                with self._settings():
                    images = self._batch(start, at, upto, ask)
            except Exception as problem:
                if not out_of_memory(problem) or self.batch_size == 1:
                    raise
            if images is None:  # out here, where the error no longer holds what had been allocated
                self._halve(at)
                continue
            yield images
            at = upto

    def _batch(self, start: int, at: int, upto: int, ask: _Request) -> Tensor:
        """Samples at .. upto - 1 of the batch that begins at sample `start`."""
        self._used = slice(at - start, upto - start)
        run = self._begin(start, at, upto, ask)
        for row in range(len(ask.table)):
            if ask.noise is not None and ask.table.s[row]:
                self.noise[self._used] = self._drawn(ask.noise, row + 1, at, upto)
            run()
            if ask.on_step is not None:
                ask.on_step(row)
        return self.current()

    def _begin(self, start: int, at: int, upto: int, ask: _Request) -> Step:
        """Put what the batch begins with into the buffers; returns what runs a step."""
        prediction, run = self._step(ask.kind, ask.table)
        rows = None
        if ask.contexts is not None:
            rows = torch.zeros(self.batch_size, ask.contexts.width, dtype=torch.float32, device="cpu")
            rows[self._used] = ask.contexts.rows(at, upto - at)
        prediction.load_context(rows)
        if isinstance(run, CapturedStep):
            run.ready()
        self.index.zero_()
        if ask.guidance_scale is not None:
            self.guidance_scale.fill_(ask.guidance_scale)
        if ask.noise is None:
            self.key.copy_(torch.tensor([ask.seed, start], device="cpu"))
            self.x.copy_(philox.normals(ask.seed, 0, start, tuple(self.x.shape), self.device))
        else:
            self.x.zero_()
            self.x[self._used] = self._drawn(ask.noise, 0, at, upto)
        return run

    def current(self) -> Tensor:
        """A copy on the CPU of x of the samples at hand, (m, C, H, W) float32."""
        images = self.x[self._used]
        if self.landing is None:
            return images.to(device="cpu", copy=True, memory_format=torch.contiguous_format)
        return self.landing[: len(images)].copy_(images).clone()

    def _drawn(self, noise: NoiseSource, draw: int, at: int, upto: int) -> Tensor:
        """The caller's normals for samples at .. upto - 1, checked."""
        shape = (upto - at, *self.model.image_shape)
        normals = torch.as_tensor(noise(draw, at, shape))
        if tuple(normals.shape) != shape:
            raise InputError(f"the noise source returned shape {tuple(normals.shape)}; it was asked for {shape}")
        return normals.to(device=self.device, dtype=torch.float32)

    def _step(self, kind: Kind, table: StepTable) -> tuple[Prediction, Step]:
        """The prediction and the step body of that kind, the table loaded; captured the first time."""
        if table is not self.loaded:
            self._load(table)
        if kind not in self.steps:
            prediction = Prediction(self.network, self.dtype, self.time, kind.guided)
            state = State(
                self.x, self.rows, self.index,
                key=self.key if kind.noise == "philox" else None,
                noise=self.noise if kind.noise == "given" else None,
                x0_prev=self.x0_prev if kind.history else None,
                guidance_scale=self.guidance_scale if kind.guided else None,
                clip=self.clip,
            )  # fmt: skip
            self.steps[kind] = prediction, self._runner(state, prediction)
        return self.steps[kind]

    def step_once(self) -> None:
        """Run one step of the batch at hand: x through row `index`; `index` moves on, from the table's last row to 0.

        For callers who fill `x` and `index` themselves; without a context, by the engine's own table. The first call
        may capture the step, which loses what these held. Nothing waits for the device.
        """
        with self._settings():
            kind = self._kind(self.table)
            new = kind not in self.steps
            prediction, run = self._step(kind, self.table)
            if new:
                prediction.load_context(None)
            if isinstance(run, CapturedStep):
                run.ready()
            run()
            self.index.remainder_(len(self.table))

    def _load(self, table: StepTable) -> None:
        rows = torch.tensor([table.row(i) for i in range(len(table))], dtype=torch.float32, device="cpu")
        if len(rows) > len(self.rows):
            self.rows = torch.zeros(len(rows), 6, dtype=torch.float32, device=self.device)
            self.steps.clear()
        self.rows[: len(rows)] = rows.to(self.device)
        if self.time.load(table, len(self.rows)):
            self.steps.clear()
        self.loaded = table

    def _runner(self, state: State, prediction: Prediction) -> Step:
        def body() -> None:  # holds the state, not the engine: a dropped engine and its graphs go at once
            advance(state, prediction)

        return CapturedStep(body, state.index, self.device) if self.form.captured else body

    def _halve(self, at: int) -> None:
        before, self.batch_size = self.batch_size, self.batch_size // 2
        note = f"a batch of {before} did not fit in memory; batches of {self.batch_size} from sample {at} on"
        self.notes.append(note)
        warnings.warn(note, stacklevel=3)
        with self._settings():
            self._allocate()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """What holds while a batch runs, and never while the caller does."""
        with (
            torch.inference_mode(False),  # buffers of inference mode could not be written to outside of it
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),  # the engine's dtype is the one that was asked for
            fixed_numerics(),
        ):
            yield

    def holds(self) -> dict[str, Any]:
        """Bytes of the batch's buffers, what became of each kind of step, and the graph pool of the whole process."""
        buffers = (self.x, self.x0_prev, self.noise, self.rows, self.time.values)
        steps = {kind: run for kind, (_, run) in self.steps.items() if isinstance(run, CapturedStep)}
        return {
            "buffers": sum(b.numel() * b.element_size() for b in buffers if b is not None),
            "steps": {str(kind): f"{run.told}; {run.bytes()} bytes" for kind, run in steps.items()},
            "pool": graphs.POOL.bytes(),
            "pool_limit": graphs.POOL.limit,
        }

    def configuration(self) -> dict[str, Any]:
        """What a sample's bits depend on besides model, table, seed, index and context; plain values for a manifest."""
        return {
            "batch_size": self.batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "form": self.form.name,
            "kernels": self.form.kernels(),
            "cudnn": torch.backends.cudnn.version() if self.device.type == "cuda" else None,
            "cudnn_algorithms": CUDNN_ALGORITHMS if self.device.type == "cuda" else None,
            "device": self.device.type,
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
            "clip": list(self.clip) if isinstance(self.clip, tuple) else self.clip,
            "machine": device_name(self.device),
            "versions": versions(),
        }
