"""The MNIST script's network and its loop, evaluated straight from a state dict, without a module of ours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastdiff import ContextUnet, Engine, InputError, Model, load, make_schedule, sample, save
from fastdiff.kernels.cpu import compiled

BOUND = 1e-5
T = 20


def convolved(state, name, x):
    x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
    mean, var, gain, shift = (
        state[f"{name}.1.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.gelu((x - mean) / (var + 1e-5).sqrt() * gain + shift)


def grouped(state, name, x):
    b, c, h, w = x.shape
    parts = x.reshape(b, 8, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return parts.view(b, c, h, w) * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)


def embedded(state, name, values):
    hidden = F.gelu(values @ state[f"{name}.model.0.weight"].T + state[f"{name}.model.0.bias"])
    return (hidden @ state[f"{name}.model.2.weight"].T + state[f"{name}.model.2.bias"])[:, :, None, None]


def raised(state, name, x, skip):
    x = torch.cat([x, skip], 1)
    x = F.conv_transpose2d(x, state[f"{name}.model.0.weight"], state[f"{name}.model.0.bias"], stride=2)
    for block in (1, 2):
        for half in ("conv1", "conv2"):
            x = convolved(state, f"{name}.model.{block}.{half}", x)
    return x


def published(state, x, label, t, masked):
    """eps of pictures (B, C, 28, 28) of classes (B,) at t / T, (B,); no class where masked (B,) is 1."""
    first = convolved(state, "init_conv.conv1", x)
    second = convolved(state, "init_conv.conv2", first)
    whole = ((x if x.shape[1] == first.shape[1] else first) + second) / 1.414
    half = F.max_pool2d(convolved(state, "down1.model.0.conv2", convolved(state, "down1.model.0.conv1", whole)), 2)
    quarter = F.max_pool2d(convolved(state, "down2.model.0.conv2", convolved(state, "down2.model.0.conv1", half)), 2)
    vector = F.gelu(quarter.mean((2, 3), keepdim=True))
    classes = state["contextembed1.model.0.weight"].shape[1]
    one_hot = F.one_hot(label, classes).to(x.dtype) * -(1 - masked[:, None].to(x.dtype))
    h = F.conv_transpose2d(vector, state["up0.0.weight"], state["up0.0.bias"], stride=7)
    h = torch.relu(grouped(state, "up0.1", h))
    for up, skip in ((1, quarter), (2, half)):
        h = embedded(state, f"contextembed{up}", one_hot) * h + embedded(state, f"timeembed{up}", t[:, None])
        h = raised(state, f"up{up}", h, skip)
    h = F.conv2d(torch.cat([h, whole], 1), state["out.0.weight"], state["out.0.bias"], padding=1)
    h = torch.relu(grouped(state, "out.1", h))
    return F.conv2d(h, state["out.3.weight"], state["out.3.bias"], padding=1)


def buffers(timesteps, low=1e-4, high=0.02):
    """As its DDPM registers them, in float32."""
    beta = (high - low) * torch.arange(0, timesteps + 1, dtype=torch.float32) / timesteps + low
    alphabar = torch.cumsum(torch.log(1 - beta), 0).exp()
    return {
        "alpha_t": 1 - beta,
        "oneover_sqrta": 1 / (1 - beta).sqrt(),
        "sqrt_beta_t": beta.sqrt(),
        "alphabar_t": alphabar,
        "sqrtab": alphabar.sqrt(),
        "sqrtmab": (1 - alphabar).sqrt(),
        "mab_over_sqrtmab": beta / (1 - alphabar).sqrt(),
    }


def published_loop(state, tables, draws, label, w):
    """Its sample(): ancestral steps of (1 + w) eps of the class - w eps of none."""
    x, nobody = draws[0], torch.zeros(len(label))
    for row, i in enumerate(range(T, 0, -1)):
        t = torch.full((len(label),), i / T)
        eps = (1 + w) * published(state, x, label, t, nobody) - w * published(state, x, label, t, nobody + 1)
        noise = draws[row + 1] if i > 1 else 0
        x = tables["oneover_sqrta"][i] * (x - eps * tables["mab_over_sqrtmab"][i]) + tables["sqrt_beta_t"][i] * noise
    return x


def its_file(path, network, timesteps=T):
    torch.save({**buffers(timesteps), **{f"nn_model.{k}": v for k, v in network.state_dict().items()}}, path)
    return path


@pytest.mark.parametrize("channels, n_feat, classes", [(1, 8, 10), (3, 16, 4), (8, 8, 1)])
def test_the_network(channels, n_feat, classes, randomised, rel):
    network = randomised(ContextUnet(channels, n_feat, classes, edition="mnist")).eval().double()
    x, t, label = torch.randn(4, channels, 28, 28).double(), torch.rand(4).double(), torch.arange(4) % classes
    masked = torch.tensor([0, 1, 0, 1])
    context = F.one_hot(label, classes).double() * (1 - masked[:, None])
    with torch.no_grad():
        expected = published(network.state_dict(), x, label, t, masked)
        assert rel(network(x, t, context), expected) < 1e-12
        assert rel(network.float()(x.float(), t.float(), context), expected) < BOUND
        assert rel(network(x.float(), t.float()), network(x.float(), t.float(), 0 * context.float())) < 1e-6


def test_its_names_are_the_published_ones(randomised):
    """All that the formulas above read, and BatchNorm's counters."""

    class Read(dict):
        def __getitem__(self, name):
            seen.add(name)
            return super().__getitem__(name)

    seen: set[str] = set()
    network = randomised(ContextUnet(1, 8, 10, edition="mnist"))
    published(Read(network.state_dict()), torch.zeros(1, 1, 28, 28), torch.tensor([3]), torch.ones(1), torch.zeros(1))
    assert {name for name in network.state_dict() if not name.endswith("num_batches_tracked")} == seen


