"""Networks, training and sampling through the Triton kernels follow those through the references."""

import copy

import pytest
import torch

from fastdiff import AnnotatedUnet, ContextUnet, Model, load, make_schedule, sample
from fastdiff.capture.passes.convolutions import fuse_convolutions
from fastdiff.capture.passes.folded_attention import fold_linear_attention
from fastdiff.engine import evaluation
from fastdiff.engine.cuda import choice
from fastdiff.engine.cuda.library import depthwise_convolutions
from fastdiff.engine.evaluation import Given, Network, captured
from fastdiff.kernels.attention_block import attention_of
from fastdiff.kernels.depthwise_conv import fused_depthwise
from fastdiff.kernels.dispatch import launch, recording, use_triton, using
from fastdiff.kernels.folded_attention import fold
from fastdiff.networks.blocks import HEADS, Residual

# Tiny: the interpreter takes a tenth of a millisecond for each line of a kernel and program.
NETWORKS = {
    "mindspore": (lambda: AnnotatedUnet(8, dim_mults=(1, 2), edition="mindspore"), (1, 2, 4)),
    "mindspore-torch": (lambda: AnnotatedUnet(8, dim_mults=(1,), channels=3), (3, 4, 3)),
    "hf-2022": (lambda: AnnotatedUnet(8, dim_mults=(1,), edition="hf-2022"), (1, 4, 4)),
    "resnet": (lambda: AnnotatedUnet(8, dim_mults=(1, 2), block="resnet", resnet_groups=4), (1, 8, 8)),
    "context": (lambda: ContextUnet(3, 8, 2, 8, shortcut=True), (3, 8, 8)),
}
interpreted_slow = [] if torch.cuda.is_available() else [pytest.mark.slow]
FOLDED = {"mindspore": 3, "mindspore-torch": 1, "hf-2022": 1, "resnet": 3, "context": 0}  # linear-attention blocks


def inputs(network, shape, device, n=2):
    x = torch.randn(n, *shape, device=device)
    t = torch.rand(n, device=device) if isinstance(network, ContextUnet) else torch.randint(0, 200, (n,), device=device)
    return x, t


def mostly(*slow):
    """All networks; in the interpreter those whose operators the others run as well only by `make slow`."""
    slow = () if torch.cuda.is_available() else slow
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in NETWORKS]


def evaluated(network, shape, dtype, x, t):
    """By the graph as the CUDA form rewrites it, every sample at one time."""
    integer = not isinstance(network, ContextUnet)
    times = torch.tensor([1, 2]) if integer else torch.tensor([0.5, 0.25])
    given = Given(len(x), shape, None, times, x.device, dtype)
    return evaluation.evaluated(captured(Network(network, x.device, dtype), given), {"x": x.to(dtype), "t": t})


@pytest.mark.parametrize("name", mostly("mindspore", "hf-2022", "resnet"))
def test_the_network_is_the_same_function(triton_device, randomised, rel, name, monkeypatch):
    """Float32 rounding of some 40 layers summed in another order: 1e-5, as against the published network.

    With fused convolutions in float32 too, where no fault hides behind rounding.
    """
    monkeypatch.setattr(choice, "is_fused", lambda *sizes: True)
    make, shape = NETWORKS[name]
    network = randomised(make()).eval().to(triton_device)
    x, t = inputs(network, shape, triton_device)
    t = t[:1].expand(len(x))
    folded = []
    right = evaluation.fold_linear_attention
    monkeypatch.setattr(
        evaluation, "fold_linear_attention", lambda graph, fits: (right(graph, fits), folded.append(count(graph)))
    )
    with torch.no_grad():
        mine, half = (evaluated(network, shape, dtype, x, t) for dtype in (torch.float32, torch.bfloat16))
        assert max(folded[:2]) == 0 and max(folded[2:]) == FOLDED[name]  # four bytes an element are left unfolded
        with using("reference"):
            expected = network.double()(x.double(), t)
        network.float()
        assert rel(network(x, t).cpu(), expected.cpu()) < 1e-5
        assert rel(mine.cpu(), expected.cpu()) < 1e-5
        # Some 40 roundings to 8 bits, towards zero in the interpreter.
        assert rel(half.cpu(), expected.cpu()) < (3e-2 if triton_device.type == "cuda" else 1e-1)


