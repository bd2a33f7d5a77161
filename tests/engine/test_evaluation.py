"""A network's graph, as the forms run it, computes what the network does; and what cannot be captured runs as it is."""

import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from fastdiff import AnnotatedUnet, ContextUnet, Model, make_schedule, sample
from fastdiff.bench.peers.reference import AnnotatedReference, ContextReference
from fastdiff.capture.passes.batch_norm import fold_batch_norm
from fastdiff.engine import evaluation
from fastdiff.engine.context import ContextKind
from fastdiff.engine.evaluation import Given, Network, captured, evaluated
from fastdiff.kernels.cpu import compiled

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(compiled.build_error() is not None, reason=str(compiled.build_error()))


def given(shape, batch=3, width=None, dtype=torch.float32, integer=True):
    times = torch.arange(1, 20) if integer else torch.rand(20)
    return Given(batch, shape, width and ContextKind((width,)), times, CPU, dtype)


OF_A = {"winograd": 26, "depthwise": 13, "attention_output": 5, "scale_shift": 1}


@needs_compiler
@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: AnnotatedUnet(28), OF_A),
        (lambda: AnnotatedReference(28), OF_A),
        (lambda: AnnotatedUnet(16, edition="mindspore"), {"attention_output": 5}),
        (
            lambda: AnnotatedUnet(32, edition="hf-2022", block="resnet"),
            {"winograd": 26, "attention_output": 5, "scale_shift": 32},
        ),
        (lambda: ContextUnet(3, 32, 5, 16, shortcut=True), {"winograd": 18, "scale_shift": 2}),
        (lambda: ContextReference(3, 32, 5, 16, shortcut="trained"), {"winograd": 18, "scale_shift": 2}),
        (lambda: ContextUnet(1, 8, 3, 28), {}),
    ],
)
def test_our_networks_and_those_that_were_published_run_by_the_c_kernels_alone(make, expected, randomised, rel):
    network = randomised(make()).eval()
    integer = isinstance(network, (AnnotatedUnet, AnnotatedReference))
    size = getattr(network, "height", 16)
    shape = (1 if integer else getattr(network, "in_channels", 3), size, size)
    x, t = torch.randn(3, *shape), 3 if integer else 0.3
    with torch.no_grad():
        parts = captured(Network(network, CPU, torch.float32), given(shape, integer=integer))
        ours = evaluated(parts, {"x": x, "t": torch.full((3,), t)})
        own = network(x, torch.full((3,), t))
    assert rel(ours, own) < 1e-5
    plan = parts.step.plan
    calls = Counter(call.kernel for call in plan.steps)
    assert not plan.outside and {name: calls[name] for name in expected} == expected


class Own(torch.nn.Module):
    """A network of the user's own that does with its modules what one may."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.GroupNorm(4, 32)
        self.tail = torch.nn.Sequential(
            torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.GELU()
        )
        self.strided = torch.nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.bare = torch.nn.GroupNorm(2, 32)
        self.bare.bias = None
        self.scaled = torch.nn.utils.weight_norm(torch.nn.Conv2d(32, 32, 3, padding=1))
        self.deep = torch.nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.last = torch.nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x, t):
        h = self.tail(self.norm(self.first(x))) * self.tail[0].weight.mean()  # reads a weight from outside
        h = h + self.tail[0](h) + self.bare(self.strided(h)).mean()  # calls a part of a sequence, and one twice
        return self.last(self.deep(self.scaled(h)))


class Slope(Own):
    """An energy's gradient."""

    def forward(self, x, t):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.norm(self.deep(self.first(at))).square().sum(), at)
        return slope.tanh()


class OneByOne(Own):
    def forward(self, x, t):
        return self.last(torch.stack([self.first(image) for image in x]))


class ByNumpy(Own):
    def forward(self, x, t):
        return self.last(self.first(x)) + float(x.numpy().mean())


def own_model(kind):
    with warnings.catch_warnings(), torch.no_grad():  # else weight_norm's weight could not be copied
        warnings.simplefilter("ignore")  # its deprecation
        network = kind().eval()
    with torch.no_grad():
        network.scaled.weight_g.mul_(3)  # after the weight was made of it
        network.tail[1].running_mean.normal_()
        network.tail[1].running_var.uniform_(0.5, 2)
    return Model(network, make_schedule("linear", 20), image_shape=(3, 8, 8))


