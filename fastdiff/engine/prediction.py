"""The prediction at a table's row: what does not depend on x is computed before the loop."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.engine.evaluation import ROWS, Parts
from fastdiff.engine.step import State
from fastdiff.kernels.begin_step import begin_step
from fastdiff.kernels.last_conv import LastConv
from fastdiff.samplers.table import StepTable

ALIGNED = 16  # bytes, where each tensor of a row begins


class _Rows:
    """Tensors with a row for each of a table's, side by side in one buffer, so that a step reads one row.

    Attributes:
        values: (capacity, bytes) uint8.
        row: (1, bytes) uint8, the row that is read, in the same place in every step.
        views, tables: each tensor in the row, and in the values.
    """

    def __init__(self, parts: tuple[Tensor, ...], capacity: int) -> None:
        places, end = [], 0
        for part in parts:
            size = part[0].numel() * part.element_size()
            places.append(slice(end, end + size))
            end += -(-size // ALIGNED) * ALIGNED
        self.values, self.row = (parts[0].new_zeros(rows, end, dtype=torch.uint8) for rows in (capacity, 1))
        self.views, self.tables = (
            [
                whole[:, place].view(part.dtype).view(len(whole), *part.shape[1:])
                for place, part in zip(places, parts, strict=True)
            ]
            for whole in (self.row, self.values)
        )

    def load(self, parts: tuple[Tensor, ...], at: int) -> None:
        for table, part in zip(self.tables, parts, strict=True):
            table[at : at + len(part)] = part


class Prediction:
    """The state → the network's output for a batch, in the network's dtype; see step.advance.

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
        self.rows: _Rows | None = None
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
            if not parts:
                return
            if made and at == 0:
                self.capacity = -(-capacity // ROWS) * ROWS
                self.rows = _Rows(parts, self.capacity)
                self.time, self.tables = self.rows.views, self.rows.tables
            if self.rows is not None:
                self.rows.load(parts, at)

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
        return 0 if self.rows is None else self.rows.values.numel()

    def __call__(self, state: State) -> Tensor | LastConv:
        table = () if self.rows is None else (self.rows.values, self.rows.row)
        before = state.history if state.self_condition else None
        images = begin_step(state.x, state.index, state.current, self.dtype, before, self.guided, *table)
        return self.parts.step(*images, *self.time, *self.context)
