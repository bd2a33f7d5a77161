"""What trainers put around a network's weights: names of entries, averaged copies beside the raw ones, prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastdiff.errors import InputError, warn_caller

# Entries under which trainers keep weights, where there are several.
NAMES = ("model", "state_dict", "model_state_dict", "network", "net", "unet", "net_model")
AVERAGED = {"ema", "shadow", "averaged", "average", "swa"}  # words in the name of an entry or a prefix
DEEPEST = 5
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


class _Found(NamedTuple):
    """A state dict, or a list of tensors, and the names of the entries that lead to it."""

    names: tuple[str, ...]
    tensors: dict[str, Tensor] | list[Tensor]


def _is_averaged(name: str) -> bool:
    return not AVERAGED.isdisjoint(re.split(r"[._\d]+", name.lower()))


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a trainer saved, averaged ones if it has them; warns where these cannot be used.

    Args:
        content: nested mappings and lists with tensors.
        path: the file, for messages.

    Raises:
        InputError: if there are none.
    """
    found = list(_found(content, ()))
    dicts = [one for one in found if isinstance(one.tensors, dict)]
    if not dicts:
        raise InputError(
            f"{str(path)!r} holds no state dict: no mapping of names to tensors, some of which end in weight"
        )
    averaged = [one for one in dicts if any(map(_is_averaged, one.names))]
    if averaged:
        return averaged[0].tensors
    raw = min(dicts, key=lambda one: NAMES.index(one.names[-1]) if one.names and one.names[-1] in NAMES else len(NAMES))
    if isinstance(content, Sequence) and dicts[-1].tensors.keys() == raw.tensors.keys():
        return dicts[-1].tensors  # [model, optimizer, epoch, step, ema], as ermongroup/ddim saves
    lists = [one.tensors for one in found if isinstance(one.tensors, list) and any(map(_is_averaged, one.names))]
    for listed in lists:
        filled = _in_order(raw.tensors, listed)
        if filled is not None:
            return filled
    if lists:
        _warn_raw(path)
    return raw.tensors


def _found(content: Any, names: tuple[str, ...]) -> Iterator[_Found]:
    """Every state dict, and every list of tensors."""
    if len(names) > DEEPEST:
        return
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if any(name.endswith("weight") for name in tensors):
            yield _Found(names, tensors)
        parts = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, (list, tuple)):
        if content and all(isinstance(one, Tensor) for one in content):
            yield _Found(names, list(content))
        parts = [("", value) for value in content]
    else:
        return
    for name, value in parts:
        yield from _found(value, (*names, name))


def _in_order(raw: Mapping[str, Tensor], listed: list[Tensor]) -> dict[str, Tensor] | None:
    """The state dict whose parameters are those of a list in the order of parameters(), if their shapes are."""
    names = [name for name in raw if not name.endswith(_NO_PARAMETERS)]
    if [raw[name].shape for name in names] != [one.shape for one in listed]:
        return None
    return {**raw, **dict(zip(names, listed, strict=True))}


def unprefixed(
    tensors: Mapping[str, Tensor], known: Callable[[Mapping[str, Tensor]], bool], path: Path, depth: int = DEEPEST
) -> dict[str, Tensor] | None:
    """Without what wrappers put before every key of the network, averaged weights first; None if it is not known.

    Keys outside of the network (a step count, say) are dropped.

    Args:
        tensors: a state dict.
        known: whether one is that of a network, all of it or with more around it.
        path: the file, for messages.
        depth: how many prefixes there may be.
    """
    if known(tensors):
        return dict(tensors)
    if not depth:
        return None
    prefixes = dict.fromkeys(name.partition(".")[0] for name in tensors if name.endswith("weight") and "." in name)
    averaged = [prefix for prefix in prefixes if _is_averaged(prefix)]
    for prefix in dict.fromkeys([*averaged, *prefixes]):
        start = f"{prefix}."
        inner = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        found = unprefixed(inner, known, path, depth - 1)
        if found is not None:
            if averaged and prefix not in averaged:
                _warn_raw(path)
            return found
    return None


def _warn_raw(path: Path) -> None:
    warn_caller(
        f"{path.name}: the weights of the last step are taken, for the averaged ones beside them are not in a form "
        "that fastdiff knows"
    )
