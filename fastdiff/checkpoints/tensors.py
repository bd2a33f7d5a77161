"""Named tensors in safetensors files, and into networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdiff.errors import InputError, first_line
from fastdiff.files import open_regular, write_atomically
from fastdiff.schema import check, parse_json

# Tensors that a network may have where its file has some: enough more that a refusal can name what is missing.
TIMES, MORE = 4, 2000
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.tensor, torch.arange}
MOST_TENSORS = 20_000  # in a file: each takes a thousand bytes besides its values
Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def read_off(path: Path, network: str) -> Iterator[None]:
    """What keys that are missing and shapes that are odd raise, while a network is made of them, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{str(path)!r} does not match {network}: it has no {error.args[0]}") from error
    except (ArithmeticError, AttributeError, IndexError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} does not match {network}: its tensors have odd shapes ({first_line(error)})"
        ) from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a safetensors file, whole or not at all, with config as JSON in the metadata entry "fastdiff"."""
    metadata = {"fastdiff": json.dumps(config)}

    def write(made: Path) -> None:
        try:
            save_file(dict(tensors), made, metadata=metadata)
        except SafetensorError as error:  # what the system refused, as on a full disk
            raise InputError(f"cannot write {str(path)!r}: {first_line(error)}") from error

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """A safetensors file's tensors, and its fastdiff configuration or None; raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MOST_TENSORS:
                raise ValueError(f"{len(names):,} tensors; accepted: up to {MOST_TENSORS:,}")
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file ({first_line(error)})") from error
    return tensors, read_config(path)


def read_config(path: Path) -> dict[str, Any] | None:
    """The fastdiff configuration of a safetensors file alone, or None; raises InputError if its header is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("fastdiff")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file ({first_line(error)})") from error
    if not metadata:
        return None
    where = f"the configuration of {str(path)!r}"
    return check(dict[str, Any], parse_json(metadata, where), where)


def looks_like_safetensors(path: Path) -> bool:
    """Whether the file's name, or its ninth byte, where the JSON header begins, is a safetensors file's."""
    with open_regular(path) as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:9] == b"{")


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy tensors into the network and put it in eval mode.

    Args:
        network: of any class.
        tensors: a tensor for each key of its state dict.
        path: the tensors' file, for errors.

    Raises:
        InputError: for keys or shapes that do not match, which it names, or values that are not finite.
    """
    check_weights(network, tensors, path)
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise InputError(f"{str(path)!r} holds NaN or infinity in {len(broken)} tensors ({broken[0]}, ...)")
    network.load_state_dict(dict(tensors), strict=True)
    network.eval()


def made_for(tensors: Mapping[str, Tensor], path: str | Path, make: Callable[..., Network], **options: Any) -> Network:
    """A network that these tensors fit: it is made without memory before it is made, so that a small file which claims
    a large one takes none.

    Args:
        tensors: a tensor for each key of its state dict.
        path: the tensors' file, for errors.
        make: its class, or what makes it otherwise.
        options: of `make`.

    Raises:
        InputError: for keys or shapes that do not match, and what `make` raises.
    """
    check_fits(tensors, path, make, **options)
    with torch.device("cpu"), default_dtype(torch.float32):
        return make(**options)


def check_fits(tensors: Mapping[str, Tensor], path: str | Path, make: Callable[..., nn.Module], **options: Any) -> None:
    """Raises InputError as `made_for` does, and makes the network without memory alone."""
    with torch.device("meta"), _Within(len(tensors), path):
        check_weights(make(**options), tensors, path)


class _Within(TorchFunctionMode):
    """Ends the making of a network that has far more tensors than its file, as one of 10^8 blocks would."""

    def __init__(self, tensors: int, path: str | Path) -> None:
        super().__init__()
        self.tensors, self.path, self.left = tensors, path, TIMES * tensors + MORE

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= func in _MAKERS
        if func in _MAKERS and self.left < 0:  # no other call may fail: one of them gives back gradients
            raise InputError(f"{str(self.path)!r} is of a network of far more tensors than the {self.tensors} it holds")
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default for new tensors within the context, in the whole process."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises InputError for keys or shapes that are not those of the network's state dict, which it names."""
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or unexpected or wrong:
        faults = (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong)))
        what = "; ".join(f"{len(keys)} {fault} ({keys[0]}, ...)" for fault, keys in faults if keys)
        raise InputError(f"{str(path)!r} does not match {type(network).__name__}: {what}")


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """load_weights, in float32."""
    load_weights(network, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, path)
