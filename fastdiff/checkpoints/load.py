"""Models from files: fastdiff's own, and what people already have. No code from a file is ever run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.checkpoints.config import FORMAT, ModelConfig, Training, build_network, model_from_config
from fastdiff.checkpoints.diffusers_folder import load_folder
from fastdiff.checkpoints.foreign import load_foreign
from fastdiff.checkpoints.others import refuse_no_checkpoint
from fastdiff.checkpoints.said import Said
from fastdiff.checkpoints.shipped import locate
from fastdiff.checkpoints.tensors import load_weights, looks_like_safetensors, made_for, read_config, read_tensors
from fastdiff.errors import InputError, shown
from fastdiff.model import Model
from fastdiff.samplers.schedule import Schedule
from fastdiff.schema import check


def load(
    name_or_path: str | Path,
    schedule: Schedule | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    prediction_type: str | None = None,
    class_names: Sequence[str] = (),
) -> Model:
    """A model by its name or from a file; no code from the file is run.

    Args:
        name_or_path: a shipped model, `fashion-mnist` or `sprites`; fastdiff's own .safetensors, or the folder of a
            training run; a training checkpoint (its averaged weights, where it has them); a state dict of AnnotatedUnet
            or ContextUnet, the course's or the MNIST script's (.pt, .pth, .safetensors; bare or in whatever a trainer
            put around it), recognised by its keys; denoising-diffusion-pytorch's Unet, or its trainer's model-N.pt;
            OpenAI's UNetModel; the MindSpore tutorial's .ckpt; a folder that diffusers saved, of a pipeline of pixels
            or of its network alone.
        schedule: the training schedule, for a state dict. Default: of its buffer betas, alphas_cumprod or
            alphabar_t, if it has one; else the usual one, with a warning, which is linear with T = 200 for
            AnnotatedUnet, T = 300 for its text of today and T = 1000 for OpenAI's UNetModel, and course with T = 500
            for ContextUnet, 400 for the MNIST script's.
        image_size: side of the images or (height, width), in pixels, for a state dict. Default: 28 for AnnotatedUnet,
            with a warning; ContextUnet's follows from its weights. denoising-diffusion-pytorch has no defaults: what
            its file does not say must be given, and so must the size for OpenAI's.
        prediction_type: what the network predicts, epsilon, sample or v_prediction, for a state dict. Default: what the
            file says, if it does; else epsilon, but of denoising-diffusion-pytorch, which has no default.
        class_names: a name for each entry of the context, for a file that does not name them.

    Returns:
        The model, its weights in float32 on the CPU, its network in eval mode.

    Raises:
        InputError: the name is unknown; the file is damaged, of another network, or needs code to be run; or an
            argument contradicts it.
    """
    if schedule is not None and not isinstance(schedule, Schedule):
        raise InputError(f"schedule = {schedule!r}; accepted: a Schedule, see fastdiff.make_schedule")
    if isinstance(image_size, (tuple, list)):
        if len(image_size) != 2:
            raise InputError(f"image_size = {image_size}; accepted: a side, or (height, width)")
        image_size = image_size[0], image_size[1]
    path = locate(name_or_path)
    said = Said(schedule, image_size, prediction_type)
    tensors, config = None, None
    if path.is_dir():
        model = load_folder(path, said)
        return _with_class_names(path, model, class_names) if class_names else model
    safetensors = looks_like_safetensors(path)
    refuse_no_checkpoint(path)
    if safetensors:
        tensors, config = read_tensors(path)
    if tensors is not None and config is not None:
        if any(said is not None for said in (schedule, image_size, prediction_type)):
            raise InputError(f"{str(path)!r} states its own schedule, image size and prediction type; leave them out")
        model = _own(path, tensors, config)
    else:
        model = load_foreign(path, tensors, said)
    return _with_class_names(path, model, class_names) if class_names else model


def states_itself(name_or_path: str | Path) -> bool:
    """Whether a file is of fastdiff's own format, which says all of its model; raises InputError if there is none."""
    path = locate(name_or_path)
    return not path.is_dir() and looks_like_safetensors(path) and read_config(path) is not None


FILE = "file"


def stored_info(name_or_path: str | Path) -> dict[str, Any]:
    """What a file records about its making: the info given to `save`, or as "file" what else it is."""
    path = locate(name_or_path)
    if path.is_dir():
        return {FILE: "a folder of diffusers"}
    config = read_config(path) if looks_like_safetensors(path) else None
    if config is None:
        return {FILE: "foreign state dict"}
    if "training" in config:
        training = check(Training, config["training"], repr(str(path)))
        return {FILE: f"training checkpoint, {training['steps_done']} steps done"}
    info = check(dict[str, Any], config.get("info", {}), f"the info of {str(path)!r}")
    return {name: value for name, value in info.items() if name != FILE}


def _own(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Model:
    if config.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} has format {shown(config.get('format'))}; this version reads {FORMAT}")
    if "training" in config:  # a training checkpoint holds the raw weights, and the averaged ones with EMA
        part = "ema." if any(name.startswith("ema.") for name in tensors) else "model."
        tensors = {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
    try:
        check(ModelConfig, config, "it")
        network = made_for(tensors, path, build_network, config=config["network"])
        model = model_from_config(config, network)
    except InputError as error:
        raise InputError(f"{str(path)!r} has a configuration that makes no model: {error}") from error
    load_weights(network, tensors, path)
    return model


def _with_class_names(path: Path, model: Model, names: Sequence[str]) -> Model:
    if model.class_names:
        raise InputError(f"{str(path)!r} names its own classes, {', '.join(model.class_names)}; leave class_names out")
    width = model.context_width or 0
    if model.num_classes is None and len(names) != width:
        takes = f"contexts of {width} numbers" if width else "no context"
        raise InputError(f"{len(names)} class names, {', '.join(names)}; the network of {str(path)!r} takes {takes}")
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"class names {list(names)}; accepted: {len(names)} that differ, none of them empty")
    return dataclasses.replace(model, class_names=names)
