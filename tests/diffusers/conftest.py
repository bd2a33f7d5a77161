"""Small networks of diffusers, and loops of its own schedulers with given noise."""

import pytest
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
