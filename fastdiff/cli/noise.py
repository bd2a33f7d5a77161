"""fastdiff noise."""

from __future__ import annotations

from pathlib import Path

import click

from fastdiff.cli.completion import complete, complete_file
from fastdiff.cli.options import listed
from fastdiff.errors import InputError
from fastdiff.samplers.schedule import NAMES as SCHEDULES
from fastdiff.terminal import say


@click.command(short_help="The forward process on a picture, as a strip.")
@click.argument("picture", shell_complete=complete_file)
@click.option("-o", "--output", metavar="FILE", default="noise.png", show_default=True, help="The strip, a picture.")
@click.option(
    "--schedule",
    default="linear",
    show_default=True,
    help=f"{listed(SCHEDULES)}.",
    shell_complete=complete(SCHEDULES),
)
@click.option("--timesteps", type=int, default=200, show_default=True, help="T of the schedule, at least 1.")
@click.option(
    "--at",
    metavar="t,t,...",
    help="Timesteps to show, 0 to T - 1 (course: 1 to T).  [default: the first, 1/4, 1/2, 3/4 and the last]",
)
@click.option("--size", type=click.IntRange(1), default=128, show_default=True, help="Side of each picture, in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise, 0 to 2^63 - 1.")
def noise(picture: str, output: str, schedule: str, timesteps: int, at: str | None, size: int, seed: int) -> None:
    """Draw PICTURE at several timesteps of the forward process q(x_t | x_0), side by side.

    \b
    fastdiff noise cat.png
    fastdiff noise cat.png --schedule cosine --timesteps 1000 --at 0,250,500,750,999 -o cosine.png
    """
    from fastdiff.files import check_writable
    from fastdiff.images import check_picture_name

    check_picture_name(check_writable(output))

    import torch

    from fastdiff.engine.noise import PhiloxNoise
    from fastdiff.engine.placement import choose_device
    from fastdiff.images import grid, grid_layout, read_picture, save_picture
    from fastdiff.samplers.schedule import make_schedule

    choose_device("cpu")  # where the noise is drawn
    chosen = make_schedule(schedule, timesteps)
    first, last = chosen.first, chosen.first + chosen.num_timesteps - 1
    if at is None:
        nodes = sorted({first, *(min(last, max(first, timesteps * k // 4)) for k in (1, 2, 3)), last})
    else:
        try:
            nodes = [int(part) for part in at.split(",")]
        except ValueError:
            raise InputError(f"--at {at!r}; accepted: whole numbers with commas between them") from None
        for node in nodes:
            if not first <= node <= last:
                raise InputError(f"timestep {node}; schedule {schedule!r} with T = {timesteps} has {first} to {last}")
    grid_layout(len(nodes), size, size, columns=len(nodes), scale=1, gap=2)
    x0 = read_picture(picture, size)
    z = PhiloxNoise(seed)(0, 0, (1, *x0.shape))
    rows = [chosen.q_sample(x0[None], torch.tensor([t], device="cpu"), z) for t in nodes]
    save_picture(grid(torch.cat(rows), len(nodes), scale=1, gap=2), output)
    say(f"t = {', '.join(map(str, nodes))} of {chosen.name}, T = {timesteps}")
    say(f"wrote {Path(output).resolve()}")
