"""The folder of a training run: log, loss curve, sample grids, checkpoint, model and its card."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from fastdiff import markdown
from fastdiff.errors import InputError, first_line, warn_caller
from fastdiff.files import as_refusal, check_folder, only_writer, save_text, write_atomically
from fastdiff.images import save_picture
from fastdiff.schema import read_text
from fastdiff.training.checkpoint import FILE

WRITTEN = ("model.safetensors", "log.csv", "loss.png", "samples.png", "samples", "epochs", "README.md")
COLUMNS = ("step", "epoch", "lr", "loss", "val_loss", "seconds")


class RunFolder:
    """Writes a run's files, each whole or not at all.

    Args:
        path: the folder, which need not exist.

    Attributes:
        checkpoint, model, board: the paths of these files, and of TensorBoard's folder.
        rows: the log so far, each a dictionary with the keys COLUMNS.
        plots: whether the loss curve can be drawn: matplotlib comes with the extra "train".
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint, self.model = self.path / FILE, self.path / "model.safetensors"
        self.board = self.path / "tensorboard"
        self.rows: list[dict[str, str]] = []
        self.plots = find_spec("matplotlib") is not None
        self._goes_on = False

    def check(self, resume: bool = False) -> None:
        """Raises InputError if a run could not write to the folder, or would overwrite what it holds."""
        self._goes_on = resume
        self._check_names()
        check_folder(self.path)
        if self.path.is_dir():
            with only_writer(self.path):
                pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context no other process trains into the folder, which is made; raises InputError as `check`."""
        with as_refusal(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with only_writer(self.path):
            self._check_names()  # another run may have ended since it was checked
            self._goes_on = True
            yield
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def _check_names(self) -> None:
        if self._goes_on:
            return
        if self.checkpoint.exists():
            raise InputError(
                f"{str(self.path)!r} holds a run already; continue it with --resume, or name another folder"
            )
        taken = [name for name in WRITTEN if (self.path / name).exists()]
        if taken:
            raise InputError(
                f"{str(self.path)!r} holds {', '.join(taken)}, which a run would overwrite; name another folder"
            )

    def epoch(self, number: int) -> Path:
        """The file of the weights that are kept of an epoch."""
        return self.path / "epochs" / f"epoch-{number:04d}.safetensors"

    def read_log(self, steps_done: int) -> None:
        """Read the log of an interrupted run, up to the step of its checkpoint."""
        log = self.path / "log.csv"
        if not log.is_file():
            return
        try:
            rows = list(csv.DictReader(read_text(log).splitlines(keepends=True)))
            for row in rows:
                if set(row) != set(COLUMNS) or None in row.values():
                    raise ValueError(f"its columns are {', '.join(map(str, row))}")
                for name, value in row.items():
                    if value == "" and name in ("step", "seconds") or value and not math.isfinite(float(value)):
                        raise ValueError(f"{name} = {value!r}")
            self.rows = [row for row in rows if int(row["step"]) <= steps_done]
        except (InputError, ValueError, TypeError, csv.Error) as error:  # the run itself is whole without it
            kept = log.with_name("log-damaged.csv")
            os.replace(log, kept)
            why = first_line(error)
            warn_caller(f"{str(log)!r} is damaged ({why}): it is kept as {kept.name}, and a new one begins")

    def add(self, **values: object) -> None:
        """Add a row to the log; columns that are not given stay empty."""
        self.rows.append({name: "" if values.get(name) is None else str(values[name]) for name in COLUMNS})

    def seconds(self) -> float:
        """Training time so far, including the earlier parts of a resumed run."""
        return float(self.rows[-1]["seconds"]) if self.rows else 0.0

    def write_log(self) -> None:
        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path / "log.csv", write)

    def series(self, column: str) -> tuple[list[float], list[float]]:
        """The steps and the values of the rows that have a value in the column."""
        rows = [row for row in self.rows if row[column]]
        return [float(row["step"]) for row in rows], [float(row[column]) for row in rows]

    def plot(self, loss: str) -> None:
        """Draw the loss curve, if matplotlib is installed."""
        if not self.plots:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(*self.series("loss"), linewidth=0.8, alpha=0.7, label="training")
        axes.plot(*self.series("val_loss"), marker="o", markersize=4, label="held out")
        axes.set(xlabel="step", ylabel=f"loss ({loss})", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        write_atomically(self.path / "loss.png", lambda path: figure.savefig(path, dpi=110))
        plt.close(figure)

    def samples(self, picture: Image.Image, epoch: int) -> None:
        """Save the grid of an epoch's images."""
        save_picture(picture, self.path / "samples" / f"epoch-{epoch:04d}.png")
        save_picture(picture, self.path / "samples.png")

    def card(self, command: str, facts: Mapping[str, str], recipe: Mapping[str, object]) -> None:
        """Write README.md: what the model is, how it was made and its losses.

        Args:
            command: the command that trained it.
            facts: rows about the data, the code and the machine.
            recipe: its fields.
        """
        steps, losses = self.series("loss")
        _, held_out = self.series("val_loss")
        recent = losses[-20:]
        facts = {
            **facts,
            "steps": f"{int(steps[-1]) if steps else 0} in {self.seconds() / 60:.0f} minutes",
            "loss at the end, training": f"{sum(recent) / max(1, len(recent)):.4f}",
            "loss at the end, held-out pictures": f"{held_out[-1]:.4f}" if held_out else "not measured",
        }
        chosen = [(name, markdown.code(value)) for name, value in recipe.items() if value is not None]
        text = f"""# {markdown.plain(self.path.resolve().name)}

Trained with

{markdown.block(command)}

{_rows((name, markdown.plain(value)) for name, value in facts.items())}

{self._pictures()}## Recipe

{_rows(chosen)}
"""
        save_text(text, self.path / "README.md")

    def _pictures(self) -> str:
        """Those that there are, for the card."""
        shown = {"samples.png": "Samples (seed 0):\n\n![samples](samples.png)", "loss.png": "![loss](loss.png)"}
        return "".join(f"{text}\n\n" for name, text in shown.items() if (self.path / name).exists())


def _rows(values: Iterable[tuple[str, str]]) -> str:
    return "\n".join(markdown.table(("", ""), values))
