"""The operators as torch's dispatcher, torch.compile and torch.export see them."""

import operator
import subprocess
import sys

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.dispatch import using
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention
from fastdiff.kernels.philox import normals

B, C, H, W = 2, 4, 3, 5


def _tensors(*shapes):
    return [torch.randn(shape) for shape in shapes]


def _step(x, out, rows, index, history, noise, key, limit, bound, guidance_scale, variance):
    clip = limit if bound is None else bound
    more = dict(noise=noise, key=key, clip=clip, guidance_scale=guidance_scale, variance=variance)
    denoise_step(x, out, rows, index, history, **more)
    return torch.stack((x, history[0], history[1]))


# By an operator's name: the public function, and arguments of its schema, all of them, by position.
# Those of images have kernels whose results are channels_last, and gradients.
IMAGES = {
    "group_norm": lambda: (
        lambda x, groups, weight, bias, eps, input_bias, scale, shift, before, after: group_norm(
            x, groups, weight, bias, eps, input_bias=input_bias, scale=scale, shift=shift, before=before, after=after
        ),
        (*_tensors((B, C, H, W)), 2, *_tensors(C, C), 1e-4, *_tensors(C, (B, C), (B, C)), "gelu", "silu"),
    ),
    "channel_norm": lambda: (channel_norm, (*_tensors((B, C, H, W), (1, C, 1, 1), (B, C, H, W)), 1e-4)),
    "linear_attention": lambda: (linear_attention, (*_tensors((B, 12, H, W)), 2, True)),
    "depthwise_conv": lambda: (depthwise_conv, tuple(_tensors((B, C, H, W), (C, 1, 3, 3), C, (B, C)))),
    "bias_add": lambda: (bias_add, tuple(_tensors((B, C, H, W), (B, C, H, W), C, C))),
}
CASES = {
    **IMAGES,
    "denoise_step": lambda: (
        _step,
        (
            *(*_tensors((B, C, H, W), (B, C, H, W)), torch.rand(3, 12), torch.tensor(1), torch.randn(2, B, C, H, W)),
            *(None, torch.tensor([5, 7]), None, torch.tensor([0.5, 0.8]), None, torch.randn(B, C, H, W)),
        ),
    ),
    "normals": lambda: (normals, (torch.tensor([5, 7]), 3, (B, C, H, W))),
}
# What the schema need not be given: torch's dispatcher leaves out defaults at the end.
SHORT = {"group_norm": 2, "channel_norm": 2, "depthwise_conv": 2, "bias_add": 2, "denoise_step": 4}
of_images = pytest.mark.parametrize("name", IMAGES)


def _registered(name):
    return getattr(torch.ops.fastdiff, name).default


def _copies(args):
    """denoise_step writes to its arguments."""
    return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)


def _leaves(args):
    return tuple(a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)


@pytest.fixture(params=CASES)
def name(request):
    return request.param


@pytest.fixture
def case(name):
    return CASES[name]()


class _Seen(TorchDispatchMode):
    """The operations that arrive, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def _operations(graph):
    """What a graph calls, without what surrounds an operator that writes to its arguments."""
    aten = torch.ops.aten
    around = (operator.getitem, aten.select.int, aten.copy_.default, aten.stack.default, torch.stack)
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target not in around]
    functional = torch.ops.higher_order.auto_functionalized_v2
    return [node.args[0] if node.target is functional else node.target for node in calls]


def test_the_registration_passes_torchs_own_checks(name, case):
    """Schema, fake tensors, and what torch.compile makes of it."""
    _, args = case
    torch.library.opcheck(_registered(name), args)
    if name in SHORT:
        torch.library.opcheck(_registered(name), args[: SHORT[name]], test_utils=("test_schema", "test_faketensor"))


@of_images
def test_with_gradients_too(name, case):
    _, args = case
    torch.library.opcheck(_registered(name), _leaves(args))


def test_fakes_have_the_strides_of_the_kernels(name, case, triton_device):
    """The reference's strides are those of the checks above."""
    _, args = case
    args = [a.to(triton_device) if isinstance(a, torch.Tensor) else a for a in args]
    torch.library.opcheck(_registered(name), tuple(args), test_utils="test_faketensor")
    if name in IMAGES:
        assert _registered(name)(*args).is_contiguous(memory_format=torch.channels_last)


