"""One evaluation as a graph: what is recorded is the same function, what cannot be is refused by its line."""

import gc
import json
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdiff.capture.record import NotRecordableError, record

aten = torch.ops.aten
WEIGHT = torch.linspace(-1, 1, 16).view(4, 4)
TABLE = torch.linspace(-1, 1, 40).view(10, 4)
GRU, LSTM = nn.GRU(16, 4, batch_first=True), nn.LSTM(16, 4, batch_first=True, bidirectional=True)
INSTANCES = nn.InstanceNorm2d(4, track_running_stats=True).eval()
ATTENTION = nn.MultiheadAttention(16, 2, batch_first=True).eval()


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def in_place_views(x, t):
    y = x * 1
    a, b = y.chunk(2, dim=1)
    a.mul_(2)
    b += a
    y[:, :1, 1:3] -= 1
    y.permute(0, 2, 3, 1)[:, 0].neg_()
    y.unbind(1)[2].zero_()
    y.split([1, 3], dim=1)[1].clamp_(min=-0.5)
    y.diagonal(dim1=2, dim2=3).fill_(3.0)
    y.squeeze(0).unsqueeze(0).view(y.shape)[..., 0] = x[..., 1]
    return a + b, y


def in_place_dtypes(x, t):
    y = x.clone()
    y.gt_(0)  # keeps y's dtype
    y.add_(torch.ones(4, dtype=torch.float64))
    return y


def written_in_a_loop(x, t):
    out = torch.zeros_like(x)
    for place in range(4):
        out[:, place] = x[:, 3 - place] * place
    return out


def a_view_read_after_its_base_is_written(x, t):
    y = x + 1
    view = y[:, 1:]
    y.mul_(3)
    view.add_(1)
    return torch.cat((view, y), dim=1)


def an_input_is_written(x, t):
    x.mul_(2)
    return x + t.view(-1, 1, 1, 1)


def own_tensors_are_written(x, t):
    table = torch.tensor([1.0, 2.0, 3.0, 4.0])
    table[1] = 5
    empty = torch.empty(4)
    empty.copy_(table)
    return x * empty.view(1, 4, 1, 1)


def autocast(x, t):
    with torch.autocast("cpu", torch.bfloat16):
        y = F.conv2d(x, WEIGHT[:, :, None, None])
        return F.linear(y, WEIGHT).float() + F.group_norm(x, 2)


def inference_mode(x, t):
    with torch.inference_mode():
        y = F.group_norm(x, 2)
        y.mul_(2)
    return F.linear(y, WEIGHT)


def gradients_on(x, t):
    with torch.enable_grad():
        return F.linear(x, nn.Parameter(WEIGHT))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def sines(x, t):
    rates = torch.exp(torch.arange(2) * -1.5)
    angles = t.float()[:, None] / 1000 * rates[None]
    return x + torch.cat((angles.sin(), angles.cos()), dim=1)[:, :, None, None]


def views_in_place(x, t):
    part = x[:, 1:3]
    x.transpose_(1, 3)
    x[..., 0] += t.float().unsqueeze_(1)[..., None]
    part.mul_(2)
    part.unsqueeze_(1).squeeze_(1)[:, 0] = 7
    return x + 1, part


def scaled(x, n):
    return F.interpolate(F.interpolate(x, scale_factor=2, mode="nearest"), size=(n, n + 1), mode="bilinear")


