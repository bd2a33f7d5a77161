"""The content of tensors in a few numbers, which depend on every bit and on the order.

Version counters would cost nothing, but miss `p.data.add_()` and what NumPy writes, and tensors of inference mode have
none. A xor (torch.hash_tensor) does not see two swapped elements. On a CPU it is zlib's crc32, which reads memory as
fast as anything here: it misses one change in 2^32, and none that lies within 32 bits. On a GPU it is the sum of 32-bit
words times random 64-bit numbers (Dietzfelbinger 1996), which misses one in 2^33; the sums alone leave the device.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

ROW = 2**16  # words in a sum
PIECE = 2**22  # words at a time, which take 20 bytes each meanwhile
_WORDS = {1: torch.uint8, 2: torch.int16}  # by an element's bytes; longer elements are one or more words of int32


def checksum(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Of the values of strided tensors, of any dtypes and on any devices, in the order in which they lie in memory."""
    found: list[int] = []
    elsewhere: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        memory = _memory(tensor)
        if memory.device.type == "cpu":
            found.append(zlib.crc32(memory.numpy().data))
        else:
            elsewhere.setdefault((memory.device, memory.dtype), []).append(memory)
    for words in elsewhere.values():
        found += sums(words)
    return tuple(found)


def sums(words: Iterable[Tensor]) -> list[int]:
    """The sums of tensors (n,) of at most 32-bit integers, all of one dtype on one device, joined in that order."""
    made: list[Tensor] = []
    waiting: list[Tensor] = []
    count = 0
    for piece in (piece for one in words for piece in one.split(PIECE)):
        if count + len(piece) > PIECE:
            made.append(_row_sums(torch.cat(waiting)))
            waiting, count = [], 0
        waiting.append(piece)
        count += len(piece)
    if waiting:
        made.append(_row_sums(torch.cat(waiting)))
    return torch.cat(made).tolist() if made else []


def _row_sums(words: Tensor) -> Tensor:
    dice = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (ROW,), generator=dice, dtype=torch.int64, device="cpu")
    rows = F.pad(words, (0, -len(words) % ROW)).view(-1, ROW)
    return (rows.long() * factors.to(words.device)).sum(1)


def _memory(tensor: Tensor) -> Tensor:
    """(n,) words of a tensor, without a copy where its memory has no gaps."""
    flat = tensor.detach()
    if not flat.is_contiguous():  # channels_last, say
        flat = flat.permute(sorted(range(flat.ndim), key=flat.stride, reverse=True)).contiguous()
    return flat.view(-1).view(_WORDS.get(flat.element_size(), torch.int32))
