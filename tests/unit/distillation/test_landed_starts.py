"""A student that stands in the pipeline folder is trained on, and a teacher has an adapter in its weights."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch
from torch import nn

from fewstep.checkpoint.lora import save_lora
from fewstep.data.latent_cache import build_cache
from fewstep.distillation import build, origins, run
from fewstep.distillation.checks import check_recipe
from fewstep.distillation.products import finish
from fewstep.distillation.progressive import few_steps
from fewstep.distillation.roles import NetworkTeacher
from fewstep.distillation.sections import DistillationRecipe
from fewstep.errors import CheckpointError, NotFoundError, RecipeError
from fewstep.models import load
from fewstep.models.components import Components
from fewstep.training import trainer
from fewstep.training.recipe import parse_as

FLASH = {
    "method": "flash",
    "teacher_steps": 2,
    "phases": [{"steps": 9, "mode_weights": [1.0, 0.0], "distill": 0.0, "adversarial": 1.0}],
    "discriminator": {"channels": 4},
}
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


class Encodable:
    def __len__(self) -> int:
        return 4

    def pixels(self, rows: range) -> np.ndarray:
        return np.stack([np.full((3, 16, 16), i / 6, np.float32) for i in rows])

    def captions(self, index: int) -> list[str]:
        return ["red apple"]

    def mirrorable(self, index: int) -> bool:
        return False

    def fingerprint(self) -> str:
        return "four"


class _Silent:
    def scalars(self, *_: Any) -> None: ...
    def image(self, *_: Any) -> None: ...
    def close(self) -> None: ...


def latents_of(images: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(images), 4, 8, 8))


def texts_of(captions: list[str]) -> np.ndarray:
    return np.stack([np.full((12, 8), len(text) / 9) for text in captions])


@pytest.fixture
def project(tmp_path: Path, tiny_components: Components, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline with a student `fast` of another prediction type, a cache, and an adapter for the base."""
    monkeypatch.setattr(trainer, "TensorBoard", lambda folder: _Silent())
    load.save_pipeline(tmp_path / "teacher", tiny_components, texts={}, half=False)
    moved = copy.deepcopy(tiny_components.denoiser)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.01)
    contract = dataclasses.replace(few_steps(tiny_components.contract, "flash", 1), prediction_type="sample")
    load.save_student(tmp_path / "teacher", "fast", moved, contract, half=False)
    build_cache(
        tmp_path / "cache", Encodable(), latents_of, texts_of, weights={"none": "none"}, mirrored=False
    )
    drawn = np.random.default_rng(2)
    state = {
        f"{LAYER}.lora_A.weight": torch.from_numpy(drawn.standard_normal((2, 16)).astype(np.float32)),
        f"{LAYER}.lora_B.weight": torch.from_numpy(drawn.standard_normal((16, 2)).astype(np.float32)),
    }
    save_lora(tmp_path / "style.safetensors", state, rank=2, alpha=2.0, contract_json=None)
    return tmp_path


def recipe_of(
    folder: Path, start: str = "landed/fast", mode: str = "lora", **teacher: Any
) -> DistillationRecipe:
    stage = {
        "name": "more",
        "student": {"start": start, "mode": mode, "lora": {"rank": 2}},
        "stop": {"images": 4},
        "methods": [FLASH],
        "gan_only": True,
        "ema": None,
    }
    values = {
        "kind": "distillation",
        "data": {"source": "cache", "path": str(folder / "cache"), "batch_size": 2},
        "teacher": {"pipeline": str(folder / "teacher"), **teacher},
        "stages": [stage],
        "runtime": tiny.RECIPE["runtime"],
    }
    return parse_as(DistillationRecipe, json.dumps(values), source="test")