def test_a_network_of_the_users_own_computes_what_it_did_hooks_included(rel):
    model = own_model(Own)
    model.network.tail[0].register_forward_hook(lambda module, given, out: 2 * out)
    model.network.tail[2].register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = sample(model, 2, steps=4, device="cpu")
    assert rel(ours, sample(model, 2, steps=4, device="cpu", form="eager")) < 1e-5


@needs_compiler
@pytest.mark.parametrize(
    "kind, reason", [(Slope, ""), (OneByOne, "depends on the batch"), (ByNumpy, "a number is read from the images")]
)
def test_what_cannot_be_captured_runs_as_it_is_with_one_warning(kind, reason, rel):
    model = own_model(kind)
    with pytest.warns(UserWarning, match=f"runs as it is.*{reason}") as caught:
        ours = sample(model, 3, steps=4, batch_size=2, device="cpu")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert torch.equal(ours, sample(model, 3, steps=4, batch_size=2, device="cpu", form="eager"))


@needs_compiler
def test_an_error_of_the_networks_own_is_the_callers():
    class Fails(torch.nn.Module):
        def forward(self, x, t):
            raise ZeroDivisionError("mine")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError, match="mine"):
            sample(Model(Fails(), make_schedule("linear", 20), image_shape=(3, 8, 8)), 1, steps=1, device="cpu")


def test_times_and_contexts_stay_float32_in_16_bits():
    """Rounded to bfloat16, timestep 999 would be 1000, and a class's number another's."""
    seen = []

    class Looks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.context = torch.nn.Linear(1, 3), torch.nn.Linear(2, 3)

        def forward(self, x, t, context):
            seen.append((x.dtype, t.dtype, context.dtype))
            return x + (self.time(t[:, None]) + self.context(context))[:, :, None, None]

    model = Model(
        Looks(), make_schedule("linear", 20), image_shape=(3, 4, 4), time="fraction", class_names=("one", "two")
    )
    images = sample(model, 2, steps=2, context=[1, 0], dtype=torch.bfloat16, device="cpu")
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)} and torch.isfinite(images).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_that_a_network_computes_in_float32_take_16_bit_weights(dtype, randomised, rel):
    """As guided-diffusion's and improved-diffusion's do; torch's own norms refuse two dtypes."""

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.group = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.GroupNorm(2, 4)
            self.layer = torch.nn.LayerNorm((4, 6))

        def forward(self, x, t):
            return self.layer(self.group(self.conv(x).float())).type(x.dtype)

    network = randomised(Wide()).eval()
    kind = given((4, 4, 6), dtype=dtype)
    made = Network(network, CPU, dtype)
    inputs = kind.example(2)
    with torch.no_grad():
        expected = Network(network, CPU, torch.float32)(inputs["x"].float(), inputs["t"])
        assert rel(made(**inputs), expected) < 2e-2
        assert rel(evaluated(captured(made, kind), inputs), expected) < 2e-2


def test_what_is_folded_is_rounded_once(randomised):
    """Weights that were rounded to bfloat16 before they are folded would be rounded twice."""
    course = randomised(ContextUnet(3, 8, 2, 8)).eval()
    convolution, norm, _ = course.down1.model[0].conv1
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    folded = (convolution.weight.double() * scale[:, None, None, None]).bfloat16()
    with torch.no_grad():
        step = Network(course, CPU, torch.bfloat16).captured(given((3, 8, 8), dtype=torch.bfloat16, integer=False)).step
    fold_batch_norm(step)
    assert any(torch.equal(one, folded) for one in step.constants.values())


