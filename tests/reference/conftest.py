"""A small diffusers model with random weights, for tests that export it and draw with it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # makes `small_students` importable


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A folder with random weights of ordinary size: 64 px, 8x8 latents of 4 channels, 12 tokens of 16."""
    import string

    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import BertConfig, BertModel, BertTokenizer

    from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
    from fewstep.models import load
    from fewstep.models.components import Components

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=4,
        mid_block_add_attention=False,
        scaling_factor=1.5,
        sample_size=64,
    )
    encoder = BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=12,
            use_attention_mask=True,
        ),
        add_pooling_layer=False,
    )
    for module in (unet, vae, encoder):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, "##e", "red", "apple"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    contract = SamplingContract(
        base_family="tiny",
        prediction_type="v_prediction",
        schedule=ScheduleSpec(rescale_zero_terminal_snr=True),
        guidance_scale=3.0,
        guidance_rescale=0.5,
        num_inference_steps=5,
        native_sizes=((64, 64),),
    )
    parts = Components(vae, unet, encoder, BertTokenizer.from_pretrained(folder), contract)
    card = "---\nlicense: Apache-2.0 AND MIT\n---\n# tiny\n"
    load.save_pipeline(folder / "tiny", parts, texts={"README.md": card})
    (folder / "tiny" / "attribution.json").write_text(
        '[{"author": "A. Artist", "url": "https://example.org"}]'
    )
    return folder / "tiny"


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    before = os.environ.get("FEWSTEP_CACHE")
    os.environ["FEWSTEP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("FEWSTEP_CACHE")
    if before is not None:
        os.environ["FEWSTEP_CACHE"] = before
