"""Conditions beside the text from the folder that a recipe names, from the data to the student's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch
from diffusers import UNet2DConditionModel

from fewstep.data.latent_cache import build_cache
from fewstep.distillation import conditioned, origins, run
from fewstep.distillation.previews import GridHooks
from fewstep.distillation.products import finish
from fewstep.distillation.sections import DistillationRecipe
from fewstep.errors import DataError, RecipeError, RunError
from fewstep.models import load
from fewstep.models.components import Components
from fewstep.training import trainer
from fewstep.training.datasets import open_dataset
from fewstep.training.recipe import parse_as

SIDE = 8
FLASH = {
    "method": "flash",
    "teacher_steps": 2,
    "phases": [{"steps": 9, "mode_weights": [1.0, 1.0], "adversarial": 0.1, "distribution": 0.1}],
    "discriminator": {"channels": 4},
}


def inpainting() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )


class Encodable:
    def __len__(self) -> int:
        return 6

    def pixels(self, rows: range) -> np.ndarray:
        return np.stack([np.full((3, 16, 16), i / 6, np.float32) for i in rows])

    def captions(self, index: int) -> list[str]:
        return [f"{'abc'[index % 3]} apple"]

    def mirrorable(self, index: int) -> bool:
        return True

    def fingerprint(self) -> str:
        return "six"


def latents_of(images: np.ndarray) -> np.ndarray:
    return (
        np.random.default_rng(0).standard_normal((len(images), 4, SIDE, SIDE))
        + images.mean((1, 2, 3))[:, None, None, None]
    )


def texts_of(captions: list[str]) -> np.ndarray:
    return np.stack([np.full((12, 8), len(text) / 9) for text in captions])


@pytest.fixture
def project(tmp_path: Path, tiny_components: Components, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that a recipe names: an inpainting teacher, a cache, masks."""
    monkeypatch.setattr(trainer, "TensorBoard", lambda folder: SILENT)
    parts = dataclasses.replace(tiny_components, denoiser=inpainting())
    load.save_pipeline(tmp_path / "teacher", parts, texts={}, half=False)
    build_cache(
        tmp_path / "cache", Encodable(), latents_of, texts_of, weights={"none": "none"}, mirrored=False
    )
    (tmp_path / "told").mkdir()
    masks = np.random.default_rng(1).standard_normal((6, 5, SIDE, SIDE)).astype(np.float16)
    np.save(tmp_path / "told" / "concat.npy", masks)
    return tmp_path


class _Silent:
    def scalars(self, *_: Any) -> None: ...
    def image(self, *_: Any) -> None: ...
    def close(self) -> None: ...


SILENT = _Silent()


def recipe_of(folder: Path, **changes: Any) -> DistillationRecipe:
    stage = {"name": "few", "stop": {"images": 4}, "methods": [FLASH], "ema": None}
    values: dict[str, Any] = {
        "kind": "distillation",
        "data": {"source": "cache", "path": str(folder / "cache"), "batch_size": 2},
        "teacher": {"pipeline": str(folder / "teacher")},
        "conditions": str(folder / "told"),
        "stages": [stage],
        "samples": {"every_images": 4, "prompts": ["red apple", "apple"]},
        "runtime": tiny.RECIPE["runtime"],
    }
    return parse_as(DistillationRecipe, json.dumps(values | changes), source="test")


