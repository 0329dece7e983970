from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from fewstep.engine.backends.torch_control import Controls
from fewstep.engine.control import ControlUse
from fewstep.errors import UsageError
from fewstep.models.conditions import Conditions

UNET = {"block_out_channels": [8, 16], "cross_attention_dim": 16, "layers_per_block": 1}
IMAGE = np.full((64, 64, 3), 200, dtype=np.uint8)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "sketch"
    torch.manual_seed(0)
    made = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=8)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("net") / "edges"
    torch.manual_seed(0)
    made = diffusers.ControlNetModel(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        conditioning_embedding_out_channels=(8, 8, 8, 8),
    )  # fmt: skip
    made.save_pretrained(folder)
    return folder


def controls(unet=UNET):
    return Controls(unet, 8, torch.device("cpu"), torch.float32)


def told(rows):
    return Conditions(text=torch.zeros(rows, 5, 16))


def test_both_kinds_add_for_every_row(adapter, controlnet):
    made = controls()
    made.use([ControlUse(folder=folder, image=IMAGE) for folder in (adapter, controlnet)])
    with torch.inference_mode():
        for rows in (1, 4, 2):
            found = made.add(torch.zeros(rows, 4, 8, 8), torch.full((rows,), 10.0), told(rows))
            assert [tuple(one.shape) for one in found.adapter_residuals] == [
                (rows, 8, 8, 8),
                (rows, 16, 4, 4),
            ]
            assert {len(one) for one in (*found.residuals, found.mid_residual)} == {rows}


def test_scale_zero_adds_nothing(adapter, controlnet):
    made = controls()
    made.use([ControlUse(folder=folder, image=IMAGE, scale=0.0) for folder in (adapter, controlnet)])
    with torch.inference_mode():
        found = made.add(torch.ones(1, 4, 8, 8), torch.full((1,), 10.0), told(1))
    assert all(not one.any() for one in (*found.adapter_residuals, *found.residuals, found.mid_residual))


def test_nothing_is_added_when_nothing_is_used(adapter):
    made = controls()
    conditions = told(1)
    made.use([ControlUse(folder=adapter, image=IMAGE)])
    made.use([])
    assert made.add(torch.zeros(1, 4, 8, 8), torch.zeros(1), conditions) is conditions


@pytest.mark.parametrize(
    ("which", "changes"),
    [
        ("adapter", {"block_out_channels": [8, 32]}),
        ("controlnet", {"block_out_channels": [8, 32]}),
        ("controlnet", {"cross_attention_dim": 32}),
        ("controlnet", {"layers_per_block": 2}),
    ],
)
def test_a_network_of_another_model_is_refused(which, changes, adapter, controlnet):
    folder = {"adapter": adapter, "controlnet": controlnet}[which]
    with pytest.raises(UsageError, match="made for another model"):
        controls(UNET | changes).use([ControlUse(folder=folder, image=IMAGE)])


def test_models_without_a_unet_take_none(adapter):
    with pytest.raises(UsageError, match="has no U-Net"):
        controls(None).use([ControlUse(folder=adapter, image=IMAGE)])
