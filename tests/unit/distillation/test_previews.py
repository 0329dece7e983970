"""What is seen of a student in training, beside what its teacher draws."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_conditions_from_recipes import project, recipe_of

from fewstep.distillation import build, origins, run
from fewstep.distillation.previews import GridHooks

__all__ = ["project"]


def test_the_distance_from_the_teacher_is_none_for_the_teacher_itself(project: Path) -> None:
    recipe = recipe_of(project)
    base = origins.open_base(recipe)
    folders = run.stage_folders(recipe, project / "run")
    # Told to draw as the teacher does (unguided here), the student of equal weights ends where it ends.
    base = dataclasses.replace(base, contract=dataclasses.replace(base.contract, guidance_scale=1.0))
    stage = dataclasses.replace(build.build_stage(recipe, 0, base, folders), contract=base.contract)
    (distance,) = GridHooks().metrics(stage, base, run._stage_recipe(recipe, recipe.stages[0]))
    steps = base.contract.num_inference_steps
    assert distance({}, 0) == {f"teacher_distance/{steps}": 0.0}
    with torch.no_grad():
        for weight in stage.network.parameters():
            weight.mul_(1.1)
    assert distance({}, 0)[f"teacher_distance/{steps}"] > 1e-6


def test_guidance_moves_the_teachers_end(project: Path) -> None:
    recipe = recipe_of(project)
    base = origins.open_base(recipe)
    stage = build.build_stage(recipe, 0, base, run.stage_folders(recipe, project / "run"))
    found = []
    for scale in (1.0, 3.0):
        guided = dataclasses.replace(base, contract=dataclasses.replace(base.contract, guidance_scale=scale))
        (distance,) = GridHooks().metrics(stage, guided, run._stage_recipe(recipe, recipe.stages[0]))
        found.append(distance({}, 0))
    assert found[0] != found[1]


@pytest.mark.parametrize("prompts", [["red apple"], []])
def test_the_distance_is_logged_with_every_grid(project: Path, prompts: list[str]) -> None:
    recipe = recipe_of(project, samples={"every_images": 2, "prompts": prompts})
    run.distill(recipe, run_folder=project / "run", hooks=GridHooks(), show_progress=False)
    rows = [json.loads(line) for line in (project / "run" / "00-few" / "progress.jsonl").open()]
    logged = [row for row in rows if any(key.endswith("teacher_distance/1") for key in row)]
    assert [row["images"] for row in logged] == ([2, 4] if prompts else [])