def count(graph) -> int:
    return sum(node.target is attention_of for node in graph.nodes.nodes)


def test_autocast_gives_the_dtypes_and_gradients_of_the_references(triton_device, randomised, rel):
    """The residual stream stays in float32 where the references keep it there."""
    make, shape = NETWORKS["mindspore-torch"]
    network = randomised(make()).train().to(triton_device)
    x, t = inputs(network, shape, triton_device)
    results = []
    for form in ("triton", "reference"):
        with using(form), torch.autocast(triton_device.type, torch.bfloat16):
            seen = []
            handles = [
                m.register_forward_hook(lambda _, given, out, seen=seen: seen.append(out.dtype))
                for m in network.modules()
                if isinstance(m, Residual)
            ]
            out = network(x, t)
            [handle.remove() for handle in handles]
        gradients = torch.autograd.grad(out.float().square().mean(), list(network.parameters()))
        results.append((seen, out.dtype, torch.cat([g.flatten().double() for g in gradients])))
    (mine, out, gradients), (theirs, expected_out, expected) = results
    assert mine == theirs and out == expected_out
    assert rel(gradients.cpu(), expected.cpu()) < 0.1  # each form rounds to 8 bits at its own places


@pytest.mark.parametrize("name", mostly("mindspore", "hf-2022", "resnet"))
def test_training_follows_training_through_the_references(triton_device, randomised, rel, name):
    """Two steps of SGD on a batch, the second with momentum: the losses and every weight's whole movement."""
    make, shape = NETWORKS[name]
    start = randomised(make()).train().to(triton_device)
    x, t = inputs(start, shape, triton_device)
    noise = torch.randn(x.shape, device=triton_device)

    def run(form, dtype):
        with using(form):
            network = copy.deepcopy(start).to(dtype)
            optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
            losses = []
            for _ in range(2):
                loss = torch.nn.functional.mse_loss(network(x.to(dtype), t), noise.to(dtype))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            moved = [
                p.detach().double() - q.detach().double()
                for p, q in zip(network.parameters(), start.parameters(), strict=True)
            ]
            return losses, torch.cat([m.flatten() for m in moved]).cpu()

    losses, moved = run("triton", torch.float32)
    exact_losses, exact_moved = run("reference", torch.float64)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(exact_losses, rel=1e-4)
    assert rel(moved, exact_moved) < 1e-3  # float32's own rounding, grown over the steps


@pytest.mark.parametrize(
    "sampler, clip",
    [
        pytest.param("ddim", ("dynamic", 0.9), marks=interpreted_slow),
        ("ddpm", 1.0),
        pytest.param("dpmpp_2m_sde", None, marks=interpreted_slow),
    ],
)
def test_sampling_gives_the_same_images(triton_device, randomised, sampler, clip):
    make, shape = NETWORKS["resnet"]
    model = Model(randomised(make()), make_schedule("linear", 20), image_shape=shape)
    given = dict(n=2, sampler=sampler, steps=3, seed=5, first=2**33, clip=clip, device=triton_device)
    fused = sample(model, **given)
    with using("reference"):
        assert torch.allclose(fused, sample(model, **given), atol=1e-4)


def test_guided_sampling_gives_the_same_images(triton_device, randomised):
    make, shape = NETWORKS["context"]
    model = Model(randomised(make()), make_schedule("linear", 20), image_shape=shape, time="fraction")
    given = dict(n=3, sampler="ddpm", steps=3, context=[1.0, 0.0], guidance_scale=2.0, device=triton_device)
    fused = sample(model, **given)
    with using("reference"):
        assert torch.allclose(fused, sample(model, **given), atol=1e-4)


