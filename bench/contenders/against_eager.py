"""Whole sampling of any network: the form that users get against the network as it is, both by fastdiff's engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from fastdiff.bench.case import Case
from fastdiff.bench.contender import FASTDIFF, Contender, Role
from fastdiff.bench.contenders.samplings import by_engine
from fastdiff.bench.networks import NETWORKS


def contenders(case: Case, cold: bool) -> Iterator[Contender]:
    needs = NETWORKS[case.network].needs
    yield Contender(f"{FASTDIFF}, eager", partial(by_engine, case, "eager"), Role.REFERENCE, needs=needs)
    yield Contender(FASTDIFF, partial(by_engine, case), Role.FASTDIFF, needs=needs)
