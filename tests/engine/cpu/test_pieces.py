"""When a batch is computed in pieces: where a sample's prediction depends on the sample alone."""

import pytest
import torch
from torch import nn

from fastdiff import Engine, Model, load, make_schedule

BATCH = 32


class Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.between = between

    def forward(self, x, t):
        return self.last(self.between(self.first(x)))


def attended(h):
    """Heads are folded into the batch."""
    tokens = h.reshape(len(h) * 4, 8, -1)
    return ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).reshape(h.shape)


APART = {"activation": torch.relu, "heads": attended, "norm": lambda h: h - h.mean((1, 2, 3), keepdim=True)}
TOGETHER = {
    "a little of the batch's mean": lambda h: h + 1e-4 * h.mean(0, keepdim=True),
    "the place in the batch": lambda h: h * torch.linspace(0.5, 1, len(h)).view(-1, 1, 1, 1),
    "the batch's size": lambda h: h / len(h),
    "the other way round": lambda h: h + h.flip(0),
}


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_a_batch_is_in_pieces_only_where_samples_are_apart(name, rel, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    model = Model(Net({**APART, **TOGETHER}[name]), make_schedule("linear", 20), image_shape=(3, 8, 8))
    table = model.table("ddim", 4)
    engine = Engine(model, table, batch_size=BATCH, device="cpu", form="cpu")
    eager = Engine(model, table, batch_size=BATCH, device="cpu", form="eager")
    assert rel(engine.sample(BATCH), eager.sample(BATCH)) < 1e-5
    ((prediction, _),) = engine.steps.values()
    counts = [[piece.samples for piece in pieces] for pieces in prediction.parts.step.pieces]
    assert counts == ([[16], [16]] if name in APART else [[32]])


@pytest.mark.parametrize("row", [-1, 500, 10**9])
def test_a_row_outside_of_the_table_is_refused(row):
    engine = Engine(load("sprites"), batch_size=2, device="cpu", form="cpu")
    engine.index.fill_(row)
    with pytest.raises(IndexError, match=f"row {row} of a table; accepted: 0 to 499"):
        engine.step_once()
