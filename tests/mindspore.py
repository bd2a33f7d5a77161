"""Checkpoints as MindSpore writes them."""

import torch


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def mindspore_file(state, packed=False, slices=1) -> bytes:
    """The protobuf that mindspore.save_checkpoint writes, by the message definition in the specification."""
    out = b""
    for name, value in state.items():
        dims = [varint(d) for d in value.shape]
        head = field(1, b"".join(dims)) if packed else b"".join(varint(1 << 3) + d for d in dims)
        raw = value.numpy().tobytes()
        for part in range(slices):
            piece = raw[len(raw) * part // slices : len(raw) * (part + 1) // slices]
            kind = {torch.float32: b"Float32", torch.float16: b"Float16"}[value.dtype]
            tensor = head + field(2, kind) + field(3, piece)
            out += field(1, field(1, name.encode()) + field(2, tensor))
    return out
