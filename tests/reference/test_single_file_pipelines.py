"""Folders that became single files are opened whole by ``from_single_file`` of diffusers, the same bits."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import tiny_files as tiny

from fewstep.checkpoint import conversion, single_file

CLASSES = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}


def vocabulary() -> dict[str, bytes]:
    """Of 99 words, as the tiny text encoders know."""
    words = ["<|startoftext|>", "!", "<|endoftext|>", *(f"w{number}" for number in range(96))]
    table = {word: number for number, word in enumerate(words)}
    return {"vocab.json": json.dumps(table).encode(), "merges.txt": b"#version: 0.2\n"}


def networks(family: str) -> dict[str, Any]:
    """Tiny networks whose text encoders are of different widths, by which diffusers tells them apart."""
    if family != "sdxl":
        return dict(tiny.networks(family))
    torch.manual_seed(0)
    config = {**tiny.unet("sdxl").config, "cross_attention_dim": 64 + 128}
    config["projection_class_embeddings_input_dim"] = 128 + 6 * 8
    made = {
        "unet": diffusers.UNet2DConditionModel.from_config(config),
        "vae": tiny.vae("sdxl"),
        "text_encoder": tiny.clip(),
        "text_encoder_2": tiny.clip(128, act="gelu", projection=True),
    }
    for module in made.values():
        for value in module.parameters():
            torch.nn.init.normal_(value, std=0.5)
    return made


@pytest.mark.parametrize("family", CLASSES)
def test_diffusers_opens_the_whole_pipeline_of_a_file_that_was_a_folder(family: str, tmp_path: Path) -> None:
    made = networks(family)
    detected, parts = tiny.views({name: tiny.state(module) for name, module in made.items()})
    assert detected.family == family
    single_file.write(tmp_path / "model.safetensors", parts, family=detected.family)
    options = conversion.Options(
        vocabulary=vocabulary, prediction_type="v_prediction" if family == "sd2" else None
    )
    conversion.convert(tmp_path / "model.safetensors", tmp_path / "model", options)
    conversion.convert(tmp_path / "model", tmp_path / "back.safetensors", conversion.Options())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = CLASSES[family].from_single_file(
            str(tmp_path / "back.safetensors"), config=str(tmp_path / "model"), local_files_only=True
        )
    for part, module in made.items():
        found, wanted = tiny.state(getattr(opened, part)), tiny.state(module)
        found.pop("text_model.embeddings.position_ids", None)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), part
