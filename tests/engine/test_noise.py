"""Philox and the normals: published vectors, independence of the batch, closeness to float64, Triton's generator."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdiff import AnnotatedUnet, InputError, Interpolation, Model, PhiloxNoise, make_schedule, sample
from fastdiff.kernels import philox

CPU = torch.device("cpu")

# Random123's kat_vectors for philox4x32-10: counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
seeds = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_published_vectors(counter, key, result):
    words = philox.philox4x32(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(int(w) for w in words) == result


@given(counter=st.tuples(*[st.integers(0, 2**32 - 1)] * 4), key=st.tuples(*[st.integers(0, 2**32 - 1)] * 2))
def test_integers_equal_exact_arithmetic(counter, key):
    """Against Python's own integers, which cannot overflow."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    words = philox.philox4x32(tuple(torch.tensor(v) for v in counter), key)
    assert [int(w) for w in words] == c


def test_the_counter_is_element_draw_sample():
    """Element 4 j + r of sample s at draw d is word r of counter (j, d, s low, s high)."""
    seed, draw, first = (7 << 32) + 5, 3, (2 << 32) + 11
    words = philox.words(seed, draw, first, 2, 10, CPU)
    for row in range(2):
        for j in range(3):
            one = philox.philox4x32(tuple(torch.tensor(v) for v in (j, draw, 11 + row, 2)), (5, 7))
            assert [int(w[row, j]) for w in words] == [int(w) for w in one]


@given(seed=seeds, first=st.integers(0, 2**63 - 200), draw=st.integers(0, 1000), row=st.integers(0, 63))
def test_a_sample_does_not_depend_on_the_batch_around_it(seed, first, draw, row):
    noise = PhiloxNoise(seed)
    batch = noise(draw, first, (64, 1, 5, 3))
    assert torch.equal(noise(draw, first + row, (1, 1, 5, 3))[0], batch[row])


def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(PhiloxNoise(3)(1, 0, (200, 3, 37, 41)))
        assert torch.equal(*results)
    finally:
        torch.set_num_threads(before)


def float64_normals(words):
    u = [((w.numpy() >> 9) + 0.5) * 2.0**-23 for w in words]
    r0, r1 = np.sqrt(-2 * np.log(u[0])), np.sqrt(-2 * np.log(u[2]))
    a0, a1 = 2 * np.pi * u[1], 2 * np.pi * u[3]
    return r0 * np.cos(a0), r0 * np.sin(a0), r1 * np.cos(a1), r1 * np.sin(a1)


def test_normals_are_within_2e_6_of_float64():
    words = list(philox.words(1, 2, 3, 64, 65536, CPU))
    edge = torch.tensor([0, 1 << 9, 511, 2**32 - 1, 2**31, 2**31 - 1, 2**30, 3 * 2**30, 2**29, 2**29 - 1, 7 << 29])
    for k, (i, j) in enumerate(zip((0, 1, 2, 3), (1, 0, 3, 2), strict=True)):
        words[i][: len(edge), 0] = edge  # every pair of edge values meets, for both pairs of words
        words[j][: len(edge), k + 1 : k + 1 + len(edge)] = edge
    for ours, exact in zip(philox.box_muller(tuple(words)), float64_normals(words), strict=True):
        assert ours.dtype == torch.float32
        assert float(np.abs(ours.numpy() - exact).max()) < 2e-6


def test_normals_are_normal():
    z = PhiloxNoise(0)(0, 0, (1000, 1, 40, 40)).double()
    n = z.numel()
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    tail = float((z.abs() > 3).double().mean())
    assert abs(tail - 0.0026998) < 4 * math.sqrt(0.0027 / n)
    flat = z.reshape(1000, -1)
    correlation = float((flat[:, :-1] * flat[:, 1:]).mean())
    assert abs(correlation) < 4 / math.sqrt(n)


def test_draws_seeds_and_samples_differ():
    shape = (1, 1, 8, 8)
    drawn = [PhiloxNoise(s)(d, f, shape) for s in (0, 1, 2**32) for d in (0, 1) for f in (0, 1, 2**32)]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert not torch.equal(a, b)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "0", True])
def test_bad_seeds_are_named(seed):
    with pytest.raises(InputError, match="seed = "):
        PhiloxNoise(seed)


TRITON = """
import torch, triton, triton.language as tl
from fastdiff.kernels import philox

@triton.jit
def kernel(out, seed, draw, low, high, n: tl.constexpr):
    block = tl.arange(0, n)
    zero = tl.zeros_like(block)
    words = tl.philox(seed, block, zero + draw, zero + low, zero + high)
    for r in tl.static_range(4):
        tl.store(out + r * n + block, words[r].to(tl.int32, bitcast=True))

seed, draw, first = (3 << 32) + 9, 5, (1 << 32) + 7
out = torch.full((4, 16), -1, dtype=torch.int32, device="cuda" if torch.cuda.is_available() else "cpu")
kernel[(1,)](out, seed, draw, 7, 1, 16)
ours = torch.stack(philox.words(seed, draw, first, 1, 64, torch.device("cpu")))[:, 0]
assert torch.equal(out.cpu().long() & 0xFFFFFFFF, ours), (out, ours)
print("equal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is a dependency on Linux only")
def test_triton_makes_the_same_integers(tmp_path):
    """tl.philox on the device, or in Triton's interpreter, chosen before triton is imported: hence a process."""
    script = tmp_path / "philox_in_triton.py"  # the interpreter reads the kernel's source from a file
    script.write_text(TRITON)
    environment = {**os.environ, "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr


# --- between two samples ---


@pytest.mark.parametrize("draw", [0, 3])
def test_an_interpolation_goes_from_one_sample_to_the_other(draw):
    source, between = PhiloxNoise(5), Interpolation(3, 2**40, 5, seed=5)
    whole = between(draw, 0, (5, 3, 16, 16))
    assert torch.equal(whole[0], source(draw, 3, (1, 3, 16, 16))[0])
    assert torch.equal(whole[4], source(draw, 2**40, (1, 3, 16, 16))[0])
    assert torch.equal(whole[2:4], between(draw, 2, (2, 3, 16, 16)))  # whatever the batch
    a, b = whole[0].double().flatten(), whole[4].double().flatten()
    for k, one in enumerate(whole.double().flatten(1)):
        angle = float(torch.arccos((a @ one / (a.norm() * one.norm())).clamp(max=1)))
        assert angle == pytest.approx(k / 4 * float(torch.arccos(a @ b / (a.norm() * b.norm()))), abs=0.1)
        assert 0.9 < float(one.std()) < 1.1


def test_images_between_two_samples(randomised):
    model = Model(
        randomised(AnnotatedUnet(dim=8, dim_mults=(1, 2))), make_schedule("linear", 20), image_shape=(1, 8, 8)
    )
    for sampler in ("ddim", "dpmpp_2m_sde"):
        images = sample(model, 4, sampler, steps=5, noise=Interpolation(2, 9, 4), device="cpu")
        for k, index in ((0, 2), (3, 9)):
            own = sample(model, 1, sampler, steps=5, first=index, device="cpu")
            assert torch.allclose(images[k : k + 1], own, atol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(begin=1, end=1, n=3), "two different samples"),
        (dict(begin=1, end=2, n=1), "n = 1"),
        (dict(begin=-1, end=2, n=3), "begin = -1"),
        (dict(begin=1, end=2, n=3, seed=-1), "seed = -1"),
    ],
)
def test_bad_interpolations(options, words):
    with pytest.raises(InputError, match=words):
        Interpolation(**options)
