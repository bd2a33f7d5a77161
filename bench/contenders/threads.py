"""Several threads against one: sampling in this process, beside what a large product gains; or, where `what` ends in
"busy", by processes as users start them, each core being busy with another process as well."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, Contender, Ready, Role
from fastdiff.bench.contenders.cold_starts import printed
from fastdiff.bench.contenders.samplings import by_engine
from fastdiff.bench.networks import SHIPPED

ONE, PRODUCT = f"{FASTDIFF}, 1 thread", "a large product"
PRODUCT_OF_ONE = f"{PRODUCT}, 1 thread"
SIZE = 1024  # of the product
BUSY = "busy"  # the last word of `what`


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    if case.what.endswith(BUSY):
        folder = tempfile.TemporaryDirectory(prefix="fastdiff-busy-")
        yield Contender(ONE, partial(_process, case, folder, "--threads", "1"), Role.REFERENCE)
        yield Contender(FASTDIFF, partial(_process, case, folder), Role.FASTDIFF)  # as many as it takes by itself
        return
    yield Contender(ONE, partial(_on_one, partial(by_engine, case)), Role.REFERENCE)
    yield Contender(FASTDIFF, partial(by_engine, case), Role.FASTDIFF)
    yield Contender(PRODUCT_OF_ONE, partial(_on_one, _product), against=PRODUCT_OF_ONE)
    yield Contender(PRODUCT, _product, against=PRODUCT_OF_ONE)


def _product() -> Ready:
    a, b = torch.randn(2, SIZE, SIZE)
    return Ready(lambda: a @ b, facts={"remark": f"{SIZE} x {SIZE}, by torch"})


def _on_one(make: Callable[[], Ready]) -> Ready:
    """Made and run with one of torch's threads."""
    ready = _with_one(make)()
    ready.run = _with_one(ready.run)
    if ready.outputs is not None:
        ready.outputs = _with_one(ready.outputs)
    return ready


def _with_one(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return run


def _process(case: Case, folder: tempfile.TemporaryDirectory[str], *words: str) -> Ready:
    """`fastdiff sample`, from the interpreter's start to the images on disk."""
    picture, images = (str(Path(folder.name) / name) for name in ("images.png", "images.npy"))
    command = [sys.executable, "-m", "fastdiff", "sample", SHIPPED[case.network], "-n", str(case.batch)]
    command += ["--sampler", case.sampler, "--steps", str(case.steps), "--device", case.device, *words]
    command += ["-o", picture, "--npy", images]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    facts: dict[str, Any] = {}

    def run(held: Any = folder) -> None:  # the folder goes with the last that needs it
        with _busy_cores():
            facts["remark"] = printed(command, environment).splitlines()[0]

    def outputs() -> Tensor:
        run()
        return torch.from_numpy(np.load(images))

    return Ready(run, outputs, facts=facts)


# Ends when its standard input does, as when this process dies.
_LOOP = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
while True: pass
"""


@contextmanager
def _busy_cores() -> Iterator[None]:
    """As many processes as cores, each of which computes all the time."""
    started = [
        subprocess.Popen([sys.executable, "-c", _LOOP], stdin=subprocess.PIPE) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()
            assert one.stdin is not None
            one.stdin.close()
