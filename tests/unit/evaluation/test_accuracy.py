from __future__ import annotations

import numpy as np
import pytest

from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.compositions import compose
from fewstep.errors import DataError, UsageError
from fewstep.evaluation.accuracy import Twins, background_of, chance, hits, ranks, twin_groups, twins
from fewstep.evaluation.colour import srgb_to_lab


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape)


def test_ranks_by_hand() -> None:
    logits = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [-3.0, -1.0, -2.0]])
    found = ranks(logits, np.array([1, 0, 2]))
    assert found.tolist() == [1, 3, 2]
    assert hits(found).tolist() == [1, 0, 0]
    assert hits(found, 2).tolist() == [1, 0, 1]


def test_ranks_are_places_in_the_sorted_order() -> None:
    logits, wanted = normals(40, 30), np.arange(40) % 30
    order = np.argsort(-logits, axis=1)
    expected = [int(np.flatnonzero(row == want)[0]) + 1 for row, want in zip(order, wanted, strict=True)]
    assert ranks(logits, wanted).tolist() == expected


def test_a_network_that_says_nothing_ranks_last() -> None:
    assert ranks(np.zeros((2, 7)), np.array([0, 6])).tolist() == [7, 7]
    assert ranks(np.array([[1.0, 1.0, 0.0]]), np.array([0])).tolist() == [2]


def test_guessing_hits_as_often_as_chance_says() -> None:
    rank = ranks(normals(20_000, 40), np.arange(20_000) % 40)
    for within in (1, 5):
        rate = chance(40, within)
        assert rate == within / 40
        assert hits(rank, within).mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 20_000))
    assert chance(3, 5) == 1


def logits_saying(said: list[int], candidates: int) -> np.ndarray:
    return 3 * np.eye(candidates)[said] + 0.1 * normals(len(said), candidates)


def test_twins_are_pairs_that_are_taken_for_each_other() -> None:
    #         wanted  0  0  0  1  1  2  2  2  2  3  4
    wanted = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4])
    said = [0, 1, 1, 0, 1, 2, 2, 2, 3, 3, 4]
    found = twins(logits_saying(said, 6), wanted)
    assert found == (Twins(0, 1, 3, 5), Twins(2, 3, 1, 5))
    assert [pair.rate for pair in found] == pytest.approx([0.6, 0.2])
    assert twins(logits_saying(said, 6), wanted, least_rate=0.5) == found[:1]
    assert twins(logits_saying(wanted.tolist(), 6), wanted) == ()


def test_a_concept_without_drawings_can_be_a_twin() -> None:
    assert twins(logits_saying([5], 6), np.array([2])) == (Twins(2, 5, 1, 1),)


