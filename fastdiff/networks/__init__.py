"""The two networks that fastdiff trains and serves; any other nn.Module fits in a Model too."""

from fastdiff.networks.annotated import AnnotatedUnet
from fastdiff.networks.context import ContextUnet
from fastdiff.networks.protocol import SeparableNetwork

__all__ = ["AnnotatedUnet", "ContextUnet", "SeparableNetwork"]
