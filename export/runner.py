"""`OnnxSampler`: images from a file of `fastdiff export`, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import metadata as installed
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack, overload

import numpy as np
import torch

from fastdiff.engine.noise import Noise, PhiloxNoise, draw
from fastdiff.engine.placement import check_threads
from fastdiff.engine.request import Asked, Request, check_batch_size
from fastdiff.errors import InputError, NotFinite, first_line, install, unknown_name, warn_caller
from fastdiff.export import metadata
from fastdiff.samplers.samplers import DEFAULT, make_table
from fastdiff.samplers.schedule import from_config
from fastdiff.samplers.table import StepTable

# All that the files of samplers take.
INPUTS = {
    *("seed", "first", "n", "context", "guidance_scale", "rows", "times", "init_noise_sigma"),
    *("x", "history", "start", "stop", "noise"),
}
# Short names; ONNX Runtime's own are accepted too.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}

Provider = str | tuple[str, dict[str, Any]]


def onnxruntime() -> ModuleType:
    """The module; raises InputError where no extra brought it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"ONNX Runtime is not installed ({error}); {install('onnx')}, or [onnx-gpu] for a GPU"
        ) from error
    names = {str(d.metadata["Name"]).lower() for d in installed.distributions()}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        warn_caller(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install one"
        )
    return onnxruntime


def choose_providers(providers: str | Sequence[Provider] | None) -> list[Provider]:
    """What was asked for by ONNX Runtime's own names, the CPU unless given. Raises InputError for an absent one."""
    asked: Sequence[Provider] = [providers] if isinstance(providers, str) else providers or ["cpu"]
    # Azure's runs no model here: it calls a service.
    available = [name for name in onnxruntime().get_available_providers() if name != "AzureExecutionProvider"]
    short = {name: alias for alias, name in PROVIDERS.items()}
    chosen: list[Provider] = []
    for one in asked:
        name, options = one if isinstance(one, tuple) else (one, {})
        full = PROVIDERS.get(name.lower(), name)
        if full not in available:
            if full not in PROVIDERS.values():
                raise unknown_name("provider", name, [*PROVIDERS, *available])
            hint = f"; {install('onnx-gpu')}, in place of [onnx]," if "cuda" in short[full] else ""
            here = ", ".join(short.get(name, name) for name in available)
            raise InputError(f"provider {name!r} is not in this ONNX Runtime; available: {here}{hint}")
        chosen.append((full, options) if options else full)
    return chosen


