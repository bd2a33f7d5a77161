"""Models of diffusers' pipelines, and of its networks with a scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from fastdiff.diffusers.package import NETWORKS
from fastdiff.diffusers.scheduler import Scheduler
from fastdiff.errors import InputError, shown, wrong_type
from fastdiff.model import Model

LATENT = ("vae", "vqvae", "vqgan", "movq")


def from_diffusers(
    pipeline_or_network: Any,
    scheduler: Any = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
    null_class: int | None = None,
) -> Model:
    """A Model of a pipeline of diffusers, or of one of its networks with a scheduler.

    >>> model = fastdiff.from_diffusers(DDIMPipeline.from_pretrained("my-ddpm-folder"))
    >>> images = fastdiff.sample(model, 8, steps=50)

    Unless a sampler is named, it is sampled with that scheduler and all of its options: from the same noise the images
    are the pipeline's, in [-1, 1]. The network is used as it is; nothing is downloaded.

    Args:
        pipeline_or_network: a pipeline of pixels with `unet` and `scheduler`; or a UNet2DModel or UNet2DConditionModel,
            of which class labels are contexts as whole numbers, and token embeddings contexts (n, L, D).
        scheduler: any whose steps are linear (DDPM, DDIM, DPM-Solver, UniPC, Euler, Heun, LCM and more); instead of the
            pipeline's, if both are given.
        image_size: side or (height, width) in pixels, where the network's config does not say it.
        class_names, null_class: as in Model.

    Raises:
        InputError: for a pipeline of latents, another network, or a scheduler that cannot be served, with its name.
    """
    network, steps = pipeline_or_network, None
    if not isinstance(network, nn.Module):
        network, steps, scheduler = _of_pipeline(pipeline_or_network, scheduler)
    if type(network).__name__ not in NETWORKS:
        raise InputError(
            f"a network of class {type(network).__name__}; accepted: {' or '.join(NETWORKS)}; for another make a "
            "fastdiff.Model(network, schedule, ...)"
        )
    if scheduler is None:
        raise InputError(f"a {type(network).__name__} without a scheduler; give one, such as DDPMScheduler()")
    return model_of(network, Scheduler.of(scheduler, steps), image_size, class_names, null_class)


def model_of(
    network: nn.Module,
    scheduler: Scheduler,
    image_size: int | tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
    null_class: int | None = None,
) -> Model:
    """A Model of one of diffusers' networks; the arguments are those of from_diffusers."""
    config: Any = network.config
    size = config.get("sample_size") if image_size is None else image_size
    if size is None:
        raise InputError(f"the {type(network).__name__} does not say the image size of its model; give image_size")
    channels, out = config["in_channels"], config["out_channels"]
    if out not in (channels, 2 * channels):
        raise InputError(
            f"a {type(network).__name__} from {channels} to {out} channels; accepted: as many, or twice as many"
        )
    if out != channels and scheduler.denoiser is not None:
        raise InputError(f"a {type(network).__name__} to {out} channels with {scheduler.name}; accepted: {channels}")
    try:
        height, width = (size, size) if isinstance(size, int) else size
    except (TypeError, ValueError):
        raise InputError(f"image_size = {shown(size)}; accepted: a side, or (height, width)") from None
    labels = config.get("class_embed_type") is None and not config.get("encoder_hid_dim_type")
    return Model(
        scheduler.around(network),
        scheduler.schedule,
        prediction_type=scheduler.prediction_type,
        image_shape=(channels, height, width),
        class_names=class_names,
        num_classes=config.get("num_class_embeds") if labels else None,
        null_class=null_class,
        clip=scheduler.clip,
        learned_variance=out == 2 * channels,
        scheduler=scheduler,
    )


def _of_pipeline(pipeline: Any, scheduler: Any) -> tuple[nn.Module, int | None, Any]:
    """Its network, its default number of steps, and the scheduler, its own unless one is given."""
    name, components = type(pipeline).__name__, getattr(pipeline, "components", None)
    if not isinstance(components, dict):
        raise wrong_type("pipeline", pipeline, "a pipeline of diffusers, or one of its networks with a scheduler")
    latent = [part for part in LATENT if components.get(part) is not None]
    if latent:
        raise InputError(f"{name} has a {latent[0]}, so it denoises latents; accepted: pipelines of pixels")
    network = components.get("unet")
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} has no unet; its parts: {', '.join(components)}")
    return network, default_steps(type(pipeline)), components.get("scheduler") if scheduler is None else scheduler


def default_steps(pipeline: Any) -> int | None:
    """num_inference_steps of a pipeline's class, where it has a default."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("num_inference_steps")
    default = None if parameter is None else parameter.default
    return default if isinstance(default, int) else None
