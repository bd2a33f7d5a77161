"""State dicts of the two reference systems as people have them, told apart by their keys and shapes."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.checkpoint import load_weights
from fastdiff.errors import InputError
from fastdiff.mindspore import read_mindspore
from fastdiff.model import Model
from fastdiff.networks import AnnotatedUnet, ContextUnet
from fastdiff.networks.blocks import HEAD_DIM, HEADS
from fastdiff.schedule import Schedule, make_schedule

# Entries under which trainers keep weights, the averaged ones first, and prefixes that wrappers put before keys.
WRAPPINGS = (
    "ema", "ema_model", "ema_state_dict", "shadow", "model", "state_dict", "model_state_dict", "network", "net", "unet",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "model.", "network.", "net.", "unet.", "denoise_fn.")
# What reading sizes off tensors of other shapes than expected raises.
_ODD_SHAPES = (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError, MemoryError)


def load_foreign(
    path: Path,
    tensors: Mapping[str, Tensor] | None,
    schedule: Schedule | None,
    image_size: int | tuple[int, int] | None,
) -> Model:
    """A Model from a file that is not fastdiff's own; tensors where they are read already (bare safetensors)."""
    if tensors is None and _is_protobuf(path):
        tensors = read_mindspore(path)
        try:
            return recognise(path, tensors, schedule, image_size)
        except InputError as error:
            if "init_conv.weight" not in tensors and "time_mlp.1.weight" not in tensors and len(tensors) < 50:
                raise
            raise InputError(
                f"{error}; the file holds {len(tensors)} tensors: one saved without the tutorial's loop that renames "
                "every parameter holds 114 of the network's 166, for parameters of one name overwrite each other; save "
                "it again with that loop"
            ) from error
    return recognise(path, _read_torch(path) if tensors is None else tensors, schedule, image_size)


def _is_protobuf(path: Path) -> bool:
    """Whether the file begins as MindSpore's message does, with field 1, length-delimited, and its field 1."""
    with open(path, "rb") as file:
        head = file.read(12)
    body = head[1:].lstrip(bytes(range(0x80, 0x100)))[1:]  # after the varint length
    return head[:1] == b"\x0a" and body[:1] == b"\x0a"


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The state dict in a torch.save file, unwrapped; no code from the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{str(path)!r} is refused: it holds pickled code or objects, or is damaged, and only tensors are "
            f"loaded; save the state dict alone, torch.save(model.state_dict(), path) ({first})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{str(path)!r} is not a whole checkpoint: accepted are .safetensors, torch.save state dicts and "
            f"MindSpore .ckpt files ({first})"
        ) from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """{"model": ..., "ema": ...} and the like → the state dict inside."""
    found = _state_dict(content)
    if found is None:
        raise InputError(f"{str(path)!r} holds no state dict; looked under {', '.join(WRAPPINGS)}")
    return found


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The first wrapping, the averaged weights before the others, that holds weights, else the tensors here."""
    if not isinstance(content, Mapping):
        return None
    for name in WRAPPINGS:
        inner = _state_dict(content.get(name))
        if inner is not None:
            return inner
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    return tensors if any(name.endswith("weight") for name in tensors) else None


def _strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put before every key; keys outside the network (a step count, say) are dropped."""
    result = dict(tensors)
    while "init_conv.weight" not in result and "init_conv.conv1.0.weight" not in result:
        for prefix in PREFIXES:
            inner = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
            if any(k.split(".")[-1] == "weight" for k in inner):
                result = inner
                break
        else:
            break
    return result


def recognise(
    path: Path, tensors: Mapping[str, Tensor], schedule: Schedule | None, image_size: int | tuple[int, int] | None
) -> Model:
    """A Model from a bare state dict. Raises InputError where it is neither system's, or an edition not served."""
    tensors = _strip_prefixes(tensors)
    if "init_conv.conv1.0.weight" in tensors and "contextembed1.model.0.weight" in tensors:
        return _context(path, tensors, schedule, image_size)
    if "init_conv.weight" in tensors and "time_mlp.1.weight" in tensors:
        return _annotated(path, tensors, schedule, image_size)
    some = ", ".join(sorted(tensors)[:3])
    raise InputError(
        f"{str(path)!r} is not a network that fastdiff knows (its keys begin {some}); accepted: the Annotated "
        "Diffusion U-Net, ContextUnet, or wrap your own network: fastdiff.Model(network, schedule, image_shape=...)"
    )


