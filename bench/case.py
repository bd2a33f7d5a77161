"""What is measured: a case, the kind that it is of, and what its rows are known by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

import fastdiff
from fastdiff.bench import networks

Key = tuple[str, ...]


class Kind(StrEnum):
    """Kinds of case, in the order of a report."""

    STEP = "denoise step"
    EVALUATION = "evaluation"
    SAMPLING = "sampling"
    TRAINING = "training step"
    EXPORT = "export"
    COLD = "cold start"
    OPERATOR = "operator"
    PROFILE = "profile"
    LOOP = "exported loop"
    EAGER = "against eager"
    THREADS = "threads"


IDENTITY = ("kind", "network", "what", "batch", "dtype", "device", "threads")


@dataclass(frozen=True)
class Case:
    """The circumstances of some rows, one for each contender.

    Attributes:
        network: Its name in bench.networks; of an operator, the network that has it at this shape.
        what: Of denoise steps the sampler; of operators which one; of whole loops and cold starts "sampler steps", of
            threads on a busy machine "sampler steps busy".
        others: Whether whole loops of other libraries' networks are among sampling's contenders.
    """

    kind: Kind
    network: str
    what: str = ""
    batch: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    rounds: int = 15
    others: bool = True

    @property
    def sampler(self) -> str:
        """Where `what` has one."""
        return self.what.split()[0]

    @property
    def steps(self) -> int:
        """Where `what` has them."""
        return steps_of(vars(self))

    @property
    def model(self) -> fastdiff.Model:
        return networks.load(self.network)

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    @property
    def precision(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def table(self) -> fastdiff.StepTable:
        """Where `what` has a sampler and steps."""
        return self.model.table(self.sampler, self.steps)

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it, as columns of its rows."""
        return {name: getattr(self, name) for name in IDENTITY}

    @property
    def key(self) -> Key:
        """What makes it the same case in another report."""
        return case_key(vars(self))

    @property
    def label(self) -> str:
        return " ".join([self.kind, *_words(vars(self))])


def case_key(row: dict[str, Any]) -> Key:
    """Case.key of a row's case."""
    return tuple(str(row[name]) for name in IDENTITY)


def steps_of(row: dict[str, Any]) -> int:
    """Case.steps of a row's case."""
    return int(row["what"].split()[1])


def case_text(row: dict[str, Any]) -> str:
    """A row's case in words, its kind left out."""
    return ", ".join(_words(row))


def _words(facts: dict[str, Any]) -> list[str]:
    words = [facts["network"], facts["what"], f"batch {facts['batch']}"]
    words += [] if facts["dtype"] == "float32" else [facts["dtype"]]
    if facts["device"] == "cpu" and facts["threads"] > 1:
        words.append(f"{facts['threads']} threads")
    return [word for word in words if word]
