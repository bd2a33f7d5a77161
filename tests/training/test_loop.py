"""A run: what each step and epoch tells, and what is left in the folder when it is stopped."""

import pytest
import torch

from fastdiff import Recipe, Trainer, load
from fastdiff.data.images import ImageData
from fastdiff.training import loop
from fastdiff.training.checkpoint import read_checkpoint
from fastdiff.training.folder import RunFolder

RECIPE = Recipe(network={"name": "annotated", "dim": 8, "dim_mults": [1, 2]}, batch_size=16, epochs=2)


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(loop, "GRID", 2)


@pytest.fixture
def trainer():
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = ImageData("random", images, torch.zeros(40, 0), (), images[:4], torch.zeros(4, 0))
    return Trainer(RECIPE, data, device="cpu")


def begin(trainer, folder) -> loop.Run:
    return loop.Run(trainer, RunFolder(folder), {"source": "x"}, "fastdiff train")


def test_an_epoch_tells_the_mean_of_its_steps(trainer, tmp_path):
    losses = [float(loss) for loss in Trainer(RECIPE, trainer.data, device="cpu")]
    steps = list(begin(trainer, tmp_path / "r").steps())
    assert len(steps) == len(losses) == 6
    assert [step.loss is None for step in steps] == [True, True, False] * 2  # read back at the end of an epoch
    epochs = [step.epoch for step in steps if step.epoch is not None]
    assert [step.epoch is None for step in steps] == [True, True, False] * 2
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert [epoch.loss for epoch in epochs] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert epochs[1].val_loss == trainer.validate()
    assert epochs[0].seconds_left > 0 == epochs[1].seconds_left


def test_time_left_and_images_a_second_are_of_the_clock(trainer, tmp_path, monkeypatch):
    """A second for each step, and four for validation, samples and files after an epoch."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    step, validate = trainer.step, trainer.validate

    def slow_step():
        now[0] += 1
        return step()

    def slow_validation():
        now[0] += 4
        return validate()

    monkeypatch.setattr(trainer, "step", slow_step)
    monkeypatch.setattr(trainer, "validate", slow_validation)
    epochs = [told.epoch for told in begin(trainer, tmp_path / "r").steps() if told.epoch is not None]
    assert [epoch.images_per_second for epoch in epochs] == pytest.approx([40 / 3, 40 / 3])
    assert [epoch.seconds_left for epoch in epochs] == pytest.approx([7, 0])


def test_a_stop_saves_what_was_done(trainer, tmp_path):
    run = begin(trainer, tmp_path / "r")
    taken = list(run.steps(stop=lambda: trainer.steps_done == 2))
    assert len(taken) == 2 and read_checkpoint(tmp_path / "r").steps_done == 2
    assert [row["step"] for row in run.folder.rows] == ["2"]
    left, kept = trainer.model.network.state_dict(), load(tmp_path / "r").network.state_dict()
    assert all(torch.equal(left[k], kept[k]) for k in left)
