"""What an evaluator says of pictures, prompt by prompt, and the figures that follow from it.

The same is asked of real drawings of the same prompts: that is the most that a model can reach with this
evaluator, and it is printed beside every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.data.backgrounds import RGB
from fewstep.data.compositions import Composition, compose
from fewstep.data.emoji import Drawings
from fewstep.errors import UsageError
from fewstep.evaluation import accuracy
from fewstep.evaluation.promptsets import EvalPrompt
from fewstep.evaluation.report import Figure
from fewstep.evaluation.setfigures import share_interval

Pictures = NDArray[np.uint8]
"""(N, H, W, 3), sRGB."""
NOT_ASKED = -1
ANSWERS = 5
_PLAIN = "white"


class Outputs(Protocol):
    """Arrays that an evaluator answers with, see `fewstep.models.features.EvaluatorArrays`."""

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, F)."""

    @property
    def concept_logits(self) -> NDArray[np.float32]:
        """(N, K)."""

    @property
    def style_logits(self) -> NDArray[np.float32]:
        """(N, S)."""


class Judge(Protocol):
    """What is asked of an evaluator, see `fewstep.models.features.LoadedEvaluator`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The K concepts."""

    @property
    def styles(self) -> tuple[str, ...]:
        """The S styles."""

    @property
    def backgrounds(self) -> Mapping[str, RGB]:
        """Name to colour."""

    @property
    def hash(self) -> str:
        """Of the weights."""

    @property
    def meta(self) -> Mapping[str, object]:
        """What is known of its making."""

    def run(self, pixels: Pictures, /) -> Outputs:
        """Judge pictures."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What an evaluator says of N pictures.

    Attributes:
        rank: int64 (N,), place of the wanted concept from 1; -1 where none was asked for.
        answers: int64 (N, 5), the first concepts, best first.
        style: int64 (N,), 1 right, 0 wrong, -1 not asked for.
        background: int64 (N,), likewise.
        features: float32 (N, F).
    """

    rank: NDArray[np.int64]
    answers: NDArray[np.int64]
    style: NDArray[np.int64]
    background: NDArray[np.int64]
    features: NDArray[np.float32]


def judge(evaluator: Judge, prompts: Sequence[EvalPrompt], pictures: Pictures) -> Verdicts:
    """Judge one picture of each prompt.

    Args:
        evaluator: ours.
        prompts: N prompts.
        pictures: (N, H, W, 3).

    Raises:
        UsageError: not one picture a prompt, or a concept, style or background that the evaluator does not
        know.
    """
    if len(prompts) != len(pictures):
        raise UsageError(f"{len(pictures)} pictures of {len(prompts)} prompts: give one of each")
    return verdicts_of(evaluator, evaluator.run(pictures), prompts, pictures)


def verdicts_of(
    evaluator: Judge, output: Outputs, prompts: Sequence[EvalPrompt], pictures: Pictures
) -> Verdicts:
    """Return the verdicts that follow from an evaluator's output; see `judge`."""
    wanted = _indices([p.label for p in prompts], evaluator.labels, "concept")
    style = _indices([p.style for p in prompts], evaluator.styles, "style")
    background = _indices([p.background for p in prompts], tuple(evaluator.backgrounds), "background")
    rank = np.full(len(prompts), NOT_ASKED, np.int64)
    asked = wanted != NOT_ASKED
    rank[asked] = accuracy.ranks(output.concept_logits[asked], wanted[asked])
    seen = accuracy.background_of(pictures, list(evaluator.backgrounds.values()))
    return Verdicts(
        rank=rank,
        answers=np.argsort(-output.concept_logits, axis=1, kind="stable")[:, :ANSWERS].astype(np.int64),
        style=_right(output.style_logits.argmax(axis=1).astype(np.int64), style),
        background=_right(seen, background),
        features=output.features,
    )


def joined(parts: Sequence[Verdicts]) -> Verdicts:
    """Put verdicts one behind the other."""
    return Verdicts(
        rank=np.concatenate([part.rank for part in parts]),
        answers=np.concatenate([part.answers for part in parts]),
        style=np.concatenate([part.style for part in parts]),
        background=np.concatenate([part.background for part in parts]),
        features=np.concatenate([part.features for part in parts]),
    )