def test_outputs_of_other_libraries_are_taken():
    class Returns(torch.nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.conv, self.wrap = torch.nn.Conv2d(3, 6, 3, padding=1), wrap

        def forward(self, x, t):
            return self.wrap(self.conv(x))

    results = []
    for wrap in (
        lambda out: out[:, :3],
        lambda out: (out[:, :3], None),
        lambda out: {"sample": out[:, :3]},
        lambda o: o,
    ):
        torch.manual_seed(0)
        model = Model(Returns(wrap), make_schedule("linear", 20), image_shape=(3, 8, 8))
        for form in ("eager", None):
            results.append(sample(model, 2, steps=2, device="cpu", form=form))
    for one in results[1:]:
        torch.testing.assert_close(one, results[0], atol=1e-5, rtol=0)


def test_a_graph_is_checked_at_the_batch_that_runs(monkeypatch, randomised):
    sizes = []
    right = evaluation.check
    monkeypatch.setattr("fastdiff.engine.forms.check", lambda n, p, g: (sizes.append(g.batch), right(n, p, g)))
    model = Model(
        randomised(ContextUnet(3, 8, 2, 8)), make_schedule("linear", 20), image_shape=(3, 8, 8), time="fraction"
    )
    sample(model, 5, steps=1, batch_size=5, context=[1, 0], guidance_scale=2.0, device="cpu")
    assert sizes in ([10], [])  # none where there is no compiler


class Keeps(torch.nn.Module):
    """A network that makes a table in its first evaluation and keeps it."""

    def __init__(self):
        super().__init__()
        self.table, self.conv = None, torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        if self.table is None:
            self.table = torch.linspace(0, 1, 100)
        return self.conv(x) * self.table[t].view(-1, 1, 1, 1)


ODD = {
    "a table made first": lambda x, t, conv: Keeps()(x, t),
    "dropout by a function": lambda x, t, conv: F.dropout(conv(x), 0.5),
    "attention with dropout": lambda x, t, conv: F.scaled_dot_product_attention(x, x, conv(x), dropout_p=0.5),
    "keys of one head": lambda x, t, conv: F.scaled_dot_product_attention(x, x[:, :1], conv(x)[:, :1]),
    "a vector as weight": lambda x, t, conv: x + F.linear(x, torch.ones(6))[..., None],
    "a bias with gaps": lambda x, t, conv: F.linear(x, conv.weight[0, 0].repeat(2, 2), torch.arange(12.0)[::2]),
    "one bias for all": lambda x, t, conv: F.linear(x, conv.weight[0, 0].repeat(2, 2), torch.ones(1)),
    "a norm with gaps": lambda x, t, conv: F.group_norm(x, 1, *torch.arange(12.0).view(6, 2).t()[:, ::2]),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_but_right_networks_are_captured(kind, rel):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.keeps = torch.nn.Conv2d(3, 3, 3, padding=1), Keeps()

        def forward(self, x, t):
            return self.keeps(x, t) if kind == "a table made first" else ODD[kind](x, t, self.conv)

    network = Network(Net().eval(), CPU, torch.float32)
    with torch.no_grad():
        parts = captured(network, given((3, 6, 6)))
        evaluation.check(network, parts, given((3, 6, 6)))


def test_a_wrong_rewriting_is_said_to_be_a_fault_of_fastdiff(monkeypatch):
    def wrong(graph):
        for node in graph.nodes.nodes:
            if node.target is torch.ops.aten.convolution.default:
                node.args = (*node.args[:2], None, *node.args[3:])  # without its bias

    network, inputs = Network(Keeps().eval(), CPU, torch.float32), given((3, 8, 8))
    monkeypatch.setattr(evaluation, "fold_batch_norm", wrong)
    with torch.no_grad():
        parts = captured(network, inputs)
        with pytest.raises(evaluation.NotCapturedError, match="a fault of fastdiff.*something else on other inputs$"):
            evaluation.check(network, parts, inputs)


def test_an_error_of_a_pass_leaves_the_network_as_it_is(monkeypatch):
    monkeypatch.setattr(evaluation, "fuse_norms", lambda graph: graph.nodes.no_such_thing)
    model = Model(Keeps(), make_schedule("linear", 20), image_shape=(3, 8, 8))
    with pytest.warns(UserWarning, match="runs as it is.*a fault of fastdiff.*no_such_thing"):
        images = sample(model, 2, "ddim", steps=2, device="cpu")
    assert torch.equal(images, sample(model, 2, "ddim", steps=2, device="cpu", form="eager"))
