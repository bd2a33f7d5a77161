"""Runs cases: prepares contenders, holds each against the reference, lets those that agree take turns.

Nothing is timed whose result has not just been compared with the reference's; a contender that is missing, fails or
differs becomes a row that says so.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench import (
    coldstarts,
    compiling,
    denoising,
    evaluations,
    exporting,
    limits,
    predictors,
    reporting,
    samplings,
    timing,
    trainings,
)
from fastdiff.bench.cases import COLD, EVALUATION, EXPORT, SAMPLING, STEP, TRAINING, Case
from fastdiff.bench.contender import FASTDIFF, Contender, Ready
from fastdiff.engine import graphs
from fastdiff.engine.numerics import fixed_numerics

Row = dict[str, Any]

CONTENDERS: dict[str, Callable[[Case, bool], Iterable[Contender]]] = {
    STEP: denoising.contenders,
    EVALUATION: evaluations.contenders,
    SAMPLING: samplings.contenders,
    TRAINING: trainings.contenders,
    EXPORT: exporting.contenders,
    COLD: coldstarts.contenders,
}
# Relative error, ||difference|| / ||reference||, that parity allows. One evaluation in float32 adds up a few roundings;
# a loop of trained networks amplifies them; 16-bit networks round every layer, to 2^-8 or 2^-11.
BOUNDS = {STEP: 1e-5, EVALUATION: 1e-5, SAMPLING: 3e-4, TRAINING: 1e-4, EXPORT: 1e-5, COLD: 3e-4}
BOUNDS_TF32 = {EVALUATION: 5e-3, SAMPLING: 5e-2, TRAINING: 5e-3}  # 10 bits of mantissa, in the others' convolutions
BOUNDS_16 = {EVALUATION: 5e-2, SAMPLING: 0.25, TRAINING: 5e-2}


class Prepared:
    """A case whose contenders are ready; rounds() may be called again and again."""

    def __init__(self, case: Case, cold: bool, on_step: Callable[[str], object]) -> None:
        self.case, self.rows, self.calls = case, [], {}
        self.seconds: dict[str, list[float]] = {}
        self.counts: dict[str, int] = {}
        self.ready: dict[str, Ready] = {}
        _settle(case)
        self.expected: Tensor | None = None
        for contender in CONTENDERS[case.kind](case, cold):
            on_step(contender.name)
            row: Row = {**_facts(case), "contender": contender.name, "other_network": contender.other_network}
            if contender.precision:
                row["precision"] = contender.precision
            self.rows.append(row)
            try:
                self._gate(contender, row)
            except Exception as problem:  # a contender that fails is a row that says so
                row["note"] = reporting.failure(problem)
        self.rates = limits.Rates(case)

    def _gate(self, contender: Contender, row: Row) -> None:
        reference = not self.rows[:-1]
        began, held, compiled = time.perf_counter(), graphs.POOL.bytes(), len(compiling.caches)
        cuda = self.case.device == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        made = contender.make()
        if made.outputs is not None:
            # All are compared as they will be timed, on CUDA with TF32 where torch has it on; with what the reference
            # gives without it. (On a CPU these settings mean nothing, and torch's ONNX exporter refuses them.)
            outputs = made.outputs().detach().float().cpu()
            row["first_seconds"] = time.perf_counter() - began
            if reference:
                self.expected = outputs
                if cuda:
                    with fixed_numerics():
                        self.expected = made.outputs().detach().float().cpu()
            self._compare(outputs, row)
        elif not contender.other_network:
            row["told"] = "nothing to compare: it checks its own result"
        if len(compiling.caches) > compiled:
            row["told"] = compiling.caches[-1]
        if "note" in row:
            return
        # Once as it will be timed; long calls need no more to be warm, and none to be planned.
        once = timing.timed(made.run, end=made.end)
        row.setdefault("first_seconds", time.perf_counter() - began)
        if cuda:  # what the contender itself holds at most
            row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        if graphs.POOL.bytes() > held:
            row["graph_bytes"] = graphs.POOL.bytes() - held
        self.ready[contender.name] = made
        self.counts[contender.name] = timing.repeats(once)
        self.seconds[contender.name] = []

    def _compare(self, outputs: Tensor, row: Row) -> None:
        if self.expected is None:
            row["note"] = "not timed: there is no reference to compare with"
            return
        wide = "float32" in (self.case.dtype, row.get("precision"))
        tf32 = wide and self.case.device == "cuda" and row["contender"].split(",")[0] != FASTDIFF
        bound = ((BOUNDS if wide else BOUNDS_16) | (BOUNDS_TF32 if tf32 else {}))[self.case.kind]
        row["bound"] = bound
        if outputs.shape != self.expected.shape:
            row["note"] = f"refused: its result has shape {tuple(outputs.shape)}, not {tuple(self.expected.shape)}"
            return
        parity = float((outputs - self.expected).norm() / self.expected.norm())
        if math.isfinite(parity):  # JSON knows no other numbers
            row["parity"] = parity
        if not parity <= bound:  # NaN is refused too
            row["note"] = f"refused: it differs from the reference by {parity:.1e}, more than {bound:.0e}"

    def round(self, turn: int) -> None:
        """Every contender once, and the device's rates."""
        _settle(self.case)
        self.rates.measure()
        for name in list(self.ready)[:: 1 if turn % 2 == 0 else -1]:
            try:
                ready = self.ready[name]
                self.seconds[name].append(timing.timed(ready.run, self.counts[name], ready.end))
            except Exception as problem:
                row = next(row for row in self.rows if row["contender"] == name)
                row["note"] = reporting.failure(problem)
                del self.ready[name], self.seconds[name]

    def finish(self) -> list[Row]:
        """The rows, with what was measured."""
        reference = self.seconds.get(predictors.PUBLISHED)
        for row in self.rows:
            name = row["contender"]
            if not self.seconds.get(name):
                continue
            taken = self.seconds[name]
            row["seconds"] = [float(f"{s:.6g}") for s in taken]
            row["median_seconds"] = statistics.median(taken)
            if reference:
                row["ratio"] = timing.ratio(reference, taken)
            row.update(self.ready[name].told)
            row.update(limits.derived(self.case, row, self.rates))
        return self.rows


