"""Folders of control networks are hostile until checked (A01, A10, A11): two classes, safetensors only."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch

from fewstep.engine.backends import torch_control
from fewstep.errors import CheckpointError, NotFoundError

MARK = "fewstep-control-ran"


class Evil:
    def __reduce__(self):
        return (exec, (f"open({MARK!r}, 'w').close()",))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    made = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=8)
    made.save_pretrained(folder)
    return folder


def test_a_sound_folder_is_read(adapter: Path) -> None:
    assert type(torch_control.load(adapter)).__name__ == "T2IAdapter"


@pytest.mark.parametrize("kind", ["UNet2DConditionModel", "AutoencoderKL", "os.system", None, ["T2IAdapter"]])
def test_A11_other_classes_are_refused(adapter: Path, kind: object) -> None:
    config = json.loads((adapter / "config.json").read_text()) | {"_class_name": kind}
    (adapter / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="only these are read as control networks"):
        torch_control.load(adapter)


def test_A01_a_pickle_is_not_loaded(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (adapter / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Evil(), adapter / "diffusion_pytorch_model.bin")
    with pytest.raises((CheckpointError, NotFoundError)):
        torch_control.load(adapter)
    assert not (tmp_path / MARK).exists()


def test_A10_weights_of_another_network_are_refused(adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    diffusers.T2IAdapter(channels=[8, 24], num_res_blocks=1, downscale_factor=8).save_pretrained(other)
    name = "diffusion_pytorch_model.safetensors"
    (adapter / name).write_bytes((other / name).read_bytes())
    with pytest.raises(CheckpointError):
        torch_control.load(adapter)
