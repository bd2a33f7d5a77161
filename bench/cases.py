"""What `fastdiff bench` measures: the cases of its three plans."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from fastdiff.bench.networks import NAMES, SHIPPED
from fastdiff.errors import InputError

STEP, EVALUATION, SAMPLING = "denoise step", "evaluation", "sampling"
TRAINING, EXPORT, COLD = "training step", "export", "cold start"
KINDS = (STEP, EVALUATION, SAMPLING, TRAINING, EXPORT, COLD)
PLANS = ("quick", "standard", "full")
DTYPES = ("float32", "bfloat16", "float16")
MAIN = tuple(SHIPPED)
# Where not all dtypes mean something: x is float32 in a sampler's update, and these files and processes compute in it.
COMPUTED_IN = {STEP: ("float32",), EXPORT: ("float32",), COLD: ("float32",), TRAINING: ("float32", "bfloat16")}


@dataclass(frozen=True)
class Case:
    """One row's circumstances. what: of denoise steps and sampling, the sampler and its steps.

    others: whether whole loops of other libraries' networks are among sampling's contenders.
    """

    kind: str
    network: str
    what: str = ""
    batch: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    rounds: int = 15
    others: bool = True

    @property
    def key(self) -> tuple[str, ...]:
        """What makes it the same case in another report."""
        facts = (self.kind, self.network, self.what, self.batch, self.dtype, self.device, self.threads)
        return tuple(map(str, facts))

    @property
    def label(self) -> str:
        words = [self.kind, self.network, self.what, f"batch {self.batch}"]
        words += [] if self.dtype == "float32" else [self.dtype]
        if self.device == "cpu" and self.threads > 1:
            words.append(f"{self.threads} threads")
        return " ".join(filter(None, words))


def published_sampler(network: str) -> str:
    """The loop that the network's publication samples with."""
    return "ddpm_large 500" if network.startswith("B") else "ddpm 200"


def _cases(networks: Iterable[str], batches: Iterable[int], **more: object) -> Iterator[Case]:
    for network, batch in itertools.product(networks, batches):
        yield Case(network=network, batch=batch, **more)  # type: ignore[arg-type]


def quick() -> Iterator[Case]:
    """Under three minutes on 2 cores: one thread, both shipped networks, single images.

    The denoise step is not among them: a process's memory happens to lie well or badly for calls of 50 µs, so that the
    ratios of two runs differ by 15%, and it is a hundredth of an evaluation. Nor are the loops of other libraries'
    networks, the slowest there are, whose ratios differed by 20%; their evaluations are.
    """
    yield from _cases(MAIN, (1,), kind=EVALUATION, rounds=24)
    yield from _cases(MAIN, (1,), kind=SAMPLING, what="ddim 25", rounds=9, others=False)


def standard(device: str) -> Iterator[Case]:
    """Every kind of case, both shipped networks, one thread."""
    cuda = device == "cuda"
    batches, steps_batch, training_batch = ((1, 64, 256, 1024), 64, 128) if cuda else ((1, 4, 16), 1, 16)
    for what in ("ddim", "ddpm"):
        yield from _cases(MAIN, batches, kind=STEP, what=what, rounds=31)
    yield from _cases(MAIN, batches, kind=EVALUATION, rounds=31)
    yield from _cases(MAIN, batches, kind=SAMPLING, what="ddim 25", rounds=5)
    for network in MAIN:
        for what, rounds in (("ddim 50", 5), ("dpmpp_2m 15", 7), (published_sampler(network), 3)):
            yield Case(SAMPLING, network, what, steps_batch, rounds=rounds)
    yield from _cases(MAIN, (training_batch,), kind=TRAINING, rounds=9)
    if not cuda:  # which exporting does not use
        yield from _cases(MAIN, (1,), kind=EXPORT, rounds=2)
    yield from _cases(MAIN, (1,), kind=COLD, what="ddim 25", rounds=5)


def full(device: str) -> Iterator[Case]:
    """Every network and batch; plan() multiplies by threads and dtypes."""
    batches = (1, 64, 256, 1024) if device == "cuda" else (1, 4, 16, 64)
    yield from standard(device)
    yield from _cases(NAMES, batches, kind=EVALUATION, rounds=15)
    for network in NAMES:
        for what in ("ddim 25", "ddim 50", "dpmpp_2m 15", published_sampler(network)):
            yield from _cases((network,), batches, kind=SAMPLING, what=what, rounds=5)
        yield from _cases((network,), (16, 128), kind=TRAINING, rounds=7)


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
    """The cases of a plan, narrowed: networks and batches keep those that are named, threads and dtypes multiply.

    only: parts of a case's label, such as "evaluation" or "B@16"; a case is kept where each of its words begins
    one of the label's, and each number is one of them.
    Raises InputError for names that there are not, and where nothing is left.
    """
    if name not in PLANS:
        raise InputError(f"plan {name!r}; accepted: {', '.join(PLANS)}")
    for kind, values, accepted in (("network", networks, NAMES), ("dtype", dtypes, DTYPES)):
        for value in values:
            if value not in accepted:
                raise InputError(f"{kind} {value!r}; accepted: {', '.join(accepted)}")
    for what, values in (("batch", batches), ("threads", threads), ("rounds", () if rounds is None else (rounds,))):
        for number in values:
            if number < 1:
                raise InputError(f"{what} = {number}; accepted: 1 or more")
    asked = (*networks, *batches, *only, *dtypes)
    every = name == "full"
    threads = threads or ((1, os.cpu_count() or 1) if every and device == "cpu" else (1,))
    dtypes = dtypes or ((DTYPES if every else ("bfloat16", "float32")) if device == "cuda" else ("float32",))
    cases = {"quick": quick, "standard": lambda: standard(device), "full": lambda: full(device)}[name]()
    unique: dict[tuple[str, ...], Case] = {}
    for dtype, count, case in itertools.product(dtypes, threads, cases):
        if dtype in COMPUTED_IN.get(case.kind, DTYPES):
            case = replace(case, device=device, threads=count, dtype=dtype, rounds=rounds or case.rounds)
            unique.setdefault(case.key, case)  # the first of two equal cases: a plan may name one twice
    kept = [
        case for case in unique.values()
        if (not networks or case.network in networks) and (not batches or case.batch in batches)
        and (not only or any(_meant(words, case) for words in only))
    ]  # fmt: skip
    if not kept:
        raise InputError(f"the {name} plan has no case for {', '.join(map(repr, asked))}; its cases: "
                         f"{'; '.join(case.label for case in unique.values()) or 'none in that dtype'}")  # fmt: skip
    return kept


def _meant(words: str, case: Case) -> bool:
    """Whether each word begins one of the label's, and each number is one of them."""
    there = f"{case.label} {case.dtype}".lower().split()
    return all(
        word in there if word.isdigit() else any(one.startswith(word) for one in there)
        for word in words.lower().split()
    )
