"""denoising-diffusion-pytorch's files: the network, its averaged weights, the schedule and what it predicts."""

import importlib.util
import warnings

import numpy as np
import pytest
import torch

from fastdiff import InputError, load, make_schedule, sample, save
from fastdiff.bench.peers import others
from fastdiff.networks.lucidrains import LucidrainsLayerNormUnet, LucidrainsUnet
from fastdiff.networks.resnet_unet import AnnotatedResnetUnet

OPTIONS = {
    "as it comes": dict(dim=8, dim_mults=(1, 2)),
    "heads": dict(dim=8, dim_mults=(1, 2), heads=(2, 3), head_dim=(16, 8), full_attention=(True, False), init_dim=6),
    "learned times": dict(dim=8, dim_mults=(1, 3), learned_sinusoids=4, memories=2),
    "of 1.9": dict(dim=8, dim_mults=(1, 2), groups=8, heads=2, head_dim=16),
    "of 1.8": dict(dim=8, dim_mults=(1, 2), groups=8, memories=0, full_attention=(True, False)),
    "self-conditioning": dict(dim=8, dim_mults=(1, 2), self_condition=True),
    "a learned variance": dict(dim=8, dim_mults=(1, 2), out_dim=6),
}
BETAS = make_schedule("squaredcos_cap_v2", 100).betas
SNR = 1 / (1 - np.cumprod(1 - BETAS)) - 1
WEIGHTS = {
    "epsilon": np.ones(100),
    "sample": SNR,
    "v_prediction": SNR / (SNR + 1),
    "epsilon, min-SNR": np.minimum(SNR, 5) / SNR,
    "sample, min-SNR": np.minimum(SNR, 5),
    "v_prediction, min-SNR": np.minimum(SNR, 5) / (SNR + 1),
}


