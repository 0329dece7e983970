"""What is wrong with a distillation recipe, found before anything is loaded."""

from __future__ import annotations

from fewstep.diffusion.noise_levels import phased_mixture_pmf
from fewstep.distillation import sections
from fewstep.distillation.stages import check_nested
from fewstep.errors import RecipeError, UsageError


def check_recipe(recipe: sections.DistillationRecipe) -> None:
    """Check how the stages of a recipe fit together.

    Raises:
        RecipeError: the message names the stage, the key and the fix.
    """
    made: dict[str, int] = {}
    guided: set[str] = set()
    for place, stage in enumerate(recipe.stages):
        for method in stage.methods:
            try:
                _check_method(method)
            except RecipeError as error:
                raise RecipeError(f"stage {stage.name}: {error}") from None
        _check_anchor(stage)
        teacher = _teacher_name(recipe, place)
        _check_teacher(stage, teacher, made, guided)
        if teacher in guided or any(_guidance(method)[1] != (1.0, 1.0) for method in stage.methods):
            guided.add(stage.name)
        steps = [m.student_steps for m in stage.methods if hasattr(m, "student_steps")]
        if steps:
            made[stage.name] = min(steps)
        if stage.student.mode == "merge" and (place == 0 or recipe.stages[place - 1].student.mode != "lora"):
            raise RecipeError(
                f"stage {stage.name}: student.mode merge needs a lora stage just before it; use mode full"
            )
        if recipe.teacher.mixture is not None and sections.landed_name(stage.student.start):
            raise RecipeError(
                f"stage {stage.name}: student.start {stage.student.start} is for pipelines: a mixture has no "
                "landed students; use random"
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
        if method.train_points % method.student_steps:
            raise RecipeError(
                f"train_points {method.train_points} is no multiple of student_steps {method.student_steps}: "
                "the student would never be trained where it is sampled"
            )
    if isinstance(method, sections.FlashMethod):
        for place, phase in enumerate(method.phases):
            if phase.distill == phase.adversarial == phase.distribution == 0:
                raise RecipeError(
                    f"phases.{place} has no term: give distill, adversarial or distribution a weight"
                )
            try:  # or it would be found when the phase begins, hours later
                phased_mixture_pmf(method.teacher_steps, phase.mode_weights, method.variance)
            except UsageError as error:
                raise RecipeError(f"phases.{place}.mode_weights: {error}, not all 0") from None
    if isinstance(method, sections.DmdMethod):
        if method.distribution == 0 and method.discriminator is None:
            raise RecipeError("distribution is 0 and there is no discriminator: give it a weight")
        if method.least >= method.most:
            raise RecipeError(
                f"least is {method.least} and most is {method.most}: give a least that is less than most"
            )


def _check_anchor(stage: sections.StageSection) -> None:
    anchored = False
    for method in stage.methods:
        if isinstance(method, sections.LightningMethod):
            pair = method.discriminator
            # A discriminator that sees where the jump began holds the student to the teacher's flow.
            anchored |= method.distance is not None or (pair is not None and pair.conditional)
        elif isinstance(method, sections.FlashMethod):
            anchored |= all(phase.distill > 0 or phase.distribution > 0 for phase in method.phases)
        elif isinstance(method, sections.DmdMethod):
            anchored |= method.distribution > 0
        else:
            anchored = True
    if not anchored and not stage.gan_only:
        raise RecipeError(
            f"stage {stage.name}: nothing but an unconditional discriminator holds the student, which "
            "collapses after a while; add a distance or distribution matching, or set gan_only: true"
        )


def _teacher_name(recipe: sections.DistillationRecipe, place: int) -> str:
    name = recipe.stages[place].teacher
    if name != "previous":
        return name
    return recipe.stages[place - 1].name if place else "base"


def _guidance(method: sections.Method) -> tuple[str, tuple[float, float]]:
    """The key under which a method has its guidance, and the scales: (1, 1) for none."""
    if isinstance(method, sections.LcmMethod):
        return "guidance", method.guidance
    if isinstance(method, sections.FlashMethod):
        ranges = [phase.guidance for phase in method.phases]
        return "phases.guidance", next((r for r in ranges if r != (1.0, 1.0)), (1.0, 1.0))
    return "guidance_scale", (method.guidance_scale, method.guidance_scale)


def _check_teacher(
    stage: sections.StageSection, teacher: str, made: dict[str, int], guided: set[str]
) -> None:
    for method in stage.methods:
        if isinstance(method, sections.ProgressiveMethod | sections.LightningMethod):
            steps = made.get(teacher, method.teacher_steps)
            if method.teacher_steps != steps:
                raise RecipeError(
                    f"stage {stage.name}: teacher_steps is {method.teacher_steps}, but stage {teacher} made "
                    f"a student of {steps} steps; use {steps}, or another teacher"
                )
        key, scales = _guidance(method)
        if teacher in guided and scales != (1.0, 1.0):
            given = scales[0] if key == "guidance_scale" else list(scales)
            raise RecipeError(
                f"stage {stage.name}: {key} is {given}, but stage {teacher} has guidance in its weights "
                "already; use 1"
            )