def _refuse_other_editions(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if any(k.startswith("final_res_block.") for k in tensors) or tensors["init_conv.weight"].shape[-1] == 1:
        raise InputError(
            f"{str(path)!r} is of the tutorial's later PyTorch edition (weight-standardised ResNet blocks, 1x1 "
            "init_conv, final_res_block), which is not served yet; accepted: mindspore, mindspore-torch, hf-2022"
        )
    if any(k.endswith(".norm.g") or k.endswith(".net.0.g") for k in tensors):
        raise InputError(
            f"{str(path)!r} is of the tutorial's first PyTorch edition (LayerNorm g and b everywhere), which is not "
            "served yet; accepted: mindspore, mindspore-torch, hf-2022"
        )


def annotated_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """AnnotatedUnet's arguments, read off a state dict's keys and shapes."""
    shape = {name: tuple(value.shape) for name, value in tensors.items()}
    dim = shape["time_mlp.1.weight"][1]
    widths: list[int] = []
    while f"downs.{len(widths)}.2.fn.fn.to_qkv.weight" in shape:
        hidden, width = shape[f"downs.{len(widths)}.2.fn.fn.to_qkv.weight"][:2]
        if hidden != 3 * HEADS * HEAD_DIM:
            raise KeyError(f"attention of width {hidden // 3}, not {HEADS} heads of {HEAD_DIM}")
        widths.append(width)
    if not widths or any(width % dim for width in widths):
        raise KeyError(f"level widths {widths} that are no multiples of dim {dim}")
    resnet = "downs.0.0.block1.proj.weight" in shape
    first = "downs.0.0.block1.proj" if resnet else "downs.0.0.ds_conv"
    if "downs.0.2.fn.fn.to_out.1.weight" in shape:
        edition = "hf-2022"
    else:
        edition = "mindspore-torch" if f"{first}.bias" in shape else "mindspore"
    return {
        "dim": dim,
        "init_dim": shape["init_conv.weight"][0],
        "dim_mults": [width // dim for width in widths],
        "channels": shape["init_conv.weight"][1],
        "out_dim": shape["final_conv.1.weight"][0],
        "edition": edition,
        "block": "resnet" if resnet else "convnext",
        "convnext_mult": 2 if resnet else shape["downs.0.0.net.1.weight"][0] // shape["downs.0.0.net.4.weight"][0],
    }


def _annotated(path: Path, tensors: Mapping[str, Tensor], schedule, image_size) -> Model:
    _refuse_other_editions(path, tensors)
    try:
        network = AnnotatedUnet(**annotated_options(tensors))
    except InputError:
        raise
    except _ODD_SHAPES as error:
        raise InputError(f"{str(path)!r} is no whole Annotated Diffusion U-Net: it lacks or has {error}") from error
    height, width = (image_size or 28,) * 2 if not isinstance(image_size, tuple) else image_size
    return _model(path, network, tensors, Model(
        network, schedule or make_schedule("linear", 200), image_shape=(network.channels, height, width)
    ))  # fmt: skip


def _context(path: Path, tensors: Mapping[str, Tensor], schedule, image_size) -> Model:
    try:
        n_feat, in_channels = tensors["init_conv.conv1.0.weight"].shape[:2]
        height = 4 * tensors["up0.0.weight"].shape[2]
        shortcut = "init_conv.shortcut.weight" in tensors
        network = ContextUnet(in_channels, n_feat, tensors["contextembed1.model.0.weight"].shape[1], height, shortcut)
    except InputError:
        raise
    except _ODD_SHAPES as error:
        raise InputError(f"{str(path)!r} is no whole ContextUnet: it lacks {error}") from error
    if image_size not in (None, height, (height, height)):
        raise InputError(f"image_size = {image_size}; the network in {str(path)!r} takes {height}")
    if not shortcut and in_channels != n_feat:
        warnings.warn(
            f"{path.name}: the published network draws its first shortcut at random in every pass, so no checkpoint "
            "has it; it is taken as zero, its mean",
            stacklevel=4,
        )
    return _model(path, network, tensors, Model(
        network, schedule or make_schedule("course", 500), image_shape=(in_channels, height, height), time="fraction"
    ))  # fmt: skip


def _model(path: Path, network: nn.Module, tensors: Mapping[str, Tensor], model: Model) -> Model:
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    load_weights(network, floats, path)
    return model
