"""Files that are not loaded, but known: what they are, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastdiff.errors import InputError

_WRAP = "make the network with its own code, load these weights, and sample fastdiff.Model(network, schedule, ...)"
_LATENTS = "it draws the latents of an autoencoder, and fastdiff draws pixels"


class Other(NamedTuple):
    """State dicts of one kind.

    Attributes:
        name: what they are of.
        parts: regular expressions; each is found in one of their keys, and one of them in no key of networks that load.
        advice: what to do.
    """

    name: str
    parts: tuple[str, ...]
    advice: str


# The first whose parts are there is taken.
OTHERS = (
    Other("a latent diffusion model with its autoencoder", (r"\bfirst_stage_model\.",), _LATENTS),
    Other("Stable Diffusion's network", (r"\binput_blocks\.", r"\.transformer_blocks\.0\.attn2\."), _LATENTS),
    Other("an autoencoder", (r"\bencoder\.conv_in\.weight$", r"\bdecoder\.conv_out\.weight$"), "it denoises nothing"),
    Other("a transformer of the kind of DiT", (r"\bx_embedder\.", r"\.adaLN_modulation\."), _LATENTS),
    Other(
        "changes to a network (LoRA)",
        (r"lora[_.]",),
        "join them with the weights of the network that they are for, and save those",
    ),
    Other(
        "diffusers",
        (r"\bdown_blocks\.0\.resnets\.0\.", r"\btime_embedding\.linear_1\."),
        "its sizes are in the config.json beside it: load the folder with both",
    ),
    Other(
        "the Annotated tutorial's first PyTorch edition or an early denoising-diffusion-pytorch (LayerNorm g and b), "
        "which is not supported yet",
        (r"\bdowns\.0\.2\.fn\.norm\.b$",),
        _WRAP,
    ),
    Other(
        "the first versions of denoising-diffusion-pytorch, which are not supported",
        (r"\bdowns\.0\.2\.fn\.g$",),
        _WRAP,
    ),
    Other("ermongroup/ddim or pytorch_diffusion", (r"\btemb\.dense\.0\.", r"\bdown\.0\.block\.0\.norm1\."), _WRAP),
    Other("pytorch-ddpm", (r"\btime_embedding\.timembedding\.", r"\bdownblocks\.0\."), _WRAP),
    Other("score_sde_pytorch", (r"\ball_modules\.\d+\.",), _WRAP),
    Other(
        "NVIDIA's EDM",
        (r"\bmap_layer0\.", r"\benc\.\d+x\d+_", r"\bdec\.\d+x\d+_"),
        "make the network with its own code, load these weights, and take fastdiff.from_edm(network)",
    ),
)

# How files begin that are no checkpoints → what they are, and what to do.
_BEGINNINGS = {
    b"version https://git-lfs": "Git LFS's pointer to a file, not the file itself; fetch that: git lfs pull",
    b"<!doctype html": "a web page, not a checkpoint; download the file itself",
    b"<html": "a web page, not a checkpoint; download the file itself",
    b"\x89hdf\r\n": "an HDF5 file, of Keras say; accepted: weights of PyTorch or MindSpore",
    b"gguf": "a GGUF file, of a language model say; accepted: weights of PyTorch or MindSpore",
    b"\x1f\x8b": "compressed; unpack it first",
}


def refuse_other(path: Path, keys: Iterable[str]) -> None:
    """Raises InputError, with what to do instead, for a state dict of one of OTHERS, whatever lies around it."""
    joined = "\n".join(keys)
    for other in OTHERS:
        if all(re.search(part, joined, re.MULTILINE) for part in other.parts):
            raise InputError(f"{str(path)!r} is of {other.name}; {other.advice}")


def refuse_no_checkpoint(path: Path) -> None:
    """Raises InputError, with what to do instead, for a file that begins as no checkpoint does."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            raise InputError(f"{str(path)!r} is {what}")
