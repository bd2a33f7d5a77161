"""MindSpore's .ckpt, read without MindSpore.

A protobuf message: Checkpoint{repeated Value{tag: string = 1, tensor: TensorProto = 2} = 1},
TensorProto{dims: repeated int64 = 1, tensor_type: string = 2, tensor_content: bytes = 3}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.checkpoints.tensors import MOST_TENSORS
from fastdiff.errors import InputError, first_line

_TYPES = {
    "Float32": torch.float32,
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float64": torch.float64,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "Bool": torch.bool,
}
# What an optimizer and a training loop save beside the network's parameters.
_TRAINING = ("moment1.", "moment2.", "moments.", "accum.", "adam_m.", "adam_v.")
_TRAINING_NAMES = ("global_step", "learning_rate", "beta1_power", "beta2_power", "epoch_num", "step_num")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message; a value is a number or, for length-delimited fields, its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes where {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError(f"the number {value} where bytes belong")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()


def _dims(value: int | memoryview) -> list[int]:
    if isinstance(value, int):
        return [value]
    dims, at = [], 0  # a packed list
    while at < len(value):
        dim, at = _varint(value, at)
        dims.append(dim)
    return dims


def _slice(data: memoryview) -> tuple[list[int], str, memoryview]:
    """A TensorProto's dims, tensor_type and content."""
    dims: list[int] = []
    dtype, content = "", memoryview(b"")
    for number, value in _fields(data):
        if number == 1:
            dims += _dims(value)
        elif number == 2:
            dtype = _text(value)
        elif number == 3:
            content = _bytes(value)
    return dims, dtype, content


def _tensor(slices: list[tuple[list[int], str, memoryview]]) -> Tensor:
    """A tensor from its slices: a large one is stored as several Values, each with the whole tensor's dims."""
    dims, name, _ = slices[0]
    if name not in _TYPES:
        raise ValueError(f"tensor type {name!r}")
    dtype, content = _TYPES[name], b"".join(part for _, _, part in slices)
    if len(content) != math.prod(dims) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for a {name} tensor of shape {dims}")
    return torch.frombuffer(bytearray(content), dtype=dtype).view(dims) if content else torch.empty(dims, dtype=dtype)


def read_mindspore(path: Path) -> dict[str, Tensor]:
    """Name → tensor, with gamma and beta renamed weight and bias, without the optimizer's state."""
    slices: dict[str, list[tuple[list[int], str, memoryview]]] = {}
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number != 1 or isinstance(value, int):
                continue
            parts = dict(_fields(value))
            name = _text(parts[1])
            if name in _TRAINING_NAMES or name.startswith(_TRAINING):
                continue
            if len(slices) > MOST_TENSORS:
                raise ValueError(f"more than {MOST_TENSORS:,} tensors")
            stem, _, last = name.rpartition(".")
            last = {"gamma": "weight", "beta": "bias"}.get(last, last)
            slices.setdefault(f"{stem}.{last}" if stem else last, []).append(_slice(_bytes(parts[2])))
        tensors = {name: _tensor(parts) for name, parts in slices.items()}
    except (ValueError, IndexError, KeyError, RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"{str(path)!r} is not a whole MindSpore checkpoint ({first_line(error)})") from error
    if not tensors:
        raise InputError(f"{str(path)!r} holds no tensors")
    return tensors


def is_mindspore(path: Path) -> bool:
    """Whether the file begins with a length-delimited field 1 that begins with another, as MindSpore's message."""
    with open(path, "rb") as file:
        head = file.read(12)
    body = head[1:].lstrip(bytes(range(0x80, 0x100)))[1:]  # after the varint length
    return head[:1] == b"\x0a" and body[:1] == b"\x0a"
