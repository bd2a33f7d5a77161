"""OpenAI's UNetModel against its formulas, against another one in its style, and as the engine runs it."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastdiff import Engine, InputError, Model, make_schedule, sample
from fastdiff.bench.peers.guided import UNetModel
from fastdiff.kernels.cpu import compiled
from fastdiff.networks.openai import OpenaiUnet

BOUND = 1e-5  # float32's rounding over some 60 layers, summed in another order, is about 1e-6
SMALL = dict(model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_levels=(1,))
KINDS = {
    "improved": dict(num_heads=4),
    "guided": dict(num_head_channels=16, resblock_updown=True, num_classes=5, out_channels=6),
    "added": dict(use_scale_shift_norm=False, attention_levels=(), channel_mult=(2, 1)),
    "added, in blocks": dict(use_scale_shift_norm=False, resblock_updown=True, attention_levels=(0, 1)),
    "new order": dict(use_new_attention_order=True, num_heads=2, num_classes=3),
    "no convolutions between levels": dict(conv_resample=False, channel_mult=(1, 1, 2), attention_levels=(0, 2)),
    "odd": dict(in_channels=2, model_channels=64, channel_mult=(0.5, 1.5), num_res_blocks=2, time_scale=0.25),
    "one level": dict(channel_mult=(1,), attention_levels=(0,), in_channels=1, out_channels=5, num_res_blocks=3),
}


def made(kind, randomised):
    return randomised(OpenaiUnet(**{**SMALL, **KINDS[kind]})).eval()


class _Oracle:
    """The prediction straight from a state dict, in its dtype, without a module of ours."""

    def __init__(self, state, options):
        self.state, self.options = state, options

    def has(self, name):
        return f"{name}.weight" in self.state

    def conv(self, name, x, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    def linear(self, name, x):
        return torch.einsum("oi,bi...->bo...", self.state[f"{name}.weight"].flatten(1), x) + self.along(
            self.state[f"{name}.bias"], x
        )

    @staticmethod
    def along(vector, x):
        return vector.reshape(1, -1, *[1] * (x.ndim - 2))

    def norm(self, name, x):
        parts = x.reshape(len(x), 32, -1)
        parts = parts - parts.mean(-1, keepdim=True)
        x = (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        return x * self.along(self.state[f"{name}.weight"], x) + self.along(self.state[f"{name}.bias"], x)

    @staticmethod
    def silu(x):
        return x / (1 + torch.exp(-x))

    @staticmethod
    def halved(x):
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    @staticmethod
    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def resnet(self, name, x, embedding, resample=lambda x: x):
        h = resample(self.silu(self.norm(f"{name}.in_layers.0", x)))
        h = self.conv(f"{name}.in_layers.2", h)
        said = self.linear(f"{name}.emb_layers.1", self.silu(embedding))[:, :, None, None]
        if self.options["use_scale_shift_norm"]:
            half = said.shape[1] // 2
            h = self.norm(f"{name}.out_layers.0", h) * (1 + said[:, :half]) + said[:, half:]
        else:
            h = self.norm(f"{name}.out_layers.0", h + said)
        h = self.conv(f"{name}.out_layers.3", self.silu(h))
        x = resample(x)
        return h + (self.conv(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection") else x)

    def attention(self, name, x):
        b, c, h, w = x.shape
        one = self.options["num_head_channels"]
        heads = self.options["num_heads"] if one is None else c // one
        qkv = self.linear(f"{name}.qkv", self.norm(f"{name}.norm", x.reshape(b, c, h * w)))
        out = []
        for head in range(heads):
            d = c // heads
            if self.options["use_new_attention_order"]:
                q, k, v = (qkv[:, part * c + head * d : part * c + (head + 1) * d] for part in range(3))
            else:
                q, k, v = (qkv[:, (3 * head + part) * d : (3 * head + part + 1) * d] for part in range(3))
            weights = torch.einsum("bdi,bdj->bij", q, k).div(math.sqrt(d)).softmax(-1)
            out.append(torch.einsum("bij,bdj->bdi", weights, v))
        return x + self.linear(f"{name}.proj_out", torch.cat(out, 1)).reshape(x.shape)

    def maybe_attention(self, name, x):
        return self.attention(name, x) if self.has(f"{name}.qkv") else x

    def between(self, name, x, embedding, resample, conv, stride):
        if self.options["resblock_updown"]:
            return self.resnet(name, x, embedding, resample)
        if not self.has(f"{name}.{conv}"):
            return resample(x)
        return self.conv(f"{name}.{conv}", x if stride == 2 else resample(x), stride)

    def embedding(self, t, y):
        half = self.options["model_channels"] // 2
        t = t.to(self.state["time_embed.0.weight"].dtype) * self.options["time_scale"]
        angles = t[:, None] * 10000.0 ** (-torch.arange(half, dtype=t.dtype) / half)
        hidden = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        embedding = self.linear("time_embed.2", self.silu(hidden))
        return embedding if y is None else embedding + self.state["label_emb.weight"][y]

    def __call__(self, x, t, y):
        embedding, blocks = self.embedding(t, y), self.options["num_res_blocks"]
        levels = len(self.options["channel_mult"])
        x, index = self.conv("input_blocks.0.0", x), 1
        skips = [x]
        for level in range(levels):
            if level:
                x = self.between(f"input_blocks.{index}.0", x, embedding, self.halved, "op", 2)
                skips, index = [*skips, x], index + 1
            for _ in range(blocks):
                x = self.resnet(f"input_blocks.{index}.0", x, embedding)
                x = self.maybe_attention(f"input_blocks.{index}.1", x)
                skips, index = [*skips, x], index + 1
        x = self.attention("middle_block.1", self.resnet("middle_block.0", x, embedding))
        x, index = self.resnet("middle_block.2", x, embedding), 0
        for level in reversed(range(levels)):
            for k in range(blocks + 1):
                name = f"output_blocks.{index}"
                x = self.resnet(f"{name}.0", torch.cat([x, skips.pop()], 1), embedding)
                x, attended = self.maybe_attention(f"{name}.1", x), self.has(f"{name}.1.qkv")
                if level and k == blocks:
                    x = self.between(f"{name}.{2 if attended else 1}", x, embedding, self.doubled, "conv", 1)
                index += 1
        return self.conv("out.2", self.silu(self.norm("out.0", x)))


@pytest.mark.parametrize("kind", KINDS)
def test_its_formulas(kind, randomised, rel):
    network = made(kind, randomised)
    x, t = torch.randn(3, network.in_channels, 8, 12), torch.tensor([0, 3, 999])
    y = None if network.label_emb is None else torch.tensor([2, 0, 1])
    with torch.no_grad():
        oracle = _Oracle(network.state_dict(), network.options)
        assert rel(network(x, t, y), oracle(x, t, y)) < BOUND
        exact = _Oracle({name: value.double() for name, value in oracle.state.items()}, network.options)
        # The sines' angles are float32 in the network.
        assert rel(network.double()(x.double(), t, y), exact(x.double(), t, y)) < BOUND


@pytest.mark.parametrize("film", [True, False])
def test_another_network_in_its_style(film, randomised, rel):
    theirs = randomised(UNetModel(3, 32, 2, (2,), (1, 2), num_head_channels=16, use_scale_shift_norm=film)).eval()
    ours = OpenaiUnet(**{**SMALL, "num_res_blocks": 2}, num_head_channels=16, use_scale_shift_norm=film).eval()
    # There a convolution alone halves the size, and a Sequential of repetition and convolution doubles it.
    between = {"input_blocks.3.0": "input_blocks.3.0.op", "output_blocks.2.2.1": "output_blocks.2.2.conv"}
    names = {f"{old}.{kind}": f"{new}.{kind}" for old, new in between.items() for kind in ("weight", "bias")}
    ours.load_state_dict({names.get(name, name): value for name, value in theirs.state_dict().items()}, strict=True)
    x, t = torch.randn(2, 3, 8, 16), torch.tensor([3, 900])
    with torch.no_grad():
        assert rel(ours(x, t), theirs(x, t)) < BOUND


def test_the_published_names():
    """As OpenAI's repositories have them, of a network with all that has a name."""
    names = set(OpenaiUnet(**SMALL, num_classes=5).state_dict())
    res = [f"{part}.{end}" for part in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
           for end in ("weight", "bias")]  # fmt: skip
    skip = [*res, "skip_connection.weight", "skip_connection.bias"]
    attention = [f"{part}.{end}" for part in ("norm", "qkv", "proj_out") for end in ("weight", "bias")]
    layers = {
        "input_blocks.1.0": res,
        "input_blocks.2.0": ["op.weight", "op.bias"],
        "input_blocks.3.0": skip,
        "input_blocks.3.1": attention,
        "middle_block.0": res,
        "middle_block.1": attention,
        "middle_block.2": res,
        "output_blocks.0.0": skip,
        "output_blocks.0.1": attention,
        "output_blocks.1.0": skip,
        "output_blocks.1.1": attention,
        "output_blocks.1.2": ["conv.weight", "conv.bias"],
        "output_blocks.2.0": skip,
        "output_blocks.3.0": skip,
    }
    plain = ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")
    expected = {f"{name}.{end}" for name in plain for end in ("weight", "bias")} | {"label_emb.weight"}
    assert names == expected | {f"{layer}.{part}" for layer, parts in layers.items() for part in parts}
    updown = set(OpenaiUnet(**SMALL, resblock_updown=True).state_dict())
    assert {f"input_blocks.2.0.{part}" for part in res} | {f"output_blocks.1.2.{part}" for part in res} <= updown


@pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one level"])
def test_a_step_is_c_alone(kind, randomised, rel):
    network = made(kind, randomised)
    classes, learned = network.options["num_classes"], network.options["out_channels"] is not None
    model = Model(
        network,
        make_schedule("linear", 100),
        image_shape=(network.in_channels, 8, 8),
        num_classes=classes,
        learned_variance=learned,
        clip=1.0,
    )
    context = None if classes is None else [1, 2, 0]
    engine = Engine(model, model.table("ddpm", 4), batch_size=2, device="cpu")
    images = engine.sample(3, context=context)
    assert not engine.notes
    for said in engine.holds()["steps"].values():
        assert "calls of C kernels" in said and "in torch" not in said
    own = sample(model, 3, "ddpm", steps=4, context=context, device="cpu", form="eager")
    assert not torch.equal(images, own) and rel(images, own) < BOUND


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: OpenaiUnet(model_channels=33), "model_channels = 33"),
        (lambda: OpenaiUnet(model_channels=48), "makes levels of [48, 96, 96, 96]; accepted: positive multiples of 32"),
        (lambda: OpenaiUnet(channel_mult=()), "channel_mult = ()"),
        (lambda: OpenaiUnet(**{**SMALL, "num_res_blocks": 0}), "num_res_blocks = 0"),
        (lambda: OpenaiUnet(**{**SMALL, "attention_levels": (2,)}), "attention_levels = [2]; accepted: numbers from 0"),
        (lambda: OpenaiUnet(**SMALL, num_classes=0), "num_classes = 0"),
        (lambda: OpenaiUnet(**SMALL, num_heads=3), "num_heads = 3 with attention of width 64"),
        (lambda: OpenaiUnet(**SMALL, num_head_channels=48), "num_head_channels = 48 with attention of width 64"),
        (lambda: OpenaiUnet(**SMALL)(torch.zeros(1, 3, 9, 8), torch.zeros(1)), "(1, 3, 9, 8)"),
        (lambda: OpenaiUnet(**SMALL, num_classes=2)(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "no context; this"),
        (lambda: OpenaiUnet(**SMALL)(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1)), "takes no classes"),
    ],
)
def test_bad_options_are_named(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
