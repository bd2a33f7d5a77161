"""What trainers put around a network's weights: names of entries, averaged copies beside the raw ones, prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.errors import InputError, warn_caller

# Entries under which trainers keep weights, where there are several.
NAMES = ("model", "state_dict", "model_state_dict", "network", "net", "unet", "net_model")
AVERAGED = {"ema", "shadow", "averaged", "average", "swa"}  # words in the name of an entry or a prefix
DEEPEST, MOST = 5, 10_000  # of nested lists and mappings
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


def _is_averaged(name: str) -> bool:
    return not AVERAGED.isdisjoint(re.split(r"[-._\d]+", name.lower()))


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a trainer saved, averaged ones if it has them; warns where these cannot be used.

    Args:
        content: nested mappings and lists with tensors.
        path: the file, for messages.

    Raises:
        InputError: if there are none.
    """
    dicts: list[tuple[list[str], dict[str, Tensor]]] = []
    lists: list[list[Tensor]] = []
    for count, (names, value) in enumerate(_nested(content, [])):
        if count > MOST:
            raise InputError(f"{str(path)!r} holds more than {MOST:,} lists and mappings; accepted: a state dict")
        if isinstance(value, Mapping):
            tensors = {str(name): one for name, one in value.items() if isinstance(one, Tensor)}
            if any(name.endswith("weight") for name in tensors):
                dicts.append((names, tensors))
        elif value and all(isinstance(one, Tensor) for one in value) and any(map(_is_averaged, names)):
            lists.append(list(value))
    if not dicts:
        if isinstance(content, Mapping) and content.keys() >= {"state", "param_groups"}:
            raise InputError(
                f"{str(path)!r} is an optimizer's state; the network's weights are in another file, such as "
                "model.safetensors or pytorch_model.bin beside it"
            )
        raise InputError(
            f"{str(path)!r} holds no state dict: no mapping of names to tensors, some of which end in weight"
        )
    for names, tensors in dicts:
        if any(map(_is_averaged, names)):
            return tensors
    _, raw = min(dicts, key=lambda one: NAMES.index(one[0][-1]) if one[0] and one[0][-1] in NAMES else len(NAMES))
    _, last = dicts[-1]
    if isinstance(content, (list, tuple)) and last.keys() == raw.keys():
        return last  # [model, optimizer, epoch, step, ema], as ermongroup/ddim saves
    for listed in lists:
        filled = _in_order(raw, listed)
        if filled is not None:
            return filled
    if lists:
        _warn_raw(path)
    return raw


def _nested(content: Any, names: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Every mapping, list and tuple, and the names of the entries that lead to it."""
    if len(names) > DEEPEST or not isinstance(content, (Mapping, list, tuple)):
        return
    yield names, content
    parts = content.items() if isinstance(content, Mapping) else (("", value) for value in content)
    for name, value in parts:
        yield from _nested(value, [*names, str(name)])


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
