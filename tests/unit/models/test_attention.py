"""Attention as two products: the same numbers, and only where training wants it."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from fewstep.models.attention import unfused


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    )


def test_two_products_give_what_the_fused_form_gives(unet):
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    before = unet(x, torch.tensor([5, 900]), text).sample
    assert unfused(unet) == 8
    assert all(type(processor) is AttnProcessor for processor in unet.attn_processors.values())
    torch.testing.assert_close(unet(x, torch.tensor([5, 900]), text).sample, before, rtol=1e-4, atol=1e-5)


def test_processors_of_others_stay(unet):
    class Own(AttnProcessor2_0):
        pass

    unet.set_attn_processor(Own())
    assert unfused(unet) == 0
