"""A run: what each step and epoch tells, and what is left in the folder when it is stopped."""

import copy
import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastdiff import AnnotatedUnet, InputError, Model, Recipe, Trainer, load, make_schedule
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


def test_the_first_steps_tell_how_long_it_takes(trainer, tmp_path, monkeypatch):
    """Of two seconds a step, the first of which takes a minute; 20 more seconds after it are enough."""
    now, step = [100.0], trainer.step

    def slow_step():
        now[0] += 2 if trainer.steps_done else 60
        return step()

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop, "TIMED_SECONDS", 4.0)
    monkeypatch.setattr(trainer, "step", slow_step)
    told = [step.foretold for step in begin(trainer, tmp_path / "r").steps()]
    assert told == [None, None, pytest.approx(6), None, None, None]


def test_stops_are_agreed_on_at_the_same_steps(trainer, tmp_path):
    """Of several processes on CUDA devices, whatever each has logged or saved by its own clock."""
    asked, run = [], begin(trainer, tmp_path / "r")
    trainer.group = SimpleNamespace(
        world=2, device=torch.device("cuda"), together=nullcontext, any=lambda own: asked.append(trainer.steps_done)
    )
    for trainer.steps_done in range(60):
        run._pending = [torch.zeros(())] * (trainer.steps_done % 7)
        run._stopped(lambda: False)
    assert asked == [0, 25, 50]


@pytest.mark.parametrize("what", ["validate", "weights"])
def test_a_run_that_diverges_keeps_the_checkpoint_before(what, trainer, tmp_path, monkeypatch):
    run = begin(trainer, tmp_path / "r")
    steps = run.steps()
    for _ in range(3):
        next(steps)
    if what == "validate":
        monkeypatch.setattr(trainer, "validate", lambda: float("nan"))
    else:
        step = trainer.step

        def diverging():
            loss = step()
            next(trainer.network.parameters()).data.fill_(float("nan"))
            return loss

        monkeypatch.setattr(trainer, "step", diverging)
        monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    with pytest.raises(InputError, match="the checkpoint before is kept: begin a new run with a smaller --lr"):
        list(steps)
    assert read_checkpoint(tmp_path / "r").steps_done == 3


def test_weights_and_samples_of_the_epochs_that_are_asked_for(trainer, tmp_path):
    data, recipe = trainer.data, dataclasses.replace(RECIPE, epochs=4)
    wishes = loop.Wishes(sample_every=3, keep_every=2)
    run = loop.Run(Trainer(recipe, data, device="cpu"), RunFolder(tmp_path / "r"), {}, "c", wishes)
    kept = {}
    for step in run.steps():
        if step.epoch is not None:
            kept[step.epoch.number] = copy.deepcopy(run.trainer.model.network.state_dict())
    assert sorted(path.name for path in (tmp_path / "r" / "samples").iterdir()) == ["epoch-0003.png"]
    names = [f"epoch-{number:04d}.safetensors" for number in (2, 4)]
    assert sorted(path.name for path in (tmp_path / "r" / "epochs").iterdir()) == names
    for number in (2, 4):
        weights = load(run.folder.epoch(number)).network.state_dict()
        assert all(torch.equal(weights[k], kept[number][k]) for k in weights)
    again = read_checkpoint(tmp_path / "r").extra
    assert again["wishes"] == {"sample_every": 3, "keep_every": 2, "log": []} and again["accumulate"] == 1


def test_no_samples_at_all(trainer, tmp_path):
    run = loop.Run(trainer, RunFolder(tmp_path / "r"), {}, "c", loop.Wishes(sample_every=0))
    list(run.steps())
    assert not list((tmp_path / "r").rglob("samples*")) and "![samples]" not in (tmp_path / "r/README.md").read_text()


def test_tensorboard_gets_losses_and_samples(trainer, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = loop.Run(trainer, RunFolder(tmp_path / "r"), {}, "c", loop.Wishes(log=("tensorboard",)))
    list(run.steps())
    events = accumulator.EventAccumulator(str(run.folder.board)).Reload()
    for tag, column in (("loss", "loss"), ("val_loss", "val_loss"), ("lr", "lr")):
        told = [(event.step, event.value) for event in events.Scalars(tag)]
        steps, values = run.folder.series(column)
        assert told == [pytest.approx(pair, rel=1e-2) for pair in zip(steps, values, strict=True)]
    assert [event.step for event in events.Images("samples")] == [3, 6]


def test_what_is_wished_is_checked():
    with pytest.raises(InputError, match="keep_every = -1; accepted: a whole number from 0"):
        loop.Wishes(keep_every=-1)
    with pytest.raises(InputError, match="unknown log 'tensorbord'.*did you mean 'tensorboard'"):
        loop.Wishes(log=("tensorbord",))
    assert loop.Wishes(log=("none",)).log == ()


def test_a_network_that_cannot_be_saved_is_refused_before_it_is_trained(trainer, tmp_path):
    class Mine(AnnotatedUnet):
        pass

    own = Model(Mine(dim=8, dim_mults=(1, 2)), make_schedule("linear", 20), image_shape=(1, 8, 8))
    with pytest.raises(InputError, match="class Mine cannot be saved"):
        begin(Trainer(RECIPE, trainer.data, device="cpu", init=own), tmp_path / "r")


def test_slow_steps_are_saved_in_time_too(trainer, tmp_path, monkeypatch):
    """Not only where losses are read: what is lost is SAVE_SECONDS and a step."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    run = begin(trainer, tmp_path / "r")
    assert next(run.steps()).loss is not None and read_checkpoint(tmp_path / "r").steps_done == 1


def test_a_stop_saves_what_was_done(trainer, tmp_path):
    run = begin(trainer, tmp_path / "r")
    taken = list(run.steps(stop=lambda: trainer.steps_done == 2))
    assert len(taken) == 2 and read_checkpoint(tmp_path / "r").steps_done == 2
    assert [row["step"] for row in run.folder.rows] == ["2"]
    left, kept = trainer.model.network.state_dict(), load(tmp_path / "r").network.state_dict()
    assert all(torch.equal(left[k], kept[k]) for k in left)


def test_one_run_at_a_time(trainer, tmp_path):
    steps = begin(trainer, tmp_path / "r").steps()
    next(steps)
    again = RunFolder(tmp_path / "r")
    for resume in (False, True):
        with pytest.raises(InputError, match="another run writes to '.*r'"):
            again.check(resume)
    with pytest.raises(InputError, match="another run writes to '.*r'"):
        next(begin(trainer, tmp_path / "r").steps())
    list(steps)
    with pytest.raises(InputError, match="holds a run already"):  # it was checked before the other one began
        next(begin(trainer, tmp_path / "r").steps())
