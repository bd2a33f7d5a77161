"""A sample is the same bits in any batch and by any number of threads, whatever memory held before."""

from functools import cache
from importlib.util import find_spec

import pytest
import torch

from fastdiff import AnnotatedUnet, ContextUnet, Engine, Model, PhiloxNoise, make_schedule
from fastdiff.engine.cpu import step
from fastdiff.engine.cpu.step import PlannedStep
from fastdiff.engine.kept import release


@cache
def model_of(name, randomise):
    if name == "annotated":
        network = AnnotatedUnet(8, dim_mults=(1, 2), channels=1)
        return Model(randomise(network), make_schedule("linear", 40), image_shape=(1, 12, 12))
    if name == "context":
        network, options = ContextUnet(3, 16, 5, 8), dict(image_shape=(3, 8, 8), time="fraction")
        return Model(randomise(network), make_schedule("linear", 40), **options)
    if find_spec("diffusers") is None:
        pytest.skip("needs diffusers")
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return Model(randomise(network), make_schedule("linear", 40), image_shape=(3, 8, 8))


def contexts(first, count):
    return torch.stack([torch.sin(torch.arange(1.0, 6) * (first + r)) * 3 for r in range(count)])


REQUESTS = {
    "ddim": dict(sampler="ddim", steps=2),
    "ddpm": dict(sampler="ddpm", steps=3),
    "history": dict(sampler="dpmpp_2m", steps=3),
    "history and noise": dict(sampler="dpmpp_2m_sde", steps=3),
    "dynamic": dict(sampler="ddpm", steps=2, clip=("dynamic", 0.9)),
    "a bound": dict(sampler="ddim", steps=2, clip=1.0),
    "the caller's noise": dict(sampler="ddpm", steps=2, noise=PhiloxNoise(5)),
    "contexts": dict(sampler="ddpm", steps=2, context=contexts),
    "guidance": dict(sampler="ddpm", steps=2, context=contexts, guidance_scale=2.5),
    "guidance, dynamic": dict(sampler="dpmpp_2m", steps=2, context=contexts, guidance_scale=2.5, clip=("dynamic", 0.9)),
}
NETWORKS = ("annotated", "context", "unet2d")
CASES = [(name, kind) for name in NETWORKS for kind in REQUESTS if name == "context" or "context" not in REQUESTS[kind]]
FEW = [(name, kind) for name, kind in CASES if name == "annotated" or "context" in REQUESTS[kind]]
FEW += [("unet2d", "ddpm"), ("unet2d", "history")]
N = 17


def samples(model, size, sampler, steps, clip=None, n=N, **options):
    engine = Engine(model, model.table(sampler, steps), batch_size=size, device="cpu", clip=clip, form="cpu")
    return engine.sample(n, seed=7, first=2, **options)


def check(model, request, with_threads, configurations):
    expected = samples(model, 16, **request)
    assert torch.isfinite(expected).all() and expected.unique(dim=0).shape[0] == N
    for size, threads in configurations:
        with with_threads(threads):
            found = samples(model, size, **request, n=3 if size == 1 else N)
        assert torch.equal(found, expected[: len(found)]), (size, threads)


@pytest.mark.parametrize("name, kind", FEW)
def test_batches_and_threads_change_no_bit(name, kind, randomised, with_threads):
    check(model_of(name, randomised), REQUESTS[kind], with_threads, ((1, 1), (3, 2), (16, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_large_batches_change_no_bit(name, randomised, with_threads):
    request = REQUESTS["guidance" if name == "context" else "history and noise"]
    check(model_of(name, randomised), request, with_threads, ((64, 1), (64, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name, kind", CASES)
def test_any_batch_and_number_of_threads_change_no_bit(name, kind, randomised, with_threads):
    configurations = [(size, threads) for size in (1, 3, 16, 64) for threads in (1, 2, 3)]
    check(model_of(name, randomised), REQUESTS[kind], with_threads, configurations)


@pytest.mark.parametrize("name", ["annotated", "context", pytest.param("unet2d", marks=pytest.mark.slow)])
def test_pieces_of_a_batch_change_no_bit(name, randomised, monkeypatch, with_threads):
    model, request = model_of(name, randomised), REQUESTS["guidance" if name == "context" else "ddpm"]
    expected, pieces = samples(model, 16, **request), set()
    right = PlannedStep.__init__

    def look(self, *given):
        right(self, *given)
        pieces.add(tuple(tuple(piece.samples for piece in one) for one in self.pieces))

    monkeypatch.setattr(PlannedStep, "__init__", look)
    for limit, threads in ((1, 1), (100_000, 1), (1, 2)):
        release()
        monkeypatch.setattr(step, "PIECE_BYTES", limit)
        with with_threads(threads):
            assert torch.equal(samples(model, 16, **request), expected)
    assert {len(one) for one in pieces} == {1, 2} and ((1,) * 16,) in pieces and ((1,) * 8,) * 2 in pieces


@pytest.mark.parametrize("name", NETWORKS)
def test_what_memory_held_before_changes_no_bit(name, randomised, poisoned):
    model = model_of(name, randomised)
    for kind in ("history and noise", "guidance" if name == "context" else "dynamic"):
        filled = samples(model, 3, **REQUESTS[kind])
        torch.use_deterministic_algorithms(False)
        release()
        assert torch.equal(filled, samples(model, 3, **REQUESTS[kind]))
        torch.use_deterministic_algorithms(True, warn_only=True)


def test_a_batch_that_has_diverged_leaves_nothing_behind(randomised):
    """NaN in the buffers of one request are not seen by the next."""
    model = model_of("annotated", randomised)
    table = model.table("dpmpp_2m_sde", 3)
    expected = Engine(model, table, batch_size=4, device="cpu").sample(4)
    engine = Engine(model, table, batch_size=4, device="cpu")
    bad = engine.sample(4, noise=lambda draw, first, shape: torch.full(shape, torch.nan))
    assert bad.isnan().all() and torch.equal(engine.sample(4), expected)
