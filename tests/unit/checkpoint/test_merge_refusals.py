"""Models that cannot be merged, or not into that place: a sentence each, and nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_files as tiny
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint.merging.run import Options, merge
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError

UNET = "model.diffusion_model."
State = dict[str, torch.Tensor]


def refuse(error: type[Exception], said: str, models: list[Path], out: Path, **options: Any) -> None:
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    with pytest.raises(error) as raised:
        merge(models, out, Options(**options))
    text = str(raised.value)
    assert said in text and "\n" not in text and len(text) < 500, text
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == before


def test_models_that_do_not_fit_are_a_sentence(
    sd1: dict[str, Path], unets: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out" / "out.safetensors"
    sdxl = tiny.save(tmp_path / "sdxl.safetensors", "sdxl", only=["unet"])
    said = "A (a.safetensors) is a checkpoint of sd1 and B (sdxl.safetensors) is a denoiser of sdxl"
    refuse(CheckpointError, said, [sd1["a"], sdxl], out)
    refuse(CheckpointError, "C (sdxl.safetensors) is", [sd1["a"], sd1["b"], sdxl], out, mode="add-difference")
    wide = {n: torch.zeros(len(v) + 32, *v.shape[1:]) for n, v in load_file(unets["fine"]).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    refuse(CheckpointError, "has the shape (64,", [unets["fine"], tmp_path / "wide.safetensors"], out)
    three = [unets["fine"], unets["base"], tmp_path / "wide.safetensors"]
    refuse(CheckpointError, "C (wide.safetensors)", three, out, mode="add-difference")
    vae = tmp_path / "vae.safetensors"
    save_file(tiny.states("sd1")["vae"], vae)
    refuse(CheckpointError, "has none of the tensors of A", [unets["fine"], vae], out)
    refuse(CheckpointError, "C (vae.safetensors) has none of the", [unets["fine"], unets["base"], vae], out,
           mode="add-difference")  # fmt: skip
    refuse(CheckpointError, "holds no autoencoder", [sd1["a"], sd1["b"]], out, vae=unets["fine"])
    refuse(CheckpointError, "has no autoencoder and no place", [unets["fine"]], out, vae=vae,
           mode="no-interpolation")  # fmt: skip
    lora = tmp_path / "lora.safetensors"
    save_file({f"lora_unet_x.lora_{name}.weight": torch.ones(2, 2) for name in ("up", "down")}, lora)
    refuse(CheckpointError, "a LoRA, which is drawn with as it is", [sd1["a"], lora], out)


def test_too_few_or_too_many_models_are_a_sentence(sd1: dict[str, Path], tmp_path: Path) -> None:
    out, models = tmp_path / "o.safetensors", [sd1[name] for name in "abc"]
    refuse(
        UsageError, "A + M (B - C), and there is no C; give 3 models", models[:2], out, mode="add-difference"
    )
    refuse(UsageError, "there is no B and no C", models[:1], out, mode="make-few-step")
    refuse(UsageError, "there is no B;", models[:1], out)
    refuse(UsageError, "leave it out", models, out)
    refuse(UsageError, "--ratio is nan", models[:2], out, multiplier=float("nan"))
    refuse(UsageError, "--blocks has no meaning", models[:1], out, mode="no-interpolation", blocks="IN00=1")
    refuse(NotFoundError, "no such file", [sd1["a"], tmp_path / "absent.safetensors"], out)
    refuse(NotFoundError, "no weights here", [tmp_path, sd1["a"]], out)


def test_a_distilled_unet_with_more_layers_is_refused(unets: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(unets["distilled"])
    state["time_embedding.cond_proj.weight"] = torch.ones(32, 256)
    save_file(state, tmp_path / "lcm.safetensors")
    models = [unets["fine"], tmp_path / "lcm.safetensors", unets["base"]]
    refuse(
        CheckpointError, "1 tensors that A's has not, the first time_embedding.cond_proj.weight", models,
        tmp_path / "o.safetensors", mode="make-few-step",
    )  # fmt: skip
    _, remarks = merge(models, tmp_path / "o.safetensors", Options(mode="add-difference"))
    assert remarks == ["1 tensors are only in B and are left out"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", [0, 1, 2])
def test_values_that_are_not_finite_name_the_tensor(
    unets: dict[str, Path], tmp_path: Path, value: float, role: int
) -> None:
    models = [unets["fine"], unets["distilled"], unets["base"]]
    state = load_file(models[role])
    state["mid_block.resnets.1.conv2.bias"][7] = value
    models[role] = tmp_path / "bad.safetensors"
    save_file(state, models[role])
    said = f"{'ABC'[role]} (bad.safetensors): mid_block.resnets.1.conv2.bias has 1 values that are not finite"
    refuse(CheckpointError, said, models, tmp_path / "o.safetensors", mode="add-difference")
    refuse(CheckpointError, "are not finite", [tmp_path / "bad.safetensors"], tmp_path / "o.safetensors",
           mode="no-interpolation")  # fmt: skip


def test_results_that_do_not_fit_the_type_name_the_tensor(unets: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(unets["base"])
    state["conv_out.bias"][0] = 60000.0
    save_file(state, tmp_path / "big.safetensors")
    models = [unets["fine"], tmp_path / "big.safetensors", unets["base"]]
    refuse(CheckpointError, "conv_out.bias: 1 of its values are too large for float16", models,
           tmp_path / "o.safetensors", mode="add-difference", multiplier=3.0, dtype="fp16")  # fmt: skip
    state["conv_out.bias"][0] = 3e38
    save_file(state, tmp_path / "big.safetensors")
    refuse(CheckpointError, "conv_out.bias: the result has values too large for float32", models,
           tmp_path / "o.safetensors", mode="add-difference", multiplier=3.0)  # fmt: skip


def test_a_multiplier_beyond_its_range_warns(unets: dict[str, Path], tmp_path: Path) -> None:
    models = [unets["fine"], unets["base"]]
    _, remarks = merge(models, tmp_path / "o.safetensors", Options(multiplier=1.5))
    assert any("M is 1.5" in remark for remark in remarks)
    _, remarks = merge(models, tmp_path / "p.safetensors", Options(blocks="M00=-1"))
    assert any("multipliers of M00" in remark for remark in remarks)
    _, remarks = merge([*models, unets["base"]], tmp_path / "q.safetensors", Options(mode="add-difference"))
    assert remarks == ["warning: B and C are the same model: there is no difference to add"]


def test_sources_are_never_the_output(sd1: dict[str, Path], tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shutil.copy(sd1["a"], a)
    shutil.copy(sd1["b"], b)
    (tmp_path / "link.safetensors").symlink_to(a)
    (tmp_path / "hard.safetensors").hardlink_to(b)
    for out in (
        a,
        b,
        tmp_path / "link.safetensors",
        tmp_path / "hard.safetensors",
        tmp_path / "." / "a.safetensors",
    ):
        refuse(UsageError, "which is merged and would be lost", [a, b], out, replace=True)
    refuse(UsageError, "would be lost", [a], a, mode="no-interpolation", replace=True)
    refuse(UsageError, "would be lost", [a, b], b, vae=b, replace=True)
    folder = tmp_path / "folder"
    shutil.copytree(sd1["a-folder"], folder)
    refuse(UsageError, "would be lost", [folder, b], folder, replace=True)
    refuse(UsageError, "would be lost", [folder, b], folder / "inside")
    refuse(UsageError, "would be lost", [folder, b], tmp_path, replace=True)


def test_outputs_of_the_wrong_form(sd1: dict[str, Path], tmp_path: Path) -> None:
    models = [sd1["a"], sd1["b"]]
    refuse(UsageError, "ends in .safetensors", models, tmp_path / "folder")
    refuse(UsageError, "A is a folder", [sd1["a-folder"], sd1["b"]], tmp_path / "o.safetensors")
    (tmp_path / "old.safetensors").write_text("old")
    refuse(OutputError, "exists already; give --replace", models, tmp_path / "old.safetensors")
    assert (tmp_path / "old.safetensors").read_text() == "old"
    merge(models, tmp_path / "old.safetensors", Options(replace=True))
    assert len(load_file(tmp_path / "old.safetensors")) > 100
    (tmp_path / "dir.safetensors").mkdir()
    refuse(OutputError, "is a folder", models, tmp_path / "dir.safetensors", replace=True)


def test_folders_with_traps(sd1: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(sd1["a-folder"], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    moved = tmp_path / "outside.safetensors"
    shutil.move(weights, moved)
    weights.symlink_to(moved)
    refuse(CheckpointError, "a link to a file outside", [folder, sd1["b"]], tmp_path / "x" / "out")
    weights.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    refuse(CheckpointError, "has no safetensors, only diffusion_pytorch_model.bin", [folder, sd1["b"]],
           tmp_path / "x" / "out")  # fmt: skip
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../outside.safetensors"}}))
    refuse(CheckpointError, "is not a file beside it", [folder, sd1["b"]], tmp_path / "x" / "out")
    state = load_file(moved)
    names = sorted(state)
    for number, part in enumerate((names[:100], names[100:]), 1):
        save_file(
            {n: state[n] for n in part}, folder / "unet" / f"diffusion_pytorch_model-{number}.safetensors"
        )
    index.write_text(json.dumps({"weight_map": {
        n: f"diffusion_pytorch_model-{1 + (i >= 100)}.safetensors" for i, n in enumerate(names)
    }}))  # fmt: skip
    (folder / "NOTICE").symlink_to(moved)
    refuse(CheckpointError, "NOTICE: a link to a file outside", [folder, sd1["b"]], tmp_path / "x" / "out")
    (folder / "NOTICE").unlink()
    merge([folder, sd1["b"]], tmp_path / "x" / "out", Options(multiplier=0.0))
    assert [p.name for p in (tmp_path / "x" / "out" / "unet").iterdir() if p.suffix == ".safetensors"] == [
        "diffusion_pytorch_model.safetensors"
    ]
    found = load_file(tmp_path / "x" / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[n], state[n]) for n in state)
