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
BYTES = 2**28  # of their weights; what is made of them for the C kernels takes up to four times as much, for each batch


class Kept:
    """Networks by content, device and dtype: all that engines have, and the last few that they had."""

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.limit = count, limit
        self._lock = threading.Lock()
        self._used: WeakValueDictionary[Hashable, Network] = WeakValueDictionary()
        self._last: OrderedDict[Hashable, Network] = OrderedDict()

    def network(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
        """The kept network of equal content, or a new copy, which is not kept before `keep`."""
        content = content_of(module)
        key = None if content is None else (content, device, dtype)
        return self._found(key) or Network(module, device, dtype, key)

    def shared(self, network: Network) -> Network:
        """The kept network of its content if by now there is one, else the same."""
        return self._found(network.key) or network

    def keep(self, network: Network) -> None:
        """Keep a network that was captured; one without a key is left alone."""
        if network.key is None:
            return
        with self._lock:
            self._used[network.key] = self._last[network.key] = network
            self._last.move_to_end(network.key)
            while len(self._last) > self.count or sum(one.bytes for one in self._last.values()) > self.limit:
                self._last.popitem(last=False)

    def own(self, network: Network) -> Network:
        """The network, never to be kept, or a copy of a kept one: to run the code of, which may leave a state."""
        with self._lock:
            if network.key is not None and self._used.get(network.key) is network:
                return Network(network.module, network.device, network.dtype)
            network.key = None
            return network

    def release(self) -> None:
        """Forget what no engine uses."""
        with self._lock:
            self._last.clear()

    def _found(self, key: Hashable) -> Network | None:
        with self._lock:
            found = self._used.get(key)
            if key in self._last:
                self._last.move_to_end(key)
            return found


KEPT = Kept(COUNT, BYTES)


def release() -> None:
    """Let go of the memory of prepared networks that no engine uses.

    The last few networks that `fastdiff.sample` or an engine has prepared stay in memory, 256 MB of weights at most, so
    that an equal network is not prepared again. Those that an engine uses go with the engine.
    """
    KEPT.release()
