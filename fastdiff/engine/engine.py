"""The engine: prepare once, then replay. Any number of samples, streamed through batches of one size."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastdiff.engine import graphs
from fastdiff.engine.ahead import compile_kernels
from fastdiff.engine.context import ContextKind
from fastdiff.engine.cpu.step import PlannedStep
from fastdiff.engine.evaluation import Given
from fastdiff.engine.forms import Form, choose_form
from fastdiff.engine.graphs import CapturedStep
from fastdiff.engine.noise import Noise, NoiseSource, draw
from fastdiff.engine.numerics import CUDNN_ALGORITHMS, fixed_numerics
from fastdiff.engine.overflow import Search
from fastdiff.engine.placement import choose_device, choose_dtype, out_of_memory, ready_for_forks
from fastdiff.engine.prediction import Prediction
from fastdiff.engine.request import Asked, Request, check_batch_size, check_table
from fastdiff.engine.step import State, advance
from fastdiff.errors import InputError, NotFinite, check_int, warn_caller
from fastdiff.kernels import philox, tuning
from fastdiff.kernels.dispatch import triton_for
from fastdiff.model import Model, check_model
from fastdiff.provenance import device_name, versions
from fastdiff.samplers.prediction import Clip, choose_clip
from fastdiff.samplers.table import COEFFICIENTS, StepTable

STREAM = 24  # a draw's bits from here on say what it is for
KNOWN, RETURN = 1, 2  # the noise of what is known, and of steps back; 0 is the sampler's own

Step = Callable[[int], int]  # (the most rows that may be run) → how many were, at least one


class Kind(NamedTuple):
    """What makes one step body differ from another; all else is data that the body reads."""

    guided: bool
    whole: bool  # whether times are timesteps, int64; else float32
    context: ContextKind | None
    noise: str  # "none", "philox" or "input", the caller's
    history: int  # how far back it reaches, 0 to 3
    variance: bool  # whether the network's second output chooses the noise's


class Engine:
    """Samples from one model, fast: prepared once, then replayed.

    >>> engine = fastdiff.Engine(model, model.table("ddim", 25), batch_size=256)
    >>> images = engine.sample(1000, seed=0)  # (1000, C, H, W) float32 on the CPU

    The network is copied and prepared when the engine is made; later changes to its weights do not show. On a CUDA
    device each kind of step (guided or not, with contexts or not) is captured the first time it runs; the table, the
    number of steps, the seed, eta, the guidance scale and the contexts are data of that capture.

    With one configuration (`engine.configuration()`) a sample's pixels are always the same bits: sample i takes place
    i % batch_size of its batch, and batches are always run in full.

    Threads may share an engine: it runs one batch after another, whoever asks. Several engines run at once, those of a
    CUDA device all on one stream (as they do unless the threads choose others); while any runs, torch's TF32 is off in
    the whole process. A forked process may go on with an engine on a CPU, by one thread.

    Args:
        model: what to sample from.
        table: the sampler, unless a call brings its own; None takes `model.table()`.
        batch_size: samples run together; 64 unless given.
        device: None is the CUDA device where there is one, else the CPU.
        dtype: of the network: float32 (the default; TF32 is off), bfloat16 or float16; x itself stays float32.
        clip: of the predicted x0: None (off), a bound, or ("dynamic", quantile); "model" takes the model's own.
        form: how the network runs, see forms.FORMS; None is the fastest for the device and dtype.

    Raises:
        InputError: for values outside these.
    """

    def __init__(
        self,
        model: Model,
        table: StepTable | None = None,
        *,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        clip: Clip | Literal["model"] = "model",
        form: str | None = None,
    ) -> None:
        check_model(model)
        self.table = check_table(model, model.table() if table is None else table)
        self.batch_size = check_batch_size(batch_size)
        self.device, self.dtype = choose_device(device), choose_dtype(dtype)
        self.clip = choose_clip(clip, model.clip)
        self.form: Form = choose_form(form, self.device, self.dtype)
        ready_for_forks()
        self.notes: list[str] = []  # events for a manifest, such as a smaller batch
        self._overflowed = False
        self._lock, self._busy = threading.RLock(), False
        with self._settings():
            self._network = self.form.network(model.network, self.device, self.dtype)
            # The copy in the model's place, so that an engine does not keep the user's own network alive. Other engines
            # may have it as well, and parts were prepared of its weights: nobody may change it.
            self._model = dataclasses.replace(model, network=self._network.module)
            try:
                self._allocate()
            except Exception as problem:
                if not out_of_memory(problem):
                    raise
                raise InputError(
                    f"batch_size = {self.batch_size} does not fit in memory; accepted: a smaller one"
                ) from problem
            if triton_for(self.device, self.dtype):
                self._compile()

    def _compile(self) -> None:
        """Compile the Triton kernels of a step without guidance; others compile their few more when they first run.

        A network that may need a context of unknown width is left for its first run.
        """
        if self._model.context_width is None:
            return
        step = self._first_step()

        def begin_and_step() -> None:
            philox.normals(self.key, 0, self.x.shape)
            step(1)

        compile_kernels(begin_and_step, self.device)

    def _first_step(self) -> Step:
        """A step without guidance, not captured yet; without a context where its width is unknown."""
        width = self._model.context_width
        context = ContextKind((width,)) if width else None
        prediction, step = self._step(self._kind(self.table, context=context), self.table)
        prediction.load_context(context.zeros(self.batch_size) if context else None)
        return step

    def tune(self, progress: Callable[[int, int], object] = lambda done, total: None) -> dict[str, tuning.Measured]:
        """Measure in which tiles this device computes the network's convolutions fastest, at this batch size.

        What was found is kept on disk and used by all engines that are made afterwards; see kernels.tuning. It changes
        results by rounding, and `configuration()` tells.

        Args:
            progress: progress(done, total) is called after each kind of convolution.

        Returns:
            What was measured, by the convolution's sizes.

        Raises:
            InputError: where no convolution has tiles to choose: on a CPU, in float32, or in another form.
        """
        tiled = self.dtype.itemsize == 2 and self.form.name == "cuda" and triton_for(self.device, self.dtype)
        if not tiled:
            dtype = str(self.dtype).removeprefix("torch.")
            raise InputError(
                f"nothing to tune in {dtype} on {self.device}, form {self.form.name}; accepted: bfloat16 or float16 on "
                "a CUDA device"
            )
        with self._alone(), self._settings():
            self.steps.clear()  # also those that were captured with other tiles
            step = self._first_step()
            try:
                return tuning.tune(lambda: step(1), self.device, progress)
            finally:
                self.steps.clear()

    def _allocate(self) -> None:
        """The buffers of a batch, and no step bodies yet."""
        shape = (self.batch_size, *self._model.image_shape)

        def images() -> Tensor:
            empty = torch.zeros(shape, dtype=torch.float32, device=self.device)
            return empty.contiguous(memory_format=torch.channels_last)

        self.x, self.noise = images(), images()
        self.history = self._ring(1)
        self.rows = self._rows(self._model.schedule.num_timesteps)
        self.index, self._current = (torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(2))
        self.key = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.guidance_scale = torch.ones((), dtype=torch.float32, device=self.device)
        # Copies from a device are fast only into pinned memory, which is scarce, so users get ordinary copies.
        on_cuda = self.device.type == "cuda"
        self.landing = torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=True) if on_cuda else None
        self.loaded: StepTable | None = None
        self.steps: dict[Kind, tuple[Prediction, Step]] = {}

    def _ring(self, depth: int) -> Tensor:
        """(depth, B, C, H, W), channels_last, for what the rows before remembered."""
        slots = torch.zeros(depth * len(self.x), *self.x.shape[1:], dtype=torch.float32, device=self.device)
        return slots.contiguous(memory_format=torch.channels_last).unflatten(0, (depth, len(self.x)))

    def _rows(self, capacity: int) -> Tensor:
        """Room for a table of so many rows."""
        return torch.zeros(capacity, len(COEFFICIENTS), dtype=torch.float32, device=self.device)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        first: int = 0,
        context: Any = None,
        guidance_scale: float | None = None,
        noise: Noise | None = None,
        init: Any = None,
        mask: Any = None,
        known: Any = None,
        table: StepTable | None = None,
    ) -> Tensor:
        """n images, from samples first .. first + n - 1 of the seed.

        Args:
            n: how many images.
            seed, first, context, guidance_scale, noise: as in fastdiff.sample.
            init: pictures to begin with, (C, H, W) or (n, C, H, W) in [-1, 1], noised to the table's first row.
            mask, known: as in fastdiff.sample.
            table: the sampler; None takes the engine's.

        Returns:
            (n, C, H, W) float32 on the CPU.

        Raises:
            InputError: for values outside these, before any work.
        """
        asked = Asked(seed=seed, first=first, context=context, guidance_scale=guidance_scale, noise=noise)
        return torch.cat(list(self.stream(n, init=init, mask=mask, known=known, table=table, **asked)))

    def stream(
        self,
        n: int,
        *,
        seed: int = 0,
        first: int = 0,
        context: Any = None,
        guidance_scale: float | None = None,
        noise: Noise | None = None,
        init: Any = None,
        mask: Any = None,
        known: Any = None,
        table: StepTable | None = None,
        origin: int = 0,
        on_steps: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Images of samples first .. first + n - 1 of the seed, a batch at a time; memory does not grow with n.

        Args:
            n, seed, first, context, guidance_scale, noise, init, mask, known, table: as in `sample`.
            origin, on_steps: see `batches`.

        Yields:
            (m, C, H, W) float32 on the CPU.

        Raises:
            InputError: at the call, for values outside these.
        """
        asked = Asked(seed=seed, first=first, context=context, guidance_scale=guidance_scale, noise=noise)
        table = self.table if table is None else table
        request = Request.of(self._model, n, init=init, mask=mask, known=known, table=table, **asked)
        return (images for (images,) in self.batches(request, origin=origin, on_steps=on_steps))

    def batches(
        self, request: Request, *, origin: int = 0, on_steps: Callable[[int], None] | None = None
    ) -> Iterator[list[Tensor]]:
        """The images of a checked request, a batch at a time.

        Args:
            origin: batches begin at multiples of batch_size counted from here, so the first and the last may be cut
                short; 0 to request.first.
            on_steps: called after each step, or after several that take little time together, with their number; the
                batch's x at that moment is `current()`.

        Yields:
            x after each step that the request keeps, (m, C, H, W) float32 on the CPU; the last are the images.

        Raises:
            InputError: at the call, for an origin outside these.
        """
        return self._batches(request, check_int("origin", origin, 0, request.first), on_steps)

    def _kind(
        self,
        table: StepTable,
        guided: bool = False,
        context: ContextKind | None = None,
        noise_input: bool = False,
        remembers: bool = False,
    ) -> Kind:
        """The kind of step for a request; captured ones all draw noise and remember a row, to serve most samplers."""
        return Kind(
            guided,
            self._whole(table),
            context,
            noise="input" if noise_input else "philox" if self.form.captured or table.s.any() else "none",
            history=max(table.depth, int(self.form.captured or remembers or self._model.self_condition)),
            variance=table.learned_variance,
        )

    def _whole(self, table: StepTable) -> bool:
        """Whether the network is given that table's times as integers."""
        return self._model.time == "index" and table.whole_times

    def _batches(self, request: Request, origin: int, on_steps: Callable[[int], None] | None) -> Iterator[list[Tensor]]:
        at = request.first
        while at < request.end:
            kept = None
            with self._alone():
                start = at - (at - origin) % self.batch_size
                upto = min(request.end, start + self.batch_size)
                try:
                    with self._settings():
                        kept = self._batch(start, at, upto, request, on_steps)
                except Exception as problem:
                    if not out_of_memory(problem) or self.batch_size == 1:
                        raise
                if kept is None:  # outside the except block, since the exception keeps the batch's memory alive
                    self._halve(at)
            if kept is not None:
                yield kept
                at = upto

    def _batch(
        self, start: int, at: int, upto: int, request: Request, on_steps: Callable[[int], None] | None
    ) -> list[Tensor]:
        """What the request keeps of samples at .. upto - 1, in the batch that begins at sample `start`."""
        table = self.table if request.table is None else request.table
        self._used = slice(at - start, upto - start)
        run, depth = self._begin(start, at, upto, request, table)
        kept: list[Tensor] = []
        row = 0
        keeps = [row for row in range(len(table)) if request.keeps(row, len(table))]
        between = self._between(at, upto, request, table)
        while row < len(table):
            most = keeps[len(kept)] + 1 - row if between is None else 1
            if request.noise is not None:
                most = 1
                if table.s[row]:
                    self.noise[self._used] = self._drawn(request.noise, row + 1, at, upto)
            done = run(most)
            row += done
            if between is not None:
                between(row - 1)
            if on_steps is not None:
                on_steps(done)
            if row > keeps[len(kept)]:
                of_x = request.frames_of == "x" or row == len(table)
                kept.append(self.current() if of_x else self._predicted(row - 1, depth))
        self._check_finite(kept[-1], at, request)
        return kept

    def _between(self, at: int, upto: int, request: Request, table: StepTable) -> Callable[[int], None] | None:
        """What is done to x after a row, or None if nothing ever is.

        What is known takes its place, noised to the row's end (Lugmayr et al. 2022, eq. 8); and where the next row
        begins at an earlier time, x is noised to it (algorithm 1).
        """
        returns, known = table.returns, request.known
        if known is None and not returns.any():
            return None
        if known is not None:
            mask, pictures = (one(at, upto - at).to(self.device) for one in known)

        def normals(stream: int, row: int) -> Tensor:
            number = (stream << STREAM) + row + 1
            if request.noise is not None:
                return self._drawn(request.noise, number, at, upto)
            return philox.normals(self.key, number, self.x.shape)[self._used]

        def after(row: int) -> None:
            x = self.x[self._used]
            if known is not None:
                last = row + 1 == len(table)  # which ends in images, whatever level its coefficients are of
                held = pictures if last else float(table.alpha_next[row]) * pictures
                if table.sigma_next[row] and not last:
                    held = held + float(table.sigma_next[row]) * normals(KNOWN, row)
                x = mask * held + (1 - mask) * x
            if returns[row]:
                ratio = float(table.alpha[row + 1] / table.alpha_next[row])
                noise = math.sqrt(max(table.sigma[row + 1] ** 2 - (ratio * table.sigma_next[row]) ** 2, 0))
                x = ratio * x + noise * normals(RETURN, row)
            self.x[self._used] = x

        return after

    def _check_finite(self, images: Tensor, at: int, request: Request) -> None:
        """Say once that images hold NaN or infinity, and where that began."""
        if self._overflowed or bool(torch.isfinite(images).all()):
            return
        self._overflowed = True
        dtype = str(self.dtype).removeprefix("torch.")
        first = at + int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        note = f"images from sample {first} on hold NaN or infinity, computed in {dtype}"
        where = self._where_it_began(first, request)
        note = note if where is None else f"{note}: {where}"
        self.notes.append(note)
        warn_caller(note, NotFinite)

    def _where_it_began(self, sample: int, request: Request) -> str | None:
        """Found by that sample once more, alone, by the network as it is."""
        try:
            same: Any = dict(device=self.device, dtype=self.dtype, clip=self.clip)
            again = Engine(self._model, self.table, batch_size=1, **same, form="eager")
        except (InputError, RuntimeError):  # no memory left for it
            return None
        again._overflowed = True  # it is said already
        rows = len(self.table if request.table is None else request.table)
        search = Search(again._network.module, rows, again.current)
        one = dataclasses.replace(request.part(sample, sample + 1), frames=1, frames_of="x")  # so that rows run singly
        return search.run(lambda: list(again.batches(one, origin=sample, on_steps=search.after_rows)))

    def _begin(self, start: int, at: int, upto: int, request: Request, table: StepTable) -> tuple[Step, int]:
        """Put what the batch begins with into the buffers; returns what runs a step, and how many rows it remembers."""
        context = None if request.contexts is None else request.contexts.kind
        kind = self._kind(table, request.guided, context, request.noise is not None, request.frames_of == "x0")
        prediction, run = self._step(kind, table)
        rows = None
        if request.contexts is not None:
            rows = request.contexts.kind.zeros(self.batch_size)
            rows[self._used] = request.contexts.rows(at, upto - at)
        prediction.load_context(rows)
        if isinstance(run, CapturedStep):
            run.ready()
        self.index.zero_()
        if self._model.self_condition:
            self.history.zero_()
        if request.guidance_scale is not None:
            self.guidance_scale.fill_(request.guidance_scale)
        if request.noise is None:
            self.key.copy_(torch.tensor([request.seed, start], device="cpu"))
            self.x.copy_(philox.normals(self.key, 0, self.x.shape))
        else:
            self.x.zero_()
            self.x[self._used] = self._drawn(request.noise, 0, at, upto)
        if request.init is not None:
            images = request.init(at, upto - at).to(self.device)
            self.x[self._used] = float(table.alpha[0]) * images + float(table.sigma[0]) * self.x[self._used]
        elif table.init_noise_sigma != 1:
            self.x.mul_(table.init_noise_sigma)
        return run, kind.history

    def current(self) -> Tensor:
        """A copy on the CPU of x of the samples at hand, (m, C, H, W) float32."""
        return self._copy(self.x)

    def _predicted(self, row: int, depth: int) -> Tensor:
        """A copy of the x0 that the row remembered, as `current`; depth: of the ring."""
        return self._copy(self.history[row % depth])

    def _copy(self, buffer: Tensor) -> Tensor:
        images = buffer[self._used]
        if self.landing is None:
            return images.to(device="cpu", copy=True, memory_format=torch.contiguous_format)
        return self.landing[: len(images)].copy_(images).clone()

    def _drawn(self, noise: NoiseSource, number: int, at: int, upto: int) -> Tensor:
        """The caller's normals for samples at .. upto - 1."""
        return draw(noise, number, at, (upto - at, *self._model.image_shape)).to(self.device)

    def _step(self, kind: Kind, table: StepTable) -> tuple[Prediction, Step]:
        """The prediction and the step body of that kind, the table loaded; captured the first time."""
        if table is not self.loaded:
            self._load(table)
        if kind.history > len(self.history):
            self.steps.clear()  # those of a shorter ring would keep its memory
            self.history = self._ring(kind.history)
        if kind not in self.steps:
            prediction = self._prediction(kind, table)
            state = State(
                self.x,
                self.rows,
                self.index,
                self._current,
                key=self.key if kind.noise == "philox" else None,
                noise=self.noise if kind.noise == "input" else None,
                history=self.history[: kind.history] if kind.history else None,
                guidance_scale=self.guidance_scale if kind.guided else None,
                learned_variance=kind.variance,
                self_condition=self._model.self_condition,
                clip=self.clip,
            )
            self.steps[kind] = prediction, self._runner(state, prediction)
        return self.steps[kind]

    def _prediction(self, kind: Kind, table: StepTable) -> Prediction:
        """The network as the form runs it, with the table's rows."""
        schedule, fraction = self._model.schedule, self._model.time == "fraction"
        times = torch.arange(schedule.first, schedule.first + schedule.num_timesteps, device="cpu")
        given = Given(
            batch=self.batch_size * (1 + kind.guided),
            halves=1 + kind.guided,
            image_shape=self._model.image_shape,
            context=kind.context,
            times=times if kind.whole else times.float() / (schedule.num_timesteps if fraction else 1),
            device=self.device,
            dtype=self.dtype,
            learned_variance=self._model.learned_variance,
            self_condition=self._model.self_condition,
        )
        parts = self.form.parts(self._network, given)
        of_classes = kind.context is not None and kind.context.classes is not None
        null = (self._model.null_class or 0) if of_classes else 0
        prediction = Prediction(parts, self.device, self.dtype, kind.whole, kind.guided, null)
        prediction.load_table(table, len(self.rows))
        return prediction

    def step_once(self) -> None:
        """Run one step of the batch at hand: x through row `index`; `index` moves on, from the table's last row to 0.

        For callers who fill `x` and `index` themselves; without a context, by the engine's own table. The first call
        may capture the step, and then overwrites both. Does not wait for the device.
        """
        with self._alone(), self._settings():
            kind = self._kind(self.table)
            new = kind not in self.steps
            prediction, run = self._step(kind, self.table)
            if new:
                prediction.load_context(None)
            if isinstance(run, CapturedStep):
                run.ready()
            run(1)
            self.index.remainder_(len(self.table))

    def _load(self, table: StepTable) -> None:
        rows = torch.from_numpy(table.rows).float()
        if len(rows) > len(self.rows):
            self.rows = self._rows(len(rows))
            self.steps.clear()
        self.rows[: len(rows)] = rows.to(self.device)
        for kind, (prediction, _) in self.steps.items():
            if kind.whole == self._whole(table):
                prediction.load_table(table, len(self.rows))
        self.loaded = table

    def _runner(self, state: State, prediction: Prediction) -> Step:
        if isinstance(prediction.parts.step, PlannedStep):
            return prediction.parts.step.loop(state, prediction)

        def body() -> None:  # holds the state, not the engine: a dropped engine and its graphs go at once
            advance(state, prediction)

        if self.form.captured:
            return CapturedStep(body, state.index, self.device)

        def run(most: int) -> int:
            body()
            return 1

        return run

    def _halve(self, at: int) -> None:
        before, self.batch_size = self.batch_size, self.batch_size // 2
        note = f"a batch of {before} did not fit in memory; batches of {self.batch_size} from sample {at} on"
        self.notes.append(note)
        warn_caller(note)
        with self._settings():
            self._allocate()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the context no other thread runs this engine's batches: they share its buffers."""
        with self._lock:
            if self._busy:  # in this very thread
                raise InputError(
                    "an engine was asked for images by what it calls itself, on_steps or a source of noise; accepted: "
                    "another engine"
                )
            self._busy = True
            try:
                yield
            finally:
                self._busy = False

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

    def __repr__(self) -> str:
        table = f"{self.table.sampler}, {len(self.table)} steps"
        where = f"{self.device}, {str(self.dtype).removeprefix('torch.')}, form {self.form.name}"
        return f"Engine({type(self._model.network).__name__}, {table}, batches of {self.batch_size} on {where})"

    def holds(self) -> dict[str, Any]:
        """Bytes of the batch's buffers, what became of each kind of step, and the graph pool of the whole process.

        On a CPU a kind of step says which operations torch computes, since there is no C kernel for them.
        """
        buffers = (self.x, self.history, self.noise, self.rows)
        steps = {str(kind): said for kind, step in self.steps.items() if (said := _said(*step)) is not None}
        return {
            "buffers": sum(b.numel() * b.element_size() for b in buffers)
            + sum(prediction.bytes() for prediction, _ in self.steps.values()),
            "steps": steps,
            "pool": graphs.POOL.bytes(),
            "pool_limit": graphs.POOL.limit,
        }

    def _threads(self) -> int:
        """Those that steps were made for, else torch's."""
        planned = [prediction.parts.step for prediction, _ in self.steps.values()]
        return next((step.threads for step in planned if isinstance(step, PlannedStep)), torch.get_num_threads())

    def configuration(self) -> dict[str, Any]:
        """What a sample's bits depend on besides model, table, seed, index and context; plain values for a manifest."""
        return {
            "batch_size": self.batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "form": self.form.name,
            "kernels": self.form.kernels(self.device),
            "cudnn": torch.backends.cudnn.version() if self.device.type == "cuda" else None,
            "cudnn_algorithms": CUDNN_ALGORITHMS if self.device.type == "cuda" else None,
            "device": self.device.type,
            "threads": self._threads() if self.device.type == "cpu" else None,
            "clip": list(self.clip) if isinstance(self.clip, tuple) else self.clip,
            "machine": device_name(self.device),
            "versions": versions(),
        }


def _said(prediction: Prediction, run: Step) -> str | None:
    """What became of a kind of step, where there is something to say."""
    if isinstance(run, CapturedStep):
        return f"{run.status}; {run.bytes()} bytes"
    if not isinstance(prediction.parts.step, PlannedStep):
        return None
    step = prediction.parts.step
    outside = sorted(set(map(str, step.plan.outside)))
    calls = f"{len(step.plan.steps) - len(step.plan.outside)} calls of C kernels, {step.bytes()} bytes of results"
    return f"{calls}; in torch: {', '.join(outside)}" if outside else calls