RECORDED = {
    "in place on views": lambda x, t: torch.cat(in_place_views(x[:1], t), dim=1),
    "in place, another dtype": in_place_dtypes,
    "written in a loop": written_in_a_loop,
    "a view after its base": a_view_read_after_its_base_is_written,
    "an input written": an_input_is_written,
    "own tensors written": own_tensors_are_written,
    "relu_ and sigmoid_": lambda x, t: F.relu(x * 2, inplace=True).sigmoid_(),
    "masked_fill_ and masks": lambda x, t: x.masked_fill(x > 0, -1.0).clone().masked_fill_(x < -1, 2.0),
    "a mask assigned to": lambda x, t: x.clone().index_put_((x > 0,), torch.tensor(0.5)),
    "autocast": autocast,
    "inference mode": inference_mode,
    "gradients on": gradients_on,
    "autograd.Function": lambda x, t: Doubled.apply(x) + 1,
    "a checkpoint": lambda x, t: checkpoint(lambda y: F.silu(y) * 2, x, use_reentrant=False),
    "a reentrant checkpoint": lambda x, t: checkpoint(lambda y: F.silu(y) * 2, x, use_reentrant=True),
    "chunks, splits, unbinds": lambda x, t: torch.stack([*x.chunk(3, 1)[0].unbind(1), *x.split(3, 1)[1].unbind(1)], 1),
    "einops-like reshapes": lambda x, t: x.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2).flatten(2).movedim(1, 2),
    "interpolate": lambda x, t: scaled(x, 7),
    "pad and roll": lambda x, t: F.pad(F.pad(x, (1, 0, 2, 1)), (1, 1, 1, 1), mode="reflect").roll(1, dims=2),
    "pools": lambda x, t: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, (2, 2)),
    "pools to one": lambda x, t: (
        F.adaptive_avg_pool2d(nhwc(x * 2), 1) * x + F.adaptive_avg_pool1d(x.flatten(2), 1)[..., None]
    ),
    "pixel shuffles": lambda x, t: F.pixel_shuffle(x, 2) + F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)[:, :1].mean(),
    "einsum and matmul": lambda x, t: torch.einsum("bchw,cd->bdhw", x, WEIGHT) @ WEIGHT + x.matmul(x.mT),
    "attention": lambda x, t: F.scaled_dot_product_attention(x, x, x, dropout_p=0.0, is_causal=True),
    "norms": lambda x, t: F.layer_norm(x, (4,)) + F.rms_norm(x, (4,)) + F.instance_norm(x) + F.normalize(x, dim=1),
    "instance norms": lambda x, t: F.instance_norm(nhwc(x), weight=TABLE[0], bias=TABLE[1]) + INSTANCES(x),
    "batch norm over the batch": lambda x, t: F.batch_norm(x, None, None, training=True),
    "a lookup": lambda x, t: x + F.embedding(t, TABLE)[:, :, None, None] + TABLE[t][..., None, None],
    "one hot": lambda x, t: x + F.one_hot(t, 10).float()[:, :4, None, None],
    "where": lambda x, t: torch.where(t[:, None, None, None] > 1, x, -x),
    "sines": sines,
    "t expanded": lambda x, t: x + (t.expand(x.shape[0]) * torch.ones(len(x))).view(-1, 1, 1, 1),
    "factories of the batch": lambda x, t: (
        x
        + torch.arange(len(x)).view(-1, 1, 1, 1)
        + torch.full((x.shape[0], 1, 1, 1), 2.0)
        + x.new_zeros(len(x), 1, 1, 1)
    ),
    "complex numbers": lambda x, t: torch.fft.ifft2(torch.fft.fft2(x) * 1j).imag,
    "mean over the batch": lambda x, t: x - x.mean(dim=0, keepdim=True) + t.float().mean(),
    "numbers of the batch": lambda x, t: x.reshape(len(x) * 4, -1).view(x.shape[0], -1, 4, 4)[: len(x)],
    "views in place": lambda x, t: torch.cat([one.flatten(1) for one in views_in_place(x * 2, t)], 1),
    "a GRU": lambda x, t: GRU(x.flatten(2))[0],
    "an LSTM": lambda x, t: LSTM(x.flatten(1, 2).transpose(1, 2).expand(-1, 4, 16))[0],
    "nn.MultiheadAttention": lambda x, t: ATTENTION(x.flatten(2), x.flatten(2), x.flatten(2))[0],
    "vmap": lambda x, t: torch.vmap(lambda one: one.sin() * 2)(x),
    ".data": lambda x, t: x.data * 2,
    "the input itself": lambda x, t: x,
}


def inputs(n):
    return {"x": torch.randn(n, 4, 4, 4), "t": torch.arange(n) + 1}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the reentrant checkpoint
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("checkpoint" in n)) for n in RECORDED])
def test_the_graph_is_the_same_function(networks, rel, name):
    """At the batch of the recording and at others. Checkpoints import torch._dynamo, for seconds."""
    call = RECORDED[name]
    for graph, batches in ((record(call, inputs(2)), [2]), (networks.graph_of(call, Given()), [1, 4])):
        for n in batches:
            given = inputs(n)
            expected = call(*(value.clone() for value in given.values()))
            out = networks.program(networks.at_batch(graph, n))(*given.values())[0]
            assert out.shape == expected.shape and out.dtype == expected.dtype
            assert rel(out.detach(), expected.detach()) < 1e-6


class Given:
    """An Example of the inputs above."""

    inputs = staticmethod(lambda n, dtype: inputs(n))


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, t):
        return self.norm(self.conv(self.conv(x)))


class Counting(Module):
    def forward(self, x, t):
        self.calls += 1
        return super().forward(x, t)


def caught(x, t):
    try:
        return x * float(x.max())
    except Exception:
        return x


