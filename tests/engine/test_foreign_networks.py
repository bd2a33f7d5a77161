"""Networks in the code of others: captured without a warning, their images are those of the network as it is."""

import dataclasses
import warnings
from importlib.util import find_spec

import pytest
import torch

from fastdiff import Engine, Model, make_schedule, sample
from fastdiff.bench.peers import others
from fastdiff.bench.peers.edm import AttentionOp, SongUNet
from fastdiff.bench.peers.guided import UNetModel
from fastdiff.engine import engine as engine_module
from fastdiff.engine import evaluation
from fastdiff.engine.forms import FORMS
from fastdiff.kernels.cpu import compiled

needs_compiler = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))


def guided(film):
    """Heads of 4 channels, attention at the lower of two levels."""
    return UNetModel(3, 8, 1, (2,), (1, 2), num_head_channels=4, use_scale_shift_norm=film)


def edm(film):
    return SongUNet(16, 3, 8, (1, 2), num_blocks=1, attn_resolutions=(8,), adaptive_scale=film)


def unet2d():
    pytest.importorskip("diffusers")
    return others.diffusers().UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )


def lucidrains():
    for package in ("denoising_diffusion_pytorch", "einops"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    return others.lucidrains().Unet(8, dim_mults=(1, 2))


NETWORKS = {
    "guided": lambda: guided(True),
    "guided, added": lambda: guided(False),
    "edm": lambda: edm(True),
    "edm, added": lambda: edm(False),
    "unet2d": unet2d,
    "lucidrains": lucidrains,
}


@needs_compiler
@pytest.mark.parametrize("time", ["index", "fraction"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_captured_form_makes_the_networks_own_images(name, time, randomised, rel):
    model = Model(randomised(NETWORKS[name]()), make_schedule("linear", 50), image_shape=(3, 16, 16), time=time)
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a network that cannot be captured
        images, own = (sample(model, 3, "ddim", steps=4, device="cpu", form=form) for form in ("cpu", "eager"))
    assert images.shape == (3, 3, 16, 16) and not torch.equal(images, own)  # else both were the same path
    assert rel(images, own) < 1e-5  # float32 roundings, over four evaluations
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_captured_step_makes_the_networks_own_images(pool, cuda, name, randomised, rel, monkeypatch):
    """The rewritten graph, by the stand-in for CUDA graphs, which sees no work in C; noise and the last x0 are used."""
    form = dataclasses.replace(FORMS["cpu"], captured=True)
    monkeypatch.setattr(engine_module, "choose_form", lambda name, *more: FORMS[name] if name else form)
    monkeypatch.setattr(evaluation, "_in_c", lambda given: False)
    model = Model(randomised(NETWORKS[name]()), make_schedule("linear", 50), image_shape=(3, 16, 16))
    engine = Engine(model, model.table("dpmpp_2m_sde", 4), batch_size=2, device="cpu")
    images = engine.sample(3, seed=1)
    own = sample(model, 3, "dpmpp_2m_sde", steps=4, seed=1, device="cpu", form="eager")
    assert cuda.captures == 1 and cuda.replays >= 8 and rel(images, own) < 1e-5


@pytest.mark.parametrize("name", ["guided", "edm"])
def test_time_and_every_sample_count(name, randomised, rel):
    """A batch's samples, each at its own time, are those of batches of one; without the time they would not differ."""
    network, x, t = randomised(NETWORKS[name]()).eval(), torch.randn(3, 3, 16, 16), torch.tensor([3, 500, 900])
    with torch.no_grad():
        out = network(x, t)
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
        assert out.shape == x.shape and rel(out, alone) < 1e-5
        assert rel(network(x, t.float()), out) < 1e-6 and rel(network(x, t.flip(0)), out) > 1e-3


def test_edms_attention_has_the_gradient_of_what_it_computes():
    q, k = (torch.randn(2, 4, 5, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, 5, 5)
    given = torch.autograd.grad((AttentionOp.apply(q, k) * weight).sum(), (q, k))
    plain = (q.transpose(1, 2) @ k / 2).softmax(dim=2)
    for one, two in zip(given, torch.autograd.grad((plain * weight).sum(), (q, k)), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
