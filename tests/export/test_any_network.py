"""Networks of all kinds, exported: batches that were not recorded, other libraries' networks, random ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastdiff
from fastdiff import InputError, Model, StepTable, make_schedule
from fastdiff.engine.noise import PhiloxNoise
from fastdiff.export import OnnxSampler, export_sampler, verify
from fastdiff.export.assemble import network_model
from fastdiff.export.parts import capture


class Patched(nn.Module):
    """What says len(x): patches in one dimension with the batch, and the way back."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x, t):
        n = len(x)
        x = x.reshape(n, 2, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, 2, 4, 4)
        x = self.inner(x + 0.01 * t.repeat_interleave(4).view(n * 4, 1, 1, 1))
        return x.reshape(n, 2, 2, 2, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(len(x) // 4, 2, 8, 8)


class Wrapped(Patched):
    """Returns what another library would."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x, t):
        return self.wrap(super().forward(x, t))


def outputs(model, given):
    """ONNX Runtime's and the network's own."""
    data = network_model(capture(model)).SerializeToString()
    session = verify.onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    for inputs in given:
        out = session.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})[0]
        with torch.no_grad():
            yield torch.from_numpy(out), model.network(*inputs)


def model_of(network, shape):
    return Model(network.eval(), make_schedule("linear", 100), image_shape=shape)


def test_a_network_that_says_len_of_x(rel):
    inputs = [(torch.randn(n, 2, 8, 8), torch.randint(0, 100, (n,))) for n in (1, 3, 6)]
    for out, expected in outputs(model_of(Patched(), (2, 8, 8)), inputs):
        assert rel(out, expected) < 1e-6


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: {"variance": None, "sample": out},
        lambda out: (out, "more"),
        lambda out: torch.cat((out, out * 2), dim=1),  # a mean and a variance
        lambda out: out.double(),
    ],
    ids=["dict", "tuple", "2C channels", "float64"],
)
def test_a_prediction_in_other_clothes(rel, wrap):
    network = Wrapped(wrap)
    inputs = torch.randn(3, 2, 8, 8), torch.tensor([4, 9, 99])
    ((out, _),) = outputs(model_of(network, (2, 8, 8)), [inputs])
    assert out.shape == (3, 2, 8, 8) and rel(out, Patched.forward(network, *inputs).detach()) < 1e-6


def test_a_network_without_a_time(tmp_path):
    class Timeless(Patched):
        def forward(self, x, t):
            return self.inner(x)

    model = model_of(Timeless(), (2, 8, 8))
    assert export_sampler(model, tmp_path / "a.onnx", None)[1].distance < 1e-6


@pytest.mark.parametrize(
    "size, said", [(1, "RuntimeError: shape '\\[1, 2, 8, 8\\]' is invalid"), (None, "NotImplementedError")]
)
def test_a_network_that_fails_at_the_recorded_batches_is_refused_in_one_sentence(size, said, tmp_path):
    class Fails(Patched):
        def forward(self, x, t):
            if size is None:
                raise NotImplementedError
            return x.view(size, 2, 8, 8)

    with pytest.raises(
        InputError, match=f"cannot be exported: recording it at batches 2 and 3 raised {said}"
    ) as refused:
        export_sampler(model_of(Fails(), (2, 8, 8)), tmp_path / "a.onnx", None)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def small_unet(diffusers, **more):
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **more,
    )
    if not more:
        network.n_cfeat = 0  # else a warning that its class_labels are left out
    return network


def test_the_whole_loop_of_diffusers_network(randomised, tmp_path, apart):
    model = model_of(randomised(small_unet(pytest.importorskip("diffusers"))), (3, 8, 8))
    path, table = tmp_path / "unet.onnx", model.table("dpmpp_2m_sde", 8)
    assert export_sampler(model, path, table)[1].distance < 1e-5
    images = OnnxSampler(path).sample(6, seed=3)
    assert apart(images, fastdiff.sample(model, 6, table, seed=3, form="eager", device="cpu")) < 1e-4


def clipped_ddim(scheduler, steps, **more):
    """What diffusers' DDIM does with a clip, as a table: the network's own epsilon is kept beside the clipped x0."""
    scheduler.set_timesteps(steps)
    timestep = scheduler.timesteps.numpy()
    alphas = scheduler.alphas_cumprod.double().numpy()
    before = timestep - scheduler.config.num_train_timesteps // steps
    last = float(scheduler.final_alpha_cumprod)
    alpha2, next2 = alphas[timestep], np.where(before >= 0, alphas[before], last)
    alpha, sigma, alpha_next, sigma_next = (np.sqrt(one) for one in (alpha2, 1 - alpha2, next2, 1 - next2))
    return StepTable(
        sampler="diffusers ddim",
        prediction_type="epsilon",
        timestep=timestep,
        time=timestep,
        alpha=alpha,
        sigma=sigma,
        alpha_next=alpha_next,
        sigma_next=sigma_next,
        p=1 / alpha,
        q=-sigma / alpha,
        a=np.zeros(steps),
        b=alpha_next,
        c=np.zeros(steps),
        s=np.zeros(steps),
        o=sigma_next,
        **more,
    )


def test_diffusers_ddim_with_its_default_clip(randomised, tmp_path, apart):
    diffusers = pytest.importorskip("diffusers")
    network = randomised(small_unet(diffusers)).eval()
    scheduler = diffusers.DDIMScheduler()  # clip_sample, range 1, leading spacing
    assert scheduler.config.clip_sample and scheduler.config.timestep_spacing == "leading"
    model = Model(network, make_schedule("linear", 1000), image_shape=(3, 8, 8))
    table = clipped_ddim(scheduler, 20)
    export_sampler(model, tmp_path / "unet.onnx", table, clip=1.0)
    images = OnnxSampler(tmp_path / "unet.onnx").sample(4, seed=3)
    expected, clipped = torch.as_tensor(PhiloxNoise(3)(0, 0, (4, 3, 8, 8))), 0
    for t in scheduler.timesteps:
        with torch.no_grad():
            step = scheduler.step(network(expected, t).sample, t, expected)
        clipped += int((step.pred_original_sample.abs() == 1).sum())
        expected = step.prev_sample
    assert clipped > 1000  # else the clip would tell nothing
    assert apart(images, expected) < 1e-3


def check_random(networks, randomised, data):
    network, example = data.draw(networks.random_networks(randomised))
    network.n_cfeat = example.context or 0
    time = "index" if example.integer else "fraction"
    model = Model(network, make_schedule("linear", 1000), image_shape=example.shape, time=time)
    for out, expected in outputs(model, [tuple(example.inputs(n).values()) for n in (1, 3, 6)]):
        assert float((out - expected).norm()) < 1e-5 * float(expected.norm())


@settings(max_examples=12)
@given(st.data())
def test_random_networks(networks, randomised, data):
    check_random(networks, randomised, data)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.data())
def test_many_random_networks(networks, randomised, data):
    check_random(networks, randomised, data)
