"""Step counts that a model was made for: what a wish for speed or quality becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo

_BASE_SHARES = (0.25, 0.5, 1.0)
"""Of a base model's steps, where there is nothing that was made for few."""
_FEW = (1, 2, 4, 8)
"""Steps that levels of quality want."""


def counts(info: ModelInfo, student: str | None = None) -> tuple[int, ...]:
    """Step counts that give what the model can, ascending.

    Those of its students and its own default; of a model of few steps those of its contract; of a base model
    without students a quarter, a half and the whole of its default.

    Args:
        info: the model.
        student: a student's name, or ``none`` for the model itself; None is whoever draws.

    Raises:
        NotFoundError: there is no student of that name.
    """
    if student not in (None, "none"):
        return tuple(sorted(info.student(student).steps))
    own = info.contract
    if own.method != "base":
        return tuple(sorted(own.allowed_steps or (own.num_inference_steps,)))
    default = own.num_inference_steps
    few = {count for one in info.students for count in one.steps} if student is None else set()
    found = few | {default} if few else {max(1, round(share * default)) for share in _BASE_SHARES}
    return tuple(sorted(found))


def of_level(info: ModelInfo, level: int) -> int:
    """The step count of a level of quality, 0 (fastest) to 4.

    Levels 0 to 3 want 1, 2, 4 and 8 steps and get the smallest of `counts` that is not below, else the
    largest; level 4 gets the largest. A base model without students has three: a quarter, a half, the whole.
    """
    there = counts(info)
    if info.contract.method == "base" and not info.students:
        return there[min(level, len(there) - 1)]
    if level >= len(_FEW):
        return there[-1]
    return next((count for count in there if count >= _FEW[level]), there[-1])


def fewest(info: ModelInfo, student: str | None = None) -> int:
    """The fastest of `counts`; raises as it does."""
    return counts(info, student)[0]
