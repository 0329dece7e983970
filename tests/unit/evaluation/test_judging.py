"""Verdicts and their figures, by an evaluator that is always right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewstep.data.emoji import Drawings
from fewstep.data.preparation import Selection
from fewstep.errors import UsageError
from fewstep.evaluation import judging
from fewstep.evaluation.promptsets import EvalPrompt, build


def seen(judge: Any, drawings: Drawings, selection: Selection) -> list[EvalPrompt]:
    return build("seen", 100, items=drawings.items, backgrounds=judge.backgrounds, selection=selection)


def by_name(figures: Any) -> dict[str, Any]:
    return {figure.name: figure for figure in figures}


def test_real_drawings_are_all_right(judge: Any, drawings: Drawings, selection: Selection) -> None:
    prompts = seen(judge, drawings, selection)
    places, pictures = judging.real_pictures(prompts, drawings, judge.backgrounds, selection.styles)
    np.testing.assert_array_equal(places, np.arange(len(prompts)))
    verdicts = judging.judge(judge, prompts, pictures)
    found = by_name(judging.figures(verdicts, judge, real=verdicts))
    assert {name: figure.value for name, figure in found.items()} == dict.fromkeys(
        ("top1", "top5", "style", "background", "all"), 1.0
    )
    assert found["top1"].real == 1.0
    assert found["top1"].n == len(prompts)
    assert found["top1"].low == pytest.approx(0.025 ** (1 / len(prompts)))
    assert [judge.labels[row[0]] for row in verdicts.answers] == [p.label for p in prompts]


def test_wrong_pictures_are_wrong_in_what_is_wrong(
    judge: Any, drawings: Drawings, selection: Selection
) -> None:
    prompts = [
        EvalPrompt("", "fox", "noto", "white", "train"),
        EvalPrompt("", "fox", "twemoji", "white", "train"),
        EvalPrompt("", "fox", "noto", "black", "train"),
        EvalPrompt("", "dog", "noto", "white", "train"),
    ]
    shown = [EvalPrompt("", "fox", "noto", "white", "train")] * 4
    _, pictures = judging.real_pictures(shown, drawings, judge.backgrounds, selection.styles)
    verdicts = judging.judge(judge, prompts, pictures)
    assert list(verdicts.rank == 1) == [True, True, True, False]
    assert list(verdicts.style) == [1, 0, 1, 1]
    assert list(verdicts.background) == [1, 1, 0, 1]
    found = by_name(judging.figures(verdicts, judge))
    assert [found[name].value for name in ("top1", "style", "background", "all")] == [0.75, 0.75, 0.75, 0.25]
    assert found["top1"].chance == 1 / len(judge.labels)
    assert found["top5"].chance == 5 / len(judge.labels)
    assert found["all"].chance == pytest.approx(1 / (len(judge.labels) * 2 * 16))


def test_what_was_not_asked_for_does_not_count(judge: Any, drawings: Drawings, selection: Selection) -> None:
    prompts = [
        EvalPrompt("a fox", "fox", None, None, "train"),
        EvalPrompt("a castle", None, None, "white", "free"),
    ]
    places, pictures = judging.real_pictures(prompts, drawings, judge.backgrounds, selection.styles)
    np.testing.assert_array_equal(places, [0])  # a castle has no drawing
    verdicts = judging.judge(judge, prompts, np.concatenate([pictures, pictures]))
    assert list(verdicts.rank) == [1, -1]
    found = by_name(judging.figures(verdicts, judge))
    assert set(found) == {"top1", "top5", "background"}
    assert found["top1"].n == found["background"].n == 1
    assert np.isnan(judging.outcomes(verdicts, "all")).all()


def test_a_concept_that_the_evaluator_does_not_know_is_an_error(judge: Any) -> None:
    pictures = np.zeros((1, 128, 128, 3), np.uint8)
    with pytest.raises(UsageError, match="concept 'castle'"):
        judging.judge(judge, [EvalPrompt("", "castle", None, None, "train")], pictures)
    with pytest.raises(UsageError, match="2 prompts"):
        judging.judge(judge, [EvalPrompt("", "fox", None, None, "train")] * 2, pictures)


def test_pixels_of_real_pictures_are_those_of_the_drawing(judge: Any, drawings: Drawings) -> None:
    prompt = EvalPrompt("", "fox", "noto", "sky blue", "train")
    _, (picture,) = judging.real_pictures([prompt], drawings, judge.backgrounds, ())
    assert tuple(picture[0, 0]) == judge.backgrounds["sky blue"]
    assert tuple(picture[64, 64]) == (250, 130, 10)
