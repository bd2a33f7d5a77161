"""A run: trains to the end, and keeps the run's folder up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff.checkpoints.save import save
from fastdiff.errors import InputError
from fastdiff.provenance import machine, source_version, versions
from fastdiff.sampling import sample
from fastdiff.training.folder import RunFolder
from fastdiff.training.trainer import Trainer

SAVE_SECONDS = 120.0  # of training that a crash may lose
LOG_EVERY = 25  # steps averaged into one row of the log
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
    """

    loss: float | None
    epoch: Epoch | None


class Run:
    """Trains to the end, with log, samples and checkpoints in the folder.

    Args:
        trainer: a new or a resumed one.
        folder: the run's; for a resumed run, with its log read.
        source: load_data's arguments, kept for a resumed run.
        command: the command that trains, for the model's card.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, source: Mapping[str, Any], command: str) -> None:
        self.trainer, self.folder, self.source, self.command = trainer, folder, source, command
        self.version = source_version()  # read now, since the checkout may change during the run
        self._pending: list[torch.Tensor] = []  # losses not yet read
        self._epoch_losses: list[float] = []
        self._origin = time.monotonic() - folder.seconds()
        self._began = self._epoch_began = self._saved = time.monotonic()
        self._first = self._epoch_first = trainer.steps_done

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Train, a step at a time.

        Args:
            stop: asked before every step; once it is true, the run is saved and the iteration ends.

        Raises:
            InputError: if the loss becomes NaN or infinite.
        """
        trainer = self.trainer
        while trainer.steps_done < trainer.total_steps:
            if stop():
                if self._pending:
                    self._log()
                self._save()
                return
            self._pending.append(trainer.step())
            end_of_epoch = trainer.steps_done % trainer.steps_per_epoch == 0
            loss = self._log() if end_of_epoch or len(self._pending) == LOG_EVERY else None
            epoch = self._end_of_epoch() if end_of_epoch else None
            if loss is not None and time.monotonic() - self._saved > SAVE_SECONDS:
                self._save()
            yield Step(loss, epoch)

    def _log(self) -> float:
        """Read the pending losses, add a row to the log, and return their mean."""
        losses = torch.stack(self._pending).tolist()
        loss = sum(losses) / len(losses)
        self._pending.clear()
        self._epoch_losses += losses
        trainer = self.trainer
        step = trainer.steps_done
        if not abs(loss) < float("inf"):
            kept = "the last checkpoint is kept" if self.folder.checkpoint.exists() else "nothing was written"
            raise InputError(f"the loss became {loss} before step {step}; {kept}: try a smaller --lr")
        self.folder.add(
            step=step,
            epoch=f"{step / trainer.steps_per_epoch:.3f}",
            lr=f"{trainer.learning_rate(step - 1):.3g}",
            loss=f"{loss:.6f}",
            seconds=f"{time.monotonic() - self._origin:.1f}",
        )
        return loss

    def _end_of_epoch(self) -> Epoch:
        trainer, folder = self.trainer, self.folder
        number = trainer.steps_done // trainer.steps_per_epoch
        trained = time.monotonic() - self._epoch_began
        images = len(trainer.data) - self._epoch_first % trainer.steps_per_epoch * trainer.recipe.batch_size
        val_loss = trainer.validate()
        folder.rows[-1]["val_loss"] = f"{val_loss:.6f}"
        folder.samples(self._sample(), number)
        self._save()
        loss = sum(self._epoch_losses) / len(self._epoch_losses)
        self._epoch_losses.clear()
        now = time.monotonic()
        each = (now - self._began) / (trainer.steps_done - self._first)
        self._epoch_began, self._epoch_first = now, trainer.steps_done
        return Epoch(number, loss, val_loss, images / trained, each * (trainer.total_steps - trainer.steps_done))

    def _sample(self) -> torch.Tensor:
        model, context = self.trainer.model, None
        if model.class_names:  # one row of the grid for each class, in turn
            context = torch.eye(len(model.class_names))[torch.arange(GRID) // 8 % len(model.class_names)]
        steps = min(25, model.schedule.num_timesteps)
        return sample(model, GRID, steps=steps, context=context, device=self.trainer.device)  # type: ignore[return-value]

    def _save(self) -> None:
        trainer, folder = self.trainer, self.folder
        self._saved = time.monotonic()
        trainer.save(folder.checkpoint, {"data": dict(self.source), "command": self.command})
        about = {"trained by": f"fastdiff {self.version}", "data": trainer.data.summary(), "steps": trainer.steps_done}
        save(trainer.model, folder.model, info={"trained with": self.command, **about})
        folder.write_log()
        folder.plot(trainer.recipe.loss)
        facts = {
            "data": trainer.data.summary(),
            "fastdiff": self.version,
            "on": f"{machine(trainer.device)}; {versions()}",
        }
        folder.card(self.command, facts, trainer.recipe.to_dict())
