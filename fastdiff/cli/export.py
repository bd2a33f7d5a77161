"""fastdiff export."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_model
from fastdiff.cli.options import (
    FOREIGN,
    NODES,
    chosen_nodes,
    eta_help,
    foreign_options,
    listed,
    load_model,
    node_options,
    parse_clip,
    parse_dtype,
    sampler_list,
    steps_help,
)
from fastdiff.errors import InputError, unknown_name, whole_number
from fastdiff.export.metadata import DTYPES, NOISES
from fastdiff.samplers.samplers import SAMPLERS
from fastdiff.terminal import say

ANY, OWN = "any", "own"
CONTEXT_SHAPE, LARGEST_CONTEXT = "context_shape", 2**20
OF_SAMPLERS = ("steps", "eta", *NODES, "clip", "stepwise", "noise", "pictures")
NOT_OF_PAGES = ("sampler", *OF_SAMPLERS, "dtype", CONTEXT_SHAPE)


@click.command(short_help="A model, or its whole sampling loop, as ONNX; a page for browsers.", epilog=sampler_list())
@click.argument("model", shell_complete=complete_model)
@click.option("-o", "--output", metavar="FILE.onnx", help="The file.")
@click.option("--web", metavar="DIR", help="Write a static page that samples in the visitor's browser.")
@click.option(
    "--sampler",
    help=f"Export the loop: {listed(SAMPLERS)}; any: stepwise, and the table is an input; own: the "
    "scheduler that a model of diffusers brings.  "
    "[default: the network alone]",
    shell_complete=complete([*SAMPLERS, ANY, OWN]),
)
@click.option("--steps", type=int, help=steps_help())
@click.option("--eta", type=float, help=f"{eta_help()}  [default: 0]")
@node_options
@click.option(
    "--clip",
    metavar="CLIP",
    help="Clip the predicted image: off, a bound such as 1, dynamic (at the 0.995 quantile) or dynamic=0.99.  "
    "[default: the model's own]",
)
@click.option(
    "--stepwise",
    is_flag=True,
    default=None,
    help="A call runs steps `start` to `stop`, for progress, cancelling and animations.",
)
@click.option(
    "--noise",
    help=f"{listed(f'{name} ({words})' for name, words in NOISES.items())}.  [default: philox]",
    shell_complete=complete(NOISES),
)
@click.option(
    "--pictures", is_flag=True, default=None, help="The output is uint8 (n, H, W, C), not float32 in [-1, 1]."
)
@click.option(
    "--dtype",
    help=f"What the network computes in: {listed(DTYPES)}.  [default: float32]",
    shell_complete=complete(DTYPES),
)
@click.option(
    "--weights",
    help="How weights are stored: float32, or float16 for half the size.  [default: the dtype; --web: float16]",
    shell_complete=complete(DTYPES),
)
@click.option(
    "--context-shape",
    metavar="LxD",
    help="The shape of a context that the model does not say, such as 77x768 for tokens.",
)
@click.option("--plain", is_flag=True, help="Keep the network as published: do not fold its linear attention.")
@foreign_options
def export(
    model: str,
    output: str | None,
    web: str | None,
    plain: bool,
    weights: str | None,
    **options: Any,
) -> None:
    """Write MODEL as ONNX, to run where there is no PyTorch, and check the file against PyTorch.

    \b
    fastdiff export fashion-mnist -o network.onnx
    fastdiff export fashion-mnist --sampler ddim --steps 25 -o sampler.onnx
    fastdiff export sprites --sampler ddpm_large --stepwise -o sampler.onnx
    fastdiff export my-ddpm-folder/ --sampler own --steps 50 -o sampler.onnx
    fastdiff export sprites --web page/          then: python3 -m http.server -d page

    \b
    The network takes   sample (batch, C, H, W), timestep (batch,), context (batch, K); gives prediction
    A sampler takes     seed, first, n, context (n, K) or (1, K), guidance_scale; gives images (n, C, H, W)
    Stepwise it takes   x, history, start, stop, seed, first, ...; gives next_x, next_history
    Any sampler's too   rows (steps, 12), times (steps,), init_noise_sigma
    Class numbers are   context (n,) or (1,), int64; tokens context (n, L, D) or (1, L, D)

    A sampler's file needs nothing but ONNX Runtime 1.20 or newer, and gives the images that `fastdiff sample` gives
    for the same seed. `fastdiff sample sampler.onnx` runs it. GPU providers have the noise's integers computed on the
    CPU, which --noise input avoids.

    Before the file gets its name it is run in ONNX Runtime against PyTorch, with random inputs. Where the results
    differ too much, or anything else fails, nothing is written.
    """
    if (output is None) == (web is None):
        raise InputError("fastdiff export needs -o FILE.onnx or --web DIR, one of them")
    given = {name: value for name, value in options.items() if value is not None}
    foreign = {name: given.pop(name) for name in FOREIGN if name in given}
    words = [word for name, value in foreign.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    _refuse(given, web)

    from fastdiff import export as onnx

    loaded = load_model(model, foreign)
    dtype = parse_dtype(given.get("dtype", "float32"), DTYPES)
    common: dict[str, Any] = {"prepared": not plain, "weights": weights or ("float16" if web else None)}
    if CONTEXT_SHAPE in given:
        common[CONTEXT_SHAPE] = _sizes(given[CONTEXT_SHAPE])
    began = time.perf_counter()
    with _stages_shown(began):
        if web is not None:
            checks = onnx.export_page(loaded, web, model, **common, arguments=words)
        elif "sampler" not in given:
            checks = onnx.export_network(loaded, str(output), dtype=dtype, **common)
        else:
            table = _table(loaded, given)
            chosen = {name: given[name] for name in ("stepwise", "noise", "pictures") if name in given}
            clip = parse_clip(given.get("clip"))
            checks = onnx.export_sampler(loaded, str(output), table, clip=clip, dtype=dtype, **common, **chosen)
    for check in checks:
        say(f"checked against torch: {check}")
    path = Path(web or str(output)).resolve()
    files = list(path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files) / 1e6
    say(f"wrote {path}: {size:.1f} MB, in {time.perf_counter() - began:.0f} s")
    if web is not None:
        say(f"look at it: python3 -m http.server -d {web}, then http://localhost:8000")


@contextmanager
def _stages_shown(began: float) -> Iterator[None]:
    """Each stage of the export on the terminal as it begins, with the seconds until then; nothing elsewhere."""
    logger, handler = logging.getLogger("fastdiff.export"), logging.Handler()
    handler.emit = lambda record: say(  # type: ignore[method-assign]
        f"{time.perf_counter() - began:6.1f} s  {record.getMessage()} ...", err=True
    )
    if sys.stderr.isatty():
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _refuse(given: dict[str, Any], web: str | None) -> None:
    """Options that what is exported does not have."""
    wrong: tuple[str, ...] = ()
    if web is not None:
        wrong, where = NOT_OF_PAGES, "--web, whose page offers the samplers to choose from"
    elif "sampler" not in given:
        wrong, where = OF_SAMPLERS, "the network alone; give --sampler for the loop"
    elif given["sampler"] == ANY:
        wrong, where = ("steps", "eta", *NODES), "--sampler any, whose table is an input"
    for name in wrong:
        if name in given:
            raise InputError(f"--{name.replace('_', '-')} with {where}")


def _sizes(text: str) -> list[int]:
    """77x768 as numbers."""
    sizes = [whole_number(part.strip()) for part in text.lower().split("x")]
    known = [size for size in sizes if size is not None and 1 <= size <= LARGEST_CONTEXT]
    if len(known) < len(sizes):
        raise InputError(
            f"--context-shape {text!r}; accepted: sizes up to {LARGEST_CONTEXT} with x between them, such as 77x768"
        )
    return known


def _table(model: Any, given: dict[str, Any]) -> Any:
    sampler = given["sampler"]
    if sampler == ANY:
        return None
    if sampler == OWN:
        if model.scheduler is None:
            raise InputError(
                f"--sampler {OWN} for a model without a scheduler; accepted: {', '.join(SAMPLERS)} or {ANY}"
            )
        sampler = None
    elif sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, [*SAMPLERS, ANY, OWN])
    return model.table(sampler, given.get("steps"), eta=given.get("eta", 0.0), **chosen_nodes(given))
