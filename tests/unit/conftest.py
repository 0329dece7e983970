"""A tiny pipeline of the real classes."""

from __future__ import annotations

import json
import string

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizer

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.models.components import Components


@pytest.fixture(scope="session")
def tiny_components(tmp_path_factory) -> Components:
    """A few thousand parameters: 16 px images, 8x8 latents with 4 channels, 8 wide text of 12 tokens."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, "##s", "red", "apple"]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    tokenizer = BertTokenizer.from_pretrained(folder)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
            use_attention_mask=True,
        )
    )
    contract = SamplingContract(
        base_family="tiny",
        prediction_type="v_prediction",
        schedule=ScheduleSpec(rescale_zero_terminal_snr=True),
        steps_offset=1,
        guidance_scale=3.0,
        guidance_rescale=0.7,
        num_inference_steps=5,
        native_sizes=((16, 16),),
    )
    return Components(vae.eval(), unet.eval(), encoder.eval(), tokenizer, contract)
