"""Where NaN or infinity first arises: one sample again, the network as it is, each module's output looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Found(Exception):
    """Ends the search; the message says where it was."""


class Search:
    """Looks for the first step and layer of one sample that give NaN or infinity.

    Args:
        network: whose modules are looked at; it runs as it is, one row of the table after another.
        rows: of the table.
        current: x at the moment.
    """

    def __init__(self, network: nn.Module, rows: int, current: Callable[[], Tensor]) -> None:
        self.network, self.rows, self.current = network, rows, current
        self.row = 1

    def after_rows(self, count: int) -> None:
        """To be called after each row of the table."""
        if not _finite(self.current()):
            raise _Found(
                f"first in the sampler's update in step {self.row} of {self.rows}, the network's output finite"
            )
        self.row += count

    def _look(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            if not _finite(output):
                layer = f"layer {name!r} ({type(module).__name__})" if name else "the network's output"
                raise _Found(f"first in {layer} in step {self.row} of {self.rows}")

        return look

    def run(self, sample: Callable[[], object]) -> str | None:
        """Where it is, in words, or None if it is not found; sample: draws the sample, with `after_rows`."""
        hooks = [module.register_forward_hook(self._look(name)) for name, module in self.network.named_modules()]
        try:
            sample()
        except _Found as found:
            return str(found)
        except Exception:  # the images are there, and are worth more than where they went wrong
            return None
        finally:
            for hook in hooks:
                hook.remove()
        return None


def _finite(output: Any) -> bool:
    """Whether all numbers in a module's output are finite, in whatever it is wrapped."""
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, (tuple, list)):
        return all(map(_finite, output))
    if isinstance(output, dict):
        return all(map(_finite, output.values()))
    return True
