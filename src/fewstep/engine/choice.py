"""Which denoiser draws a request: the model's own, or a student's. The one place that decides it.

A student is taken when it is named, or when a step count is asked for that it was made for and nothing is
asked for that only guidance can give. What does not fit the student that was taken is refused, not dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo, StudentInfo

NONE = "none"
"""In place of a student's name: the model itself."""


def choose(
    info: ModelInfo,
    wanted: str | None,
    *,
    num_inference_steps: int | None,
    guided: bool,
) -> StudentInfo | None:
    """The student that draws, or None for the model itself.

    Args:
        info: the model.
        wanted: a student's name, `NONE`, or None to leave it open.
        num_inference_steps: as it was asked for; without, what is left open is the model itself.
        guided: whether a guidance scale, a rescale or a negative prompt was asked for, even one without
            effect.

    Raises:
        NotFoundError: there is no student of that name.
    """
    if wanted is not None:
        return None if wanted == NONE else info.student(wanted)
    if num_inference_steps is None or guided:
        return None
    return next((student for student in info.students if num_inference_steps in student.steps), None)


def check_fits(
    student: StudentInfo,
    *,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    guidance_rescale: float | None,
    solver: str | None,
    eta: float | None,
) -> None:
    """Refuse settings that a student was not made for; None is what was not given.

    Raises:
        UsageError: the message says which, and how to draw with the model itself.
    """
    contract, name = student.contract, student.name
    allowed = contract.allowed_steps
    if num_inference_steps is not None and allowed is not None and num_inference_steps not in allowed:
        counts = ", ".join(map(str, allowed))
        raise UsageError(
            f"steps is {num_inference_steps}: student {name!r} was made for {counts}, give one of these, or "
            "--student none for the base model",
            field="num_inference_steps",
        )
    for label, field, flag, value, own in (
        ("guidance", "guidance_scale", "--guidance", guidance_scale, 1.0),
        ("guidance rescale", "guidance_rescale", "--guidance-rescale", guidance_rescale, 0.0),
    ):
        if value is not None and value != own:
            raise UsageError(
                f"{label} is {value:g}: student {name!r} draws without guidance, leave {flag} out, or give "
                "--student none for the base model",
                field=field,
            )
    if solver is not None and solver != contract.solver:
        raise UsageError(
            f"solver is {solver!r}: student {name!r} is drawn with {contract.solver}, leave --solver out, or "
            "give --student none for the base model",
            field="solver",
        )
    if eta is not None and eta != contract.eta:
        raise UsageError(
            f"eta is {eta}: student {name!r} is drawn with its own settings, leave eta out, or take the base "
            "model (--student none)",
            field="eta",
        )


def rounded_up(strength: float, steps: int) -> str | None:
    """A warning when a strength above 0 leaves no step, so that one is run all the same; else None."""
    if not 0.0 < strength * steps < 1.0:
        return None
    least = -(-100 // steps) / 100
    return f"strength {strength:g} leaves none of {steps} steps, so one is run; {least:g} does the same"


def shortened(student: StudentInfo, strength: float, kept: int, steps: int) -> str | None:
    """A warning when image-to-image leaves only a part of a student's steps; else None.

    Args:
        student: who draws.
        strength: of the request.
        kept: steps that it leaves.
        steps: steps of the whole grid.
    """
    if kept == steps:
        return None
    return (
        f"strength {strength:g} leaves {kept} of the {steps} steps that student {student.name!r} was made "
        "for, the image may look worse: give --strength 1, or --student none for the base model"
    )
