"""The plans of `fastdiff bench`: which cases each has, and how options narrow them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fastdiff.bench.case import Case, Key, Kind
from fastdiff.bench.networks import NETWORKS, SHIPPED
from fastdiff.bench.operators.catalogue import catalogue, find
from fastdiff.errors import InputError

PLANS = ("quick", "standard", "full")
DTYPES = ("float32", "bfloat16", "float16")
# Where not all dtypes mean something: x is float32 in a sampler's update, and these files and processes compute in it.
COMPUTED_IN = {
    **dict.fromkeys((Kind.STEP, Kind.EXPORT, Kind.COLD, Kind.LOOP), ("float32",)),
    Kind.TRAINING: ("float32", "bfloat16"),
}
# Outside the full plan these are measured only where --only names their kind.
ON_REQUEST = (Kind.OPERATOR, Kind.PROFILE, Kind.LOOP)


def _cases(networks: Iterable[str], batches: Iterable[int], **more: Any) -> Iterator[Case]:
    for network, batch in itertools.product(networks, batches):
        yield Case(network=network, batch=batch, **more)


def quick() -> Iterator[Case]:
    """Under three minutes on 2 cores: one thread, both shipped networks, single images.

    The denoise step is not among them: a process's memory happens to lie well or badly for calls of 50 µs, so that the
    ratios of two runs differ by 15%, and it is a hundredth of an evaluation. Nor are the loops of other libraries'
    networks, the slowest there are, whose ratios differed by 20%; their evaluations are.
    """
    yield from _cases(SHIPPED, (1,), kind=Kind.EVALUATION, rounds=24)
    yield from _cases(SHIPPED, (1,), kind=Kind.SAMPLING, what="ddim 25", rounds=9, others=False)


def standard(device: str) -> Iterator[Case]:
    """Every kind of case, both shipped networks, one thread."""
    cuda = device == "cuda"
    batches, steps_batch, training_batch = ((1, 64, 256, 1024), 64, 128) if cuda else ((1, 4, 16), 1, 16)
    for what in ("ddim", "ddpm"):
        yield from _cases(SHIPPED, batches, kind=Kind.STEP, what=what, rounds=31)
    yield from _cases(SHIPPED, batches, kind=Kind.EVALUATION, rounds=31)
    yield from _cases(SHIPPED, batches, kind=Kind.SAMPLING, what="ddim 25", rounds=5)
    for network in SHIPPED:
        for what, rounds in (("ddim 50", 5), ("dpmpp_2m 15", 7), (NETWORKS[network].published_loop, 3)):
            yield Case(Kind.SAMPLING, network, what, steps_batch, rounds=rounds)
    yield from _cases(SHIPPED, (training_batch,), kind=Kind.TRAINING, rounds=9)
    if not cuda:  # which exporting does not use
        yield from _cases(SHIPPED, (1,), kind=Kind.EXPORT, rounds=2)
    yield from _cases(SHIPPED, (1,), kind=Kind.COLD, what="ddim 25", rounds=5)


def on_request(device: str) -> Iterator[Case]:
    """Operators alone, where an evaluation's time goes, and the exported loop."""
    cuda = device == "cuda"
    for one in catalogue(device):
        for batch in ((32768,) if one.is_step else (1024, 64)) if cuda else (64,):
            yield Case(Kind.OPERATOR, one.network, one.what, batch, device=device, rounds=9)
    yield from _cases(SHIPPED, (1, 64, 1024) if cuda else (1, 16), kind=Kind.PROFILE)
    if not cuda:
        for what in ("ddim 10", "ddpm 10"):
            yield from _cases(SHIPPED, (16,), kind=Kind.LOOP, what=what)


