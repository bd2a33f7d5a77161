"""Contexts: from what a user writes to a (n, K) tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError, check_float, unknown_name


def by_name(weights: Mapping[str, float], class_names: Sequence[str]) -> Tensor:
    """{"monster": 1, "spell": 0.6} → (K,) float32, zeros elsewhere."""
    if not class_names:
        raise InputError(f"context {dict(weights)} names classes, but the model has no class names; give numbers")
    context = torch.zeros(len(class_names))
    for name, weight in weights.items():
        if name not in class_names:
            raise unknown_name("class", name, class_names)
        context[list(class_names).index(name)] = check_float(f"context weight of class {name!r}", weight, -1e30, 1e30)
    return context


def parse_context(text: str, class_names: Sequence[str]) -> Tensor:
    """A context as typed: "monster=1,spell=0.6", where a name alone has weight 1, or numbers, "1,0,0.6,0,0"."""
    parts = [part.strip() for part in text.split(",")]
    named = any("=" in part or part in class_names for part in parts)
    try:
        if not named:
            return torch.tensor([float(part) for part in parts])
    except ValueError:
        pass
    weights: dict[str, float] = {}
    for part in parts:
        name, equals, weight = (word.strip() for word in part.partition("="))
        if name in weights:
            raise InputError(f"context {text!r} names class {name!r} twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise InputError(f"context weight {weight!r} of class {name!r}; accepted: a number") from None
    return by_name(weights, class_names)


def in_turn(contexts: Sequence[Sequence[float]]) -> Any:
    """Contexts of K numbers each, as Request.of takes them: sample i has number i modulo their count."""
    if len(contexts) < 2:
        return contexts[0] if contexts else None
    rows = torch.tensor(contexts, dtype=torch.float32)
    return lambda first, count: rows[[(first + r) % len(rows) for r in range(count)]]


@dataclass(frozen=True)
class Contexts:
    """The contexts of a request.

    Attributes:
        width: K.
        rows: (first, count) → (count, K) float32 on the CPU, for samples first .. first + count - 1.
    """

    width: int
    rows: Callable[[int, int], Tensor]


def resolve_context(width: int | None, class_names: Sequence[str], context: Any, n: int, first: int) -> Contexts | None:
    """The contexts of samples first .. first + n - 1, checked.

    Args:
        width: K; 0 if the model takes no context, None if its width is unknown.
        class_names: names of the K entries, or none.
        context: as request.Request.of takes it.
        n: how many samples.
        first: the first sample's index.

    Returns:
        The contexts, or None without any.

    Raises:
        InputError: for a context that the model cannot take.
    """
    if context is None:
        return None
    if width == 0:
        raise InputError("this model takes no context; leave context out")
    if callable(context):
        return _from_source(context, width, first)
    rows = _tensor(by_name(context, class_names) if isinstance(context, Mapping) else context)
    shape = tuple(rows.shape)
    rows = rows[None] if rows.ndim == 1 else rows
    width = rows.shape[-1] if width is None else width
    if rows.ndim != 2 or rows.shape[1] != width or rows.shape[0] not in (1, n):
        raise InputError(f"a context of shape {shape}; accepted: ({width},) or ({n}, {width})")
    if len(rows) == 1:
        return Contexts(width, lambda at, count: rows.expand(count, -1))
    return Contexts(width, lambda at, count: rows[at - first : at - first + count])


def _from_source(source: Callable[[int, int], Any], width: int | None, first: int) -> Contexts:
    width = _tensor(source(first, 1)).shape[-1] if width is None else width

    def rows(at: int, count: int) -> Tensor:
        made = _tensor(source(at, count))
        if made.shape != (count, width):
            raise InputError(f"contexts of shape {tuple(made.shape)} from a source; accepted: ({count}, {width})")
        return made

    rows(first, 1)  # refuses a wrong source before any long work
    return Contexts(width, rows)


def _tensor(context: Any) -> Tensor:
    try:
        rows = torch.as_tensor(context, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"context = {context!r}; accepted: numbers, or a mapping of class names ({error})") from error
    if not torch.isfinite(rows).all():
        raise InputError("the context holds NaN or infinity; accepted: finite numbers")
    return rows
