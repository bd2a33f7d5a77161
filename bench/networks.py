"""The one catalogue of networks: those that are measured, and those whose kernels are only compiled and counted."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

import fastdiff
from fastdiff.bench.peers import edm, guided, others
from fastdiff.bench.peers.reference import AnnotatedReference, ContextReference
from fastdiff.bench.peers.wrapped import Backbone, Signals, Told
from fastdiff.errors import InputError
from fastdiff.networks.lucidrains import LucidrainsClassUnet, LucidrainsUnet

# What google/ddpm-cifar10-32 sets.
DDPM_CIFAR10: dict[str, Any] = dict(
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6
)


@dataclass(frozen=True)
class Network:
    """A network and its pictures.

    Attributes:
        make: The network with random weights.
        image_shape: (C, H, W).
        title: Its name in the reports of what is counted and compiled; others are not in them.
        ships_as: The shipped model whose weights it has.
        batches: Those at which its kernels' launches differ.
        published_loop: The sampler and steps of its publication, as Case.what has them.
        needs: Packages without which it cannot be made.
    """

    make: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    title: str = ""
    ships_as: str | None = None
    batches: tuple[int, ...] = (64, 1024)
    published_loop: str = "ddpm 200"
    needs: tuple[str, ...] = ()


def _annotated(dim: int, size: int, title: str = "") -> Network:
    """The Annotated U-Net; one channel at 28 pixels, three above."""
    channels = 1 if size == 28 else 3
    return Network(partial(fastdiff.AnnotatedUnet, dim, channels=channels), (channels, size, size), title)


def _unet2d(widths: tuple[int, ...], **options: Any) -> nn.Module:
    """diffusers' UNet2DModel with attention at its second level alone."""
    kinds = ["", "Attn", *[""] * (len(widths) - 2)]
    return others.diffusers().UNet2DModel(
        sample_size=32,
        block_out_channels=widths,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        **options,
    )


def _tokens() -> nn.Module:
    """diffusers' UNet2DConditionModel, of 16 tokens."""
    network = others.diffusers().UNet2DConditionModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
    )
    return Told(network, torch.randn(1, 16, 64))


def _lucidrains(**options: Any) -> nn.Module:
    made: nn.Module = others.lucidrains().Unet(64, dim_mults=(1, 2, 4), **options)
    return made


def _classes() -> nn.Module:
    """Its classifier-free edition, as a file of it loads: the library's own drops classes at random."""
    return Told(LucidrainsClassUnet(64, dim_mults=(1, 2, 4)), torch.tensor([3]))


def _signals() -> nn.Module:
    return Signals(others.lucidrains("denoising_diffusion_pytorch_1d").Unet1D(64, dim_mults=(1, 2, 4), channels=2))


def _azula() -> nn.Module:
    azula: Any = importlib.import_module("azula.nn.unet")
    options = {"hid_channels": (64, 128, 256), "hid_blocks": (2, 2, 2), "norm": "group", "mod_features": 64}
    return Backbone(azula.UNet(3, 3, **options), 64)


def _mnist() -> nn.Module:
    return Told(fastdiff.ContextUnet(1, 128, 10, 28, edition="mnist"), torch.eye(10)[3:4])


