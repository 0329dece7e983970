from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fewstep.data import captions, split
from fewstep.data.backgrounds import load_backgrounds
from fewstep.errors import UsageError

RED_APPLE = ("red apple", ["apple", "fruit"], "noto", "sky blue")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_forms() -> None:
    assert captions.variants(*RED_APPLE, rng()) == [
        "a red apple, noto style, on a sky blue background",
        "a red apple on a sky blue background",
        "a red apple, noto style",
        "a red apple",
    ]
    with pytest.raises(UsageError):
        captions.variants(*RED_APPLE, rng(), count=6)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("grapes", "grapes"),
        ("french fries", "french fries"),
        ("octopus", "an octopus"),
        ("cactus", "a cactus"),
        ("dress", "a dress"),
        ("bus", "a bus"),
        ("broccoli", "broccoli"),
        ("glass of milk", "a glass of milk"),
        ("nest with eggs", "a nest with eggs"),
        ("person lifting weights", "a person lifting weights"),
        ("people holding hands", "people holding hands"),
        ("eye", "an eye"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("ewe", "a ewe"),
        ("hourglass done", "an hourglass done"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("onion", "an onion"),
        ("x-ray", "an x-ray"),
        ("T-Rex", "a T-Rex"),
        ("OK hand", "an OK hand"),
        ("UP! button", "an UP! button"),
        ("8 ball", "an 8 ball"),
        ("1st place medal", "a 1st place medal"),
        ("Santa Claus", "Santa Claus"),
        ("Statue of Liberty", "the Statue of Liberty"),
        ("man: red hair", "a man with red hair"),
        ("man: bald", "a bald man"),
        ("family: man, woman, boy", "a family of man, woman and boy"),
        ("man’s shoe", "a man's shoe"),
    ],
)
def test_articles_and_labels(label: str, expected: str) -> None:
    assert captions.caption(label) == expected


def test_article_before_a_background() -> None:
    assert captions.caption("fox", background="orange") == "a fox on an orange background"


def test_keywords_replace_only_what_they_name() -> None:
    seen = {captions.keyword_caption(*RED_APPLE, rng(seed)) for seed in range(40)}
    assert seen == {
        "an apple, noto style, on a sky blue background",
        "a red apple, fruit, noto style, on a sky blue background",
    }
    assert (
        captions.keyword_caption("fox", [], "noto", "pink", rng())
        == "a fox, noto style, on a pink background"
    )


def test_random_captions_follow_from_the_generator_and_reach_the_bare_object() -> None:
    draws = [captions.random_caption(*RED_APPLE, rng(seed)) for seed in range(200)]
    assert draws == [captions.random_caption(*RED_APPLE, rng(seed)) for seed in range(200)]
    assert {"a red apple", "a red apple, noto style, on a sky blue background"} <= set(draws)


def test_split_follows_the_hash() -> None:
    def bucket(text: str, modulus: int) -> int:
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % modulus

    labels = ["goose", "bell", "love-you gesture", "fox", "red apple", "Japanese “bargain” button"]
    assert [split.object_held_out(x) for x in labels] == [True, True, True, False, False, True]
    assert all(split.object_held_out(x) == (bucket(x, 50) == 0) for x in labels)
    combinations = [
        (o, s, b) for o in ("fox", "owl", "pear") for s in ("noto", "twemoji") for b in load_backgrounds()
    ]
    for combination in combinations:
        if combination not in split.ALWAYS_TRAINED:
            assert split.combination_held_out(*combination) == (bucket("|".join(combination), 20) == 0)
    assert 0 < sum(split.combination_held_out(*c) for c in combinations) < 20


def test_readme_prompts_are_in_the_training_part() -> None:
    assert ("red apple", "noto", "sky blue") in split.ALWAYS_TRAINED
    backgrounds = load_backgrounds()
    for label, style, background in split.ALWAYS_TRAINED:
        assert split.part(label, style, background) == "train"
        assert background in backgrounds
        # The exceptions free single combinations; no object that the hash holds out whole is freed by them.
        assert int(hashlib.sha256(label.encode()).hexdigest(), 16) % 50 != 0