def _facts(case: Case) -> Row:
    facts = asdict(case)
    del facts["rounds"], facts["others"]
    return facts


def _settle(case: Case) -> None:
    if case.device == "cpu" and torch.get_num_threads() != case.threads:
        torch.set_num_threads(case.threads)


def measure(
    cases: Sequence[Case],
    cold: bool,
    together: bool,
    on_step: Callable[[str], object] = lambda text: None,
    on_rows: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """The rows of all cases, in order.

    cold: whether torch.compile may take minutes. together: all cases are prepared first and take turns too, each of
    its ratios being then one over the whole time of the run, in which the machine is now slow, now fast; else each
    case is finished, and its memory free, before the next begins. on_step is told what is going on, on_rows is given
    the rows of a case as they are done.
    """
    threads = torch.get_num_threads()
    limit, graphs.POOL.limit = graphs.POOL.limit, 1 << 40  # contenders that take turns must not push each other out
    rows: list[Row] = []
    try:
        groups = [list(cases)] if together else _by_network(cases)
        for place, group in enumerate(groups):
            prepared = []
            for case in group:
                with torch.set_grad_enabled(case.kind == TRAINING):  # as in the rounds: compiled code depends on it
                    prepared.append(Prepared(case, cold, lambda name, c=case: on_step(f"preparing {c.label}: {name}")))
            _rounds(prepared, on_step)
            for one in prepared:
                done = one.finish()
                rows += done
                on_rows(done)
            del prepared, one
            following = next(iter(groups[place + 1]), None) if place + 1 < len(groups) else None
            if case.device == "cuda" and (following is None or _shares(following) != _shares(case)):
                predictors.forget()  # compiled code and its graphs hold memory
    finally:
        torch.set_num_threads(threads)
        graphs.POOL.limit = limit
    return rows


def _shares(case: Case) -> tuple[str, int, str]:
    """Cases of the same have compiled networks in common."""
    return case.network, case.batch, case.dtype


def _by_network(cases: Sequence[Case]) -> list[list[Case]]:
    """Each case by itself; on CUDA those that share compiled networks one after the other."""
    if cases[0].device == "cuda":
        first = {_shares(case): place for place, case in reversed(list(enumerate(cases)))}
        cases = sorted(cases, key=lambda case: first[_shares(case)])
    return [[case] for case in cases]


def _rounds(prepared: list[Prepared], on_step: Callable[[str], object]) -> None:
    """Every case's rounds, spread evenly over the time that all of them take."""
    due = sorted(
        (turn / one.case.rounds, place, turn) for place, one in enumerate(prepared) for turn in range(one.case.rounds)
    )
    for _, place, turn in due:
        one = prepared[place]
        on_step(f"{one.case.label}: round {turn + 1} of {one.case.rounds}")
        with torch.set_grad_enabled(one.case.kind == TRAINING):
            one.round(turn)