def test_pairs_that_share_a_concept_form_a_group() -> None:
    pairs = [Twins(7, 8, 1, 2), Twins(0, 3, 1, 2), Twins(4, 5, 1, 2), Twins(3, 4, 1, 2)]
    assert twin_groups(pairs) == ((0, 3, 4, 5), (7, 8))
    assert twin_groups([]) == ()


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        # as Lindbloom's calculator has them, from a matrix with more digits
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 0), (97.14, -21.55, 94.48)),
        ((119, 119, 119), (50.03, 0, 0)),
    ],
)
def test_cielab_of_known_colours(colour: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    assert srgb_to_lab(np.array(colour)) == pytest.approx(lab, abs=0.03)


def test_greys_have_no_colour_and_the_two_branches_meet() -> None:
    greys = srgb_to_lab(np.repeat(np.arange(256)[:, None], 3, axis=1))
    assert greys[:, 1:] == pytest.approx(np.zeros((256, 2)), abs=1e-9)
    assert (np.diff(greys[:, 0]) > 0).all()
    # The linear part ends at L = 8 (216 / 24389 of white), in value and in slope.
    fine = srgb_to_lab(np.repeat(np.linspace(20, 30, 1001)[:, None], 3, axis=1))[:, 0]
    assert np.abs(np.diff(fine, n=2)).max() < 1e-4
    assert fine[0] < 8 < fine[-1]


def test_colours_keep_their_axes() -> None:
    assert srgb_to_lab(np.zeros((2, 4, 3))).shape == (2, 4, 3)
    with pytest.raises(UsageError, match="three components"):
        srgb_to_lab(np.zeros((3, 4)))
    with pytest.raises(UsageError, match="0 to 255"):
        srgb_to_lab(np.array([0, 0, 256]))


def scene(colour: tuple[int, int, int]) -> np.ndarray:
    """A noisy drawing of 112 px on a plain background."""
    noise = np.random.Generator(np.random.Philox(sum(colour))).integers(0, 256, (112, 112, 3))
    picture = np.empty((128, 128, 3), np.uint8)
    picture[:] = colour
    picture[8:-8, 8:-8] = noise
    return picture


def test_every_named_background_is_read_off() -> None:
    colours = np.array(list(load_backgrounds().values()))
    pictures = np.stack([scene(tuple(colour)) for colour in colours])
    assert background_of(pictures, colours).tolist() == list(range(len(colours)))
    dimmed = np.clip(pictures.astype(int) + np.array([6, -6, 4]), 0, 255).astype(np.uint8)
    assert background_of(dimmed, colours).tolist() == list(range(len(colours)))


def test_the_background_is_that_of_composed_drawings() -> None:
    colours = np.array(list(load_backgrounds().values()), np.float32)
    rgba = np.zeros((len(colours), 128, 128, 4), np.uint8)
    rgba[:, 8:-8, 8:-8] = (10, 200, 30, 255)
    pixels = compose(rgba, colours).transpose(0, 2, 3, 1)
    pictures = np.round((pixels + 1) * 127.5).astype(np.uint8)
    assert background_of(pictures, colours).tolist() == list(range(len(colours)))


def test_less_than_half_of_the_border_may_be_something_else() -> None:
    palette = [(255, 255, 255), (0, 0, 128)]
    picture = np.full((1, 20, 20, 3), 255, np.uint8)
    picture[:, :7] = (0, 0, 128)
    assert background_of(picture, palette, ring=2).tolist() == [0]
    picture[:, :13] = (0, 0, 128)
    assert background_of(picture, palette, ring=2).tolist() == [1]


def test_nearness_is_that_of_the_eye() -> None:
    # By sRGB's numbers this blue is nearer to black (68) than to the other blue (72); in CIELAB it is not.
    picture = np.zeros((1, 9, 9, 3), np.uint8)
    picture[:] = (0, 0, 68)
    assert background_of(picture, [(0, 0, 0), (0, 0, 140)]).tolist() == [1]


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UsageError, match=r"give \(B, K\)"):
        ranks(np.zeros((2, 3)), np.array([0]))
    with pytest.raises(UsageError, match="whole numbers"):
        ranks(np.zeros((1, 3)), np.array([0.0]))
    with pytest.raises(UsageError, match="there are 3 candidates"):
        ranks(np.zeros((1, 3)), np.array([3]))
    with pytest.raises(UsageError, match="there are 3 candidates"):
        twins(np.zeros((1, 3)), np.array([-1]))
    with pytest.raises(DataError, match="not finite"):
        ranks(np.full((1, 3), np.nan), np.array([0]))
    with pytest.raises(UsageError, match="within 0"):
        hits(np.array([1]), 0)
    with pytest.raises(UsageError, match="chance of 1 of 0"):
        chance(0)
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="ring of 4 pixels"):
        background_of(picture, [(0, 0, 0)])
    with pytest.raises(UsageError, match="palette of shape"):
        background_of(picture, [0, 0, 0])
    with pytest.raises(UsageError, match="uint8"):
        background_of(picture.astype(np.float32), [(0, 0, 0)])
