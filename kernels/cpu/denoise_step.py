"""A sampler's step in C; the equations stand at the top of kernels.denoise_step."""

from __future__ import annotations

from fastdiff.kernels.cpu.plan import Call, View, check_shape, dense, images

_UNCLIPPED, _LIMIT, _SAMPLE, _DYNAMIC = range(4)  # enum clip


def denoise_step(
    x: View,
    out: View,
    row: View,
    x0: View | None = None,
    *,
    noise: View | None = None,
    key: View | None = None,
    clip: None | float | tuple[str, float] | View = None,
    guidance_scale: View | None = None,
    ahead: int = 0,
) -> Call:
    """The update of one row of a step table, in place.

    Args:
        x: (n, C, H, W), NHWC and dense; overwritten with the next x.
        out: (n, C, H, W), NHWC, the network's output; with a guidance_scale (m + n, C, H, W), m at least n: the n
            pictures that come first have no context, and the n that come last have it.
        row: (6,): p, q, a, b, c, s; of a Table, the row that is run.
        x0: as x: the previous x0, read only where c is not 0, and overwritten with this one.
        noise: as x. At most one of noise and key; with neither, s counts as 0.
        key: (2,) from philox.key_view; the noise is then draw r + 1 for row r of the table.
        clip: None; a bound; ("dynamic", quantile), which makes a bound for each sample; or (n,), these bounds.
        guidance_scale: () or (1,), g.
        ahead: how many samples after the key's first one x begins.

    Raises:
        ValueError: for anything else.
    """
    op, (n, c, h, w) = "denoise_step", x.shape
    for name, one in (("x", x), ("x0", x0), ("noise", noise)):
        if one is not None and images(op, name, one, n, c, h, w) != c:
            raise ValueError(f"{op}: {name} has strides {one.strides}; accepted: NHWC, dense")
    pictures = n if guidance_scale is None else max(2 * n, out.shape[0])
    ld = images(op, "out", out, pictures, c, h, w)
    dense(op, "row", row, 6)
    if noise is not None and key is not None:
        raise ValueError(f"{op}: both noise and key were given; accepted: one of them, or neither")
    if key is not None:
        dense(op, "key", key, 2)
    check_shape(op, "guidance_scale", guidance_scale, (), (1,))
    if ahead < 0:
        raise ValueError(f"{op}: ahead = {ahead}; accepted: 0 or more")
    bounds = clip if isinstance(clip, View) else None
    reads = x, out, row, x0, noise, key, bounds, guidance_scale
    numbers = n, c, h * w, ld, pictures - n, ahead, *_clipping(op, clip, n)
    return Call(op, reads, (x,) if x0 is None else (x, x0), numbers)


def _clipping(op: str, clip: None | float | tuple[str, float] | View, n: int) -> tuple[int, float]:
    """How x0 is clipped, and by which number; raises ValueError for what it cannot be clipped by."""
    if clip is None:
        return _UNCLIPPED, 0.0
    if isinstance(clip, View):
        dense(op, "clip", clip, n)
        return _SAMPLE, 0.0
    if isinstance(clip, tuple):
        if len(clip) == 2 and clip[0] == "dynamic" and 0 < clip[1] <= 1:
            return _DYNAMIC, float(clip[1])
    elif clip > 0:
        return _LIMIT, float(clip)
    raise ValueError(f"{op}: clip = {clip!r}; accepted: None, a positive bound, ('dynamic', quantile in (0, 1]) or ({n},)")
