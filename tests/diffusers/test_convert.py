"""Models of diffusers' pipelines and networks: their images, their contexts, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UNet1DModel,
    UniPCMultistepScheduler,
)

from fastdiff import InputError, from_diffusers, load, sample, save
from fastdiff.bench.families.family import Drawing

SHAPE = (2, 3, 8, 8)


@pytest.mark.parametrize("form", ["cpu", "eager"])
@pytest.mark.parametrize(
    "pipeline, scheduler, steps",
    [
        (DDPMPipeline, DDPMScheduler(num_train_timesteps=100), 20),
        (DDPMPipeline, DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"), 100),
        (DDIMPipeline, DDIMScheduler(num_train_timesteps=100), 20),
        (DDIMPipeline, DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing"), 30),  # 30 is no divisor
    ],
)
def test_a_pipeline_gives_the_same_images(pipeline, scheduler, steps, form, unet, noise):
    pipe = pipeline(unet=unet(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    with Drawing():
        theirs = pipe(batch_size=2, num_inference_steps=steps, output_type="np").images
    ours = sample(from_diffusers(pipe), 2, steps=steps, noise=noise, form=form, device="cpu")
    pictures = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(pictures - theirs).max() < 5e-4  # half of 1e-3 of [-1, 1], since all of these clip


# "Constantly" and "often" of what people use.
CONFIGURATIONS = [
    (DDPMScheduler, dict(clip_sample=False)),
    (DDPMScheduler, dict(variance_type="fixed_large", clip_sample_range=2.0)),
    (DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
    (DDIMScheduler, dict(beta_schedule="scaled_linear", timestep_spacing="trailing", prediction_type="v_prediction")),
    (DPMSolverMultistepScheduler, dict(use_karras_sigmas=True)),
    (DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min")),
    (UniPCMultistepScheduler, {}),
    (EulerDiscreteScheduler, dict(use_karras_sigmas=True)),
    (EulerAncestralDiscreteScheduler, dict(timestep_spacing="trailing")),
    (HeunDiscreteScheduler, {}),
    (LCMScheduler, {}),
]


@pytest.mark.parametrize("form", ["cpu", "eager"])
@pytest.mark.parametrize(
    "kind, options", CONFIGURATIONS, ids=lambda value: getattr(value, "__name__", None) or str(value)
)
def test_a_network_with_a_scheduler(kind, options, form, unet, noise, their_loop):
    network = unet()
    scheduler = kind(num_train_timesteps=1000, **options)
    model = from_diffusers(network, scheduler)
    scheduler.set_timesteps(10)
    theirs = their_loop(scheduler, lambda x, t: network(x, t).sample, SHAPE)
    ours = sample(model, 2, steps=10, noise=noise, form=form, device="cpu")
    largest = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) < (1e-3 if model.clip else 2e-5) * largest


EDMS = [
    (EDMEulerScheduler, {}),
    (EDMEulerScheduler, dict(prediction_type="v_prediction", sigma_schedule="exponential", sigma_max=20.0)),
    (EDMEulerScheduler, dict(final_sigmas_type="sigma_min", sigma_data=1.0, sigma_min=0.1)),
    (EDMDPMSolverMultistepScheduler, {}),
    (EDMDPMSolverMultistepScheduler, dict(solver_order=3, prediction_type="v_prediction")),
    (EDMDPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", euler_at_final=True)),
    (EDMDPMSolverMultistepScheduler, dict(solver_type="heun", lower_order_final=False, rho=5.0)),
    (EDMDPMSolverMultistepScheduler, dict(thresholding=True, sample_max_value=1e9, dynamic_thresholding_ratio=0.9)),
]


@pytest.mark.parametrize("steps, form", [(1, "eager"), (11, "cpu")])
@pytest.mark.parametrize("kind, options", EDMS, ids=lambda value: getattr(value, "__name__", None) or str(value))
def test_edms_schedulers_with_the_networks_preconditioning(kind, options, steps, form, unet, noise, their_loop):
    network, scheduler = unet(num_class_embeds=3), kind(**options)
    model = from_diffusers(network, scheduler)
    scheduler.set_timesteps(steps)
    labels = torch.tensor([2, 0])
    theirs = their_loop(scheduler, lambda x, t: network(x, t, labels).sample, SHAPE)
    ours = sample(model, 2, steps=steps, context=labels, noise=noise, form=form, device="cpu")
    # Their first x is 80 times the noise, of which Euler's method subtracts as much again, in float32.
    rounding = 1e-6 * scheduler.config.sigma_max
    assert float((ours - theirs).abs().max()) < (1e-3 if model.clip else max(1e-5, rounding))


class OtherNoise(EDMEulerScheduler):
    def precondition_noise(self, sigma):
        return torch.atan(torch.as_tensor(sigma))


@pytest.mark.parametrize(
    "options, scheduler, words",
    [
        ({}, OtherNoise(), "OtherNoise has no betas; accepted: schedulers of a variance-preserving schedule, or EDM's"),
        ({}, EDMEulerScheduler(sigma_min=3.0, sigma_max=2.0), "noise levels from 3 to 2; accepted: sigma_min from"),
        ({"out_channels": 6}, EDMEulerScheduler(), "a UNet2DModel to 6 channels with EDMEulerScheduler; accepted: 3"),
    ],
)
def test_what_is_not_edms_preconditioning_is_refused(options, scheduler, words, unet):
    with pytest.raises(InputError) as caught:
        from_diffusers(unet(**options), scheduler)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edms_schedulers_from_a_picture(kind, unet, noise, their_loop):
    network, scheduler = unet(), kind()
    picture = torch.rand(SHAPE) * 2 - 1
    ours = sample(
        from_diffusers(network, scheduler), 2, steps=10, init=picture, strength=0.5, noise=noise, device="cpu"
    )
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(5)
    x = picture + scheduler.sigmas[5] * noise(0, 0, SHAPE)
    with torch.no_grad():
        for t in scheduler.timesteps[5:]:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x, return_dict=False)[0]
    assert float((ours - x).abs().max()) < 1e-5


def test_a_model_with_edms_preconditioning_is_saved_and_sampled_otherwise(unet, noise, rel, tmp_path):
    network = unet()
    model = from_diffusers(network, EDMEulerScheduler())
    save(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    options = dict(steps=9, noise=noise, device="cpu")
    images = sample(model, 2, **options)
    assert torch.equal(sample(again, 2, **options), images) and again.scheduler.name == "EDMEulerScheduler"
    table = again.table("euler", 9, spacing="linspace", sigmas="karras")
    table = dataclasses.replace(table, init_noise_sigma=1.0)  # diffusers begins with sqrt(sigma_max^2 + 1)
    assert rel(sample(again, 2, table, noise=noise, device="cpu"), images) < 1e-5
    DDIMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "folder")
    EDMEulerScheduler().save_pretrained(tmp_path / "folder" / "scheduler")
    assert torch.equal(sample(load(tmp_path / "folder"), 2, **options), images)


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_class_labels(form, unet, noise, their_loop, rel):
    network, scheduler = unet(num_class_embeds=5), DDIMScheduler(clip_sample=False)
    model = from_diffusers(network, scheduler, class_names=["a", "b", "c", "d", "none"], null_class=4)
    scheduler.set_timesteps(6)
    labels, none = torch.tensor([1, 3]), torch.tensor([4, 4])
    options = dict(steps=6, noise=noise, form=form, device="cpu")
    theirs = their_loop(scheduler, lambda x, t: network(x, t, labels).sample, SHAPE)
    assert rel(sample(model, 2, context=[1, 3], **options), theirs) < 1e-5

    def guided(x, t):
        without, within = network(x, t, none).sample, network(x, t, labels).sample
        return without + 2.5 * (within - without)

    theirs = their_loop(scheduler, guided, SHAPE)
    assert rel(sample(model, 2, context=[1, 3], guidance_scale=2.5, **options), theirs) < 1e-4
    alone = sample(model, 1, context={"b": 1}, **options)
    assert torch.equal(alone, sample(model, 1, context=1, **options))


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_tokens(form, conditional, noise, their_loop, rel):
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(6)
    tokens = torch.randn(2, 7, 12)
    theirs = their_loop(scheduler, lambda x, t: conditional(x, t, tokens).sample, SHAPE)
    ours = sample(
        from_diffusers(conditional, DPMSolverMultistepScheduler()),
        2,
        steps=6,
        context=tokens,
        noise=noise,
        form=form,
        device="cpu",
    )
    assert rel(ours, theirs) < 1e-5


@pytest.mark.parametrize("form", ["cpu", "eager"])
def test_a_learned_variance(form, unet, noise, their_loop, rel):
    network, options = unet(out_channels=6), dict(variance_type="learned_range", clip_sample=False)
    scheduler = DDPMScheduler(**options)
    scheduler.set_timesteps(8)
    theirs = their_loop(scheduler, lambda x, t: network(x, t).sample, SHAPE)
    model = from_diffusers(network, DDPMScheduler(**options))
    assert model.learned_variance and model.table(steps=8).learned_variance
    ours = sample(model, 2, steps=8, noise=noise, form=form, device="cpu")
    assert rel(ours, theirs) < 1e-5
    fixed = from_diffusers(network, DDPMScheduler(clip_sample=False))
    assert rel(sample(fixed, 2, steps=8, noise=noise, form=form, device="cpu"), theirs) > 1e-3


def test_a_model_is_saved_and_loaded(unet, noise, tmp_path):
    pipe = DDIMPipeline(unet=unet(num_class_embeds=3), scheduler=DDIMScheduler(num_train_timesteps=1000))
    model = from_diffusers(pipe, DPMSolverMultistepScheduler(use_karras_sigmas=True), null_class=0)
    save(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    options = dict(context=2, steps=5, guidance_scale=2.0, noise=noise, device="cpu")
    assert torch.equal(sample(again, 2, **options), sample(model, 2, **options))
    assert (again.scheduler.name, again.num_classes, again.null_class) == ("DPMSolverMultistepScheduler", 3, 0)
    assert again.clip is None and again.default_steps() == 50


def test_the_users_objects_are_left_as_they_are(unet):
    network, scheduler = unet(), DDIMScheduler()
    scheduler.set_timesteps(7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sample(from_diffusers(network, scheduler), 1, steps=3, device="cpu")
    assert len(scheduler.timesteps) == 7
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Latent(DiffusionPipeline):
    def __init__(self, vae, unet, scheduler):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)


def test_what_is_refused_is_named(unet):
    small = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1)
    latent = Latent(small, unet(), DDIMScheduler())
    for given, words in (
        ((latent,), "Latent has a vae, so it denoises latents"),
        ((unet(),), "UNet2DModel without a scheduler"),
        ((unet(sample_size=None), DDIMScheduler()), "does not say the image size of its model; give image_size"),
        ((unet(out_channels=5), DDIMScheduler()), "UNet2DModel from 3 to 5 channels"),
        ((UNet1DModel(), DDIMScheduler()), "network of class UNet1DModel; accepted: UNet2DModel or"),
        ((torch.nn.Conv2d(3, 3, 1), DDIMScheduler()), "network of class Conv2d"),
        (("google/ddpm-cifar10-32",), "a pipeline of diffusers"),
        ((unet(), "ddim"), "scheduler of type str; accepted: one of diffusers"),
    ):
        with pytest.raises(InputError, match=words):
            from_diffusers(*given)
    assert from_diffusers(unet(sample_size=None), DDIMScheduler(), image_size=(8, 12)).image_shape == (3, 8, 12)
    with pytest.raises(InputError, match="takes the number of a class; give one, 0 to 4"):
        sample(from_diffusers(unet(num_class_embeds=5), DDIMScheduler()), 1)
