"""Recipes that cannot work are refused before anything is trained; the message says where and what to do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch

from fewstep.diffusion.contract import ScheduleSpec
from fewstep.diffusion.timesteps import make_grid
from fewstep.distillation import build, origins, run, sections
from fewstep.distillation.checks import check_recipe
from fewstep.distillation.stages import check_nested, plan
from fewstep.errors import RecipeError
from fewstep.models.mlp import MLPDenoiser
from fewstep.training.recipe import parse_as

PROGRESSIVE = {"method": "progressive", "teacher_steps": 8, "student_steps": 4}
LIGHTNING = {"method": "lightning", "teacher_steps": 8, "student_steps": 4, "distance": "l2"}
JUDGED = {"method": "lightning", "teacher_steps": 8, "student_steps": 4}
PHASE = {"steps": 1, "mode_weights": [1.0]}
FLASH = {"method": "flash", "phases": [PHASE]}


def stage(*methods: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"methods": list(methods), **keys}


BAD = {
    "grids that do not nest": (
        [stage(PROGRESSIVE | {"teacher_steps": 8, "student_steps": 3})],
        "stage only: student_steps 3 does not divide teacher_steps 8.*use 2",
    ),
    "lightning grids that do not nest": (
        [stage(LIGHTNING | {"teacher_steps": 12, "student_steps": 8})],
        "stage only: student_steps 8 does not divide teacher_steps 12.*use 6",
    ),
    "more steps than the teacher": (
        [stage(PROGRESSIVE | {"student_steps": 16})],
        "stage only: student_steps 16 is more than teacher_steps 8.*use 8 or fewer",
    ),
    "places of training that are not on the teacher's grid": (
        [stage(LIGHTNING | {"train_points": 5})],
        "stage only: train_points 5 must divide teacher_steps 8",
    ),
    "places of training that leave out the student's own times": (
        [stage(LIGHTNING | {"teacher_steps": 12, "student_steps": 4, "train_points": 6})],
        "stage only: train_points 6 .* multiple of student_steps 4",
    ),
    "a merge of nothing": (
        [stage(PROGRESSIVE, student={"mode": "merge"})],
        "stage only: student.mode merge needs a lora stage just before it; use mode full",
    ),
    "a merge after full training": (
        [stage(PROGRESSIVE, name="first"), stage(LIGHTNING, student={"mode": "merge"}, teacher="base")],
        "stage only: student.mode merge needs a lora stage",
    ),
    "nothing but an unconditional discriminator": (
        [stage(JUDGED | {"discriminator": {"conditional": False}})],
        "stage only: nothing but an unconditional discriminator.*add a distance.*gan_only: true",
    ),
    "a last phase with nothing but a discriminator": (
        [
            stage(
                FLASH | {"discriminator": {}, "phases": [PHASE, PHASE | {"distill": 0.0, "adversarial": 0.1}]}
            )
        ],
        "stage only: nothing but an unconditional discriminator",
    ),
    "distribution matching without its term": (
        [stage({"method": "dmd2", "distribution": 0.0, "discriminator": {}})],
        "stage only: nothing but an unconditional discriminator",
    ),
    "a phase without any term": (
        [stage(FLASH | {"phases": [PHASE, PHASE | {"distill": 0.0}]})],
        r"stage only: phases\.1.*distill, adversarial or distribution",
    ),
    "matching without any term": (
        [stage({"method": "dmd2", "distribution": 0.0}, gan_only=True)],
        "stage only: distribution is 0.*discriminator",
    ),
    "modes that cannot be drawn": (
        [stage(FLASH | {"teacher_steps": 2, "phases": [PHASE, PHASE | {"mode_weights": [0.5, 0.3, 0.2]}]})],
        r"stage only: phases\.1\.mode_weights.* for 2 steps",
    ),
    "modes of no weight": (
        [stage(FLASH | {"phases": [PHASE, PHASE | {"mode_weights": [0.0, 0.0]}]})],
        r"stage only: phases\.1\.mode_weights.*not all 0",
    ),
    "times of matching that are none": (
        [stage({"method": "dmd2", "least": 0.9, "most": 0.1})],
        "stage only: least is 0.9 and most is 0.1.*less than most",
    ),
    "a teacher of another count": (
        [
            stage(PROGRESSIVE | {"teacher_steps": 16, "student_steps": 8}, name="first"),
            stage(PROGRESSIVE | {"teacher_steps": 4, "student_steps": 2}, teacher="previous"),
        ],
        "stage only: teacher_steps is 4, but stage first made a student of 8 steps; use 8",
    ),
    "guidance twice": (
        [
            stage(PROGRESSIVE | {"teacher_steps": 16, "student_steps": 8, "guidance_scale": 3.0}, name="a"),
            stage(PROGRESSIVE | {"guidance_scale": 3.0}, teacher="previous"),
        ],
        "stage only: guidance_scale is 3.0, but stage a has guidance in its weights already; use 1",
    ),
    "guidance twice, converted at first": (
        [
            stage({"method": "conversion", "guidance_scale": 3.0}, name="a"),
            stage(PROGRESSIVE | {"guidance_scale": 3.0}, teacher="previous"),
        ],
        "stage only: guidance_scale is 3.0, but stage a has guidance in its weights already; use 1",
    ),
    "guidance twice, by ranges": (
        [
            stage({"method": "conversion", "guidance_scale": 3.0}, name="a"),
            stage({"method": "lcm", "guidance": [5.0, 15.0]}, teacher="a"),
        ],
        r"stage only: guidance is \[5.0, 15.0\], but stage a has guidance in its weights already; use 1",
    ),
    "new weights for a pipeline": (
        [stage(PROGRESSIVE, student={"start": "random"})],
        "stage only: student.start random is for mixtures; use teacher",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_refused(name: str) -> None:
    stages, message = BAD[name]
    with pytest.raises(RecipeError, match=message):
        check_recipe(tiny.recipe(*stages))


def test_it_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stage only"):
        run.distill(tiny.recipe(BAD["a merge of nothing"][0][0]), run_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "good",
    [
        [stage(JUDGED | {"discriminator": {"conditional": True}})],
        [stage(JUDGED | {"discriminator": {"conditional": False}}, gan_only=True)],
        [stage(JUDGED | {"discriminator": {"conditional": False}, "distance": "l2"})],
        [stage(JUDGED | {"discriminator": {"conditional": False}}, PROGRESSIVE)],
        [stage(LIGHTNING, name="a", student={"mode": "lora"}), stage(JUDGED | {
            "discriminator": {}}, student={"mode": "merge"}, teacher="base")],
        [stage(LIGHTNING | {"teacher_steps": 8, "student_steps": 2, "train_points": 4})],
        [stage({"method": "conversion"}, name="a"),
         stage(PROGRESSIVE | {"guidance_scale": 3.0}, teacher="a")],
        [stage({"method": "conversion", "guidance_scale": 3.0}, name="a"),
         stage(PROGRESSIVE, teacher="previous")],
    ],
)  # fmt: skip
def test_what_can_work_is_not_refused(good: list[dict[str, Any]]) -> None:
    check_recipe(tiny.recipe(*good))


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[3] / "recipes" / "toys").glob("*.yaml")))
def test_our_own_recipes_pass(file: Path) -> None:
    check_recipe(parse_as(sections.DistillationRecipe, file.read_text("utf-8"), source=file.name))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (PROGRESSIVE | {"steps": 3}, "unknown key 'stages.0.methods.0.progressive.steps'"),
        ({"method": "lightning", "teacher_steps": 8, "student_steps": 4}, "give a distance, a discriminator"),
        (FLASH | {"phases": []}, "phases is empty"),
        (FLASH | {"phases": [PHASE | {"adversarial": 0.1}]}, "give a discriminator, or make it 0"),
        ({"method": "magic"}, "methods"),
    ],
)
def test_the_schema_refuses(method: dict[str, Any], message: str) -> None:
    values = tiny.RECIPE | {"stages": [tiny.STAGE | stage(method)]}
    with pytest.raises(RecipeError, match=message):
        parse_as(sections.DistillationRecipe, json.dumps(values))


def build_one(method: dict[str, Any], base: origins.Base | None = None, **keys: Any) -> build.Stage:
    return build.build_stage(tiny.recipe(stage(method, **keys)), 0, base or tiny.base(), [])


@pytest.mark.parametrize(
    "method",
    [
        JUDGED | {"discriminator": {"tap": "middle"}},
        FLASH | {"discriminator": {"tap": "middle"}},
        {"method": "dmd2", "discriminator": {"tap": "middle"}},
    ],
)
def test_an_unknown_tap_is_refused_with_the_ones_there_are(method: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"tap 'middle': .* it has embed, label, entry, encoder"):
        build_one(method)


def test_a_tap_that_is_never_reached_is_refused() -> None:
    network = MLPDenoiser(width=8, depth=2, classes=4)
    network.unused = torch.nn.Linear(1, 1)
    with pytest.raises(RecipeError, match="discriminator tap 'unused': this part is not used"):
        build_one(JUDGED | {"discriminator": {"tap": "unused"}}, tiny.base(network))


FLOW = {"schedule": ScheduleSpec(name="rectified_flow"), "solver": "flow_euler"}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        (JUDGED | {"discriminator": {"renoise": {}}}, r"renoise\.timesteps"),
        (FLASH | {"discriminator": {}, "solver": "ddim"}, r"discriminator\.timesteps"),
        ({"method": "dmd2"}, "timesteps is .* from 0 to"),
    ],
)
def test_table_positions_on_a_flow_are_refused(method: dict[str, Any], key: str) -> None:
    """Times of a flow end at 1: 750 would be noised to minus 749 times the data without a word."""
    with pytest.raises(RecipeError, match=rf"{key}.*1"):
        build_one(method, tiny.base(**FLOW))


@pytest.mark.parametrize("times", [[10.0, 1000.0], [-1.0, 500.0]])
def test_times_outside_of_the_table_are_refused(times: list[float]) -> None:
    renoise = {"timesteps": times, "weights": [1.0, 1.0]}
    with pytest.raises(RecipeError, match=r"renoise\.timesteps"):
        build_one(JUDGED | {"discriminator": {"renoise": renoise}})
    with pytest.raises(RecipeError, match=r"discriminator\.timesteps"):
        build_one(FLASH | {"discriminator": {"timesteps": times}})


def test_a_flow_solver_on_a_table_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"solver.*flow_euler"):
        build_one(FLASH | {"solver": "flow_euler"})


def test_a_latent_consistency_student_of_a_flow_has_a_grid() -> None:
    contract = build_one({"method": "lcm"}, tiny.base(**FLOW)).contract
    assert contract.spacing == "trailing" and len(contract.grid()) == 5


def test_a_formula_as_teacher_has_no_features_to_look_at() -> None:
    mixture = {"mixture": {"kind": "two_modes", "width": 8, "depth": 2}}
    made = tiny.recipe(stage(FLASH | {"discriminator": {}}, student={"start": "random"}), teacher=mixture)
    with pytest.raises(RecipeError, match=r"stage only: its teacher is a formula.*conversion"):
        build.build_stage(made, 0, origins.open_base(made), [])


def test_times_that_do_not_fall_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"timesteps.*not falling.*noisiest first"):
        build_one({"method": "dmd2", "timesteps": [249.0, 999.0]})


@pytest.mark.parametrize("steps", [(32, 8, 4, 2, 1), (128, 32, 8, 4, 2, 1), (48, 16), (96, 32)])
def test_every_grid_is_a_part_of_the_one_before(steps: tuple[int, ...]) -> None:
    """Up to one table position where rounding parts ways, as 48 and 16 steps do at 312.5."""
    for teacher, student in itertools.pairwise(steps):
        ratio = check_nested(teacher, student)
        ours, theirs = (make_grid(tiny.PLAIN, "trailing", n) for n in (student, teacher))
        apart = np.abs(theirs[::ratio] - ours).max()
        assert apart == 0 if teacher & (teacher - 1) == 0 else apart <= 1


def test_plans_skip_a_level_for_the_last_students() -> None:
    paper = [(128, 32), (32, 8), (8, 4), (8, 2), (4, 1)]
    assert plan((128, 32, 8, 4, 2, 1)) == paper
    assert plan((8, 4, 2), skip_level_from=0) == [(8, 4), (4, 2)]
    assert plan((2, 1)) == [(2, 1)]
    with pytest.raises(RecipeError, match="at least one student"):
        plan((8,))
    with pytest.raises(RecipeError, match="does not divide"):
        plan((8, 3))
