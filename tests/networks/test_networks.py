"""The networks against the published ones (bench/peers/reference.py): keys, counts, outputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import AnnotatedUnet, ContextUnet, InputError
from fastdiff.bench.peers.reference import AnnotatedReference, ContextReference

# Float32's rounding over some 60 layers, summed in another order, is about 1e-6.
BOUND = 1e-5


def pair(edition, rand, **options):
    ours = rand(AnnotatedUnet(edition=edition, **options)).eval()
    theirs = AnnotatedReference(
        edition=edition,
        **{{"convnext_mult": "mult", "resnet_groups": "groups"}.get(k, k): v for k, v in options.items()},
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize(
    "edition, parameters", [("mindspore", 2_992_180), ("mindspore-torch", 2_996_035), ("hf-2022", 2_996_315)]
)
def test_parameter_counts_are_the_published_ones(edition, parameters):
    network = AnnotatedUnet(dim=28, dim_mults=(1, 2, 4), channels=1, edition=edition)
    assert sum(p.numel() for p in network.parameters()) == parameters
    if edition == "mindspore":
        assert len(network.state_dict()) == 166


def test_published_key_names():
    keys = AnnotatedUnet(edition="mindspore").state_dict().keys()
    for key in (
        "init_conv.weight",
        "time_mlp.1.weight",
        "time_mlp.3.weight",
        "downs.0.0.mlp.1.weight",
        "downs.0.0.ds_conv.weight",
        "downs.0.0.net.0.weight",
        "downs.0.0.net.1.weight",
        "downs.0.0.net.3.weight",
        "downs.0.0.net.4.weight",
        "downs.0.0.res_conv.weight",
        "downs.0.2.fn.fn.to_qkv.weight",
        "downs.0.2.fn.fn.to_out.0.weight",
        "downs.0.2.fn.fn.to_out.1.g",
        "downs.0.2.fn.norm.weight",
        "downs.0.3.weight",
        "mid_block1.ds_conv.weight",
        "mid_attn.fn.fn.to_out.weight",
        "mid_block2.mlp.1.weight",
        "ups.0.0.ds_conv.weight",
        "ups.1.3.weight",
        "final_conv.0.ds_conv.weight",
        "final_conv.1.weight",
    ):
        assert key in keys
    assert "downs.0.0.ds_conv.bias" not in keys and "final_conv.1.bias" not in keys and "init_conv.bias" in keys


@pytest.mark.parametrize("edition", ["mindspore", "mindspore-torch", "hf-2022"])
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 1, 12, 20)])
def test_annotated_equals_the_published_network(edition, shape, rel, randomised):
    ours, theirs = pair(edition, randomised)
    x, t = torch.randn(shape), torch.randint(0, 200, shape[:1])
    with torch.no_grad():
        assert rel(ours(x, t), theirs(x, t)) < BOUND


@pytest.mark.parametrize(
    "options",
    [
        dict(dim=16, block="resnet"),
        dict(dim=24, block="resnet", resnet_groups=4, dim_mults=(1, 3), channels=3),
        dict(dim=12, dim_mults=(1,), channels=3),
        dict(dim=10, dim_mults=(1, 2, 2, 4), init_dim=7, convnext_mult=3),
    ],
)
@pytest.mark.parametrize("edition", ["mindspore-torch", "hf-2022"])
def test_other_widths_blocks_and_levels(options, edition, rel, randomised):
    ours, theirs = pair(edition, randomised, **options)
    x, t = torch.randn(3, options.get("channels", 1), 16, 24), torch.tensor([0, 3, 999])
    with torch.no_grad():
        assert rel(ours(x, t), theirs(x, t)) < BOUND


def test_the_edition_matters(randomised, rel):
    """The other GELU moves the output by far more than the bound, so the tests above can tell editions apart."""
    ours, theirs = pair("mindspore", randomised)
    for module in theirs.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "none"
    with torch.no_grad():
        x, t = torch.randn(2, 1, 28, 28), torch.tensor([5, 100])
        assert rel(ours(x, t), theirs(x, t)) > 10 * BOUND


@pytest.mark.parametrize("shortcut, published, entries", [(False, "zero", 156), (True, "trained", 158)])
@pytest.mark.parametrize("height", [16, 20, 24, 28])
def test_context_equals_the_published_network(shortcut, published, entries, height, rel, randomised):
    ours = randomised(ContextUnet(3, 16, 5, height, shortcut=shortcut)).eval()
    theirs = ContextReference(3, 16, 5, height, shortcut=published).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert len(ours.state_dict()) == entries
    x, t, c = torch.randn(4, 3, height, height), torch.rand(4), torch.randn(4, 5)
    with torch.no_grad():
        assert rel(ours(x, t, c), theirs(x, t, c)) < BOUND
        assert rel(ours(x, t), theirs(x, t)) < BOUND
        one = torch.tensor([0.3])[:, None, None, None]  # the shape in which the course's loop passes the time
        assert rel(ours(x, one, c), theirs(x, one, c)) < BOUND


def test_context_counts_are_the_published_ones():
    network = ContextUnet(3, n_feat=64, n_cfeat=5, height=16)
    assert sum(p.numel() for p in network.parameters()) == 1_480_771
    assert len(network.state_dict()) == 156
    assert not any("shortcut" in key for key in network.state_dict())
    assert "init_conv.shortcut.weight" in ContextUnet(3, 64, 5, 16, shortcut=True).state_dict()


def test_the_zero_shortcut_is_the_mean_of_the_published_random_one(rel, randomised):
    ours = randomised(ContextUnet(3, 16, 5, 16)).eval()
    theirs = ContextReference(3, 16, 5, 16, shortcut="random").eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        draws = torch.stack([theirs.init_conv(x) for _ in range(4000)])
        standard_error = draws.std(dim=0) / len(draws) ** 0.5
        z = (draws.mean(dim=0) - ours.init_conv(x)) / standard_error
    assert 0.8 < float(z.std()) < 1.2 and float(z.abs().max()) < 6  # 4,096 values: noise alone


def test_without_context_equals_the_zero_context(rel):
    network = ContextUnet(3, 16, 5, 16).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.rand(2)
    with torch.no_grad():
        assert rel(network(x, t), network(x, t, torch.zeros(2, 5))) < 1e-6


@pytest.mark.parametrize("height", [4, 8, 12, 32, 40])
def test_heights_that_the_published_network_cannot_take_work(height):
    network = ContextUnet(1, 8, 2, height).eval()
    assert network(torch.randn(2, 1, height, height), torch.rand(2)).shape == (2, 1, height, height)


def test_time_may_be_a_scalar(rel):
    network = AnnotatedUnet(dim=8, dim_mults=(1, 2)).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert rel(network(x, torch.tensor(7)), network(x, torch.tensor([7, 7]))) < 1e-6


@given(dim=st.integers(2, 20).map(lambda k: 2 * k), levels=st.integers(1, 3), channels=st.integers(1, 4))
def test_any_dim_gives_an_output_of_the_input_shape(dim, levels, channels):
    network = AnnotatedUnet(dim, dim_mults=tuple(range(1, levels + 1)), channels=channels)
    x = torch.randn(1, channels, 8, 4)
    assert network(x, torch.tensor([3])).shape == x.shape


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: AnnotatedUnet(dim=7), ["7", "even"]),
        (lambda: AnnotatedUnet(dim_mults=(2, 4)), ["(2, 4)"]),
        (lambda: AnnotatedUnet(edition="mindspor"), ["mindspor", "did you mean 'mindspore'"]),
        (lambda: AnnotatedUnet(block="resnext"), ["resnext", "did you mean"]),
        (lambda: AnnotatedUnet(dim=28, block="resnet"), ["28", "8"]),
        (lambda: AnnotatedUnet()(torch.zeros(1, 1, 30, 28), torch.zeros(1)), ["(1, 1, 30, 28)", "multiples of 4"]),
        (lambda: AnnotatedUnet()(torch.zeros(1, 3, 28, 28), torch.zeros(1)), ["(1, 3, 28, 28)", "(B, 1, H, W)"]),
        (lambda: AnnotatedUnet()(torch.zeros(1, 1, 28, 28), torch.zeros(1), torch.zeros(1, 2)), ["no context"]),
        (lambda: ContextUnet(n_feat=12), ["12", "multiple of 8"]),
        (lambda: ContextUnet(height=18), ["18", "multiple of 4"]),
        (lambda: ContextUnet(n_cfeat=0), ["0"]),
        (lambda: ContextUnet(3, 8, 5, 16)(torch.zeros(1, 3, 20, 20), torch.zeros(1)), ["(1, 3, 20, 20)"]),
        (lambda: ContextUnet(3, 8, 5, 16)(torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, 4)), ["(1, 4)"]),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
