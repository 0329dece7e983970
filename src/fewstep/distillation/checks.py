"""What is wrong with a distillation recipe, found before anything is loaded."""

from __future__ import annotations

from fewstep.distillation import sections
from fewstep.distillation.stages import check_nested
from fewstep.errors import RecipeError


def check_recipe(recipe: sections.DistillationRecipe) -> None:
    """Check how the stages of a recipe fit together.

    Raises:
        RecipeError: the message names the stage, the key and the fix.
    """
    made: dict[str, int] = {}
    for place, stage in enumerate(recipe.stages):
        for method in stage.methods:
            try:
                _check_method(method)
            except RecipeError as error:
                raise RecipeError(f"stage {stage.name}: {error}") from None
        _check_anchor(stage)
        _check_teacher(recipe, place, made)
        steps = [m.student_steps for m in stage.methods if hasattr(m, "student_steps")]
        if steps:
            made[stage.name] = min(steps)
        if stage.student.mode == "merge" and (place == 0 or recipe.stages[place - 1].student.mode != "lora"):
            raise RecipeError(
                f"stage {stage.name}: student.mode merge needs a lora stage just before it; use mode full"
            )
        if recipe.teacher.pipeline is not None and stage.student.start == "random":
            raise RecipeError(f"stage {stage.name}: student.start random is for mixtures; use teacher")


def _check_method(method: sections.Method) -> None:
    if isinstance(method, sections.ProgressiveMethod | sections.LightningMethod):
        check_nested(method.teacher_steps, method.student_steps)
    if isinstance(method, sections.LightningMethod) and method.train_points is not None:
        if method.train_points < method.student_steps or method.teacher_steps % method.train_points:
            raise RecipeError(
                f"train_points {method.train_points} must divide teacher_steps {method.teacher_steps} "
                f"and be at least student_steps {method.student_steps}"
            )


def _check_anchor(stage: sections.StageSection) -> None:
    anchored = False
    for method in stage.methods:
        if isinstance(method, sections.LightningMethod):
            pair = method.discriminator
            # A discriminator that sees where the jump began holds the student to the teacher's flow.
            anchored |= method.distance is not None or (pair is not None and pair.conditional)
        elif isinstance(method, sections.FlashMethod):
            anchored |= any(phase.distill > 0 or phase.distribution > 0 for phase in method.phases)
        elif isinstance(method, sections.DmdMethod):
            anchored |= method.distribution > 0
        else:
            anchored = True
    if not anchored and not stage.gan_only:
        raise RecipeError(
            f"stage {stage.name}: nothing but an unconditional discriminator holds the student, which "
            "collapses after a while; add a distance or distribution matching, or set gan_only: true"
        )


def _check_teacher(recipe: sections.DistillationRecipe, place: int, made: dict[str, int]) -> None:
    stage = recipe.stages[place]
    name = stage.teacher
    if name == "previous":
        name = recipe.stages[place - 1].name if place else "base"
    if name not in made:
        return
    for method in stage.methods:
        if not isinstance(method, sections.ProgressiveMethod | sections.LightningMethod):
            continue
        if method.teacher_steps != made[name]:
            raise RecipeError(
                f"stage {stage.name}: teacher_steps is {method.teacher_steps}, but stage {name} made a "
                f"student of {made[name]} steps; use {made[name]}, or another teacher"
            )
        if method.guidance_scale != 1.0:
            raise RecipeError(
                f"stage {stage.name}: guidance_scale is {method.guidance_scale}, but stage {name} has "
                "guidance in its weights already; use 1"
            )