def gradient(x, t):
    with torch.enable_grad():
        x.requires_grad_()
        return torch.autograd.grad((x**2).sum(), x)[0]


REFUSED = {
    "x.max().item()": (lambda x, t: x * x.max().item(), "number is read"),
    "if x.mean() > 0": (lambda x, t: x if x.mean() > 0 else -x, "number is read"),
    "int(t[0])": (lambda x, t: x * int(t[0]), "number is read"),
    "t.tolist()": (lambda x, t: x * t.tolist()[0], "number is read"),
    "torch.equal": (lambda x, t: x if torch.equal(x, -x) else 2 * x, "number is read"),
    "caught": (caught, "number is read"),
    "x[x > 0]": (lambda x, t: x + x[x > 0].sum(), "depends on values"),
    "one hot, of as many as there are": (lambda x, t: x + F.one_hot(t).sum(), "number is read"),
    "nonzero": (lambda x, t: x + x.nonzero().shape[0], "depends on values"),
    "randn_like": (lambda x, t: x + torch.randn_like(x), "draws random numbers"),
    "torch.rand": (lambda x, t: x + torch.rand(1), "draws random numbers"),
    "a parameter written": (lambda x, t: x + TABLE.view(-1)[:4].mul_(1), "writes to a tensor of the network"),
    "a buffer that counts": (Counting().eval(), "writes to a tensor of the network"),
    "BatchNorm in training": (Module().train(), "writes to"),
    "F.batch_norm in training": (
        lambda x, t: F.batch_norm(x, TABLE[0], TABLE[1].exp(), training=True),
        "running statistics",
    ),
    "InstanceNorm in training": (
        lambda x, t: F.instance_norm(x, TABLE[0], TABLE[1].exp(), use_input_stats=True),
        "running statistics",
    ),
    "out=": (lambda x, t: torch.add(x, 1, out=torch.empty_like(x)), "writes to an argument"),
    "resize_": (lambda x, t: (x * 1).resize_(4), "shape in place"),
    "a parameter transposed": (lambda x, t: x + TABLE.t_(), "writes to a tensor of the network"),
    "as_strided_": (lambda x, t: (x * 1).as_strided_((2, 4, 4, 4), (64, 16, 1, 4)), "shape in place"),
    "as_strided written": (lambda x, t: (x * 1).as_strided((4,), (1,)).add_(1), "is written to"),
    "NumPy": (lambda x, t: x + torch.from_numpy(x.numpy()), "outside of torch's operations"),
    "a parameter made of x": (lambda x, t: x + nn.Parameter(x.mean()), "outside of torch's operations"),
    "gradients": (gradient, "gradients are computed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_hold_is_refused(name):
    call, reason = REFUSED[name]
    before = TABLE.clone()
    with pytest.raises(NotRecordableError, match=reason) as error:
        record(call, inputs(2))
    assert "test_record.py, line " in str(error.value) and str(error.value).count("\n") == 0
    assert torch.equal(before, TABLE)


@pytest.mark.parametrize("around", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_it_records_inside_of_the_callers_contexts(networks, around):
    """Autocast keeps the weights that it has cast from one recording to the next."""
    module = Module().eval()
    with around():
        graph, given = networks.graph_of(module, Given()), inputs(4)
        out = networks.program(networks.at_batch(graph, 4))(*given.values())[0]
        assert torch.equal(out, module(*given.values()))


def test_the_refusal_names_the_line():
    def network(x, t):
        y = x + 1
        return y * float(y.sum())  # the line

    with pytest.raises(NotRecordableError) as error:
        record(network, inputs(2))
    line = network.__code__.co_firstlineno + 2
    assert str(error.value).endswith(f", in test_record.py, line {line}: return y * float(y.sum())  # the line")


def test_what_is_not_a_tensor_is_refused():
    with pytest.raises(NotRecordableError, match="it returns a value of type tuple, not a tensor"):
        record(lambda x, t: (x, t), inputs(2))


def test_an_error_of_the_networks_own_is_not_another():
    with pytest.raises(ZeroDivisionError):
        record(lambda x, t: x * (1 / 0), inputs(2))


def test_dropout_is_left_out():
    graph = record(lambda x, t: F.dropout2d(F.dropout(x, training=True), training=True) + 1, inputs(2))
    assert [node.target for node in graph.nodes.nodes if node.op == "call_function"][-1] is aten.add.Tensor
    attention = record(lambda x, t: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), inputs(2))
    (node,) = (node for node in attention.nodes.nodes if node.op == "call_function")
    assert node.args[4] == 0.0


@pytest.mark.parametrize(
    "module, target",
    [
        (nn.GroupNorm(2, 4), aten.group_norm.default),
        (nn.LayerNorm(4), aten.layer_norm.default),
        (nn.BatchNorm2d(4).eval(), aten.batch_norm.default),
        (nn.InstanceNorm2d(4, affine=True), aten.group_norm.default),
        (nn.Linear(4, 4), aten.linear.default),
        (nn.Conv2d(4, 4, 1), aten.convolution.default),
    ],
)
def test_modules_are_one_operation_with_all_its_arguments(module, target):
    graph = record(lambda x, t: module(x), inputs(2))
    (node,) = (node for node in graph.nodes.nodes if node.op == "call_function")
    assert node.target is target and len(node.args) == len(target._schema.arguments)


def test_another_librarys_operation_is_one_node():
    library = torch.library.Library("capturetest", "DEF")
    library.define("halves(Tensor x, *, float by=2.0) -> (Tensor, Tensor)")
    library.impl("halves", lambda x, by=2.0: (x / by, x - x / by), "CompositeImplicitAutograd")
    library.define("half_(Tensor(a!) x) -> Tensor(a!)")
    library.impl("half_", lambda x: x.div_(2), "CompositeExplicitAutograd")
    graph = record(lambda x, t: torch.ops.capturetest.halves(x, by=4.0)[1], inputs(2))
    node = next(node for node in graph.nodes.nodes if node.op == "call_function")
    assert node.target is torch.ops.capturetest.halves.default and node.kwargs == {"by": 4.0}
    assert next(iter(node.users)).meta["shape"] == (2, 4, 4, 4)
    with pytest.raises(NotRecordableError, match="capturetest.half_.default writes to an argument"):
        record(lambda x, t: torch.ops.capturetest.half_(x), inputs(2))


def test_hooks_are_recorded(networks):
    module = Module().eval()
    module.conv.register_forward_hook(lambda module, given, out: out * 2)
    module.register_forward_pre_hook(lambda module, given: (given[0] + 1, given[1]))
    given = inputs(2)
    graph = record(module, given)
    assert torch.equal(networks.program(graph)(*given.values())[0], module(*given.values()))


def test_the_module_and_the_inputs_stay_as_they_were():
    module, given = Module().eval(), inputs(2)
    module.conv.weight.requires_grad_(False)

    def state():
        return {name: (value.clone(), value.requires_grad) for name, value in module.state_dict(keep_vars=True).items()}

    before, attributes, x = state(), {name: set(vars(one)) for name, one in module.named_modules()}, given["x"].clone()
    record(lambda x, t: module(x.mul_(2), t), given)
    for name, (value, differentiable) in state().items():
        assert torch.equal(value, before[name][0]) and differentiable == before[name][1]
    assert attributes == {name: set(vars(one)) for name, one in module.named_modules()}
    assert torch.equal(given["x"], x) and torch.is_grad_enabled()
    assert not any(one.training for one in module.modules())
    assert module(**given).requires_grad  # autograd is as it was


def test_nothing_is_held(networks):
    """Neither by what is recorded, when it is dropped, nor by what is refused; without the garbage collector's help."""
    seen = []

    class Watched(Module):
        def forward(self, x, t):
            y = super().forward(x, t)
            y[:, 0] += 1
            seen.extend(map(weakref.ref, (x, y, self)))
            return y if x.shape[0] < 4 else y * float(y.max())

    gc.disable()
    try:
        graph = networks.graph_of(Watched().eval(), Given())
        assert not any(one() is not None for one in seen)  # constants hold the weights, nothing else
        weight = weakref.ref(next(iter(graph.constants.values())))
        del graph
        with pytest.raises(NotRecordableError):
            record(Watched().eval(), inputs(4))
        assert weight() is None
    finally:
        gc.enable()
    gc.collect()
    assert not any(one() is not None for one in seen)


def test_recording_does_not_load_what_is_slow_to():
    code = """
import json, sys, torch
from torch import nn
from fastdiff.capture.batch import merged
from fastdiff.capture.record import record
from fastdiff.capture.split import split
from fastdiff.capture.tidy import fold_constants, normalise
from fastdiff.capture.program import program
network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Dropout(0.5), nn.Linear(4, 4))
call = lambda x, t: network(x).mul_(t.view(-1, 1, 1, 1))
graph = merged(*(record(call, {"x": torch.randn(n, 4, 6, 6), "t": torch.rand(n)}) for n in (2, 3)), (2, 3))
normalise(graph)
fold_constants(graph)
split(graph)
print(json.dumps([name for name in ("torch._dynamo", "sympy", "triton") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
