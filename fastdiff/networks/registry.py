"""The networks by the names that checkpoints and recipes give them. Imports torch when a network is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastdiff.errors import unknown_name

if TYPE_CHECKING:
    from torch import nn

# name → module and class
NETWORKS = {
    "annotated": "annotated.AnnotatedUnet",
    "annotated-resnet": "resnet_unet.AnnotatedResnetUnet",
    "context": "context.ContextUnet",
    "lucidrains": "lucidrains.LucidrainsUnet",
    "lucidrains-classes": "lucidrains.LucidrainsClassUnet",
    "lucidrains-layernorm": "lucidrains.LucidrainsLayerNormUnet",
    "openai": "openai.OpenaiUnet",
}
NETWORK_TITLES = {"annotated": "Annotated U-Net", "context": "ContextUnet"}
WIDEST = 2**14  # channels, contexts and pixels that a network's option may ask for
BLOCKS = ("convnext", "resnet")  # of AnnotatedUnet
COMMON_OPTIONS = ("dim", "dim_mults", "block", "n_feat")  # of either network, which `fastdiff train` takes


def network_class(name: Any) -> type[nn.Module]:
    """The class of that name; raises InputError."""
    if not isinstance(name, str) or name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    module, _, attribute = NETWORKS[name].partition(".")
    return getattr(importlib.import_module(f"fastdiff.networks.{module}"), attribute)
