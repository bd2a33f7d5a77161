"""denoising-diffusion-pytorch's U-Net, and the Annotated tutorial's of today, against their formulas."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F

from fastdiff import Engine, InputError, Model, load, make_schedule, sample, save
from fastdiff.bench.peers import others
from fastdiff.kernels.cpu import compiled
from fastdiff.networks.lucidrains import LucidrainsClassUnet, LucidrainsLayerNormUnet, LucidrainsUnet
from fastdiff.networks.resnet_unet import AnnotatedResnetUnet

BOUND = 1e-5  # float32's rounding over some 60 layers, summed in another order, is about 1e-6
LUCIDRAINS = {
    "as it comes": dict(dim=8, dim_mults=(1, 2, 4)),
    "odd": dict(dim=12, dim_mults=(1, 3), channels=2, init_dim=7, out_dim=5, memories=1),
    "one level": dict(dim=8, dim_mults=(2,)),
    "softmax at both": dict(dim=8, dim_mults=(1, 2), full_attention=(True, True), heads=(2, 3), head_dim=(16, 8)),
    "linear at both": dict(dim=8, dim_mults=(1, 2), full_attention=(False, False), heads=3, head_dim=(16, 8)),
    "learned times": dict(dim=8, dim_mults=(1, 2), learned_sinusoids=5),
    "self-conditioning": dict(dim=8, dim_mults=(1, 2), self_condition=True),
}
LUCIDRAINS_GROUPED = {
    "of 1.9": dict(dim=8, dim_mults=(1, 2, 4), groups=8),
    "of 1.8": dict(
        dim=12, dim_mults=(1, 3), channels=2, init_dim=6, groups=3, memories=0, full_attention=(True, False)
    ),
}
LAYER_NORM = {
    "as it comes": dict(dim=8, dim_mults=(1, 2, 4)),
    "odd": dict(dim=12, dim_mults=(1, 3), channels=2, init_dim=6, out_dim=5, groups=3),
    "learned times": dict(dim=8, dim_mults=(2,), learned_sinusoids=3),
    "self-conditioning": dict(dim=8, dim_mults=(1, 2), self_condition=True),
}
ANNOTATED = {
    "as it comes": dict(dim=28),
    "odd": dict(dim=12, dim_mults=(1, 3), channels=2, init_dim=6, out_dim=5, groups=3),
    "one level": dict(dim=8, dim_mults=(2,)),
    "self-conditioning": dict(dim=8, dim_mults=(1, 2), channels=3, self_condition=True),
}


def evaluated(state, x, t, groups=None):
    """The prediction straight from a state dict, by einsum and in its dtype, without a module of ours.

    Which edition it is its names tell, but for the groups of a GroupNorm.
    """
    return _Oracle(state, groups)(x, t)


class _Oracle:
    def __init__(self, state, groups):
        self.state, self.groups = state, groups
        self.wrapped = "mid_attn.fn.fn.to_qkv.weight" in state  # the Annotated tutorial's, and its forebear
        self.layer_norm = "mid_attn.fn.norm.g" in state

    def conv(self, name, x, standard=False):
        weight = self.state[f"{name}.weight"]
        if standard:
            flat = weight.flatten(1)
            centred = flat - flat.mean(1, keepdim=True)
            weight = (centred / (centred.square().mean(1, keepdim=True) + self.eps(weight)).sqrt()).view_as(weight)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def eps(self, weight):
        return 1e-5 if weight.dtype == torch.float32 else 1e-3

    def norm(self, name, x, groups):
        if f"{name}.g" in self.state and self.layer_norm:
            x = x - x.mean(1, keepdim=True)
            return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * self.state[f"{name}.g"]
        if f"{name}.g" in self.state:
            return x / x.square().mean(1, keepdim=True).sqrt() * self.state[f"{name}.g"]
        b, c, *size = x.shape
        parts = x.reshape(b, groups, -1)
        parts = parts - parts.mean(-1, keepdim=True)
        x = (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(b, c, *size)
        along = (1, c, 1, 1)
        return x * self.state[f"{name}.weight"].view(along) + self.state[f"{name}.bias"].view(along)

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def block(self, name, x, scale, shift):
        x = self.norm(f"{name}.norm", self.conv(f"{name}.proj", x, standard=self.wrapped), self.groups)
        x = x * (1 + scale) + shift
        return x / (1 + torch.exp(-x))

    def resnet(self, name, x, time):
        film = self.linear(f"{name}.mlp.1", time / (1 + torch.exp(-time)))[:, :, None, None]
        half = film.shape[1] // 2
        h = self.block(f"{name}.block1", x, film[:, :half], film[:, half:])
        h = self.block(f"{name}.block2", h, 0, 0)
        return h + (self.conv(f"{name}.res_conv", x) if f"{name}.res_conv.weight" in self.state else x)

    def attention(self, name, x, heads):
        inner = f"{name}.fn.fn" if self.wrapped else name
        y = self.norm(f"{name}.fn.norm" if self.wrapped else f"{name}.norm", x, 1)
        b, _, h, w = x.shape
        linear = f"{inner}.to_out.0.weight" in self.state
        memory = self.state.get(f"{inner}.mem_kv")
        heads = heads if memory is None else memory.shape[1]
        q, k, v = self.conv(f"{inner}.to_qkv", y).view(b, 3, heads, -1, h * w).unbind(1)
        if memory is not None:
            memory = memory if linear else memory.transpose(-1, -2)  # (2, heads, d, memories)
            k, v = (torch.cat([m.expand(b, *m.shape), part], -1) for m, part in zip(memory, (k, v), strict=True))
        d = q.shape[2]
        if linear:
            v = v / (h * w) if self.layer_norm else v
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
            out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(2) / math.sqrt(d))
            out = self.conv(f"{inner}.to_out.0", out.reshape(b, -1, h, w))
            return self.norm(f"{inner}.to_out.1", out, 1) + x
        weights = torch.einsum("bhdi,bhdj->bhij", q / math.sqrt(d), k).softmax(-1)
        out = torch.einsum("bhij,bhdj->bhdi", weights, v)
        return self.conv(f"{inner}.to_out", out.reshape(b, -1, h, w)) + x

    def time(self, t):
        t = t.to(self.state["time_mlp.1.weight"].dtype)
        learned = self.state.get("time_mlp.0.weights")
        if learned is not None:
            angles = 2 * math.pi * t[:, None] * learned
            embedding = torch.cat([t[:, None], angles.sin(), angles.cos()], 1)
        else:
            half = self.state["time_mlp.1.weight"].shape[1] // 2
            angles = t[:, None] * 10000.0 ** (-torch.arange(half, dtype=t.dtype) / (half - 1))
            embedding = torch.cat([angles.sin(), angles.cos()], 1)
        hidden = self.linear("time_mlp.1", embedding)
        return self.linear("time_mlp.3", hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)

    def __call__(self, x, t):
        time, x = self.time(t), self.conv("init_conv", x)
        first, skips, levels = x, [], 0
        while f"downs.{levels}.0.block1.proj.weight" in self.state:
            name = f"downs.{levels}"
            x = self.resnet(f"{name}.0", x, time)
            skips.append(x)
            x = self.attention(f"{name}.2", self.resnet(f"{name}.1", x, time), 4)
            skips.append(x)
            if f"{name}.3.1.weight" in self.state:
                x = self.conv(f"{name}.3.1", F.pixel_unshuffle(x, 2))
            else:
                x = self.conv(f"{name}.3", x)
            levels += 1
        x = self.resnet("mid_block1", x, time)
        x = self.resnet("mid_block2", self.attention("mid_attn", x, 4), time)
        for level in range(levels):
            name = f"ups.{level}"
            x = self.resnet(f"{name}.0", torch.cat([x, skips.pop()], 1), time)
            x = self.resnet(f"{name}.1", torch.cat([x, skips.pop()], 1), time)
            x = self.attention(f"{name}.2", x, 4)
            if f"{name}.3.1.weight" in self.state:
                x = self.conv(f"{name}.3.1", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
            else:
                x = self.conv(f"{name}.3", x)
        return self.conv("final_conv", self.resnet("final_res_block", torch.cat([x, first], 1), time))


def check(network, groups, rel):
    network.eval()
    x, t = torch.randn(3, network.channels, 12, 20), torch.tensor([0, 3, 199])
    given = [torch.randn(x.shape)] if network.self_condition else []
    state, both = network.state_dict(), torch.cat((*given, x), 1)
    with torch.no_grad():
        assert rel(network(x, t, *given), evaluated(state, both, t, groups)) < BOUND
        if given:
            assert torch.equal(network(x, t), network(x, t, x_self_cond=torch.zeros_like(x)))
        double = network.double()
        exact = evaluated({name: value.double() for name, value in state.items()}, both.double(), t, groups)
        # The sines' angles are float32 in the network.
        assert rel(double(x.double(), t, *(one.double() for one in given)), exact) < BOUND


@pytest.mark.parametrize("kind", LUCIDRAINS)
def test_lucidrains(kind, randomised, rel):
    check(randomised(LucidrainsUnet(**LUCIDRAINS[kind])), None, rel)


@pytest.mark.parametrize("kind", LUCIDRAINS_GROUPED)
def test_lucidrains_with_group_norm(kind, randomised, rel):
    options = LUCIDRAINS_GROUPED[kind]
    check(randomised(LucidrainsUnet(**options)), options["groups"], rel)


@pytest.mark.parametrize("kind", LAYER_NORM)
def test_lucidrains_with_layer_norm(kind, randomised, rel):
    options = LAYER_NORM[kind]
    check(randomised(LucidrainsLayerNormUnet(**options)), options.get("groups", 8), rel)


@pytest.mark.parametrize("kind", ANNOTATED)
def test_annotated_of_today(kind, randomised, rel):
    options = ANNOTATED[kind]
    check(randomised(AnnotatedResnetUnet(**options)), options.get("groups", 4), rel)


@pytest.mark.parametrize("kind", LUCIDRAINS)
def test_lucidrains_itself(kind, randomised, rel):
    for package in ("denoising_diffusion_pytorch", "einops"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    options = {"channels": 3, **LUCIDRAINS[kind]}
    if "memories" in options:
        pytest.skip("the library has always 4")
    ours = randomised(LucidrainsUnet(**options)).eval()
    learned = options.pop("learned_sinusoids", 0)
    names = {"heads": "attn_heads", "head_dim": "attn_dim_head", "full_attention": "full_attn"}
    given = {names.get(name, name): value for name, value in options.items()}
    if learned:
        given.update(learned_sinusoidal_cond=True, learned_sinusoidal_dim=2 * learned)
    theirs = others.lucidrains().Unet(**given).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, t, x0 = torch.randn(2, 3, 8, 16), torch.tensor([3, 900]), torch.randn(2, 3, 8, 16)
    with torch.no_grad():
        assert rel(ours(x, t, x0), theirs(x, t, x0)) < BOUND


@pytest.mark.parametrize("options", [{}, {"channels": 2, "init_dim": 6}, {"learned_sinusoids": 5, "out_dim": 6}])
def test_the_classifier_free_edition_itself(options, randomised, rel, tmp_path):
    """By way of a file of the library's own, whose attention has other names."""
    for package in ("denoising_diffusion_pytorch", "einops"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    given = {name: value for name, value in options.items() if name != "learned_sinusoids"}
    if learned := options.get("learned_sinusoids"):
        given |= {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 2 * learned}
    theirs = others.lucidrains("classifier_free_guidance").Unet(8, 4, dim_mults=(1, 2), **given)
    torch.save(randomised(theirs.eval()).state_dict(), tmp_path / "m.pt")
    model = load(tmp_path / "m.pt", make_schedule("linear", 50), 16, prediction_type="epsilon")
    assert type(model.network) is LucidrainsClassUnet and (model.num_classes, model.null_class) == (5, 4)
    assert model.learned_variance == ("out_dim" in options)
    x, t = torch.randn(3, options.get("channels", 3), 16, 16), torch.tensor([3, 49, 7])
    with torch.no_grad():
        for classes, drop in (([0, 3, 1], 0.0), ([4, 4, 4], 1.0)):
            expected = theirs(x, t, torch.tensor(classes) % 4, cond_drop_prob=drop)
            assert rel(model.network(x, t, torch.tensor(classes)), expected) < BOUND
    save(model, tmp_path / "own.safetensors")
    asked = dict(steps=2, context=[1, 2], guidance_scale=2, device="cpu")
    assert torch.equal(sample(load(tmp_path / "own.safetensors"), 2, **asked), sample(model, 2, **asked))


@pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))
@pytest.mark.parametrize(
    "make",
    [
        lambda: LucidrainsUnet(8, dim_mults=(1, 2)),
        lambda: LucidrainsUnet(8, dim_mults=(1, 2), groups=8, memories=0),
        lambda: LucidrainsLayerNormUnet(8, dim_mults=(1, 2)),
        lambda: LucidrainsUnet(8, dim_mults=(1, 2), self_condition=True),
        lambda: AnnotatedResnetUnet(8, groups=4),
        lambda: LucidrainsClassUnet(8, dim_mults=(1, 2)),
    ],
)
def test_a_step_is_c_alone(make, randomised):
    network = randomised(make()).eval()
    classes = network.options.get("num_classes")
    model = Model(network, make_schedule("linear", 30), image_shape=(network.channels, 8, 8), num_classes=classes)
    engine = Engine(model, model.table("ddim", 3), batch_size=2, device="cpu")
    engine.sample(2, context=None if classes is None else [1, 3])
    (said,) = engine.holds()["steps"].values()
    assert "calls of C kernels" in said and "in torch" not in said


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: LucidrainsUnet(dim=7), "dim = 7"),
        (lambda: LucidrainsUnet(dim_mults=()), "dim_mults = ()"),
        (lambda: LucidrainsUnet(8, dim_mults=(1, 2), heads=(4, 4, 4)), "heads = [4, 4, 4] of 2 levels"),
        (lambda: AnnotatedResnetUnet(8, groups=3), "groups = 3"),
        (lambda: LucidrainsUnet(12, groups=8), "groups = 8 with widths [12, 12, 24, 48, 96]"),
        (lambda: LucidrainsLayerNormUnet(8, groups=0), "groups = 0"),
        (lambda: AnnotatedResnetUnet(8, init_dim=0), "init_dim = 0"),
        (lambda: LucidrainsClassUnet(8, num_classes=1), "num_classes = 1; accepted: at least 2"),
        (
            lambda: LucidrainsClassUnet(8, dim_mults=(1,))(torch.zeros(1, 3, 8, 8), torch.zeros(1)),
            "no context; this n",
        ),
        (lambda: AnnotatedResnetUnet(8)(torch.zeros(1, 1, 10, 8), torch.zeros(1)), "(1, 1, 10, 8)"),
        (lambda: AnnotatedResnetUnet(8)(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "(B, 1, H, W)"),
    ],
)
def test_bad_options_are_named(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
