"""Products of matrices in batches in C."""

from __future__ import annotations

from fastdiff.kernels.cpu.dimensions import filled, joined
from fastdiff.kernels.cpu.plan import Call, View, check_shape

MOST_DIMENSIONS = 5


def matmul(a: View, b: View, out: View, alpha: float = 1.0) -> Call:
    """alpha a b of the last two dimensions.

    Args:
        a: (..., M, K), any strides, of at most MOST_DIMENSIONS dimensions.
        b: (..., K, N), likewise.
        out: (..., M, N), any strides. Over the dimensions before these, a and b are broadcast to out's.
        alpha: see above.

    Raises:
        ValueError: for anything else.
    """
    op, shapes = "matmul", (a.shape, b.shape)
    ranks = len(a.shape), len(b.shape), len(out.shape)
    if not (2 <= min(ranks) and max(ranks) <= MOST_DIMENSIONS) or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"{op}: a and b have shapes {shapes}; accepted: (..., M, K) and (..., K, N), at most {MOST_DIMENSIONS} "
            "dimensions"
        )
    batch = out.shape[:-2]
    check_shape(op, "out", out, (*batch, a.shape[-2], b.shape[-1]))
    strides = [_broadcast(op, name, one, batch) for name, one in (("a", a), ("b", b))]
    sizes = filled(joined(*zip(batch, *strides, out.strides[:-2], strict=True)), MOST_DIMENSIONS - 2, views=3)
    (m, k), n = a.shape[-2:], b.shape[-1]
    matrices = (step for one in (a, b, out) for step in one.strides[-2:])
    return Call(op, (a, b), (out,), (*sizes, m, k, n, *matrices, float(alpha)))


def _broadcast(op: str, name: str, view: View, batch: tuple[int, ...]) -> list[int]:
    """The strides of the dimensions before a view's matrices, 0 where these are the same for all of the batch."""
    own, missing = view.shape[:-2], len(batch) - len(view.shape) + 2
    if missing < 0 or any(size not in (1, of) for size, of in zip(own, batch[missing:], strict=True)):
        raise ValueError(f"{op}: {name} has shape {view.shape}; accepted: what is broadcast to {batch} of out")
    return [0] * missing + [0 if size == 1 else step for size, step in zip(own, view.strides, strict=False)]