def test_off_the_gpu_operators_are_their_references():
    """No launch on the CPU unless it is asked for, with the interpreter on too."""
    launched = []
    with recording(lambda *given: launched.append(given)), using("auto"):
        sample(load("sprites"), 1, steps=1, device="cpu")
    assert not launched


def test_a_launch_is_recorded_in_place_of_being_run():
    launched = []
    with recording(lambda kernel, grid, args, options: launched.append((kernel, grid, args, options))):
        launch("kernel", (3,), torch.device("meta"), 1, 2, num_warps=4)
    assert launched == [("kernel", (3,), (1, 2), {"num_warps": 4})]


def test_backends_are_named():
    with pytest.raises(ValueError, match="kernel backend 'cuda'; accepted: auto, library, triton, reference"):
        with using("cuda"):
            pass


def test_a_backend_that_cannot_run_here_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with using("triton"):
        with pytest.raises(ValueError, match="on device cpu; accepted: CUDA, or any with TRITON_INTERPRET=1"):
            use_triton(torch.zeros(1))
        with pytest.raises(ValueError, match="the input is torch.float64; accepted: float32, bfloat16, float16"):
            use_triton(torch.zeros(1, dtype=torch.float64))


def test_the_environment_chooses_a_backend(monkeypatch):
    monkeypatch.setenv("FASTDIFF_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert use_triton(torch.zeros(1))
    monkeypatch.setenv("FASTDIFF_KERNELS", "fast")
    with pytest.raises(ValueError, match="kernel backend 'fast'"):
        use_triton(torch.zeros(1))


def test_what_is_folded_is_rounded_once(randomised):
    """Weights that were rounded to bfloat16 before they are folded would be rounded twice."""
    network = randomised(AnnotatedUnet(8, dim_mults=(1, 2))).eval()
    given = Given(1, (1, 8, 8), None, torch.tensor([1]), torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        graph = Network(network, given.device, given.dtype).captured(given).step
    fold_linear_attention(graph, lambda *sizes: True)
    block = network.downs[0][2].double().fn
    project, last = block.fn.to_out
    weights = block.norm.weight, block.norm.bias, block.fn.to_qkv.weight, project.weight, project.bias, last.g
    exact = fold(*weights, HEADS, block.fn.divide_by_n, block.norm.eps)
    node = next(node for node in graph.nodes.nodes if node.target is attention_of)
    _, w_q, w_k, _, (value, *_), bias, _, gain, *_ = node.args
    for mine, theirs in ((w_q, exact.w_q), (w_k, exact.w_k), (gain, exact.gain), (value, exact.values[0])):
        assert torch.equal(graph.constants[mine.target], theirs.bfloat16()), mine
    # kept in float32
    torch.testing.assert_close(graph.constants[bias.target].double(), exact.bias, rtol=1e-7, atol=0)


def test_taps_are_laid_out_when_a_network_is_prepared(randomised):
    """In a step they are read as they lie; a weight that lies otherwise is copied in every call."""
    network = randomised(AnnotatedUnet(8, dim_mults=(1,))).eval()
    given = Given(1, (1, 8, 8), None, torch.tensor([1]), torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        graph = Network(network, given.device, given.dtype).captured(given).step
        fuse_convolutions(graph)
        depthwise_convolutions(graph)
    node = next(node for node in graph.nodes.nodes if node.target is fused_depthwise)
    ours = graph.constants[node.args[1].target]
    assert torch.equal(ours, network.downs[0][0].ds_conv.weight.bfloat16()) and ours.shape == (4, 1, 7, 7)
    assert ours[:, 0].permute(1, 2, 0).is_contiguous()
    assert network.downs[0][0].ds_conv.weight.is_contiguous()  # the user's own stays as it was
