"""The style judge on pictures whose style is plain to see, and its parts against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from fewstep.errors import UsageError
from fewstep.evaluation import stylejudge
from fewstep.evaluation.stylejudge import BASE


def pictures(style: str, n: int, seed: int) -> np.ndarray:
    """Squares of any colour on any ground: cells of 8 px, the same smoothed over, or only black and white."""
    rng = np.random.Generator(np.random.Philox(seed))
    found = np.empty((n, 64, 64, 3), np.uint8)
    for picture in found:
        cells = rng.integers(0, 256, (8, 8, 3), np.uint8)
        if style == "lines":
            cells = np.where(cells[..., :1] > 200, 0, 255).repeat(3, -1).astype(np.uint8)
        large = cells.repeat(8, 0).repeat(8, 1).astype(np.float32)
        if style == BASE:
            for axis in (0, 1):
                large = np.mean([np.roll(large, shift, axis) for shift in range(-8, 9)], axis=0)
        picture[:] = large.astype(np.uint8)
    return found


@pytest.fixture(scope="module")
def judge() -> stylejudge.StyleJudge:
    shown = {style: pictures(style, 12, seed) for seed, style in enumerate((BASE, "cells", "lines"))}
    return stylejudge.fit(shown)


def test_styles_are_told_apart_in_new_pictures(judge: stylejudge.StyleJudge) -> None:
    new = {style: pictures(style, 20, 100 + seed) for seed, style in enumerate(judge.styles)}
    counts = stylejudge.confusion(judge, new)
    assert counts.sum(1).tolist() == [20, 20, 20]
    assert np.trace(counts) >= 58
    assert stylejudge.right(judge, "cells", new["cells"]).mean() >= 0.9
    assert stylejudge.right(judge, "cells", new["lines"]).mean() <= 0.1
    chances = judge.probabilities(new[BASE])
    assert chances.sum(1) == pytest.approx(np.ones(20)) and chances.min() >= 0


def test_a_judge_of_labels_without_sense_is_no_better_than_chance() -> None:
    same = pictures("cells", 40, 5)
    judge = stylejudge.fit({"one": same[:10], "other": same[10:20]})
    found = stylejudge.right(judge, "one", same[20:]).mean()
    assert 0.05 < found < 0.95, "one style by chance: the pictures are of one kind"


def test_the_same_pictures_give_the_same_judge_and_no_picture_changes_another(
    judge: stylejudge.StyleJudge,
) -> None:
    shown = {style: pictures(style, 12, seed) for seed, style in enumerate((BASE, "cells", "lines"))}
    assert (stylejudge.fit(shown).weights == judge.weights).all()
    some = pictures("cells", 3, 7)
    alone = np.concatenate([judge.probabilities(some[i : i + 1]) for i in range(3)])
    assert judge.probabilities(some) == pytest.approx(alone, abs=1e-9)
    assert judge.probabilities(some[:0]).shape == (0, 3)


def test_regression_finds_the_known_optimum() -> None:
    # Two styles that differ in one input of +-1, without noise: by symmetry the weights are +-w/2, and the
    # loss log(1 + exp(-w)) + penalty * w**2 / 4 has slope 0 where sigmoid(-w) = penalty * w / 2.
    inputs, wanted = np.array([[1.0], [-1.0]]), np.array([0, 1])
    weights = stylejudge._regression(inputs, wanted, np.array([0.5, 0.5]), 2, 0.1)
    difference = weights[0, 0] - weights[0, 1]
    assert 1 / (1 + np.exp(difference)) == pytest.approx(0.1 * difference / 2, rel=1e-3)
    assert weights[1] == pytest.approx([0, 0], abs=1e-6), "the constant"


def test_statistics_of_a_plain_picture_and_of_cells() -> None:
    plain = np.full((1, 64, 64, 3), (255, 128, 0), np.uint8)
    found = stylejudge.statistics(plain)[0]
    assert found[:64].sum() == 1 and found[3 * 16 + 2 * 4 + 0] == 1
    assert found[64:70] == pytest.approx([1, 128 / 255, 0, 0, 0, 0])
    assert found[70:] == pytest.approx(np.zeros(8), abs=1e-12)
    cells = pictures("cells", 1, 0)
    across, down = stylejudge.statistics(cells)[0, 74:76]
    moved = stylejudge.statistics(np.roll(cells, (4, 4), (1, 2)))[0, 74:76]
    assert max(across, down) < -3, "no step within a cell"
    assert min(moved) > -1, "off the grid there are"


def test_a_white_rim_is_seen_where_it_stands_out() -> None:
    square = np.full((3, 64, 64, 3), (40, 160, 220), np.uint8)
    square[2] = 255  # white ground
    square[:2, 16:48, 16:48] = 255
    square[0, 22:42, 22:42] = (200, 30, 30)  # a red square with a white border of 6 pixels
    square[1, 17:47, 17:47] = (200, 30, 30)  # nearly without
    square[2, 22:42, 22:42] = (200, 30, 30)
    assert stylejudge.statistics(square)[:, -2:] == pytest.approx(np.array([[1, 1], [0, 0], [0, 0]]))


def test_empty_and_unfit_pictures() -> None:
    assert stylejudge.statistics(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 78)
    for shape in ((1, 60, 64, 3), (1, 16, 64, 3), (64, 64, 3), (1, 64, 64, 4)):
        with pytest.raises(UsageError, match="give"):
            stylejudge.statistics(np.zeros(shape, np.uint8))
    with pytest.raises(UsageError, match="uint8"):
        stylejudge.statistics(np.zeros((1, 64, 64, 3), np.float32))


def test_what_cannot_be_fitted_or_asked(judge: stylejudge.StyleJudge) -> None:
    some = pictures("cells", 2, 0)
    with pytest.raises(UsageError, match="two or more styles"):
        stylejudge.fit({"cells": some})
    with pytest.raises(UsageError, match="of each one or more"):
        stylejudge.fit({"cells": some, BASE: some[:0]})
    with pytest.raises(UsageError, match=r"'fresco': this judge knows base, cells, lines"):
        stylejudge.right(judge, "fresco", some)
    with pytest.raises(UsageError, match="'fresco'"):
        stylejudge.confusion(judge, {"fresco": some})


def test_the_table_names_every_style() -> None:
    text = stylejudge.counted(("base", "pixel art"), np.array([[3, 1], [0, 4]]))
    lines = text.splitlines()
    assert lines[0].split() == ["base", "pixel", "art"]
    assert lines[1].split() == ["base", "3", "1"] and lines[2].split() == ["pixel", "art", "0", "4"]
