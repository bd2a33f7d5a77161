"""Contexts: from what a user writes to a tensor with a row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.engine.per_sample import Rows, rows_of
from fastdiff.errors import InputError, check_float, unknown_name, whole_number


def by_name(weights: Mapping[str, float], class_names: Sequence[str]) -> Tensor:
    """{"monster": 1, "spell": 0.6} → (K,) float32, zeros elsewhere."""
    if not class_names:
        raise InputError(f"context {dict(weights)} names classes, but the model has no class names; give numbers")
    context = torch.zeros(len(class_names), device="cpu", dtype=torch.float32)
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
            return torch.tensor([float(part) for part in parts], device="cpu", dtype=torch.float32)
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


def parse_class(text: str, class_names: Sequence[str], classes: int) -> int:
    """The number of a class as typed: its name, or the number."""
    text = text.strip()
    if text in class_names:
        return list(class_names).index(text)
    number = whole_number(text)
    if number is not None and number < classes:
        return number
    if class_names:
        raise unknown_name("class", text, class_names)
    raise InputError(f"class {text!r}; accepted: one number, 0 to {classes - 1}")


def in_turn(contexts: Sequence[Any]) -> Any:
    """Contexts of one shape, nested lists or class numbers, as Request.of takes them: sample i has the next in turn."""
    if not contexts:
        return None
    rows = torch.tensor(contexts, device="cpu")
    if len(contexts) == 1:
        return rows
    return lambda first, count: rows[[(first + r) % len(rows) for r in range(count)]]


class ContextKind(NamedTuple):
    """What a network is given for a sample besides x and t.

    Attributes:
        shape: of its numbers: (K,), tokens (L, D), or () for a class's number.
        classes: how many there are, if it is a class's number, int64; None for float32 numbers.
    """

    shape: tuple[int, ...]
    classes: int | None = None

    def zeros(self, count: int) -> Tensor:
        """For so many samples, (count, *shape)."""
        dtype = torch.float32 if self.classes is None else torch.int64
        return torch.zeros(count, *self.shape, dtype=dtype, device="cpu")

    def example(self, count: int, dice: torch.Generator) -> Tensor:
        """The same, at random."""
        if self.classes is not None:
            return torch.randint(self.classes, (count,), generator=dice, device="cpu")
        return torch.rand(count, *self.shape, generator=dice, device="cpu", dtype=torch.float32)


@dataclass(frozen=True)
class Contexts:
    """The contexts of a request.

    Attributes:
        kind: of each.
        rows: (first, count) → (count, *kind.shape) on the CPU, for samples first .. first + count - 1.
    """

    kind: ContextKind
    rows: Rows


def resolve_context(
    width: int | None, class_names: Sequence[str], classes: int | None, context: Any, n: int, first: int
) -> Contexts | None:
    """The contexts of samples first .. first + n - 1, checked.

    Args:
        width: K; 0 if the model takes no context, None if its contexts' shape is unknown.
        class_names: names of the K entries, or none.
        classes: how many class numbers the model takes, None if that is unknown.
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
    numbers = width is None  # whether whole numbers are classes

    def tensor(given: Any) -> Tensor:
        if isinstance(given, Mapping):
            given = by_name(given, class_names) if classes is None else _one_class(given, class_names, classes)
        return _tensor(given, numbers)

    def kind_of(row: Tensor) -> ContextKind:
        if row.dtype == torch.int64:
            # Of an unknown number of classes only the first is known to be there.
            return ContextKind((), 1 if classes is None else classes)
        return ContextKind(tuple(row.shape))

    def check(rows: Tensor) -> Tensor:
        if not rows.numel():
            raise InputError(f"a context of shape {tuple(rows.shape)}; accepted: one that is not empty")
        if classes is not None and rows.dtype != torch.int64:
            raise InputError(f"a context of other than whole numbers; accepted: classes, 0 to {classes - 1}")
        if rows.dtype == torch.int64 and (rows.min() < 0 or (classes is not None and rows.max() >= classes)):
            wrong = int(rows.min() if rows.min() < 0 else rows.max())
            accepted = "0 or more" if classes is None else f"0 to {classes - 1}"
            raise InputError(f"class {wrong} as a context; accepted: {accepted}")
        return rows

    if callable(context):
        return _from_source(lambda at, count: check(tensor(context(at, count))), kind_of, width, first)
    rows = check(tensor(context))
    shape = tuple(rows.shape)
    if rows.dtype == torch.int64:
        rows = rows[:, 0] if rows.ndim == 2 and shape[1] == 1 else rows.reshape(1) if rows.ndim == 0 else rows
        if rows.ndim != 1 or len(rows) not in (1, n):
            raise InputError(f"classes of shape {shape} as a context; accepted: a whole number, or ({n},)")
    else:
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim < 2 or (width is not None and rows.shape[1:] != (width,)) or rows.shape[0] not in (1, n):
            one, tokens = ("K", "; of tokens (1, L, D)") if width is None else (width, "")
            accepted = f"({one},) or ({n}, {one}){tokens}"
            raise InputError(f"a context of shape {shape}; accepted: {accepted}")
    kind = kind_of(rows[0])
    return Contexts(kind, rows_of(rows, first))


def _one_class(weights: Mapping[str, float], class_names: Sequence[str], classes: int) -> int:
    """{"cat": 1} → the class's number."""
    if list(weights.values()) != [1]:
        raise InputError(f"context {dict(weights)}; accepted: one class, with weight 1, for the model takes its number")
    return parse_class(str(*weights), class_names, classes)


def _from_source(
    source: Callable[[int, int], Tensor], kind_of: Callable[[Tensor], ContextKind], width: int | None, first: int
) -> Contexts:
    one = source(first, 1)  # refuses a wrong source before any long work
    if one.ndim < 1 or len(one) != 1 or (width is not None and one.shape[1:] != (width,)):
        raise InputError(
            f"contexts of shape {tuple(one.shape)} from a source; accepted: (1, {'K' if width is None else width})"
        )
    kind = kind_of(one[0])

    def rows(at: int, count: int) -> Tensor:
        made = source(at, count)
        if made.shape != (count, *kind.shape):
            raise InputError(f"contexts of shape {tuple(made.shape)} from a source; accepted: {(count, *kind.shape)}")
        return made

    return Contexts(kind, rows)


def _tensor(context: Any, numbers: bool) -> Tensor:
    """As float32, or, where whole numbers are classes, those as int64."""
    try:
        rows = torch.as_tensor(context, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"context = {context!r}; accepted: numbers, or a mapping of class names ({error})") from error
    if numbers and not rows.is_floating_point() and rows.dtype != torch.bool:
        return rows.to(torch.int64)
    rows = rows.to(torch.float32)
    if not torch.isfinite(rows).all():
        raise InputError("the context holds NaN or infinity; accepted: finite numbers")
    return rows