def figures(
    verdicts: Verdicts,
    evaluator: Judge,
    *,
    real: Verdicts | None = None,
    groups: NDArray[np.int64] | None = None,
) -> list[Figure]:
    """Return the shares that are right, of what was asked for.

    Args:
        verdicts: of the pictures.
        evaluator: that gave them.
        real: of real drawings of the same prompts.
        groups: (N,), the prompt of each picture, where there are several of one.
    """
    concepts, styles, backgrounds = len(evaluator.labels), len(evaluator.styles), len(evaluator.backgrounds)
    kinds = [
        ("top1", "concept first", 1 / concepts),
        ("top5", "concept in first five", accuracy.chance(concepts, 5)),
        ("style", "style right", 1 / styles),
        ("background", "background right", 1 / backgrounds),
        ("all", "all three right", 1 / (concepts * styles * backgrounds)),
    ]
    found = []
    for name, text, chance in kinds:
        values = outcomes(verdicts, name)
        asked = ~np.isnan(values)
        if not asked.any():
            continue
        interval = share_interval(values[asked], groups=None if groups is None else groups[asked])
        best = None if real is None else _mean(outcomes(real, name))
        found.append(
            Figure(
                name=name,
                text=text,
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=int(asked.sum()),
                real=best,
                chance=chance,
                better="higher",
                unit="%",
            )
        )
    return found


def outcomes(verdicts: Verdicts, name: str) -> NDArray[np.float64]:
    """Return 1 (right), 0 (wrong) or NaN (not asked for) of each picture, for one figure of `figures`."""
    first = _share(verdicts.rank == 1, verdicts.rank)
    style = _share(verdicts.style == 1, verdicts.style)
    background = _share(verdicts.background == 1, verdicts.background)
    values = {
        "top1": first,
        "top5": _share(verdicts.rank <= ANSWERS, verdicts.rank),
        "style": style,
        "background": background,
        "all": first * style * background,  # NaN where anything was not asked for
    }
    return values[name]


def real_pictures(
    prompts: Sequence[EvalPrompt], drawings: Drawings, backgrounds: Mapping[str, RGB], styles: Sequence[str]
) -> tuple[NDArray[np.int64], Pictures]:
    """Compose the real drawing of each prompt that has one.

    Without a style in the prompt the first of `styles` that draws the object is taken, without a background
    white.

    Returns:
        Places (M,) among the prompts, and the pictures (M, 128, 128, 3).
    """
    at = {(item.label, item.style): row for row, item in enumerate(drawings.items)}
    places, rows, colours = [], [], []
    for place, prompt in enumerate(prompts):
        if prompt.label is None:
            continue
        wanted = styles if prompt.style is None else (prompt.style,)
        row = next((at[prompt.label, s] for s in wanted if (prompt.label, s) in at), None)
        colour = backgrounds.get(prompt.background or _PLAIN, (255, 255, 255))
        if row is not None:
            places.append(place)
            rows.append(row)
            colours.append(colour)
    return np.array(places, np.int64), _pixels(drawings, rows, colours)


def composed(drawings: Drawings, items: Sequence[Composition]) -> Pictures:
    """Return the pictures (N, 128, 128, 3) of compositions."""
    return _pixels(drawings, [item.drawing for item in items], [item.rgb for item in items])


def _pixels(drawings: Drawings, rows: Sequence[int], colours: Sequence[RGB]) -> Pictures:
    side = drawings.rgba.shape[1]
    pictures = np.empty((len(rows), side, side, 3), np.uint8)
    for start in range(0, len(rows), 256):
        part = slice(start, start + 256)
        # Rows of a mapped file: sorted access would be faster, but this is not what takes time.
        image = compose(drawings.rgba[list(rows[part])], list(colours[part]))
        pictures[part] = np.rint((image.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    return pictures


def _indices(names: Sequence[str | None], known: Sequence[str], kind: str) -> NDArray[np.int64]:
    at = {name: index for index, name in enumerate(known)}
    missing = sorted({name for name in names if name is not None and name not in at})
    if missing:
        raise UsageError(
            f"{kind} {missing[0]!r}, one of {len(missing)}: this evaluator does not know it; train the "
            "evaluator on the drawing set that the prompts come from"
        )
    return np.array([NOT_ASKED if name is None else at[name] for name in names], np.int64)


def _right(said: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(wanted == NOT_ASKED, NOT_ASKED, said == wanted).astype(np.int64)


def _share(right: NDArray[np.bool_], answer: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(answer == NOT_ASKED, np.nan, right.astype(np.float64))


def _mean(values: NDArray[np.float64]) -> float | None:
    asked = values[~np.isnan(values)]
    return float(asked.mean()) if len(asked) else None