LUCIDRAINS = ("denoising_diffusion_pytorch", "einops")
# What others sample from: their libraries' networks, or networks written like them.
FOREIGN = {
    "unet2d@32": Network(
        partial(_unet2d, (64, 128, 128)), (3, 32, 32), "UNet2DModel, 64 to 128, 32x32", needs=("diffusers",)
    ),
    "ddpm-cifar10@32": Network(
        partial(_unet2d, (128, 256, 256, 256), **DDPM_CIFAR10), (3, 32, 32), needs=("diffusers",)
    ),
    "lucidrains@32": Network(_lucidrains, (3, 32, 32), needs=LUCIDRAINS),
    "guided@32": Network(guided.UNetModel, (3, 32, 32), "guided-diffusion's UNetModel, 64 to 128, 32x32"),
    "edm@32": Network(edm.SongUNet, (3, 32, 32)),
    "tokens@32": Network(_tokens, (3, 32, 32), needs=("diffusers",)),
    "self-conditioning@32": Network(lambda: Told(_lucidrains(self_condition=True)), (3, 32, 32), needs=LUCIDRAINS),
    "learned-variance@32": Network(partial(_lucidrains, learned_variance=True), (3, 32, 32), needs=LUCIDRAINS),
    "classifier-free@32": Network(_classes, (3, 32, 32)),
    "unet1d@64": Network(_signals, (2, 1, 64), needs=LUCIDRAINS),
    "azula@32": Network(_azula, (3, 32, 32), needs=("azula", "einops")),
    "mnist@28": Network(_mnist, (1, 28, 28)),
}
# A28@32 is the Annotated U-Net of dim 28 on 32x32 pictures; B is the course's ContextUnet.
NETWORKS = {
    "A28@28": Network(
        partial(fastdiff.AnnotatedUnet, 28), (1, 28, 28), "A, dim 28, 28x28", "fashion-mnist", (1, 64, 1024)
    ),
    "A28@32": _annotated(28, 32),
    "A28@64": _annotated(28, 64),
    "A64@28": _annotated(64, 28),
    "A64@32": _annotated(64, 32, "A, dim 64, 32x32"),
    "A64@64": _annotated(64, 64),
    "B@16": Network(
        partial(fastdiff.ContextUnet, 3, 64, 5, 16),
        (3, 16, 16),
        "B, 64 features, 16x16",
        "sprites",
        published_loop="ddpm_large 500",
    ),
    **FOREIGN,
}
_EDITIONS = (
    Network(partial(fastdiff.AnnotatedUnet, 28, edition="mindspore"), (1, 28, 28), "A, mindspore"),
    Network(partial(fastdiff.AnnotatedUnet, 32, edition="hf-2022", block="resnet"), (1, 32, 32), "A, hf-2022, resnet"),
)
# Of other libraries, what is counted and compiled, for inference: without those libraries where that can be.
OTHERS = (
    FOREIGN["unet2d@32"],
    FOREIGN["guided@32"],
    Network(
        partial(LucidrainsUnet, 64, dim_mults=(1, 2, 4)),
        (3, 32, 32),
        "denoising-diffusion-pytorch's Unet, 64 to 256, 32x32",
    ),
)
COUNTED = {network.title: network for network in (*NETWORKS.values(), *_EDITIONS, *OTHERS) if network.title}
SHIPPED = {name: network.ships_as for name, network in NETWORKS.items() if network.ships_as}


@cache
def load(name: str) -> fastdiff.Model:
    """The model of that name; raises InputError for another.

    Those that do not ship have random weights from one seed: times do not depend on them, and a random network
    amplifies rounding less than a trained one.
    """
    if name not in NETWORKS:
        raise InputError(f"network {name!r}; accepted: {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    if network.ships_as:
        return fastdiff.load(network.ships_as)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = network.make()
    return fastdiff.Model(made, fastdiff.make_schedule("linear", 200), image_shape=network.image_shape)


def options_of(model: fastdiff.Model) -> dict[str, Any]:
    """The arguments that its network, one of fastdiff's own, was made with."""
    network: Any = model.network
    return network.options


def published(model: fastdiff.Model) -> nn.Module:
    """The published network with the model's weights."""
    options = options_of(model)
    if isinstance(model.network, fastdiff.AnnotatedUnet):
        chosen: tuple[str, ...] = ("dim", "init_dim", "dim_mults", "channels", "edition")
        made: nn.Module = AnnotatedReference(**{k: options[k] for k in chosen})
    else:
        chosen = ("in_channels", "n_feat", "n_cfeat", "height")
        shortcut = "trained" if options["shortcut"] else "zero"
        made = ContextReference(**{k: options[k] for k in chosen}, shortcut=shortcut)
    made.load_state_dict(model.network.state_dict())
    return made.eval().requires_grad_(False)