def test_a_recorder_sees_one_operation(name, case):
    function, args = case
    args = _leaves(args) if name in IMAGES else args
    with torch.no_grad(), _Seen() as seen:
        function(*args)
    around = ("aten::stack", "aten::select.int")
    assert [one for one in seen.names if one not in around] == [f"fastdiff::{name}"]


@of_images
def test_a_recorder_sees_the_references_operations_where_gradients_are_needed(name, case):
    function, args = case
    args = _leaves(args)
    with _Seen() as seen:
        function(*args)
    assert seen.names and all(one.startswith("aten::") for one in seen.names)


def test_using_the_reference_shows_its_operations(name, case):
    function, args = case
    with torch.no_grad(), using("reference"), _Seen() as seen:
        function(*args)
    assert seen.names and all(one.startswith("aten::") for one in seen.names)


def test_autocast_reaches_the_references_operations(name, case):
    function, args = case
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), _Seen() as seen:
        function(*args)
    assert seen.names and all(one.startswith("aten::") for one in seen.names)


@of_images
def test_forward_derivatives_are_the_references(name, case):
    """They are not lost below autograd."""
    function, args = case
    x, *others = args

    def along(x):
        return function(x, *others)

    _, mine = torch.func.jvp(along, (x,), (torch.ones_like(x),))
    with using("reference"):
        _, expected = torch.func.jvp(along, (x,), (torch.ones_like(x),))
    assert torch.equal(mine, expected) and mine.abs().max() > 0


@pytest.mark.parametrize("through", [pytest.param("dynamo", marks=pytest.mark.slow), "aot_autograd"])
def test_compiled_it_is_one_operation(name, case, through):
    function, args = case
    graphs = []

    def keep(module, inputs):
        graphs.append(module.graph)
        return module.forward

    backend = aot_autograd(fw_compiler=keep) if through == "aot_autograd" else keep
    torch._dynamo.reset()
    with torch.no_grad():
        made = torch.compile(lambda *given: function(*given), fullgraph=True, backend=backend)
        assert torch.equal(made(*_copies(args)), function(*args))
    assert _operations(graphs[0]) == [_registered(name)]


@pytest.mark.slow
@of_images
def test_compiled_gradients_are_the_references(name, case):
    function, args = case
    torch._dynamo.reset()
    made = torch.compile(lambda *given: function(*given), fullgraph=True, backend="aot_eager")
    results = []
    for one in (made, function):
        leaves = _leaves(args)
        one(*leaves).square().sum().backward()
        results.append([leaf.grad for leaf in leaves if isinstance(leaf, torch.Tensor)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_it_is_one_operation(name, case, strict):
    function, args = case

    class Module(torch.nn.Module):
        def forward(self, *given):
            return function(*given)

    with torch.no_grad():
        program = torch.export.export(Module(), args, strict=strict)
    assert _operations(program.graph) == [_registered(name)]


LIGHT = """
import sys, torch
from fastdiff.kernels.bias_add import bias_add
from fastdiff.kernels.channel_norm import channel_norm
from fastdiff.kernels.denoise_step import denoise_step
from fastdiff.kernels.depthwise_conv import depthwise_conv
from fastdiff.kernels.group_norm import group_norm
from fastdiff.kernels.linear_attention import linear_attention
from fastdiff.kernels.philox import normals
x = torch.ones(1, 6, 2, 2)
for gradient in (False, True):
    x.requires_grad_(gradient)
    group_norm(x, 2), channel_norm(x, x[:, :, :1, :1]), linear_attention(x, 1, True), bias_add(x, x)
    depthwise_conv(x, torch.ones(6, 1, 3, 3))
    denoise_step(x * 2, x, torch.ones(1, 12), torch.tensor(0), key=torch.tensor([1, 0]))
normals(torch.tensor([1, 0]), 0, (2, 3))
print(*sorted({"triton", "torch._dynamo", "sympy"} & sys.modules.keys()))
"""


def test_operators_import_neither_triton_nor_the_compiler():
    """On a CPU, in plain torch; the compiler takes longer to import than an image to sample."""
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
