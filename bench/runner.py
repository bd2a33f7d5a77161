"""Runs cases: prepares contenders, holds each against the reference, lets those that agree take turns.

Nothing is timed whose result has not just been compared with the reference's; a contender that is missing, fails or
differs becomes a row that says so.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench import compiling, limits, parity
from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Contender, Role, Status
from fastdiff.bench.contenders.by_kind import CONTENDERS
from fastdiff.bench.peers import predictors
from fastdiff.bench.timing import Turns, ratio
from fastdiff.engine import graphs
from fastdiff.engine.numerics import fixed_numerics
from fastdiff.errors import first_line

Row = dict[str, Any]


class Watcher:
    """Is told what goes on."""

    def preparing(self, case: Case, contender: str) -> None: ...

    def round(self, case: Case, number: int) -> None: ...

    def rows(self, rows: list[Row]) -> None:
        """The rows of a case, as they are done."""


NOBODY = Watcher()


class Prepared:
    """A case whose contenders are ready; round() may be called again and again."""

    def __init__(
        self,
        case: Case,
        cold: bool,
        watcher: Watcher = NOBODY,
        among: Callable[[Contender], bool] = lambda contender: True,
    ) -> None:
        """Args: among: which contenders take part."""
        self.case, self.turns = case, Turns()
        self.rows: dict[str, Row] = {}
        self.against: dict[str, str] = {}
        self.expected: Tensor | None = None
        with _settings(case):
            for contender in filter(among, CONTENDERS[case.kind](case, cold)):
                watcher.preparing(case, contender.name)
                row = self.rows[contender.name] = {**case.facts, "contender": contender.name, "role": contender.role}
                if contender.against:
                    self.against[contender.name] = contender.against
                if contender.precision:
                    row["precision"] = contender.precision
                try:
                    self._gate(contender, row)
                except Exception as problem:  # a contender that fails is a row that says so
                    _explain(row, problem, contender.needs)
            self.rates = limits.Rates(case)

    def _gate(self, contender: Contender, row: Row) -> None:
        began, held, compiled = time.perf_counter(), graphs.POOL.bytes(), len(compiling.caches)
        cuda = self.case.device == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        made = contender.make()
        if contender.role == Role.REFERENCE and made.exact is not None:
            before_exact = time.perf_counter()
            self.expected = made.exact().detach().cpu().double()
            began += time.perf_counter() - before_exact  # which is no part of the first call
        if made.outputs is not None:
            # All are compared as they will be timed, on CUDA with TF32 where torch has it on; with what the reference
            # gives without it. (On a CPU these settings mean nothing, and torch's ONNX exporter refuses them.)
            outputs = made.outputs().detach().cpu().double()
            row["first_seconds"] = time.perf_counter() - began
            if contender.role == Role.REFERENCE and made.exact is None:
                self.expected = outputs
                if cuda:
                    with fixed_numerics():
                        self.expected = made.outputs().detach().cpu().double()
            self._compare(outputs, contender, row)
        elif contender.role not in (Role.REFERENCE, Role.OTHER_NETWORK):
            row["remark"] = "nothing to compare: it checks its own result"
        if len(compiling.caches) > compiled:
            row["remark"] = compiling.caches[-1]
        if "status" in row:
            return
        self.turns.add(contender.name, made)
        row.setdefault("first_seconds", time.perf_counter() - began)
        if cuda:  # what the contender itself holds at most
            row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        if graphs.POOL.bytes() > held:
            row["graph_bytes"] = graphs.POOL.bytes() - held

    def _compare(self, outputs: Tensor, contender: Contender, row: Row) -> None:
        if self.expected is None:
            row.update(status=Status.NO_REFERENCE, reason="there is no reference to compare with")
            return
        row["bound"] = parity.bound(self.case, contender.role, contender.precision)
        verdict = parity.check(outputs, self.expected, row["bound"])
        if verdict.parity is not None:
            row["parity"] = verdict.parity
        if verdict.reason is not None:
            row.update(status=Status.REFUSED, reason=verdict.reason)

    def round(self, turn: int) -> None:
        """Every contender once, and the device's rates."""
        with _settings(self.case):
            self.rates.measure()
            for name, problem in self.turns.round(turn):
                _explain(self.rows[name], problem)

    def finish(self) -> list[Row]:
        """The rows, with what was measured."""
        seconds, rows = self.turns.seconds, self.rows
        base = next((seconds.get(name) for name, row in rows.items() if row["role"] == Role.REFERENCE), None)
        compiled = [taken for name, taken in seconds.items() if taken and rows[name]["role"] == Role.COMPILED]
        fastest = min(compiled, key=statistics.median, default=None)
        for name, row in rows.items():
            if not seconds.get(name):
                continue
            row["status"] = Status.MEASURED
            row["seconds"] = [float(f"{s:.6g}") for s in seconds[name]]
            row["median_seconds"] = statistics.median(seconds[name])
            against = seconds.get(self.against[name]) if name in self.against else base
            if against:
                row["ratio"] = ratio(against, seconds[name])
            if fastest and row["role"] == Role.FASTDIFF:
                row["against_compiled"] = ratio(fastest, seconds[name])
            row.update(self.turns.ready[name].facts)
            row.update(limits.derived(self.case, row, self.rates))
        return list(rows.values())


