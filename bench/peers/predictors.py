"""A network as each contender calls it: (x, time) → the prediction, float32 in and out.

`time` is what the published loop of the system hands its network: (n,) integer timesteps for A, a fraction of shape
(1, 1, 1, 1) for B.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.bench import compiling, networks
from fastdiff.bench.case import Case
from fastdiff.bench.contender import (
    AUTOTUNED,
    COMPILED,
    ONNXRUNTIME,
    PUBLISHED,
    TO_EXPORT,
    TUNED,
    Contender,
    Ready,
    Role,
)
from fastdiff.kernels.dispatch import using

Predict = Callable[[Tensor, Tensor], Tensor]


def time_of(model: fastdiff.Model, value: float, n: int, device: torch.device) -> Tensor:
    """A row's time as the published loop makes it."""
    if model.time == "index":
        return torch.full((n,), int(value), dtype=torch.long, device=device)
    return torch.tensor([value], dtype=torch.float32).to(device)[:, None, None, None]


def published(name: str, device: torch.device) -> Predict:
    """As the tutorials call it: eager, float32."""
    return networks.published(networks.load(name)).to(device)


def tuned(name: str, device: torch.device, dtype: torch.dtype) -> Predict:
    """The same network from fastdiff.networks, in channels_last and that dtype, prepared in no other way."""
    network: Any = copy.deepcopy(networks.load(name).network).eval().requires_grad_(False)
    network = network.to(device, dtype, memory_format=torch.channels_last)

    def predict(x: Tensor, time: Tensor) -> Tensor:
        with using("reference"):  # plain torch: its operators would be fastdiff's Triton kernels on a GPU
            return network(x.to(dtype, memory_format=torch.channels_last), time.flatten()).float()

    return predict


def in_layout(name: str, device: torch.device, dtype: torch.dtype) -> Predict:
    """The published network in channels_last and that dtype, for torch.compile, which would take the operators of
    fastdiff.networks as they are."""
    network: Any = networks.published(networks.load(name))
    network = network.to(device, dtype, memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.Linear):  # the time's embedding is float32
            module.register_forward_pre_hook(lambda module, given: (given[0].to(dtype),))

    def predict(x: Tensor, time: Tensor) -> Tensor:
        return network(x.to(dtype, memory_format=torch.channels_last), time).float()

    return predict


@cache
def compiled(name: str, device: torch.device, batch: int, threads: int, cold: bool) -> Predict:
    """The published network by torch.compile as it comes, float32. `threads` and `batch`: each has code of its own."""
    network = networks.published(networks.load(name)).to(device)
    return compiling.compiled(network, (name, str(device), batch, threads), None, cold)


@cache
def autotuned(name: str, device: torch.device, dtype: torch.dtype, batch: int, threads: int, cold: bool) -> Predict:
    """torch.compile at its best, in channels_last and the case's precision; on CUDA with its graphs."""
    key = (name, str(device), str(dtype), batch, threads)
    call = compiling.compiled(in_layout(name, device, dtype), key, "max-autotune", cold)
    if device.type == "cpu":
        return call

    def predict(x: Tensor, time: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return call(x, time).clone()  # which the graph's next replay would overwrite

    return predict


def contenders(case: Case, cold: bool, ready: Callable[[Predict], Ready]) -> Iterator[Contender]:
    """Whoever calls a network in a loop of their own; ready: a predictor → what is timed and compared."""
    device, dtype, name = torch.device(case.device), getattr(torch, case.dtype), case.network
    more = (case.batch, case.threads, cold)
    as_it_comes = None if case.dtype == "float32" else "float32"  # whatever the case's dtype

    # Looked up when called, so that one may be replaced.
    yield Contender(PUBLISHED, lambda: ready(published(name, device)), Role.REFERENCE, as_it_comes)
    yield Contender(TUNED, lambda: ready(tuned(name, device, dtype)))
    yield Contender(COMPILED, lambda: ready(compiled(name, device, *more)), Role.COMPILED, as_it_comes)
    yield Contender(AUTOTUNED, lambda: ready(autotuned(name, device, dtype, *more)), Role.COMPILED)
    runtime = lambda: ready(onnxruntime(name, device, case.threads))  # noqa: E731
    yield Contender(ONNXRUNTIME, runtime, precision=as_it_comes, needs=TO_EXPORT)


def forget() -> None:
    """Drop compiled networks, and what they hold; they are compiled again from torch's cache."""
    compiled.cache_clear()
    autotuned.cache_clear()
    torch._dynamo.reset()


@cache
def exported(name: str) -> bytes:
    """The network as `fastdiff export` writes it: any batch, its linear attention folded."""
    from fastdiff.export.assemble import network_model
    from fastdiff.export.parts import capture

    return network_model(capture(networks.load(name))).SerializeToString()


def onnxruntime(name: str, device: torch.device, threads: int) -> Predict:
    """ONNX Runtime on that file, called from Python."""
    from fastdiff.export.runner import choose_providers
    from fastdiff.export.runner import onnxruntime as module

    runtime, providers = module(), choose_providers(device.type)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if device.type == "cuda":  # a row of a dtype computes in it
        providers = [(str(provider), {"use_tf32": 0}) for provider in providers]
    session = runtime.InferenceSession(exported(name), options, providers=providers)
    session.disable_fallback()
    started = session.get_providers()[0]
    if device.type not in started.lower():
        raise RuntimeError(f"ONNX Runtime started {started} in place of a provider for {device.type}")
    names = [given.name for given in session.get_inputs()]
    width = 0 if "context" not in names else session.get_inputs()[names.index("context")].shape[1]

    def predict(x: Tensor, time: Tensor) -> Tensor:
        given = {"sample": x.cpu().numpy(), "timestep": time.flatten().expand(len(x)).contiguous().cpu().numpy()}
        if width:
            given["context"] = torch.zeros(len(x), width).numpy()
        return torch.from_numpy(session.run(None, given)[0]).to(x.device)

    return predict
