"""The prediction at a table's row: what does not depend on x is computed before the loop."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.engine.evaluation import ROWS, Parts
from fastdiff.samplers.table import StepTable


class _Rows:
    """Tensors of one dtype with a row for each of a table's, side by side in one buffer, so that a step reads one row.

    Attributes:
        values: (capacity, width).
        row: (1, width), the row that is read, in the same place in every step.
        views, tables: each part of the row, and of the values.
    """

    def __init__(self, parts: list[Tensor], capacity: int) -> None:
        width = sum(part[0].numel() for part in parts)
        self.values = parts[0].new_zeros(capacity, width)
        self.row = parts[0].new_zeros(1, width)
        self.views, self.tables = (
            [
                one.view(len(one), *part.shape[1:])
                for one, part in zip(whole.split([p[0].numel() for p in parts], dim=1), parts, strict=True)
            ]
            for whole in (self.row, self.values)
        )

    def load(self, parts: list[Tensor], at: int) -> None:
        joined = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
        self.values[at : at + len(joined)] = joined

    def read(self, index: Tensor) -> None:
        torch.index_select(self.values, 0, index.reshape(1), out=self.row)


class Prediction:
    """(x, index, with self-conditioning the x0 before) → the network's output for a batch, in the network's dtype.

    With guidance the network runs on twice the batch: the output is (2 B, C, H, W), the B predictions without a
    context first, and denoise_step combines them. A learned variance follows the prediction's channels.

    Attributes:
        time, tables: for each of the tensors that depend on the time alone the row that was read last, and all rows.
        context: the tensors that depend on the context alone; another tuple once they lie elsewhere.

    Args:
        parts: of the evaluation, for that batch.
        device: where they run.
        dtype: the network's.
        whole: whether times are whole timesteps, int64; else float32.
        guided: whether there is classifier-free guidance.
        null: what a context without a class consists of.
    """

    def __init__(
        self, parts: Parts, device: torch.device, dtype: torch.dtype, whole: bool, guided: bool, null: int = 0
    ) -> None:
        self.parts, self.device, self.dtype, self.guided, self.null = parts, device, dtype, guided, null
        self.time_dtype = torch.int64 if whole else torch.float32
        self.rows: dict[torch.dtype, _Rows] = {}
        self.time: list[Tensor] = []
        self.tables: list[Tensor] = []
        self.context: tuple[Tensor, ...] = ()
        self.capacity = 0

    def load_table(self, table: StepTable, capacity: int) -> None:
        """Compute what depends on the time for a table's rows."""
        times = torch.tensor(table.time, dtype=self.time_dtype, device=self.device)
        count = len(times)
        times = torch.cat((times, times[-1:].expand(-count % ROWS)))
        made = capacity > self.capacity
        for at in range(0, count, ROWS):
            parts = self.parts.time(times[at : at + ROWS])
            kinds = {dtype: [part for part in parts if part.dtype == dtype] for dtype in {p.dtype for p in parts}}
            if made and at == 0:
                self.capacity = -(-capacity // ROWS) * ROWS
                self.rows = {dtype: _Rows(found, self.capacity) for dtype, found in kinds.items()}
                views = {dtype: iter(rows.views) for dtype, rows in self.rows.items()}
                self.time = [next(views[part.dtype]) for part in parts]
                tables = {dtype: iter(rows.tables) for dtype, rows in self.rows.items()}
                self.tables = [next(tables[part.dtype]) for part in parts]
            for dtype, found in kinds.items():
                self.rows[dtype].load(found, at)

    def load_context(self, context: Tensor | None) -> None:
        """Set the batch's contexts: (B, ...), or None. Equal shapes reuse the same buffers."""
        if context is not None:
            context = context.to(self.device)
            if self.guided:
                context = torch.cat((torch.full_like(context, self.null), context))
        made = self.parts.context(context)
        if len(made) == len(self.context) and all(a.shape == b.shape for a, b in zip(made, self.context, strict=True)):
            for place, value in zip(self.context, made, strict=True):
                place.copy_(value)
        else:
            self.context = tuple(value.clone(memory_format=torch.contiguous_format) for value in made)

    def bytes(self) -> int:
        """Of the rows."""
        return sum(rows.values.numel() * rows.values.element_size() for rows in self.rows.values())

    def __call__(self, x: Tensor, index: Tensor, *x0_before: Tensor) -> Tensor:
        images = [one.to(dtype=self.dtype, memory_format=torch.channels_last) for one in (x, *x0_before)]
        if self.guided:
            images = [torch.cat((one, one)) for one in images]
        for rows in self.rows.values():
            rows.read(index)
        return self.parts.step(*images, *self.time, *self.context)