def _explain(row: Row, problem: Exception, needs: tuple[str, ...] = ()) -> None:
    """Why the row has no figure: the exception's class and its first line."""
    missing = any(importlib.util.find_spec(package) is None for package in needs)
    status = Status.MISSING if missing else Status.FAILED
    if isinstance(problem, compiling.ColdCacheError):
        status = Status.NOT_COMPILED
    row.update(status=status, error=type(problem).__name__, reason=first_line(problem))


@contextmanager
def _settings(case: Case) -> Iterator[None]:
    """The case's threads, and gradients where it trains, whenever its contenders run: compiled code is for these."""
    if case.device == "cpu" and torch.get_num_threads() != case.threads:
        torch.set_num_threads(case.threads)
    with torch.set_grad_enabled(case.kind == Kind.TRAINING):
        yield


def measure(cases: Sequence[Case], cold: bool, together: bool, watcher: Watcher = NOBODY) -> list[Row]:
    """The rows of all cases, in order; on CUDA those that share compiled networks follow each other.

    Args:
        cold: Whether torch.compile may take minutes.
        together: Prepare all cases first and let them take turns too, each of their ratios being then one over the
            whole time of the run, in which the machine is now slow, now fast; else each case is finished, and its
            memory free, before the next begins.
    """
    threads = torch.get_num_threads()
    limit, graphs.POOL.limit = graphs.POOL.limit, 1 << 40  # contenders that take turns must not push each other out
    cuda = cases[0].device == "cuda"
    cases = sorted(cases, key=_shares) if cuda else list(cases)
    rows: list[Row] = []
    shared = None
    try:
        for group in [cases] if together else [[case] for case in cases]:
            if cuda and shared not in (None, _shares(group[0])):
                predictors.forget()  # compiled code and its graphs hold memory
            shared = _shares(group[0])
            prepared = [Prepared(case, cold, watcher) for case in group]
            _rounds(prepared, watcher)
            for one in prepared:
                done = one.finish()
                rows += done
                watcher.rows(done)
            del prepared, one
    finally:
        torch.set_num_threads(threads)
        graphs.POOL.limit = limit
    return rows


def _shares(case: Case) -> tuple[str, int, str]:
    """Cases of the same have compiled networks in common."""
    return case.network, case.batch, case.dtype


def _rounds(prepared: list[Prepared], watcher: Watcher) -> None:
    """Every case's rounds, spread evenly over the time that all of them take."""
    due = [
        (turn / one.case.rounds, place, turn) for place, one in enumerate(prepared) for turn in range(one.case.rounds)
    ]
    for _, place, turn in sorted(due):
        watcher.round(prepared[place].case, turn + 1)
        prepared[place].round(turn)