def built(recipe: DistillationRecipe) -> build.Stage:
    return build.build_stage(recipe, 0, origins.open_base(recipe), [])


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer", "").removeprefix("network."): value
        for name, value in network.state_dict().items()
        if ".lora_" not in name
    }


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_stage_starts_from_the_landed_student_and_is_taught_by_the_base(project: Path, mode: str) -> None:
    stage = built(recipe_of(project, mode=mode))
    landed = load.load_student(project / "teacher", "fast")[0].state_dict()
    base = load.denoiser(project / "teacher" / "unet").state_dict()
    started = weights(stage.network)
    assert started.keys() == landed.keys()
    assert all(torch.equal(started[name], landed[name]) for name in landed)
    teacher = stage.task.teacher
    # Not the student with its adapter off: that is the landed student.
    assert isinstance(teacher, NetworkTeacher) and teacher.module is not stage.network
    taught = weights(teacher.module)
    assert all(torch.equal(taught[name], base[name]) for name in base)
    assert stage.contract.prediction_type == stage.task.student_type == "sample"


def test_the_adapter_is_in_the_teacher_and_in_students_that_start_from_it(project: Path) -> None:
    adapter = str(project / "style.safetensors")
    styled = built(recipe_of(project, start="teacher", adapter=adapter))
    plain = load.denoiser(project / "teacher" / "unet").state_dict()
    found = weights(styled.network)
    changed = [name for name in plain if not torch.equal(plain[name], found[name])]
    assert changed == [f"{LAYER}.weight"]
    apart = built(recipe_of(project, adapter=adapter))
    assert isinstance(apart.task.teacher, NetworkTeacher)
    taught = weights(apart.task.teacher.module)
    assert torch.equal(taught[f"{LAYER}.weight"], found[f"{LAYER}.weight"])
    landed = load.load_student(project / "teacher", "fast")[0].state_dict()
    assert torch.equal(weights(apart.network)[f"{LAYER}.weight"], landed[f"{LAYER}.weight"])


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_it_is_trained_on_and_written(project: Path, mode: str) -> None:
    recipe = recipe_of(project, mode=mode)
    done = run.distill(recipe, run_folder=project / "run", show_progress=False)
    assert done.finished and not any(done.stages[0].skipped.values())
    out = finish(recipe, project / "run")
    trained = load.denoiser(out / "unet", dtype=torch.float32).state_dict()
    landed = load.load_student(project / "teacher", "fast", dtype=torch.float32)[0].state_dict()
    base = load.denoiser(project / "teacher" / "unet", dtype=torch.float32).state_dict()

    def apart(other: dict[str, torch.Tensor]) -> float:
        return float(sum((trained[name] - other[name]).abs().sum() for name in other))

    assert 0.0 < apart(landed) < apart(base)
    assert load.contract(out).prediction_type == "sample"
    assert not (out / "adapter").exists()  # it is none for the teacher


def test_what_is_not_there_is_named(project: Path) -> None:
    with pytest.raises(NotFoundError, match=r"stage more: .*has no student 'slow'; it has fast"):
        origins.open_base(recipe_of(project, start="landed/slow"))
    with pytest.raises(RecipeError, match="landed/NAME"):
        recipe_of(project, start="fast")
    with pytest.raises(NotFoundError, match="nothing"):
        built(recipe_of(project, adapter=str(project / "nothing.safetensors")))
    other = {"up.lora_A.weight": torch.zeros(2, 3), "up.lora_B.weight": torch.zeros(3, 2)}
    save_lora(project / "other.safetensors", other, rank=2, alpha=2.0, contract_json=None)
    with pytest.raises(CheckpointError, match="does not fit"):
        built(recipe_of(project, adapter=str(project / "other.safetensors")))


def test_mixtures_have_neither(project: Path) -> None:
    values = recipe_of(project).model_dump(mode="json")
    values["teacher"] = {"mixture": {"kind": "ring"}}
    values["data"] = {"source": "points", "batch_size": 2}
    with pytest.raises(RecipeError, match=r"stage more: student\.start landed/fast is for pipelines"):
        check_recipe(parse_as(DistillationRecipe, json.dumps(values), source="test"))
    values["teacher"]["adapter"] = "style.safetensors"
    with pytest.raises(RecipeError, match="adapter is for pipelines"):
        parse_as(DistillationRecipe, json.dumps(values), source="test")


def test_flash_asks_no_teacher_when_only_pictures_judge(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its way of many steps would be most of the work, for nothing."""

    def asked(*_: Any) -> Any:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(NetworkTeacher, "denoiser", asked)
    done = run.distill(recipe_of(project), run_folder=project / "run", show_progress=False)
    assert done.finished
