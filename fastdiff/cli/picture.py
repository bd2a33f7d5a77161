"""fastdiff sample into a picture: the grid, the animation, the numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdiff.cli.drawn import Drawn, count_steps, frame_interval, given_pictures, parse_contexts, where
from fastdiff.cli.options import (
    ONNX,
    chosen_nodes,
    load_model,
    parse_clip,
    parse_device,
    parse_dtype,
    parse_gif_frames,
    say_clip,
)
from fastdiff.data.npy import numbers
from fastdiff.engine.context import in_turn
from fastdiff.engine.forms import choose_form
from fastdiff.engine.noise import LIMIT
from fastdiff.engine.pictures import check_resample, choose_strength
from fastdiff.engine.placement import set_threads
from fastdiff.errors import InputError, check_int
from fastdiff.files import check_writable, save_npy
from fastdiff.images import SHOWN_CHANNELS, animation, cell_size, check_picture_name, grid, grid_layout, save_picture
from fastdiff.samplers.prediction import FRAMES
from fastdiff.samplers.spacing import first_row
from fastdiff.sampling import sample
from fastdiff.terminal import note, say


def sample_to_picture(
    model: str,
    output: str,
    n: int,
    gif: str | None,
    gif_frames: str | None,
    npy: str | None,
    columns: int | None,
    scale: int | None,
    **options: Any,
) -> None:
    """The command with a picture as its output."""
    _check_outputs(output, gif, npy)
    if gif is None and gif_frames is not None:
        raise InputError(f"--gif-frames {gif_frames} without --gif; give both")
    if gif is None and options["gif_of"] is not None:
        raise InputError(f"--gif-of {options['gif_of']} without --gif; give both")
    most = parse_gif_frames(gif_frames)
    every = None if gif is None else lambda steps: frame_interval(steps, most)

    set_threads(options["threads"])
    check_int("n", n, 1, LIMIT - 1)

    def check_grid(image_shape: tuple[int, int, int]) -> None:
        grid_layout(n, *cell_size(image_shape), columns=columns, scale=scale, gap=1)

    draw: Callable[..., Drawn] = _draw
    if model.lower().endswith(ONNX):
        from fastdiff.cli.onnx import draw_from_onnx

        draw = draw_from_onnx
    drawn = draw(model, n, every, check_grid, **options)
    channels = drawn.images.shape[1]
    if channels not in SHOWN_CHANNELS:
        note(f"the {channels} channels of an image are shown side by side, in gray")
    save_picture(grid(drawn.images, columns, scale=scale), output)
    written = [output]
    if gif and drawn.frames is not None:
        animation(drawn.frames, columns, scale=scale).save(gif)
        written.append(gif)
    if npy:
        save_npy(drawn.values.numpy(), npy)
        written.append(npy)
    say(
        f"{n} images, {drawn.sampler}, {drawn.steps}, in {drawn.seconds:.2f} s: "
        f"{n / drawn.seconds:.1f} images/s ({drawn.where})"
    )
    for path in written:
        say(f"wrote {Path(path).resolve()}")


def _draw(
    model: str,
    n: int,
    every: Callable[[int], int] | None,
    check_grid: Callable[..., None],
    gif_of: str | None,
    steps: int | None,
    clip: str | None,
    strength: float | None,
    noise: str | None,
    contexts: tuple[str, ...],
    dtype: str | None,
    form: str | None,
    device: str | None,
    threads: int | None,
    **options: Any,
) -> Drawn:
    """What `sample` draws, by torch; every: steps → every how many a frame is taken, None for no animation."""
    loaded = load_model(model, options)
    check_resample(options["resample"], options["mask"])
    sampler, eta, resample = (options.pop(name) for name in ("sampler", "eta", "resample"))
    nodes, kept = chosen_nodes(options), choose_strength(strength, options["init"])
    table = loaded.table(sampler, steps, eta=eta, resample=resample, strength=kept, **nodes)
    if steps is None:
        timesteps = nodes["timesteps"]
        steps = loaded.default_steps(sampler) if timesteps is None else len(timesteps)
    steps -= first_row(kept, steps)
    pictures = given_pictures(options, loaded)
    check_grid(loaded.image_shape)
    rows = parse_contexts(contexts, loaded)
    say_clip(clip, loaded)
    chosen, dtype = parse_device(device), dtype or "float32"
    form = choose_form(form, chosen, parse_dtype(dtype)).name

    began = time.perf_counter()
    result = sample(
        loaded,
        n,
        table,
        clip=parse_clip(clip),
        context=in_turn(rows),
        **pictures,
        noise=None if noise is None else numbers(noise),
        frames=None if every is None else every(len(table)),
        frames_of=gif_of or FRAMES[0],
        device=chosen,
        dtype=parse_dtype(dtype),
        form=form,
        progress=sys.stderr.isatty(),
        **options,
    )
    seconds = time.perf_counter() - began
    images, frames = result if isinstance(result, tuple) else (result, None)
    count, how = count_steps(steps, len(table)), where(chosen, form, dtype)
    return Drawn(images, frames, table.sampler, count, seconds, how, loaded.values(images))


def _check_outputs(output: str, gif: str | None, npy: str | None) -> None:
    check_picture_name(check_writable(output))
    for path, ending in ((gif, ".gif"), (npy, ".npy")):
        if path is not None and check_writable(path).suffix.lower() != ending:
            raise InputError(f"output {path!r}; accepted: a name that ends in {ending}")
    names = [str(Path(path).resolve()) for path in (output, gif, npy) if path is not None]
    if len(set(names)) < len(names):
        raise InputError(f"two outputs have the name {output!r}; accepted: a name for each")