def trainers_file(path, network, weight, version="2.3.4"):
    """As its Trainer saves: the raw wrapper, and the moving average of it."""
    buffers = {
        name: torch.tensor(value, dtype=torch.float32) for name, value in (("betas", BETAS), ("loss_weight", weight))
    }
    raw = {**buffers, **{f"model.{name}": torch.zeros_like(value) for name, value in network.state_dict().items()}}
    averaged = {**buffers, **{f"model.{name}": value for name, value in network.state_dict().items()}}
    ema = {f"online_model.{name}": value for name, value in raw.items()}
    ema |= {f"ema_model.{name}": value for name, value in averaged.items()}
    ema |= {"initted": torch.tensor(True), "step": torch.tensor(9)}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {"step": 9, "model": raw, "opt": optimizer, "ema": ema, "scaler": None}
    torch.save(content if version is None else {**content, "version": version}, path)
    return path


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_network_follows_from_the_shapes(kind, randomised, tmp_path):
    network = randomised(LucidrainsUnet(**OPTIONS[kind]))
    model = load(trainers_file(tmp_path / "model-1.pt", network, WEIGHTS["epsilon"]), image_size=16)
    assert all(torch.equal(value, model.network.state_dict()[name]) for name, value in network.state_dict().items())
    x, t, x0 = torch.randn(2, 3, 16, 16), torch.tensor([3, 90]), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.network(x, t, x0), network.eval()(x, t, x0))
    assert model.self_condition == (kind == "self-conditioning")
    assert model.learned_variance == model.table("ddpm").learned_variance == (kind == "a learned variance")
    assert model.image_shape == (3, 16, 16) and model.clip == 1.0 and model.time == "index"
    np.testing.assert_allclose(model.schedule.betas, BETAS, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        dict(dim=8, dim_mults=(1, 2)),
        dict(dim=16, dim_mults=(1,), learned_sinusoids=3),
        dict(dim=8, dim_mults=(1,), self_condition=True),
    ],
)
def test_versions_with_layer_norm(options, randomised, tmp_path):
    network = randomised(LucidrainsLayerNormUnet(**options))
    path = trainers_file(tmp_path / "model-1.pt", network, WEIGHTS["epsilon"], "1.5.4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(path, image_size=16)
    assert type(model.network) is LucidrainsLayerNormUnet and model.network.options == {
        **network.options,
        "init_dim": network.options["dim"],
        "out_dim": 3,
    }
    assert all(torch.equal(value, model.network.state_dict()[name]) for name, value in network.state_dict().items())
    assert model.clip == 1.0 and model.prediction_type == "epsilon"
    trainers_file(path, network, WEIGHTS["epsilon"], None)
    with pytest.warns(UserWarning, match="model-1.pt does not say by which version .*; assumed: 0.32 to 1.6, not 1.7"):
        load(path, image_size=16)


@pytest.mark.parametrize(
    "change, version, words",
    [
        (lambda s: s, "1.7.2", "denoising-diffusion-pytorch 1.7.2, whose network changed from release to release"),
        (lambda s: {**s, "downs.0.3.weight": torch.zeros(16, 8, 4, 4)}, None, "before 0.32, whose attention changed"),
        (lambda s: {**s, "downs.0.2.fn.norm.b": torch.zeros(8)}, None, "an early denoising-diffusion-pytorch"),
        (lambda s: {**s, "init_conv.weight": torch.zeros(8, 5, 7, 7)}, "1.5.4", "takes 5 channels and predicts 3"),
        (lambda s: {**s, "mid_attn.fn.fn.to_qkv.weight": torch.zeros(96, 16, 1, 1)}, "1.5.4", "not 4 heads of 32"),
        (
            lambda s: {**s, "classes_mlp.0.weight": torch.zeros(32, 8)},
            "1.5.4",
            "the classifier-free edition of denoising-diffusion-pytorch before 2.0, which is not supported",
        ),
    ],
)
def test_other_versions_with_layer_norm_are_refused(change, version, words, randomised, tmp_path):
    state = change(randomised(LucidrainsLayerNormUnet(8, dim_mults=(1, 2))).state_dict())
    torch.save({"model": state} if version is None else {"model": state, "version": version}, tmp_path / "m.pt")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "m.pt", make_schedule("linear", 50), 8, prediction_type="epsilon")
    assert words in str(caught.value) and "m.pt" in str(caught.value)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_it_predicts_follows_from_the_losses_weights(kind, randomised, tmp_path):
    path = trainers_file(tmp_path / "model-1.pt", randomised(LucidrainsUnet(8, dim_mults=(1,))), WEIGHTS[kind])
    assert load(path, image_size=8).prediction_type == kind.split(",")[0]
    assert load(path, image_size=8, prediction_type="sample").prediction_type == "sample"
    assert load(path, make_schedule("linear", 7), 8).prediction_type == kind.split(",")[0]


def test_what_is_not_in_a_file_is_asked_for(randomised, tmp_path):
    network = randomised(LucidrainsUnet(8, dim_mults=(1,)))
    path = trainers_file(tmp_path / "model-1.pt", network, WEIGHTS["epsilon"])
    with pytest.raises(
        InputError, match=r"does not say the image size of its model; give image_size \(--image-size\)$"
    ):
        load(path)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(InputError, match="the image size nor the schedule nor the prediction type .*--prediction-type"):
        load(tmp_path / "bare.pt")
    model = load(tmp_path / "bare.pt", make_schedule("linear", 50), 8, prediction_type="v_prediction")
    assert model.prediction_type == "v_prediction" and model.schedule.num_timesteps == 50