@pytest.mark.filterwarnings("error")
def test_its_file_says_its_timesteps(randomised, tmp_path):
    network = randomised(ContextUnet(1, 8, 10, 28, edition="mnist"))
    model = load(its_file(tmp_path / "model_19.pth", network, 400))
    assert model.network.options == network.options and model.time == "fraction"
    assert (model.schedule.name, model.schedule.num_timesteps, model.schedule.first) == ("course", 400, 1)
    assert model.image_shape == (1, 28, 28) and model.prediction_type == "epsilon"
    assert all(torch.equal(value, model.network.state_dict()[name]) for name, value in network.state_dict().items())
    save(model, tmp_path / "own.safetensors")
    assert load(tmp_path / "own.safetensors").network.options["edition"] == "mnist"


def test_points_of_another_schedule(randomised, tmp_path, rel):
    network = randomised(ContextUnet(1, 8, 10, 28, edition="mnist"))
    abar = torch.tensor([0.99, 0.9, 0.5, 0.1], dtype=torch.float64)
    torch.save(
        {"alphabar_t": abar, **{f"nn_model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "m.pth"
    )
    schedule = load(tmp_path / "m.pth").schedule
    assert schedule.num_timesteps == 3 and schedule.first == 1
    assert rel(schedule.alphas_cumprod[1:], abar[1:]) < 1e-12
    given = buffers(400, 1e-5, 5e-3)
    torch.save({**given, **{f"nn_model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "narrow.pth")
    schedule = load(tmp_path / "narrow.pth").schedule  # whose alphabar begins nearer to 1 than float32 can tell
    np.testing.assert_allclose(schedule.betas, np.linspace(1e-5, 5e-3, 401), rtol=1e-6)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    with pytest.warns(
        UserWarning, match=r"bare.pth does not say the schedule .*; assumed: Schedule\('course', 400 time"
    ):
        load(tmp_path / "bare.pth")


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
def test_its_loop_and_guidance(w, randomised, rel, tmp_path):
    network = randomised(ContextUnet(1, 8, 10, 28, edition="mnist")).eval()
    model = load(its_file(tmp_path / "m.pth", network))
    draws, label = torch.randn(T, 3, 1, 28, 28), torch.tensor([7, 0, 3])
    with torch.no_grad():
        expected = published_loop(network.state_dict(), buffers(T), draws, label, w)
    ours = sample(
        model,
        3,
        "ddpm_large",
        context=F.one_hot(label, 10).float(),
        guidance_scale=1 + w,
        noise=lambda draw, first, shape: draws[draw],
        device="cpu",
    )
    assert rel(ours, expected) < 1e-4  # 20 steps multiply what float32 rounds


@pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))
def test_a_guided_step_is_c_alone(randomised):
    network = randomised(ContextUnet(1, 8, 10, 28, edition="mnist")).eval()
    model = Model(network, make_schedule("course", 30), image_shape=(1, 28, 28), time="fraction")
    engine = Engine(model, model.table("ddim", 3), batch_size=2, device="cpu")
    engine.sample(2, context=torch.eye(10)[:2], guidance_scale=2.0)
    (said,) = engine.holds()["steps"].values()
    assert "calls of C kernels" in said and "in torch" not in said


def test_bad_options_are_named():
    with pytest.raises(InputError, match="edition 'minst'.*mnist"):
        ContextUnet(edition="minst")
    with pytest.raises(InputError, match="shortcut = True with edition 'mnist'; accepted: False"):
        ContextUnet(edition="mnist", shortcut=True)
