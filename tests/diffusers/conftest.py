"""Small networks of diffusers, and loops of its own schedulers with given noise."""

import sys
from unittest import mock

import pytest
import torch
from diffusers import UNet2DConditionModel

SIZE = 8


@pytest.fixture
def conditional(randomised):
    """A small UNet2DConditionModel, of tokens of 12 numbers."""
    made = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return randomised(made).eval()


def _noise(draw, first, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + draw))


@pytest.fixture
def noise():
    """(draw, first, shape) → the normals of fastdiff's draw of that number."""
    return _noise


@pytest.fixture
def their_loop():
    """(scheduler, network, shape, ...) → images of a loop of diffusers' own with those normals.

    What the scheduler draws in step k is draw k + 1; the network is (x, t) → the output.
    """

    def loop(scheduler, network, shape, **more):
        row = 0
        module = sys.modules[type(scheduler).__module__]
        draws = mock.patch.object(module, "randn_tensor", lambda *_, **__: _noise(row + 1, 0, shape), create=True)
        x = _noise(0, 0, shape) * scheduler.init_noise_sigma
        with draws, torch.no_grad():
            for row, t in enumerate(scheduler.timesteps):  # noqa: B007  the draws read it
                out = network(scheduler.scale_model_input(x, t), t)
                x = scheduler.step(out, t, x, return_dict=False, **more)[0]
        return x

    return loop
