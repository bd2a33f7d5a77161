"""diffusers' schedulers around our network give our images; other libraries' networks run, or say what is missing."""

import importlib
import importlib.util
import sys

import pytest
import torch

import fastdiff
from fastdiff import InputError, Model
from fastdiff.bench.peers import others, schedulers
from fastdiff.bench.static.traffic import count_flop
from fastdiff.engine.noise import PhiloxNoise

SEED, T = 7, 50
# float32 loops of 50 steps, and diffusers' float32 schedule against ours in float64
BOUND = 1e-4
LACKING = [name for name in ("denoising_diffusion_pytorch", "einops") if importlib.util.find_spec(name) is None]
needs_lucidrains = pytest.mark.skipif(bool(LACKING), reason=f"needs {' and '.join(LACKING)}")


@pytest.fixture
def models(tiny) -> dict[str, Model]:
    return {name[0]: model for name, model in tiny(T).items()}


def predictor(model):
    return lambda x, t: model.network(x, torch.full((len(x),), t))


def theirs(model, sampler, steps, noise="ours", n=2):
    source = PhiloxNoise(SEED)
    shape = n, *model.image_shape
    given = (lambda draw: source(draw, 0, shape)) if noise == "ours" else noise
    return schedulers.sample(model, sampler, steps, predictor(model), given, shape, "cpu")


def ours(model, sampler, steps, n=2):
    # On all timesteps the spacings are the same nodes: fastdiff.sample's own then does.
    spacing = "trailing" if steps == T else schedulers.spacing_of(model, sampler)
    return fastdiff.sample(model, n, sampler, steps=steps, spacing=spacing, seed=SEED, device="cpu", form="eager")


RUNS = [
    ("ddim", 25),
    ("ddim", 50),
    ("ddpm", T),
    ("ddpm", 15),
    ("ddpm_large", T),
    ("ddpm_large", 15),
    ("dpmpp_2m", 15),
    ("dpmpp_2m", 2),
]


@pytest.mark.parametrize("sampler, steps", RUNS)
@pytest.mark.parametrize("system", ["A", "B"])
def test_the_images_are_ours(system, sampler, steps, models, rel):
    model = models[system]
    images = theirs(model, sampler, steps)
    assert images.shape == (2, *model.image_shape) and images.dtype == torch.float32
    assert rel(images, ours(model, sampler, steps)) < BOUND


@pytest.mark.parametrize("system", ["A", "B"])
def test_without_given_noise_each_call_draws_its_own(system, models):
    from diffusers.schedulers import scheduling_ddpm

    own = scheduling_ddpm.randn_tensor
    for sampler in schedulers.SAMPLERS:
        one, two = (theirs(models[system], sampler, 10, noise=None) for _ in range(2))
        assert one.isfinite().all() and not torch.equal(one, two)
    # A given source is all the noise there is, and DDPMScheduler has its own back afterwards, whatever happens.
    before = torch.get_rng_state()
    theirs(models[system], "ddpm", 10)
    assert scheduling_ddpm.randn_tensor is own and torch.equal(torch.get_rng_state(), before)
    shape = (2, *models[system].image_shape)
    with pytest.raises(ZeroDivisionError):
        theirs(models[system], "ddpm", 10, noise=lambda draw: torch.zeros(shape) if draw == 0 else 1 / 0)
    assert scheduling_ddpm.randn_tensor is own


def test_another_sampler_is_refused(models):
    with pytest.raises(InputError, match="unknown sampler 'dpm'; accepted: ddim, ddpm, ddpm_large, dpmpp_2m"):
        theirs(models["A"], "dpm", 10)


# --- Other networks ----------------------------------------------------------------------------------------------

LIBRARIES = [others.diffusers_unet, pytest.param(others.lucidrains_unet, marks=needs_lucidrains)]


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("channels, size, parameters", [(1, 28, 2996035), (3, 16, 1481027), (3, 64, 10**6)])
def test_a_network_is_of_similar_size(make, channels, size, parameters):
    """As many parameters as A28@28 and B@16 have, and fewer at 64 pixels."""
    other, again = (make(channels, size, parameters, "cpu") for _ in range(2))
    assert other.parameters == sum(p.numel() for p in other.network.parameters())
    assert 0.85 < other.parameters / parameters < 1.15  # widths come in steps of 4
    x, t = torch.randn(1, channels, size, size), torch.tensor([5])
    out = other.predict(x, t)
    assert out.shape == x.shape and not torch.equal(out, other.predict(x, t + 500))
    assert torch.equal(out, again.predict(x, t)) and again.name == other.name


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_their_own_loop(make, dtype, capsys):
    other = make(1, 16, 10**5, "cpu", dtype)
    theirs = make == others.lucidrains_unet
    timesteps = []
    other.network.register_forward_hook(lambda *given: timesteps.append(int(given[1][1].flatten()[0])))
    for sampler in ("ddim", "ddpm") if theirs else ("ddim", "ddpm", "ddpm_large", "dpmpp_2m"):
        timesteps.clear()
        images = other.sample(sampler, 4, 2)
        assert images.shape == (2, 1, 16, 16) and images.isfinite().all() and images.std() > 0
        assert 0 <= images.min() <= images.max() <= 1 and not torch.equal(images, other.sample(sampler, 4, 2))
        assert timesteps[:4] == timesteps[4:]
        if theirs:  # of "ddpm" all that there are
            assert timesteps[:4] == ([999, 749, 499, 249] if sampler == "ddim" else [3, 2, 1, 0])
    with pytest.raises(InputError, match="sampler 'euler'.*; accepted: ddim, ddpm"):
        other.sample("euler", 4, 1)
    for name in others.UNUSED:  # no stand-in is left
        assert name not in sys.modules or importlib.util.find_spec(name) is not None
    assert capsys.readouterr().err == ""  # their bars


def test_an_evaluation_is_counted():
    """The first convolution alone, 3x3 from 1 to w channels, is 2 * 9 * w * 256; all is less than every weight on
    every position."""
    other = others.diffusers_unet(1, 16, 10**5, "cpu")
    flop = count_flop(lambda: other.predict(torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.int64)))
    assert 2 * 9 * 8 * 256 < flop < 2 * other.parameters * 256


def test_without_a_library_there_is_one_sentence(models, monkeypatch):
    for name in ("diffusers", "denoising_diffusion_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "denoising_diffusion_pytorch.denoising_diffusion_pytorch", raising=False)
    schedulers.scheduler.cache_clear()
    for call, said in (
        (lambda: theirs(models["A"], "ddim", 10), "diffusers is not installed; pip install diffusers"),
        (others.diffusers, "diffusers is not installed; pip install diffusers"),
        (others.lucidrains, others.LUCIDRAINS),
    ):
        with pytest.raises(ImportError) as raised:
            call()
        assert str(raised.value) == said


def test_stand_ins_vanish_never_shadow_and_are_of_no_use(tmp_path, monkeypatch):
    """`absent` and `gone` are installed nowhere; `present` fails to import, and is not replaced."""
    (tmp_path / "present.py").write_text("raise ImportError('no CUDA here')\n")
    (tmp_path / "wanting.py").write_text("from absent import transforms as T, utils\nfrom gone.deep import Thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no CUDA here"), others.stand_ins(("absent", "gone.deep", "present")):
        wanting = importlib.import_module("wanting")
        importlib.import_module("present")
    assert sys.modules.pop("wanting") is wanting and not {"absent", "gone.deep"} & sys.modules.keys()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("absent")
    with pytest.raises(ImportError, match="^absent.transforms.Compose is called, and absent is not installed$"):
        wanting.T.Compose([wanting.Thing])
