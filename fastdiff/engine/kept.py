"""Captured networks, kept by their content, so that the next engine of an equal network finds it prepared."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakValueDictionary

import torch
from torch import nn

from fastdiff.engine.content import content_of
from fastdiff.engine.evaluation import Network

COUNT = 4  # networks that no engine uses any more
BYTES = 2**30  # of them and of all that was made of them
REFUSED = 16  # networks of which it is known why they cannot be captured


class Kept:
    """Networks by content, device and dtype: all that engines have, and the last few that they had.

    Args:
        count: how many of the latter.
        limit: their bytes, of all that was made of them too. A larger one is not kept, and evicts no other.
    """

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.limit = count, limit
        self._lock = threading.Lock()
        self._used: WeakValueDictionary[Hashable, Network] = WeakValueDictionary()
        self._last: OrderedDict[Hashable, Network] = OrderedDict()
        self._refused: OrderedDict[Hashable, dict[Hashable, str]] = OrderedDict()

    def network(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
        """The kept network of equal content, or a new copy, which is not kept before `keep`."""
        content = content_of(module)
        key = None if content is None else (content, device, dtype)
        return self._found(key) or Network(module, device, dtype, key)

    def shared(self, network: Network) -> Network:
        """The kept network of its content if by now there is one, else the same; it knows what was refused before."""
        found = self._found(network.key) or network
        found.refused = self._refused.get(network.key, found.refused)
        return found

    def keep(self, network: Network) -> None:
        """Keep a network that was captured; one without a key, or one that was made meanwhile, is left alone."""
        if network.key is None:
            return
        with self._lock:
            if self._used.setdefault(network.key, network) is not network:
                return
            self._last.pop(network.key, None)
            if network.bytes <= self.limit:
                self._last[network.key] = network
            while len(self._last) > self.count or sum(one.bytes for one in self._last.values()) > self.limit:
                self._last.popitem(last=False)

    def own(self, network: Network) -> Network:
        """Of one that was refused, what to run the code of: see Network.own. Why it was refused is remembered."""
        with self._lock:
            if network.key is not None:
                self._refused[network.key] = network.refused
                self._refused.move_to_end(network.key)
                while len(self._refused) > REFUSED:
                    self._refused.popitem(last=False)
        return network.own()

    def release(self) -> None:
        """Forget what no engine uses."""
        with self._lock:
            self._last.clear()
            self._refused.clear()

    def _found(self, key: Hashable) -> Network | None:
        with self._lock:
            found = self._used.get(key)
            if key in self._last:
                self._last.move_to_end(key)
            return found


KEPT = Kept(COUNT, BYTES)


def release() -> None:
    """Let go of the memory of prepared networks that no engine uses.

    The last four networks that `fastdiff.sample` or an engine has prepared stay in memory, with all that was made of
    them 1 GB at most, so that an equal network is not prepared again. Those that an engine uses go with the engine.
    Why networks could not be captured is forgotten too: the next use tries again, and warns again.
    """
    KEPT.release()
