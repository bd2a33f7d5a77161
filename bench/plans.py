"""The plans of `fastdiff bench`: which cases each has, and how options narrow them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fastdiff.bench.case import Case, Key, Kind
from fastdiff.bench.networks import FOREIGN, NETWORKS, SHIPPED
from fastdiff.bench.operators.catalogue import catalogue, find
from fastdiff.engine.placement import DTYPES, check_threads
from fastdiff.engine.request import check_batch_size
from fastdiff.errors import InputError, check_int

# Where not all dtypes mean something: x is float32 in a sampler's update, and these files and processes compute in it.
COMPUTED_IN = {
    **dict.fromkeys((Kind.STEP, Kind.EXPORT, Kind.COLD, Kind.LOOP, Kind.EAGER, Kind.THREADS), ("float32",)),
    Kind.TRAINING: ("float32", "bfloat16"),
}
MOST_ROUNDS = 1_000_000
# Measured only where --only names their kind.
ON_REQUEST = (Kind.OPERATOR, Kind.PROFILE, Kind.LOOP, Kind.EAGER, Kind.THREADS)


def _cases(networks: Iterable[str], batches: Iterable[int], **more: Any) -> Iterator[Case]:
    for network, batch in itertools.product(networks, batches):
        yield Case(network=network, batch=batch, **more)


def quick(networks: Iterable[str]) -> Iterator[Case]:
    """Under three minutes on 2 cores: one thread, both shipped networks, single images.

    The denoise step is not among them: a process's memory happens to lie well or badly for calls of 50 µs, so that the
    ratios of two runs differ by 15%, and it is a hundredth of an evaluation. Nor are the loops of other libraries'
    networks, the slowest there are, whose ratios differed by 20%; their evaluations are.
    """
    yield from _cases(networks, (1,), kind=Kind.EVALUATION, rounds=24)
    yield from _cases(networks, (1,), kind=Kind.SAMPLING, what="ddim 25", rounds=9, others=False)


def standard(networks: Iterable[str], cuda: bool) -> Iterator[Case]:
    """Every kind of case, both shipped networks, one thread."""
    batches, steps_batch, trained = ((1, 64, 256, 1024), 64, (128,)) if cuda else ((1, 4, 16), 1, (16, 128))
    for what in ("ddim", "ddpm"):
        yield from _cases(networks, batches, kind=Kind.STEP, what=what, rounds=31)
    yield from _cases(networks, batches, kind=Kind.EVALUATION, rounds=31)
    yield from _cases(networks, batches, kind=Kind.SAMPLING, what="ddim 25", rounds=5)
    for network in networks:
        for what, rounds in (("ddim 50", 5), ("dpmpp_2m 15", 7), (NETWORKS[network].published_loop, 3)):
            yield Case(Kind.SAMPLING, network, what, steps_batch, rounds=rounds)
    yield from _cases(networks, trained, kind=Kind.TRAINING, rounds=9)
    if not cuda:  # which exporting does not use
        yield from _cases(networks, (1,), kind=Kind.EXPORT, rounds=2)
    yield from _cases([name for name in networks if name in SHIPPED], (1,), kind=Kind.COLD, what="ddim 25", rounds=9)


def on_request(networks: Iterable[str], cuda: bool) -> Iterator[Case]:
    """Operators alone, where an evaluation's time goes, the exported loop, and threads."""
    for one in catalogue("cuda" if cuda else "cpu"):
        for batch in ((32768,) if one.is_step else (1024, 64)) if cuda else (64,):
            yield Case(Kind.OPERATOR, one.network, one.what, batch, rounds=9)
    yield from _cases(networks, (1, 64, 1024) if cuda else (1, 16), kind=Kind.PROFILE)
    for what in () if cuda else ("ddim 10", "ddpm 10"):
        yield from _cases(networks, (16,), kind=Kind.LOOP, what=what)
    if not cuda:
        yield from _cases(networks, (16, 64), kind=Kind.THREADS, what="ddim 10", threads=2, rounds=9)
        shipped = [name for name in networks if name in SHIPPED]
        yield from _cases(shipped, (64,), kind=Kind.THREADS, what="ddim 25 busy", threads=2, rounds=5)


def against_eager(networks: Iterable[str]) -> Iterator[Case]:
    """The one kind of case that measures foreign networks; of others the batches of the standard plan on a CPU."""
    for name in networks:
        batches = (1, 8) if name in FOREIGN else (1, 4, 16)
        yield from _cases((name,), batches, kind=Kind.EAGER, what="ddim 10", rounds=15)
        if name in SHIPPED:  # a loop with noise, and as many steps without, so that the noise's cost can be seen
            loop = NETWORKS[name].published_loop
            for what in (loop, f"ddim {loop.split()[1]}"):
                yield Case(Kind.EAGER, name, what, 1, rounds=9)


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
    """The cases of the plan "quick" or "standard", narrowed.

    Args:
        networks: In place of the shipped ones, and of the foreign ones where those are measured.
        threads, dtypes: The plan's cases with each of these.
        batches: Keep the cases that have one of these.
        only: Parts of a case's label, such as "evaluation" or "B@16"; a case is kept where each word of one of them
            begins one of the label's, and each number is one of them.

    Raises:
        InputError: For unknown names, and where no case is left.
    """
    for what, values, accepted in (("network", networks, NETWORKS), ("dtype", dtypes, DTYPES)):
        for value in values:
            if value not in accepted:
                raise InputError(f"{what} {value!r}; accepted: {', '.join(accepted)}")
    for batch in batches:
        check_batch_size(batch)
    for given in threads:
        check_threads(given)
    if rounds is not None:
        check_int("rounds", rounds, 1, MOST_ROUNDS)
    cuda = device == "cuda"
    measured = [name for name in networks or SHIPPED if name not in FOREIGN]
    cases = list(quick(measured) if name == "quick" else standard(measured, cuda))
    if only:
        cases += [*on_request(measured, cuda), *against_eager(networks or (*SHIPPED, *FOREIGN))]
    unique: dict[Key, Case] = {}
    default = ("bfloat16", "float32") if cuda else ("float32",)
    counts: tuple[int | None, ...] = tuple(threads) or (None,)
    for dtype, count, case in itertools.product(dtypes or default, counts, cases):
        threads_of = case.threads if count is None else count
        case = replace(case, device=device, threads=threads_of, dtype=dtype, rounds=rounds or case.rounds)
        if dtype in (find(case).dtypes if case.kind == Kind.OPERATOR else COMPUTED_IN.get(case.kind, DTYPES)):
            unique.setdefault(case.key, case)
    kept = [
        case
        for case in unique.values()
        if case.network in (networks or NETWORKS)
        and (not batches or case.batch in batches)
        and (not only or any(_meant(words, case) for words in only))
    ]
    if not kept:
        asked = ", ".join(map(repr, (*networks, *batches, *only, *dtypes)))
        there = ", ".join(dict.fromkeys(case.kind for case in unique.values() if case.kind not in ON_REQUEST))
        raise InputError(
            f"the {name} plan has no case for {asked}; its kinds: {there or 'none'}; on request: "
            f"{', '.join(ON_REQUEST)}; --list without these options prints the cases"
        )
    return kept


def _meant(words: str, case: Case) -> bool:
    """Whether each word begins one of the label's, and each number is one of them; kinds on request come first."""
    there, asked = f"{case.label} {case.dtype}".lower().split(), words.lower().split()
    if asked and case.kind in ON_REQUEST and not case.kind.startswith(asked[0]):
        return False
    return all(word in there if word.isdigit() else any(one.startswith(word) for one in there) for word in asked)
