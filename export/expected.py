"""The images that torch makes for a request, with which an exported loop's are compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdiff.capture.outputs import first_output
from fastdiff.images import to_uint8
from fastdiff.kernels.denoise_step import denoise_step_reference, x0_bound
from fastdiff.kernels.philox import key_of, normals_reference
from fastdiff.model import Model
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.table import StepTable
from fastdiff.sampling import sample

# The largest distance of a loop's images, in units of max(1, max|x|). In float16 every evaluation is off by about 1e-3,
# and errors add up over the loop.
LOOP_BOUNDS = {torch.float32: 1e-4, torch.float16: 5e-2}
SHAKY = 10  # times torch's own distance from float64


@dataclass(frozen=True)
class Run:
    """A request that the file and torch both answer: samples first .. first + n - 1 of the seed."""

    model: Model
    table: StepTable
    n: int
    seed: int
    first: int
    clip: Clip
    context: torch.Tensor | None
    guidance_scale: float | None

    def distance(self, out: np.ndarray, bound: float) -> tuple[float, str]:
        """How far images are from torch's.

        A loop can amplify float32's rounding: on some samples torch's float32 is far from float64, and so from any
        other float32. A sample beyond the bound is therefore held to SHAKY times torch's own distance from float64.

        Args:
            out: the file's images, float32 (n, C, H, W) or uint8 (n, H, W, C).
            bound: the largest distance that is accepted.

        Returns:
            The largest distance over the samples, scaled so that bound is the largest accepted one: in units of
            max(1, max|x|), for uint8 in pixel values. And a note on samples held to float64, or "".
        """
        expected = sample(
            self.model,
            self.n,
            self.table,
            seed=self.seed,
            first=self.first,
            context=self.context,
            device="cpu",
            guidance_scale=self.guidance_scale,
            clip=self.clip,
            form="eager",
        )
        assert isinstance(expected, torch.Tensor)
        if out.dtype == np.uint8:
            pixels = to_uint8(expected).permute(0, 2, 3, 1).numpy()
            return float(np.abs(out.astype(int) - pixels.astype(int)).max()), ""
        images, unit = torch.from_numpy(out), max(1.0, float(expected.abs().max()))
        apart = _largest(images - expected) / unit
        if bool((apart <= bound).all()) or bound > LOOP_BOUNDS[torch.float32]:
            return float(apart.max()), ""
        try:
            exact = self.exact()
        except RuntimeError:  # the network does not run in float64
            return float(apart.max()), ""
        own = _largest(expected - exact) / unit
        judged = _largest(images - exact) / unit * (bound / (SHAKY * own))
        shaky = apart > bound
        note = f" ({int(shaky.sum())} where torch's float32 is {float(own.max()):.0e} from float64, judged by that)"
        return float(torch.where(shaky, judged, apart).max()), note

    def exact(self) -> torch.Tensor:
        """The images by a plain loop in float64, from the same float32 noise."""
        network = copy.deepcopy(self.model.network).double()
        rows = torch.from_numpy(self.table.rows)
        times = torch.tensor(self.table.time, dtype=torch.int64 if self.model.time == "index" else torch.float64)
        guided = self.guidance_scale not in (None, 1)
        scale = torch.tensor(self.guidance_scale, dtype=torch.float64) if guided else None
        contexts = [] if self.context is None else [self.context.double()]
        shape, key = (self.n, *self.model.image_shape), key_of(self.seed, self.first, torch.device("cpu"))

        def normals(draw: int) -> torch.Tensor:
            return normals_reference(key, draw, shape).double()

        x, x0 = normals(0), None
        for i in range(len(rows)):
            index, time = torch.tensor(i), times[i].expand(self.n)
            with torch.no_grad():
                out = first_output(network(x, time, *contexts), x.shape[1])
                if guided:
                    without = first_output(network(x, time, torch.zeros_like(contexts[0])), x.shape[1])
                    out = torch.cat((without, out))
            clip: Any = self.clip
            if isinstance(clip, tuple):
                clip = x0_bound(x, out, rows, index, clip[1], scale)
            x, x0 = denoise_step_reference(
                x, out, rows, index, x0, noise=normals(i + 1), clip=clip, guidance_scale=scale
            )
        return x


def _largest(difference: torch.Tensor) -> torch.Tensor:
    """(n,): each sample's largest absolute value."""
    return difference.abs().flatten(1).amax(1)
