"""OpenAI's files: the network by its shapes, what is assumed and said, and their own loop's images."""

import json
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import InputError, load, make_schedule, sample, save
from fastdiff.checkpoints.openai import openai_options
from fastdiff.cli.main import main
from fastdiff.networks.openai import OpenaiUnet

SMALL = dict(model_channels=32, num_res_blocks=1, channel_mult=[1, 2], attention_levels=[1])
KINDS = {
    "as it comes": dict(num_res_blocks=2),
    "guided": dict(resblock_updown=True, num_classes=5, out_channels=6),
    "attention nowhere but between": dict(resblock_updown=True, attention_levels=[], num_res_blocks=3),
    "three levels": dict(channel_mult=[1, 2, 3], attention_levels=[0, 2], use_scale_shift_norm=False),
    "no convolutions between levels": dict(conv_resample=False, channel_mult=[1, 1, 2], num_res_blocks=2),
    "narrow at first": dict(model_channels=64, channel_mult=[0.5, 1, 1], in_channels=1, out_channels=2),
    "one level": dict(channel_mult=[1], attention_levels=[], num_res_blocks=3),
}
LINEAR = make_schedule("linear", 1000)


def guided(randomised):
    return randomised(OpenaiUnet(**{**SMALL, **KINDS["guided"]}, num_head_channels=64)).eval()


@settings(max_examples=60)
@given(
    each=st.integers(1, 3),
    base=st.sampled_from([32, 64, 96, 160]),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    attended=st.sets(st.integers(0, 3)),
    classes=st.none() | st.integers(1, 9),
    channels=st.sampled_from([(1, 1), (3, 3), (3, 6)]),
    flags=st.tuples(*[st.booleans()] * 3),
)
def test_all_that_shapes_tell(each, base, widths, attended, classes, channels, flags):
    film, updown, conv = flags
    options = dict(
        in_channels=channels[0],
        out_channels=channels[1],
        model_channels=base,
        num_res_blocks=each,
        channel_mult=[32 * width / base for width in widths],
        attention_levels=sorted(level for level in attended if level < len(widths)),
        num_classes=classes,
        use_scale_shift_norm=film,
        resblock_updown=updown and len(widths) > 1,  # a single level shows neither
        conv_resample=conv or updown or len(widths) == 1,
    )
    with torch.device("meta"):
        assert openai_options(OpenaiUnet(**options, num_heads=1).state_dict()) == options