@pytest.mark.parametrize("kind", ["heads", "self-conditioning", "a learned variance"])
def test_it_is_saved_as_fastdiffs_own(kind, randomised, tmp_path):
    network = randomised(LucidrainsUnet(**OPTIONS[kind]))
    model = load(trainers_file(tmp_path / "model-1.pt", network, WEIGHTS["v_prediction"]), image_size=16)
    save(model, tmp_path / "own.safetensors")
    again = load(tmp_path / "own.safetensors")
    assert again.prediction_type == "v_prediction" and again.clip == 1.0
    assert (again.self_condition, again.learned_variance) == (model.self_condition, model.learned_variance)
    assert torch.equal(sample(again, 1, steps=3, device="cpu"), sample(model, 1, steps=3, device="cpu"))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda s: {**s, "final_conv.weight": torch.zeros(4, 8, 1, 1)},
            "takes 3 channels and predicts 4; accepted: as",
        ),
        (lambda s: {**s, "mid_block1.block1.norm.weight": torch.zeros(8)}, "14 unexpected (downs.0.0.block1.norm.g"),
        (lambda s: {**s, "init_conv.weight": torch.zeros(8, 3, 7)}, "denoising-diffusion-pytorch's Unet1D"),
        (lambda s: {k: v for k, v in s.items() if k != "downs.0.2.mem_kv"}, "it has no downs.0.2.mem_kv"),
        (lambda s: {k: v for k, v in s.items() if "downs" not in k}, "it has no downs.0.0.block1.proj.weight"),
    ],
)
def test_others_of_its_kind_are_refused(change, words, randomised, tmp_path):
    torch.save(change(randomised(LucidrainsUnet(8, dim_mults=(1,))).state_dict()), tmp_path / "m.pt")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "m.pt", make_schedule("linear", 50), 8, prediction_type="epsilon")
    assert words in str(caught.value) and "m.pt" in str(caught.value)


@pytest.mark.parametrize(
    "objective, kind, options",
    [
        ("pred_noise", "epsilon", {}),
        ("pred_x0", "sample", {}),
        ("pred_v", "v_prediction", {}),
        ("pred_v", "v_prediction", {"self_condition": True}),
        ("pred_noise", "epsilon", {"learned_variance": True}),
    ],
)
def test_its_own_loops_images(objective, kind, options, randomised, rel, tmp_path, monkeypatch):
    """Its ddpm, which clips, from the same noise; and its files, written by the library itself."""
    for package in ("denoising_diffusion_pytorch", "einops"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    library = others.lucidrains()
    library.tqdm = lambda steps, *given, **options: steps
    unet = randomised(library.Unet(8, dim_mults=(1, 2), **options))
    made = library.GaussianDiffusion
    if options.get("learned_variance"):
        made = others.lucidrains("learned_gaussian_diffusion").LearnedGaussianDiffusion
    loop = made(unet, image_size=16, timesteps=50, objective=objective, auto_normalize=False).eval()
    torch.save({"step": 1, "model": loop.state_dict(), "version": "2.3.4"}, tmp_path / "model-1.pt")
    model = load(tmp_path / "model-1.pt", image_size=16)
    assert model.prediction_type == kind
    draws = [torch.randn(2, 3, 16, 16) for _ in range(50)]
    left = iter(draws)
    monkeypatch.setattr(library.torch, "randn", lambda *shape, **options: next(left))
    monkeypatch.setattr(library.torch, "randn_like", lambda x: next(left))
    theirs = loop.sample(batch_size=2)
    monkeypatch.undo()
    ours = sample(model, 2, "ddpm", noise=lambda draw, first, shape: draws[draw], device="cpu")
    assert float((ours - theirs).abs().max()) < 2e-3  # of the range of 2


@pytest.mark.parametrize("options", [dict(dim=8), dict(dim=12, dim_mults=(1, 3), channels=3, init_dim=4, out_dim=6)])
def test_the_annotated_tutorial_of_today(options, randomised, tmp_path):
    network = randomised(AnnotatedResnetUnet(**options))
    torch.save(network.state_dict(), tmp_path / "blog.pt")
    with pytest.warns(UserWarning, match="assumed: 28 pixels a side, Schedule.'linear', 300 timesteps"):
        model = load(tmp_path / "blog.pt")
    assert type(model.network) is AnnotatedResnetUnet and model.schedule.num_timesteps == 300
    assert all(torch.equal(value, model.network.state_dict()[name]) for name, value in network.state_dict().items())
