"""A training run from the command line: progress, log, samples, checkpoints, and stopping."""

from __future__ import annotations

import time
from typing import Any

import click
import torch
from tqdm.auto import tqdm

from fastdiff.checkpoints.save import save
from fastdiff.data.images import ImageData
from fastdiff.errors import InputError
from fastdiff.provenance import source_version
from fastdiff.sampling import sample
from fastdiff.stop import StopSignal
from fastdiff.training.folder import RunFolder
from fastdiff.training.trainer import Trainer

SAVE_SECONDS = 120.0  # what a crash may cost
LOG_EVERY = 25  # steps averaged into one row of the log
GRID = 64


class Run:
    """Takes a trainer to its end: progress, log, samples, checkpoints."""

    def __init__(self, trainer: Trainer, folder: RunFolder, source: dict[str, Any], command: str) -> None:
        self.trainer, self.folder, self.source, self.command = trainer, folder, source, command
        self.version = source_version()  # of the code that runs, whatever the checkout becomes meanwhile
        self.fingerprint = trainer.data.fingerprint()  # once: it reads all pictures
        self.pending: list[torch.Tensor] = []
        self.began = time.monotonic() - folder.seconds()
        self.saved = time.monotonic()
        self.told_of_plot = False

    def to_the_end(self) -> None:
        trainer = self.trainer
        # disable=None: no bar where stderr is not a terminal; a line for each epoch is printed there and here.
        with (
            StopSignal() as stop,
            tqdm(total=trainer.total_steps, initial=trainer.steps_done, unit="step", disable=None) as bar,
        ):
            while trainer.steps_done < trainer.total_steps and not stop.asked:
                self.pending.append(trainer.step())
                bar.update()
                end_of_epoch = trainer.steps_done % trainer.steps_per_epoch == 0
                if len(self.pending) == LOG_EVERY or end_of_epoch:
                    bar.set_postfix(loss=f"{self._log():.4f}", epoch=trainer.steps_done // trainer.steps_per_epoch)
                if end_of_epoch:
                    self._end_of_epoch()
                    bar.write(self._epoch_line())
                elif not self.pending and time.monotonic() - self.saved > SAVE_SECONDS:
                    self._save()
            if stop.asked:
                if self.pending:
                    self._log()
                self._save()
        if trainer.steps_done < trainer.total_steps:
            done = f"stopped after {trainer.steps_done} of {trainer.total_steps} steps"
            click.echo(f"{done}; continue with: fastdiff train --resume {self.folder.path}", err=True)
            raise SystemExit(130)  # what shells report for an interrupted command
        click.echo(f"wrote {self.folder.model.resolve()}")
        click.echo(f"sample from it: fastdiff sample {self.folder.path}")

    def _log(self) -> float:
        """Read the pending losses back, write a row, and return their mean."""
        loss = float(torch.stack(self.pending).mean())
        self.pending.clear()
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
            seconds=f"{time.monotonic() - self.began:.1f}",
        )
        return loss

    def _end_of_epoch(self) -> None:
        trainer, folder = self.trainer, self.folder
        folder.rows[-1]["val_loss"] = f"{trainer.validate():.6f}"
        model = trainer.model
        context = None
        if model.class_names:  # a row of each class in turn
            context = torch.eye(len(model.class_names))[torch.arange(GRID) // 8 % len(model.class_names)]
        images = sample(
            model, GRID, steps=min(25, trainer.schedule.num_timesteps), context=context, device=trainer.device
        )
        folder.samples(images, trainer.steps_done // trainer.steps_per_epoch)  # type: ignore[arg-type]
        self._save()

    def _epoch_line(self) -> str:
        row, trainer = self.folder.rows[-1], self.trainer
        epoch = trainer.steps_done // trainer.steps_per_epoch
        return (
            f"epoch {epoch}/{trainer.recipe.epochs}: loss {float(row['loss']):.4f}, "
            f"held out {float(row['val_loss']):.4f}, {float(row['seconds']) / 60:.1f} min"
        )

    def _save(self) -> None:
        trainer, folder = self.trainer, self.folder
        self.saved = time.monotonic()
        kept = {"data": self.source, "fingerprint": self.fingerprint, "command": self.command}
        trainer.save(folder.checkpoint, kept)
        data = describe_data(trainer.data)
        info = {
            "trained with": self.command,
            "trained by": f"fastdiff {self.version}",
            "data": data,
            "steps": trainer.steps_done,
        }
        save(trainer.model, folder.model, info=info)
        folder.write_log()
        if not folder.plot(trainer.recipe.loss) and not self.told_of_plot:
            self.told_of_plot = True
            click.echo("no loss curve without matplotlib: pip install 'fastdiff-engine[train]'", err=True)
        folder.card(
            title=folder.path.resolve().name,
            command=self.command,
            version=self.version,
            recipe=trainer.recipe.to_dict(),
            data=data,
            device=trainer.device,
        )


def describe_data(data: ImageData) -> str:
    shape = "x".join(map(str, data.image_shape))
    return f"{data.name}: {len(data.images):,} pictures {shape}, {len(data.val_images):,} held out"