def file(path, state):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_follows_from_the_shapes(kind, randomised, tmp_path):
    network = randomised(OpenaiUnet(**{**SMALL, **KINDS[kind]})).eval()
    with pytest.warns(UserWarning, match="divides attention and scales t; assumed: "):
        model = load(file(tmp_path / "ema_0.9999_250000.pt", network.state_dict()), LINEAR, 16)
    found, chosen = model.network.options, network.options
    for name in chosen.keys() - {"out_channels", "num_heads", "num_head_channels"}:
        assert found[name] == chosen[name], name
    channels = chosen["in_channels"]
    assert model.image_shape == (channels, 16, 16) and model.clip == 1.0 and model.time == "index"
    assert model.prediction_type == "epsilon" and model.num_classes == chosen["num_classes"]
    assert model.learned_variance == (chosen["out_channels"] == 2 * channels) and model.null_class is None
    assert all(torch.equal(value, model.network.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "updown, model_channels, timesteps, expected",
    [
        (True, 32, 1000, (4, 64, 1.0)),  # guided-diffusion's: heads of 64 channels
        (True, 32, 4000, (4, 64, 1.0)),
        (True, 96, 1000, (4, 64, 1.0)),  # 192 channels, of which there are 3 heads
        (False, 32, 4000, (4, None, 0.25)),  # improved-diffusion's: 4 heads, and 1000 t / T
        (False, 32, 1000, (4, None, 1.0)),
    ],
)
def test_what_no_weight_tells_is_assumed_and_said(updown, model_channels, timesteps, expected, randomised, tmp_path):
    network = OpenaiUnet(**{**SMALL, "model_channels": model_channels}, resblock_updown=updown)
    path = file(tmp_path / "model.pt", randomised(network).state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(path, make_schedule("linear", timesteps), 16).network.options
    assert (found["num_heads"], found["num_head_channels"], found["time_scale"]) == expected
    (said,) = (str(warning.message) for warning in caught)
    heads = "num_heads = 4" if expected[1] is None else "num_head_channels = 64"
    assert f"assumed: {heads}, use_new_attention_order = False, time_scale = {expected[2]};" in said
    assert "model.pt" in said and all(warning.filename == __file__ for warning in caught)


def test_heads_of_64_where_they_do_not_fit(randomised, tmp_path):
    network = OpenaiUnet(**{**SMALL, "channel_mult": [1, 3]}, resblock_updown=True)
    path = file(tmp_path / "model.pt", randomised(network).state_dict())
    with pytest.warns(UserWarning, match="assumed: num_heads = 4"):
        assert load(path, LINEAR, 16).network.options["num_heads"] == 4


def test_other_heads(randomised, tmp_path):
    """The way that the documentation names."""
    network = randomised(OpenaiUnet(**SMALL, num_heads=2, use_new_attention_order=True)).eval()
    with pytest.warns(UserWarning, match="num_heads = 4"):
        model = load(file(tmp_path / "m.pt", network.state_dict()), LINEAR, 16)
    other = OpenaiUnet(**{**model.network.options, "num_heads": 2, "use_new_attention_order": True}).eval()
    other.load_state_dict(model.network.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 90])
    with torch.no_grad():
        assert torch.equal(other(x, t), network(x, t)) and not torch.equal(model.network(x, t), network(x, t))


def test_the_image_size_is_asked_for_and_the_schedule_assumed(randomised, tmp_path):
    path = file(tmp_path / "m.pt", guided(randomised).state_dict())
    with pytest.raises(InputError, match=r"not say the image size of its model; give image_size \(--image-size\)$"):
        load(path)
    with (
        pytest.warns(UserWarning, match="num_head_channels"),
        pytest.warns(UserWarning, match="not say the schedule of its model; assumed: Schedule.'linear', 1000 "),
    ):
        model = load(path, image_size=(16, 24))
    np.testing.assert_array_equal(model.schedule.betas, LINEAR.betas)
    assert model.image_shape == (3, 16, 24)
    with pytest.warns(UserWarning, match="num_head_channels"):
        model = load(path, make_schedule("squaredcos_cap_v2", 4000), 16, prediction_type="sample")
    assert model.schedule.num_timesteps == 4000 and model.prediction_type == "sample"


@pytest.mark.filterwarnings("ignore:.*divides attention")
@pytest.mark.parametrize("around", ["bare", "averaged", "float16", "DataParallel"])
def test_what_lies_around_the_weights(around, randomised, tmp_path):
    state = guided(randomised).state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    content = {
        "bare": state,
        "averaged": {"model": zeros, "ema": state, "step": 9},
        "float16": {name: value.half() for name, value in state.items()},
        "DataParallel": {f"module.{name}": value for name, value in state.items()},
    }[around]
    found = load(file(tmp_path / "m.pt", content), LINEAR, 16).network.state_dict()
    expected = {name: value.half().float() if around == "float16" else value for name, value in state.items()}
    assert all(value.dtype == torch.float32 and torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.filterwarnings("ignore:.*divides attention")
def test_it_is_saved_as_fastdiffs_own(randomised, tmp_path):
    model = load(file(tmp_path / "m.pt", guided(randomised).state_dict()), LINEAR, 16)
    save(model, tmp_path / "own.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(tmp_path / "own.safetensors")
    assert again.learned_variance and again.num_classes == 5 and again.network.options == model.network.options
    images = [sample(one, 1, "ddpm", steps=3, context=4, device="cpu") for one in (model, again)]
    assert torch.equal(*images)


@pytest.mark.filterwarnings("ignore:.*divides attention")
def test_info(randomised, tmp_path):
    path = file(tmp_path / "m.pt", guided(randomised).state_dict())
    words = ["info", str(path), "--image-size", "16", "--schedule", "linear", "--timesteps", "1000"]
    result = CliRunner().invoke(main, [*words, "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["network"].startswith("OpenaiUnet(in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1")
    assert facts["prediction_type"] == "epsilon, and the noise's variance"
    assert facts["classes"] == "5, without names: a context is a number from 0 to 4, or --class-names names them"
    named = CliRunner().invoke(main, [*words, "--json", "--class-names", "a,b,c,d,e"], catch_exceptions=False)
    assert json.loads(named.stdout)["classes"] == "a, b, c, d, e"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: {**s, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, "takes 6 channels and predicts 6"),
        (lambda s: {**s, "out.2.weight": torch.zeros(4, 32, 3, 3)}, "takes 3 channels and predicts 4"),
        (
            lambda s: {**s, "input_blocks.3.1.transformer_blocks.0.norm1.weight": torch.zeros(64)},
            "a network with cross-attention",
        ),
        (lambda s: {k: v for k, v in s.items() if "input_blocks.1" not in k}, "it has no input_blocks.1.0."),
        (lambda s: {k: v for k, v in s.items() if "output_blocks.3" not in k}, "3 output blocks, which are no levels"),
        (lambda s: {k: v for k, v in s.items() if "proj_out" not in k}, "missing (input_blocks.3.1.proj_out.bias"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*divides attention")
def test_others_of_its_kind_are_refused(change, words, randomised, tmp_path):
    with pytest.raises(InputError) as caught:
        load(file(tmp_path / "m.pt", change(guided(randomised).state_dict())), LINEAR, 16)
    assert words in str(caught.value) and "m.pt" in str(caught.value)


def published_loop(network, schedule, nodes, draws, y, learned=True):
    """p_sample_loop of a respaced diffusion, learned range and clipped x0, in float64 but for the network's work.

    Without `learned` the variance is the largest, whatever the network says.
    """
    abar = schedule.alphas_cumprod[nodes]
    before = np.append(1.0, abar[:-1])
    betas = 1 - abar / before
    posterior = betas * (1 - before) / (1 - abar)
    smallest = np.log(np.append(posterior[1], posterior[1:]))
    x = draws[0].double()
    for k, i in enumerate(reversed(range(len(nodes)))):
        with torch.no_grad():
            out = network(x.float(), torch.full((len(x),), nodes[i]), y).double()
        eps, fraction = out[:, :3], (out[:, 3:] + 1) / 2
        if not learned:
            fraction = torch.ones_like(fraction)
        log_variance = fraction * np.log(betas[i]) + (1 - fraction) * smallest[i]
        x0 = (np.sqrt(1 / abar[i]) * x - np.sqrt(1 / abar[i] - 1) * eps).clamp(-1, 1)
        of_x0 = betas[i] * np.sqrt(before[i]) / (1 - abar[i])
        of_x = (1 - before[i]) * np.sqrt(1 - betas[i]) / (1 - abar[i])
        x = of_x0 * x0 + of_x * x
        if i:
            x = x + torch.exp(log_variance / 2) * draws[k + 1].double()
    return x


@pytest.mark.filterwarnings("ignore:.*divides attention")
@pytest.mark.parametrize("steps", [40, 14])
def test_the_published_loops_images(steps, randomised, rel, tmp_path):
    network, schedule = guided(randomised), make_schedule("linear", 40, beta_end=0.3)
    y, draws = torch.tensor([4, 0]), [torch.randn(2, 3, 8, 8) for _ in range(steps)]
    model = load(file(tmp_path / "m.pt", network.state_dict()), schedule, 8)
    noise = {"noise": lambda draw, first, shape: draws[draw]}
    ours = sample(model, 2, "ddpm", steps=steps, spacing="linspace", context=y, **noise, device="cpu")
    nodes = [round(k * 39 / (steps - 1)) for k in range(steps)]
    theirs = published_loop(network, schedule, nodes, draws, y)
    assert rel(ours, theirs) < 1e-4  # float32's rounding in each of 40 evaluations
    assert rel(published_loop(network, schedule, nodes, draws, y.flip(0)), theirs) > 1e-2  # the class counts
    assert rel(published_loop(network, schedule, nodes, draws, y, learned=False), theirs) > 1e-2  # and the variance
