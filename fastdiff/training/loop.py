"""A run: trains to the end, and keeps the run's folder up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastdiff.checkpoints.config import model_config
from fastdiff.checkpoints.save import save
from fastdiff.errors import InputError, check_int, unknown_name
from fastdiff.images import grid
from fastdiff.model import Model
from fastdiff.provenance import machine, source_version, versions
from fastdiff.sampling import sample
from fastdiff.training.folder import RunFolder
from fastdiff.training.tensorboard import LOGS, NOWHERE, Board, check_installed
from fastdiff.training.trainer import Trainer

SAVE_SECONDS = 120.0  # of training that a crash may lose
LOG_EVERY = 25  # steps averaged into one row of the log
TIMED_STEPS, TIMED_SECONDS = 20, 10.0  # after so many steps, or of a slow run so many seconds, its time is foretold
GRID = 64


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch.

    Attributes:
        number: 1 for the first.
        loss: mean over its steps, in a resumed run over those since.
        val_loss: of held-out pictures, see Trainer.validate.
        images_per_second: of training; the time for validation and samples is not counted.
        seconds_left: until the last epoch ends, at the speed so far.
    """

    number: int
    loss: float
    val_loss: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Step:
    """A step that was taken.

    Attributes:
        loss: mean over the steps since losses were last read from the device, at most LOG_EVERY; None in between.
        epoch: the epoch's results if this step ends one, else None.
        foretold: once, when the first steps have been timed, unless an epoch has ended by then: the seconds that the
            remaining ones will take, without validation and samples; else None.
    """

    loss: float | None
    epoch: Epoch | None
    foretold: float | None = None


@dataclass(frozen=True)
class Wishes:
    """What a run keeps and shows besides model and checkpoint.

    Attributes:
        sample_every: epochs between grids of samples; 0 never draws any.
        keep_every: epochs between weights that are kept, in epochs/; 0 keeps none.
        log: further places that losses and samples are written to: "tensorboard"; "none" is none.

    Raises:
        InputError: for numbers below 0, another place, or one that is not installed.
    """

    sample_every: int = 1
    keep_every: int = 0
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("sample_every", "keep_every"):
            check_int(name, getattr(self, name), 0, 2**31)
        for place in self.log:
            if place not in LOGS:
                raise unknown_name("log", place, LOGS)
        places = tuple(place for place in self.log if place != NOWHERE)
        if places:
            check_installed()
        object.__setattr__(self, "log", places)

    def samples(self, epoch: int) -> bool:
        return bool(self.sample_every) and epoch % self.sample_every == 0

    def keeps(self, epoch: int) -> bool:
        return bool(self.keep_every) and epoch % self.keep_every == 0


class _Clock:
    """Times of a run, in seconds of time.monotonic.

    Attributes:
        origin: when it would have begun, had it never been interrupted.
        began, first: when this process began, and the steps that were done before.
        epoch_began, epoch_first: the same of the epoch.
        saved: when the last checkpoint was written.
        foretold: whether it has been said how long the run will take.
    """

    def __init__(self, seconds: float, steps_done: int) -> None:
        self.began = self.saved = self.epoch_began = time.monotonic()
        self.origin = self.began - seconds
        self.first = self.epoch_first = steps_done
        self.foretold = False
        self._warm: tuple[float, int] | None = None

    def foretell(self, trainer: Trainer) -> float | None:
        """Seconds that the remaining steps will take, once; the first step, which warms up, is not counted."""
        now, done = time.monotonic(), trainer.steps_done
        if self._warm is None:
            self._warm = (now, done)
            return None
        since, steps = now - self._warm[0], done - self._warm[1]
        if self.foretold or (steps < TIMED_STEPS and since < TIMED_SECONDS):
            return None
        self.foretold = True
        return since / steps * (trainer.total_steps - done)