def test_an_inpainting_model_is_distilled_from_a_recipe(project: Path) -> None:
    """And what comes of it draws in diffusers' own pipeline; sample grids have the first sample's mask."""
    from diffusers import StableDiffusionInpaintPipeline

    recipe = recipe_of(project)
    base = origins.open_base(recipe)
    rows = base.dataset.batch(np.array([4, 1]), np.random.default_rng(0))
    masks = np.load(project / "told" / "concat.npy")
    assert np.array_equal(rows["concat"], masks[[4, 1]].astype(np.float32))
    done = run.distill(recipe, run_folder=project / "run", hooks=GridHooks(), show_progress=False)
    assert done.finished and not any(done.stages[0].skipped.values())
    assert [path.name for path in (project / "run" / "00-few" / "samples").iterdir()] == ["0000000004.png"]
    out = finish(recipe, project / "run")
    pipe = StableDiffusionInpaintPipeline.from_pretrained(out, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    mask = np.ones((1, 16, 16), np.float32)
    mask[:, :8] = 0.0
    pictures = [
        pipe(
            "red apple",
            image=np.full((1, 16, 16, 3), level, np.float32),
            mask_image=mask,
            height=16,
            width=16,
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for level in (0.0, 1.0)
    ]
    assert pictures[0].shape == (16, 16, 3) and not np.array_equal(*pictures)


def test_a_run_does_not_go_on_with_other_masks(project: Path) -> None:
    run.distill(recipe_of(project), run_folder=project / "run", show_progress=False)
    masks = np.load(project / "told" / "concat.npy")
    np.save(project / "told" / "concat.npy", masks + 1)
    longer = recipe_of(project).model_dump(mode="json")
    longer["stages"][0]["stop"] = {"images": 8}
    again = DistillationRecipe.model_validate_json(json.dumps(longer))
    with pytest.raises(RunError, match="the data changed"):
        run.distill(again, run_folder=project / "run", resume=True, show_progress=False)


def test_a_recipe_without_the_masks_is_refused_before_anything_is_trained(project: Path) -> None:
    with pytest.raises(RecipeError, match="no concat, but the teacher takes 9 channels") as caught:
        run.distill(recipe_of(project, conditions=None), run_folder=project / "run", show_progress=False)
    assert "\n" not in str(caught.value) and not (project / "run" / "00-few").exists()


def test_broken_folders_of_conditions_are_refused(project: Path) -> None:
    told = project / "told"
    for name, array, message in (
        ("mask.npy", np.zeros((6, 1)), "mask.npy: not the name of a condition"),
        ("classes.npy", np.zeros(5, np.int64), r"classes.npy: \(5,\) rows for 6 samples"),
        ("residuals.1.npy", np.zeros((6, 4, 8, 8)), r"residuals\.0\.npy is missing"),
    ):
        np.save(told / name, array)
        with pytest.raises(DataError, match=message):
            origins.open_base(recipe_of(project))
        (told / name).unlink()
    (told / "classes.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"classes\.npy: cannot be read"):
        origins.open_base(recipe_of(project))
    with pytest.raises(DataError, match="no such folder"):
        origins.open_base(recipe_of(project, conditions=str(project / "nothing")))
    (project / "empty").mkdir()
    with pytest.raises(DataError, match="no conditions here"):
        origins.open_base(recipe_of(project, conditions=str(project / "empty")))


def test_masks_beside_mirrored_latents_are_refused(project: Path) -> None:
    """The cache draws which copy is taken, and a mask would not be turned with it."""
    build_cache(project / "twice", Encodable(), latents_of, texts_of, weights={"none": "none"})
    data = {"source": "cache", "path": str(project / "twice"), "batch_size": 2}
    with pytest.raises(DataError, match="concat cannot be mirrored"):
        origins.open_base(recipe_of(project, data=data))
    (project / "told" / "concat.npy").unlink()
    np.save(project / "told" / "classes.npy", np.zeros(6, np.uint8))
    base = conditioned.Conditioned(open_dataset(recipe_of(project, data=data).data), project / "told")
    assert base.batch(np.array([1]), np.random.default_rng(0))["classes"].dtype == np.int64


def test_conditions_are_for_pipelines(project: Path) -> None:
    mixture = {"mixture": {"kind": "two_modes"}}
    with pytest.raises(RecipeError, match="conditions are for pipelines"):
        recipe_of(project, teacher=mixture)
    with pytest.raises(RecipeError, match="null_class is for pipelines"):
        recipe_of(project, teacher=mixture | {"null_class": 1}, conditions=None)
