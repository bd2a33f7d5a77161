"""The images that torch makes for a request, with which an exported loop's are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastdiff.images import to_uint8
from fastdiff.model import Model
from fastdiff.samplers.prediction import Clip
from fastdiff.samplers.table import StepTable
from fastdiff.sampling import sample

# The largest distance of a loop's images, in units of max(1, max|x|). In float16 every evaluation is off by about 1e-3,
# and errors add up over the loop.
LOOP_BOUNDS = {torch.float32: 1e-4, torch.float16: 5e-2}
SHAKY = 10  # times the distance between fastdiff's forms
SEVERAL = 4  # samples by which a single one is judged


@dataclass(frozen=True)
class Run:
    """A request that the file and torch both answer: samples first .. first + n - 1 of the seed.

    Attributes:
        dtype: of the file's arithmetic.
    """

    model: Model
    table: StepTable
    n: int
    seed: int
    first: int
    clip: Clip
    context: torch.Tensor | None
    guidance_scale: float | None
    dtype: torch.dtype = torch.float32

    def distance(self, out: np.ndarray, bound: float) -> tuple[float, str]:
        """How far images are from torch's.

        A loop can amplify float32's rounding: on some samples any two ways to compute it are far apart. A sample beyond
        the bound is therefore held to SHAKY times the largest distance between the network as it is and its captured
        form in the file's dtype, over this sample and others: on one alone the two may be near each other by chance.

        Args:
            out: the file's images, float32 (n, C, H, W) or uint8 (n, H, W, C).
            bound: the largest distance that is accepted.

        Returns:
            The largest distance over the samples, scaled so that bound is the largest accepted one: in units of
            max(1, max|x|), for uint8 in pixel values. And a note on samples held to more than the bound, or "".
        """
        pictures = out.dtype == np.uint8

        def images(form: str | None, n: int = self.n) -> torch.Tensor:
            made = self._images(form, n)
            return to_uint8(made).permute(0, 2, 3, 1).float() if pictures else made

        expected = images("eager")
        unit = 1.0 if pictures else max(1.0, float(expected.abs().max()))
        apart = _largest(torch.from_numpy(out) - expected) / unit
        shaky = apart > bound
        if not shaky.any():
            return float(apart.max()), ""  # NaN too
        n = SEVERAL if self.n == 1 else self.n
        own = float(_largest(images(None, n) - images("eager", n)).max()) / unit
        note = f" ({int(shaky.sum())} where fastdiff's forms are up to {own:.0e} apart, judged by that)"
        return float((apart * bound / max(SHAKY * own, bound)).max()), note

    def _images(self, form: str | None, n: int) -> torch.Tensor:
        made = sample(
            self.model,
            n,
            self.table,
            seed=self.seed,
            first=self.first,
            context=self.context,
            device="cpu",
            guidance_scale=self.guidance_scale,
            clip=self.clip,
            dtype=torch.float32 if form == "eager" else self.dtype,
            form=form,
        )
        assert isinstance(made, torch.Tensor)
        return made


def _largest(difference: torch.Tensor) -> torch.Tensor:
    """(n,): each sample's largest absolute value."""
    return difference.abs().flatten(1).amax(1)