class Run:
    """Trains to the end, with log, samples and checkpoints in the folder, which the group's first process writes.

    Args:
        trainer: a new or a resumed one.
        folder: the run's; for a resumed run, with its log read.
        source: load_data's arguments, kept for a resumed run.
        command: the command that trains, for the model's card.
        wishes: what is kept and shown.

    Raises:
        InputError: for a network that cannot be saved.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        source: Mapping[str, Any],
        command: str,
        wishes: Wishes = Wishes(),  # noqa: B008, it is frozen
    ) -> None:
        self.trainer, self.folder, self.source, self.command = trainer, folder, source, command
        model_config(trainer.model)  # raises InputError for a network that cannot be saved, before it is trained
        asked = {**trainer.recipe.to_dict(), "data": dict(source), "accumulate": trainer.accumulate, **asdict(wishes)}
        start = {"steps done": trainer.steps_done, "the data's fingerprint": trainer.fingerprint, "folder": folder.path}
        trainer.group.agree({**asked, **start})
        self.wishes, self.writes = wishes, trainer.group.is_first
        self._board = None
        if self.writes and "tensorboard" in wishes.log:
            self._board = Board(folder.board, trainer.steps_done)
        self.version = source_version()  # read now, since the checkout may change during the run
        self._pending: list[torch.Tensor] = []  # losses not yet read
        self._epoch_losses: list[float] = []
        self._clock = _Clock(folder.seconds(), trainer.steps_done)

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Train, a step at a time.

        Args:
            stop: asked before every step; once it is true, the run is saved and the iteration ends. Several processes
                on CUDA devices agree on it every LOG_EVERY steps.

        Raises:
            InputError: if the loss becomes NaN or infinite, another process of the group is gone, or another run
                writes to the folder.
        """
        try:
            with self.folder.held() if self.writes else nullcontext():
                yield from self._steps(stop)
        finally:
            if self._board is not None:
                self._board.close()

    def _steps(self, stop: Callable[[], bool]) -> Iterator[Step]:
        trainer, clock = self.trainer, self._clock
        while trainer.steps_done < trainer.total_steps:
            if self._stopped(stop):
                if self._pending:
                    self._log()
                self._save()
                return
            self._pending.append(trainer.step())
            end_of_epoch = trainer.steps_done % trainer.steps_per_epoch == 0
            foretold = clock.foretell(trainer)
            overdue = time.monotonic() - clock.saved > SAVE_SECONDS
            loss = self._log() if end_of_epoch or overdue or len(self._pending) == LOG_EVERY else None
            epoch = self._end_of_epoch() if end_of_epoch else None
            if overdue and not end_of_epoch:
                self._save()
            yield Step(loss, epoch, foretold)

    def _stopped(self, stop: Callable[[], bool]) -> bool:
        group = self.trainer.group
        if group.world > 1 and group.device.type == "cuda" and self.trainer.steps_done % LOG_EVERY:
            return False  # to ask the others would wait for the device in every step
        with group.together():
            return group.any(stop())

    def _log(self) -> float:
        """Read the pending losses, add a row to the log, and return their mean."""
        losses = torch.stack(self._pending).tolist()
        loss = sum(losses) / len(losses)
        self._pending.clear()
        self._epoch_losses += losses
        trainer = self.trainer
        step = trainer.steps_done
        self._check_finite(f"the loss became {loss} before step {step}", loss)
        self.folder.add(
            step=step,
            epoch=f"{step / trainer.steps_per_epoch:.3f}",
            lr=f"{trainer.learning_rate(step - 1):.3g}",
            loss=f"{loss:.6f}",
            seconds=f"{time.monotonic() - self._clock.origin:.1f}",
        )
        if self._board is not None:
            self._board.add(step, loss=loss, lr=trainer.learning_rate(step - 1))
        return loss

    def _check_finite(self, what: str, *values: float | torch.Tensor) -> None:
        """Raises InputError unless all values are finite."""
        if all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in values):
            return
        folder = self.folder
        kept = "nothing was written: begin anew with a smaller --lr"
        if folder.checkpoint.exists():
            kept = (
                "the checkpoint before is kept: begin a new run with a smaller --lr, from its weights by --init "
                f"{folder.path}"
            )
        raise InputError(f"{what}; {kept}")

    def _end_of_epoch(self) -> Epoch:
        trainer, clock = self.trainer, self._clock
        number = trainer.steps_done // trainer.steps_per_epoch
        trained = time.monotonic() - clock.epoch_began
        images = len(trainer.data) - clock.epoch_first % trainer.steps_per_epoch * trainer.recipe.batch_size
        val_loss = trainer.validate()
        self._check_finite(f"the held-out loss became {val_loss} after epoch {number}", val_loss)
        self.folder.rows[-1]["val_loss"] = f"{val_loss:.6f}"
        if self._board is not None:
            self._board.add(trainer.steps_done, val_loss=val_loss)
        if self.writes and self.wishes.samples(number):
            self._sample(number)
        if self.writes and self.wishes.keeps(number):
            save(trainer.model, self.folder.epoch(number), info=self._info())
        self._save()  # last: a run that is killed before it goes through this again
        loss = sum(self._epoch_losses) / len(self._epoch_losses)
        self._epoch_losses.clear()
        now = time.monotonic()
        each = (now - clock.began) / (trainer.steps_done - clock.first)
        clock.epoch_began, clock.epoch_first, clock.foretold = now, trainer.steps_done, True
        return Epoch(number, loss, val_loss, images / trained, each * (trainer.total_steps - trainer.steps_done))

    def _sample(self, epoch: int) -> None:
        model = self.trainer.model
        steps, context = min(25, model.schedule.num_timesteps), _every_class(model)
        picture = grid(sample(model, GRID, steps=steps, context=context, device=self.trainer.device), columns=8)
        self.folder.samples(picture, epoch)
        if self._board is not None:
            self._board.picture(self.trainer.steps_done, picture)

    def _info(self) -> dict[str, Any]:
        trainer = self.trainer
        about = {"trained by": f"fastdiff {self.version}", "data": trainer.data.summary(), "steps": trainer.steps_done}
        return {"trained with": self.command, **about}

    def _save(self) -> None:
        trainer, folder = self.trainer, self.folder
        self._clock.saved = time.monotonic()
        weights = trainer.network.parameters()
        self._check_finite(f"weights became NaN or infinite in step {trainer.steps_done}", *weights)
        if not self.writes:
            return
        again = {"data": dict(self.source), "command": self.command, "wishes": asdict(self.wishes)}
        trainer.save(folder.checkpoint, {**again, "accumulate": trainer.accumulate})
        save(trainer.model, folder.model, info=self._info())
        folder.write_log()
        folder.plot(trainer.recipe.loss)
        facts = {
            "data": trainer.data.summary(),
            "model": " ".join(repr(trainer.model).split()),
            "fastdiff": self.version,
            "on": f"{machine(trainer.device)}; {versions()}",
        }
        folder.card(self.command, facts, trainer.recipe.to_dict())


def _every_class(model: Model) -> Any:
    """A context for each image of the grid: one row for each class, in turn; None without classes."""
    rows = torch.arange(GRID, device="cpu") // 8
    if model.num_classes is not None:
        return rows % (model.num_classes - (model.null_class is not None))
    if model.class_names:
        return torch.eye(len(model.class_names), device="cpu", dtype=torch.float32)[rows % len(model.class_names)]
    return None
