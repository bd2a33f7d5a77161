"""begin_step in Triton against plain torch, of which it copies every bit."""

import pytest
import torch

from fastdiff.kernels.begin_step import begin_step
from fastdiff.kernels.dispatch import using


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (3, 3, 5, 7), (1, 4, 1, 1)])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("dtype, twice", [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)])
def test_it_copies_what_a_step_reads(triton_device, layouts, shape, depth, dtype, twice):
    device = triton_device
    ring = torch.randn(max(1, depth), *shape, device=device)
    table = torch.randint(256, (5, 16 * 130), device=device).to(torch.uint8)
    for name, x in layouts(torch.randn(shape, device=device)).items():
        history = layouts(ring.flatten(0, 1))[name].unflatten(0, ring.shape[:2]) if depth else None
        for i in (0, 3):
            made = []
            for backend in ("triton", "reference"):
                current, row = torch.tensor(-1, device=device), torch.zeros_like(table[:1])
                with using(backend):
                    images = begin_step(x, torch.tensor(i, device=device), current, dtype, history, twice, table, row)
                assert len(images) == 1 + (depth > 0)
                if backend == "triton":
                    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in images)
                made.append([*images, current, row])
            for ours, plain in zip(*made, strict=True):
                assert ours.dtype == plain.dtype
                if ours.is_floating_point() and device.type == "cpu" and dtype == torch.bfloat16:
                    # Triton's interpreter cuts to bfloat16 towards zero.
                    torch.testing.assert_close(ours, plain, rtol=2**-7, atol=0)
                else:
                    assert torch.equal(ours, plain)
            assert int(made[0][-2]) == i and torch.equal(made[0][-1][0], table[i])


def test_a_network_without_time_has_no_table(triton_device):
    current = torch.tensor(-1, device=triton_device)
    x = torch.randn(1, 1, 2, 2, device=triton_device)
    (images,) = begin_step(x, torch.tensor(4, device=triton_device), current, torch.float32)
    assert torch.equal(images, x) and int(current) == 4