def full(device: str) -> Iterator[Case]:
    """Every network and batch; plan() multiplies by threads and dtypes."""
    batches = (1, 64, 256, 1024) if device == "cuda" else (1, 4, 16, 64)
    yield from standard(device)
    yield from _cases(NETWORKS, batches, kind=Kind.EVALUATION, rounds=15)
    for network in NETWORKS:
        for what in ("ddim 25", "ddim 50", "dpmpp_2m 15", NETWORKS[network].published_loop):
            yield from _cases((network,), batches, kind=Kind.SAMPLING, what=what, rounds=5)
        yield from _cases((network,), (16, 128), kind=Kind.TRAINING, rounds=7)


def plan(
    name: str,
    device: str,
    threads: tuple[int, ...] = (),
    networks: tuple[str, ...] = (),
    batches: tuple[int, ...] = (),
    dtypes: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    rounds: int | None = None,
) -> list[Case]:
    """The cases of a plan, narrowed.

    Args:
        threads, dtypes: The plan's cases with each of these.
        networks, batches: Keep the cases that have one of these.
        only: Parts of a case's label, such as "evaluation" or "B@16"; a case is kept where each word of one of them
            begins one of the label's, and each number is one of them.

    Raises:
        InputError: For unknown names, and where no case is left.
    """
    _check(name, threads, networks, batches, dtypes, rounds)
    every, asked = name == "full", (*networks, *batches, *only, *dtypes)
    threads = threads or ((1, os.cpu_count() or 1) if every and device == "cpu" else (1,))
    dtypes = dtypes or ((DTYPES if every else ("bfloat16", "float32")) if device == "cuda" else ("float32",))
    cases = {"quick": quick, "standard": lambda: standard(device), "full": lambda: full(device)}[name]()
    unique: dict[Key, Case] = {}
    more = on_request(device) if every or only else ()
    for case, dtype, count in _multiplied([*cases, *more], dtypes, threads):
        case = replace(case, device=device, threads=count, dtype=dtype, rounds=rounds or case.rounds)
        unique.setdefault(case.key, case)  # the first of two equal cases: a plan may name one twice
    kept = [
        case
        for case in unique.values()
        if (not networks or case.network in networks)
        and (not batches or case.batch in batches)
        and (any(_meant(words, case) for words in only) if only else every or case.kind not in ON_REQUEST)
    ]
    if not kept:
        there = "; ".join(case.label for case in unique.values() if case.kind not in ON_REQUEST)
        raise InputError(
            f"the {name} plan has no case for {', '.join(map(repr, asked))}; its cases: "
            f"{there or 'none in that dtype'}; and on request: {', '.join(ON_REQUEST)}"
        )
    return kept


def _check(
    name: str,
    threads: tuple[int, ...],
    networks: tuple[str, ...],
    batches: tuple[int, ...],
    dtypes: tuple[str, ...],
    rounds: int | None,
) -> None:
    for what, values, accepted in (
        ("plan", (name,), PLANS),
        ("network", networks, tuple(NETWORKS)),
        ("dtype", dtypes, DTYPES),
    ):
        for value in values:
            if value not in accepted:
                raise InputError(f"{what} {value!r}; accepted: {', '.join(accepted)}")
    for what, numbers in (("batch", batches), ("threads", threads), ("rounds", () if rounds is None else (rounds,))):
        for number in numbers:
            if number < 1:
                raise InputError(f"{what} = {number}; accepted: 1 or more")


def _multiplied(
    cases: list[Case], dtypes: tuple[str, ...], threads: tuple[int, ...]
) -> Iterator[tuple[Case, str, int]]:
    for dtype, count, case in itertools.product(dtypes, threads, cases):
        if dtype in (find(case).dtypes if case.kind == Kind.OPERATOR else COMPUTED_IN.get(case.kind, DTYPES)):
            yield case, dtype, count


def _meant(words: str, case: Case) -> bool:
    """Whether each word begins one of the label's, and each number is one of them; kinds on request come first."""
    there, asked = f"{case.label} {case.dtype}".lower().split(), words.lower().split()
    if case.kind in ON_REQUEST and not case.kind.startswith(asked[0]):
        return False
    return all(word in there if word.isdigit() else any(one.startswith(word) for one in there) for word in asked)
