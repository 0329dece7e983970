"""Prompt sets: what was trained stands in ``seen`` and nowhere else, and the choice is fair and fixed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fewstep.data import split
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.captions import FORMS, caption, variants
from fewstep.data.compositions import compositions
from fewstep.data.emoji import Drawing, open_drawings
from fewstep.data.preparation import Selection, load_selection
from fewstep.errors import DataError, NotFoundError, RecipeError, UsageError
from fewstep.evaluation import contact, promptsets
from fewstep.evaluation.promptsets import EvalPrompt, build, chosen, parse

ROOT = Path(__file__).resolve().parents[3]
DRAWINGS = ROOT / ".cache" / "emoji-128" / "drawings"
WORDS = Path(__file__).with_name("caption_words.txt")
BACKGROUNDS = load_backgrounds()
FOOD = ("red apple", "pizza", "egg", "bread", "bottle with popping cork")
ANIMALS = ("dog", "cat", "fox", "goose", "owl", "frog", "crab", "duck", "bee", "ant")


def drawing(label: str, style: str, group: str) -> Drawing:
    held_out = "object" if split.object_held_out(label) else "train"
    return Drawing(style, group, label, ("keyword",), label, "package", "1", "MIT", held_out)


ITEMS = [
    drawing(label, style, group)
    for style in ("noto", "twemoji", "firefox")
    for group, labels in (("food-drink", FOOD), ("animals-nature", ANIMALS), ("objects", ("bell", "key")))
    for label in labels
]
SELECTION = Selection(styles=("noto", "twemoji"), groups=("food-drink", "animals-nature"), per_drawing=3)


def make(name: str, n: int = 10_000, seed: int = 0) -> list[EvalPrompt]:
    return build(name, n, items=ITEMS, backgrounds=BACKGROUNDS, selection=SELECTION, seed=seed)


def test_seen_is_exactly_what_the_model_was_trained_on() -> None:
    trained = compositions(
        ITEMS, BACKGROUNDS, per_drawing=3, styles=SELECTION.styles, groups=SELECTION.groups
    )
    seen = make("seen")
    assert {p.text for p in seen} == {c.captions[0] for c in trained}
    assert len(seen) == len(trained)


@pytest.mark.parametrize("part", ["combination", "object"])
def test_held_out_sets_are_all_of_their_part(part: split.Part) -> None:
    expected = {
        (item.label, item.style, name)
        for item in ITEMS
        if item.style in SELECTION.styles and item.group in SELECTION.groups
        for name in BACKGROUNDS
        if split.part(item.label, item.style, name) == part
    }
    found = make(part)
    assert {(p.label, p.style, p.background) for p in found} == expected
    assert {p.part for p in found} == {part}
    assert expected


def test_a_list_of_objects_limits_what_was_trained_and_not_what_was_held_out() -> None:
    listed = SELECTION.model_copy(update={"labels": ("dog", "fox")})

    def labels(part: split.Part) -> set[str]:
        return {c.label for c in chosen(ITEMS, BACKGROUNDS, listed, part, 10_000)}

    assert labels("train") == labels("combination") == {"dog", "fox"}
    assert labels("object") == {"goose", "bee", "bottle with popping cork"}


def test_every_beginning_is_stratified_and_objects_take_turns() -> None:
    everything = chosen(ITEMS, BACKGROUNDS, SELECTION, "train", 10_000)

    def strata(n: int) -> Counter[tuple[str, str]]:
        return Counter((c.style, ITEMS[c.drawing].group) for c in everything[:n])

    whole = strata(len(everything))
    for n in (10, 20, 40, 60):
        for stratum, count in strata(n).items():
            assert abs(count - n * whole[stratum] / len(everything)) <= 1, (n, stratum)
    times = Counter(c.label for c in everything[:30] if c.style == "noto")
    assert max(times.values()) - min(times.values()) <= 1


def test_a_shorter_set_begins_a_longer_one_and_the_seed_changes_it() -> None:
    assert make("seen", 7) == make("seen", 30)[:7]
    assert make("seen", 7) == make("seen", 7)
    assert make("seen", 7, seed=1) != make("seen", 7)
    assert {p.text for p in make("seen", seed=1)} == {p.text for p in make("seen")}


def test_synonyms_put_a_new_word_into_a_trained_composition() -> None:
    words = {"hound": "dog", "spud": "potato", "gosling": "goose"}
    found = promptsets.synonyms(words, ITEMS, BACKGROUNDS, SELECTION)
    (prompt,) = found  # potatoes are not in the set, and the goose is held out
    assert (prompt.label, prompt.part) == ("dog", "synonym")
    assert prompt.text == caption("hound", style=prompt.style, background=prompt.background)
    trained = {(p.label, p.style, p.background) for p in make("seen")}
    assert ("dog", prompt.style, prompt.background) in trained
    with pytest.raises(DataError, match="no synonym"):
        promptsets.synonyms({"spud": "potato"}, ITEMS, BACKGROUNDS, SELECTION)


def stems(word: str) -> set[str]:
    return {word, f"{word}s", f"{word}es", word.removesuffix("s"), re.sub("y$", "ies", word)}


def test_there_are_60_synonyms_and_no_label_or_keyword_holds_them() -> None:
    words = set(WORDS.read_text("utf-8").split())
    found = promptsets.load_synonyms()
    assert len(found) == 60
    assert [word for word in found if stems(word) & words] == []
    assert "apple" in words  # the list is what it says it is
    # what captions add to labels and keywords
    other = set(re.findall(r"\w+", " ".join([*BACKGROUNDS, "a an the of with style background on facing"])))
    assert not set(found) & other


@pytest.mark.skipif(not (DRAWINGS / "set.json").is_file(), reason="the drawing set is not built here")
def test_committed_words_and_prompts_are_those_of_the_drawing_set() -> None:
    items = open_drawings(DRAWINGS).items
    words = set()
    for item in items:
        for text in (item.label, *item.tags):
            words |= set(re.findall(r"[a-z0-9]+", text.lower()))
    assert words == set(WORDS.read_text("utf-8").split())
    labels = {item.label: item for item in items}
    assert set(promptsets.load_synonyms().values()) <= set(labels)
    bundled = build("synonyms", 100, items=items, backgrounds=BACKGROUNDS, selection=load_selection())
    assert len(bundled) == 60  # every word means an object that the bundled model knows
    origin = promptsets.read_yaml(ROOT / "recipes" / "emoji-128" / "contact.yaml")
    assert isinstance(origin, dict)
    selection = Selection.model_validate_json(json.dumps(origin["chosen_from"]))
    assert contact.choose(items, BACKGROUNDS, selection) == contact.load_contact()


def test_every_form_of_a_trained_caption_is_read_back() -> None:
    labels = {caption(item.label): item.label for item in ITEMS}
    styles = frozenset(item.style for item in ITEMS)
    rng = np.random.default_rng(0)
    for item in ITEMS:
        forms = variants(item.label, item.tags, item.style, "sky blue", rng, count=len(FORMS) - 1)
        expected = [
            (item.style, "sky blue"),
            (None, "sky blue"),
            (item.style, None),
            (None, None),
        ]
        for text, parts in zip(forms, expected, strict=True):
            found = parse(text, labels, styles, BACKGROUNDS)
            assert (found.label, found.style, found.background) == (item.label, *parts), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red apple, noto style, on a sky blue background", ("red apple", "noto", "sky blue", "train")),
        ("a goose, noto style, on a pink background", ("goose", "noto", "pink", "object")),
        ("a goose", ("goose", None, None, "object")),
        ("a dog, noto style", ("dog", "noto", None, "train")),
        ("a castle, noto style, on a pink background", (None, "noto", "pink", "free")),
        ("a dog on a plaid background", (None, None, None, "free")),
        ("a dog, oil painting style", (None, None, None, "free")),
    ],
)
def test_a_text_says_what_it_shows_and_what_was_trained(text: str, expected: tuple[str | None, ...]) -> None:
    labels = {caption(item.label): item.label for item in ITEMS}
    found = parse(text, labels, frozenset({"noto"}), BACKGROUNDS)
    assert (found.label, found.style, found.background, found.part) == expected


def test_a_text_file_is_a_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# mine\n\n a red apple \na castle\n", "utf-8")
    assert [p.text for p in make(str(path))] == ["a red apple", "a castle"]
    path.write_text("# nothing\n", "utf-8")
    with pytest.raises(UsageError, match="no prompt in it"):
        make(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        make(str(path))
    with pytest.raises(NotFoundError, match="cannot be read"):
        make(str(tmp_path / "other.txt"))


def test_unknown_sets_and_numbers_are_refused() -> None:
    with pytest.raises(NotFoundError, match="give seen, combination"):
        make("sean")
    with pytest.raises(UsageError, match="--n 1 or more"):
        make("seen", 0)


def test_the_contact_sheet_has_100_prompts_and_marks_what_is_unseen() -> None:
    prompts = contact.load_contact()
    assert len(prompts) == len({p.text for p in prompts}) == 100
    assert Counter(p.part for p in prompts) == contact.COUNTS
    for p in prompts:
        assert p.label and p.style and p.background
        assert split.part(p.label, p.style, p.background) == p.part
        assert caption(p.label, style=p.style, background=p.background) == p.text
    selection = load_selection()
    assert {p.style for p in prompts} <= set(selection.styles)
    trained = {p.label for p in prompts if p.part != "object"}
    assert selection.labels is None or trained <= set(selection.labels)


@pytest.mark.parametrize(
    "content",
    [
        "train: [a goose, noto style, on a pink background]",  # a comma ends an item of a YAML list
        "train: ['a goose, noto style, on a pink background']",  # held out, not trained
        "train: ['a dog']",
        "train: [5]",
        "other: ['a dog']",
        "[]",
        "train: []",
        "train: [",
    ],
)
def test_a_wrong_contact_sheet_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "contact.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(RecipeError):
        contact.load_contact(path)


@pytest.mark.parametrize("content", ["[]", "hound: 3", "3: dog", "{"])
def test_wrong_synonyms_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "synonyms.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(RecipeError):
        promptsets.load_synonyms(path)
