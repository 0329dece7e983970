"""Planning stages: which step counts can follow each other, and on which grids."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.errors import RecipeError


def check_nested(teacher_steps: int, student_steps: int) -> int:
    """How many of the teacher's steps one of the student's takes the place of.

    Trailing grids are nested where one count divides the other: the times are ``round(T - i T / N) - 1``.
    Rounding may set a time of the larger grid one table position apart where a half is rounded, as 312.5 with
    48 and 16 steps; powers of 2 are nested exactly.

    Raises:
        RecipeError: the student has more steps than its teacher, or the grids do not nest.
    """
    if student_steps > teacher_steps:
        raise RecipeError(
            f"student_steps {student_steps} is more than teacher_steps {teacher_steps}: "
            f"a student takes no more steps than its teacher; use {teacher_steps} or fewer"
        )
    if teacher_steps % student_steps:
        near = max(n for n in range(1, student_steps + 1) if teacher_steps % n == 0)
        raise RecipeError(
            f"student_steps {student_steps} does not divide teacher_steps {teacher_steps}: "
            f"their grids do not nest; use {near}"
        )
    return teacher_steps // student_steps


def plan(steps: Sequence[int], *, skip_level_from: int = 2) -> list[tuple[int, int]]:
    """Teacher and student steps of every stage of a progressive recipe.

    SDXL-Lightning (Lin 2024, 2402.13929, section 3.4) goes 128, 32, 8, 4, 2, 1 and, for its 2- and 1-step
    students,
    lets the model one level further up teach, because errors of every level add up and the last
    discriminators
    judge samples by themselves. We read that as: 8 steps teach 2, 4 steps teach 1.

    Args:
        steps: falling step counts, the first the teacher's.
        skip_level_from: students of at most this many steps skip a level, where there is one; 0 for none.

    Raises:
        RecipeError: counts that do not nest.
    """
    if len(steps) < 2:
        raise RecipeError(f"steps is {list(steps)}: give the teacher's count and at least one student's")
    stages = []
    for place in range(1, len(steps)):
        check_nested(steps[place - 1], steps[place])
        skips = steps[place] <= skip_level_from and place >= 2
        teacher = steps[place - 2] if skips else steps[place - 1]
        stages.append((teacher, steps[place]))
    return stages
