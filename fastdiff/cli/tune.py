"""fastdiff tune."""

from __future__ import annotations

import sys
from typing import Any

import click

from fastdiff.cli.completion import complete, complete_model
from fastdiff.cli.options import foreign_options, listed
from fastdiff.terminal import say

NARROW = ("bfloat16", "float16")


@click.command(short_help="Fit the kernels to a GPU, once.")
@click.argument("model", shell_complete=complete_model)
@click.option("--batch-size", type=int, default=64, show_default=True, help="Samples that are to run together.")
@click.option(
    "--dtype",
    default=NARROW[0],
    show_default=True,
    help=f"What the network computes in: {listed(NARROW)}.",
    shell_complete=complete(NARROW),
)
@click.option("--device", metavar="DEVICE", help="cuda, cuda:1, ...", shell_complete=complete(("cuda",)))
@foreign_options
def tune(model: str, batch_size: int, dtype: str, device: str | None, **foreign: Any) -> None:
    """Measure in which tiles a GPU computes MODEL's convolutions fastest, and keep that for later runs.

    \b
    fastdiff tune sprites
    fastdiff tune my_model.pt --batch-size 256

    It takes some minutes, most of them compilation. The results are kept by device and driver in the folder
    FASTDIFF_CACHE, else in fastdiff's folder of your cache; without them tiles are chosen by estimate. Images differ
    from those of other tiles by rounding, so that a run that is to be continued or split wants the same ones: its
    manifest tells.
    """
    from tqdm.auto import tqdm

    from fastdiff.cli.options import load_model, parse_device, parse_dtype
    from fastdiff.engine.engine import Engine
    from fastdiff.kernels.tuning import path

    made, where = parse_dtype(dtype, NARROW), parse_device(device)
    engine = Engine(load_model(model, foreign), batch_size=batch_size, dtype=made, device=where)
    with tqdm(desc="measuring", unit="kind", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        measured = engine.tune(show)
    before, after = (sum(getattr(one, name) for one in measured.values()) for name in ("estimated", "milliseconds"))
    better = sum(one.milliseconds < one.estimated for one in measured.values())
    say(
        f"{len(measured)} kinds of convolution at batch {batch_size}: {after:.3f} ms together, {before:.3f} ms by "
        f"estimate; {better} have other tiles now"
    )
    say(f"kept in {path(engine.device)}")