def open_file(
    path: str | Path, providers: str | Sequence[Provider] | None = None, threads: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """The session of a file of `fastdiff export`, and what the file says of itself; see OnnxSampler."""
    runtime, chosen = onnxruntime(), choose_providers(providers)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: its warnings are about its own inner workings
    if threads is not None:
        options.intra_op_num_threads = check_threads(threads)
    if not Path(path).is_file():
        raise InputError(f"cannot read {str(path)!r}: no such file")
    try:
        session = runtime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # its errors have no common class
        raise InputError(f"{str(path)!r} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
    session.disable_fallback()  # which would go on with another provider after an error, and say so on stdout
    started = session.get_providers()
    for name in (one[0] if isinstance(one, tuple) else one for one in chosen):
        if name not in started:
            raise InputError(
                f"provider {name!r} could not start, its libraries are missing or do not fit; "
                f"ONNX Runtime would have taken {', '.join(started)}"
            )
    return session, metadata.from_properties(session.get_modelmeta().custom_metadata_map, str(path))


class Options(Asked, total=False):
    """The keywords of OnnxSampler.sample but for frames, for type checkers."""

    table: StepTable | None
    batch_size: int | None
    on_step: Callable[[int], None] | None


class OnnxSampler:
    """A sampler's file, ready to run: `OnnxSampler("sampler.onnx").sample(64, seed=0)`.

    Args:
        path: a file of `fastdiff export MODEL --sampler ...`.
        providers: cpu (unless given), cuda, tensorrt, ... or ONNX Runtime's own names, first choice first; each as a
            name or (name, options).
        threads: of the CPU, for one operator; ONNX Runtime's default unless given.

    Attributes:
        description: what the file says of itself; see export.metadata.
        image_shape: (C, H, W).
        schedule, prediction_type, time, class_names, context_width, num_classes, null_class, learned_variance,
            self_condition: as a Model has them.
        stepwise: whether it runs row by row, which frames need.

    Raises:
        InputError: for a file that is not whole, not a sampler, or not fastdiff's, with what it lacks; for a provider
            that is absent, or that ONNX Runtime would silently leave out.
    """

    def __init__(
        self, path: str | Path, providers: str | Sequence[Provider] | None = None, *, threads: int | None = None
    ) -> None:
        self.path = str(path)
        self.session, self.description = open_file(path, providers, threads)
        self.provider: str = self.session.get_providers()[0]
        if self.description["kind"] != "sampler":
            raise InputError(
                f"{self.path!r} is a {self.description['kind']} without a sampling loop; "
                "accepted: a file of `fastdiff export MODEL --sampler ...`"
            )
        self.inputs = {given.name: given.shape for given in self.session.get_inputs()}
        self._check_inputs()
        self.image_shape: tuple[int, int, int] = tuple(self.description["image_shape"])
        self.schedule = from_config(self.description["schedule"])
        self.prediction_type: str = self.description["prediction_type"]
        self.time: str = self.description["time"]
        self.class_names: list[str] = self.description["class_names"]
        self.context_width: int | None = self.description["context_width"]
        self.num_classes: int | None = self.description["num_classes"]
        self.null_class: int | None = self.description["null_class"]
        self.learned_variance: bool = self.description["learned_variance"]
        self.self_condition: bool = self.description["self_condition"]
        self.needs_context = None  # without one it takes zeros, or the null class
        self.stepwise: bool = self.description["stepwise"]
        if "seed" in self.inputs and self.provider != PROVIDERS["cpu"]:
            warn_caller(
                f"{self.provider} has no kernels for the noise's integers, so each step makes them on the CPU; "
                "a file made with --noise input takes the noise from outside"
            )

    def _check_inputs(self) -> None:
        """Raises InputError for inputs that no sampler of fastdiff has."""
        fixed = {"context": self.inputs.get("context", [1])[1:], "history": self.inputs.get("history", [1])[:1]}
        for name, sizes in fixed.items():
            if name in self.inputs and not (sizes or name == "context") or not all(isinstance(n, int) for n in sizes):
                raise InputError(f"{self.path!r} has the input {name} of shape {self.inputs[name]}; export it again")
        if unknown := self.inputs.keys() - INPUTS:
            raise InputError(f"{self.path!r} has the input {min(unknown)!r}; accepted: {', '.join(sorted(INPUTS))}")

    def table(
        self,
        sampler: str = DEFAULT,
        steps: int | None = None,
        *,
        eta: float = 0.0,
        spacing: str | None = None,
        sigmas: str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> StepTable:
        """A table for a file that holds none (`--sampler any`); see make_table for the arguments."""
        return make_table(
            sampler,
            self.schedule,
            steps,
            eta=eta,
            spacing=spacing,
            sigmas=sigmas,
            timesteps=timesteps,
            prediction_type=self.prediction_type,
            time=self.time,
            learned_variance=self.learned_variance,
        )

    @overload
    def sample(self, n: int, *, frames: None = None, **options: Unpack[Options]) -> np.ndarray: ...

    @overload
    def sample(self, n: int, *, frames: int, **options: Unpack[Options]) -> tuple[np.ndarray, np.ndarray]: ...

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        first: int = 0,
        context: Any = None,
        guidance_scale: float | None = None,
        table: StepTable | None = None,
        frames: int | None = None,
        noise: Noise | None = None,
        batch_size: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """n images, those of fastdiff.sample with the same table.

        Args:
            n: how many images.
            seed, first, context, guidance_scale: as in fastdiff.sample.
            table: for a file without one, see `table`.
            frames: also return x after every so many steps, the last included; stepwise files only.
            noise: a callable (draw, first, shape) → normals, for a file that takes them from outside; Philox's unless
                given.
            batch_size: images run together; min(n, 64) unless given.
            on_step: called with the number of images times steps done since the last call.

        Returns:
            (n, C, H, W) float32 in [-1, 1], or uint8 (n, H, W, C) from a file that makes pictures; with `frames`, that
            and the frames, (m, n, C, H, W).

        Raises:
            InputError: before any work, for what the file does not take.
        """
        asked = Asked(seed=seed, first=first, context=context, guidance_scale=guidance_scale, noise=noise)
        request = Request.of(self, n, table=table, frames=frames, **asked)
        size, steps = check_batch_size(batch_size, request.n), self._check(request)
        batches, broken = [], False
        for at in range(request.first, request.end, size):
            count = min(size, request.end - at)
            kept: list[np.ndarray] = []
            for row, x in self._rows(request, at, count, steps):
                broken = broken or self._say_broken(x, at, row)
                if on_step is not None:
                    on_step(count * (1 if self.stepwise else steps))
                if request.keeps(row, steps):
                    kept.append(x)
            batches.append(kept)
        images = np.concatenate([kept[-1] for kept in batches])
        if frames is None:
            return images
        return images, np.stack([np.concatenate(frame) for frame in zip(*batches, strict=True)])

    def _feed(self, request: Request, at: int, count: int) -> dict[str, Any]:
        """The inputs of samples at .. at + count - 1 that hold for all steps."""
        feed: dict[str, Any] = {"seed": np.array(request.seed), "first": np.array(at), "n": np.array(count)}
        if "context" in self.inputs:
            given = self._without_class() if request.contexts is None else request.contexts.rows(at, count)
            scale = 1.0 if request.guidance_scale is None else request.guidance_scale
            feed |= {"context": given.numpy(), "guidance_scale": np.array(scale, dtype=np.float32)}
        if request.table is not None:
            feed["rows"] = request.table.rows.astype(np.float32)
            feed["times"] = request.table.time.astype(np.int64 if self.time == "index" else np.float32)
            feed["init_noise_sigma"] = np.array(request.table.init_noise_sigma, dtype=np.float32)
        return feed

    def _without_class(self) -> torch.Tensor:
        """The context of no class, (1, ...); raises InputError where there is none."""
        if self.num_classes is None:
            return torch.zeros(1, *self.inputs["context"][1:])
        if self.null_class is None:
            raise InputError(
                f"no context for {self.path!r}, of whose classes none stands for no class; accepted: class numbers, "
                f"0 to {self.num_classes - 1}"
            )
        return torch.full((1,), self.null_class, dtype=torch.int64)

    def steps(self, table: StepTable | None = None) -> int:
        """Network evaluations of a run."""
        return len(table) if table is not None else self.description["sampler"]["steps"]

    def _scale(self, table: StepTable | None) -> float:
        """What x before the first row is, times the noise of draw 0."""
        return table.init_noise_sigma if table is not None else self.description["sampler"]["init_noise_sigma"]

    def _check(self, request: Request) -> int:
        """The number of steps; raises InputError for what this file does not take."""
        own = self.description["sampler"]
        if request.frames is not None and not self.stepwise:
            raise InputError(
                f"frames from {self.path!r}, which runs its loop whole; accepted: one made with --stepwise"
            )
        if request.noise is not None and self.description["noise"] != "input":
            raise InputError(f"noise for {self.path!r}, which makes its own; accepted: one made with --noise input")
        if own is not None and request.table is not None:
            raise InputError(
                f"a table for {self.path!r}, which is {own['name']} with {own['steps']} steps; leave it out"
            )
        if request.table is not None and request.table.returns.any():
            raise InputError(f"a table that resamples for {self.path!r}; accepted: one made with resample = 1")
        if request.table is not None and self.time == "index" and (between := request.table.time % 1 != 0).any():
            raise InputError(
                f"a table with time {request.table.time[between][0]:g} for {self.path!r}, which takes whole timesteps; "
                "accepted for times between them: a file that is exported with that table"
            )
        if "context" in self.inputs:
            if request.contexts is None:
                self._without_class()  # refuses before any work where there is none
            elif list(request.contexts.kind.shape) != self.inputs["context"][1:]:
                raise InputError(
                    f"a context of shape {request.contexts.kind.shape} for {self.path!r}; accepted: "
                    f"{tuple(self.inputs['context'][1:])}"
                )
        if own is None and request.table is None:
            raise InputError(f"no table for {self.path!r}, which holds none; accepted: one of its method `table`")
        return self.steps(request.table)

    def _rows(self, request: Request, at: int, count: int, steps: int) -> Iterator[tuple[int, np.ndarray]]:
        """(row, x after it) of samples at .. at + count - 1; only the last row of a whole sampler."""
        feed, shape = self._feed(request, at, count), (count, *self.image_shape)
        outside, random = self.description["noise"] == "input", "noise" in self.inputs
        source = PhiloxNoise(request.seed) if request.noise is None else request.noise

        def drawn(number: int) -> np.ndarray:
            return draw(source, number, at, shape).numpy()

        if not self.stepwise:
            if outside:
                draws = 1 + steps if self.description["random"] else 1
                feed["noise"] = np.stack([drawn(number) for number in range(draws)])
            yield steps - 1, self._run(feed, shape)[0]
            return
        state = [np.float32(self._scale(request.table)) * drawn(0) if outside else np.zeros(shape, np.float32)]
        if "history" in self.inputs:
            state.append(np.zeros((self.inputs["history"][0], *shape), np.float32))
        for row in range(steps):
            feed |= dict(zip(("x", "history"), state, strict=False))
            feed |= {"start": np.array(row), "stop": np.array(row + 1)}
            if outside and random:
                feed["noise"] = drawn(row + 1)[None]
            state = self._run(feed, shape)
            yield row, state[0]

    def _say_broken(self, x: np.ndarray, at: int, row: int) -> bool:
        """Tell if x of samples from `at` on, after that row, holds NaN or infinity."""
        if np.isfinite(x).all():
            return False
        first = at + int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(1)))
        where = f": first in step {row + 1}" if self.stepwise else ""
        warn_caller(f"images from sample {first} on hold NaN or infinity, by {self.path!r}{where}", NotFinite)
        return True

    def _run(self, feed: dict[str, Any], shape: tuple[int, ...]) -> list[np.ndarray]:
        """The outputs, the first of which are images of that shape."""
        try:
            made = self.session.run(None, {name: feed[name] for name in self.inputs})
        except Exception as error:
            raise InputError(f"{self.path!r} failed in ONNX Runtime: {first_line(error)}") from error
        count, channels, height, width = shape
        expected = [np.dtype(np.float32), shape]
        if self.description["pictures"] and not self.stepwise:
            expected = [np.dtype(np.uint8), (count, height, width, channels)]
        found = [made[0].dtype, made[0].shape] if isinstance(made[0], np.ndarray) else [type(made[0]).__name__, ()]
        if found != expected:
            raise InputError(
                f"{self.path!r} gives {found[0]} of shape {found[1]}; expected: {expected[0]} of shape {expected[1]}"
            )
        return made
