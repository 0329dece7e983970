"""Wildcards and choices."""

import collections
import itertools
from pathlib import Path

import pytest

from fewstep.errors import DataError, NotFoundError, UsageError
from fewstep.prompt.grammar import MAX_CHARACTERS
from fewstep.prompt.wildcard_files import WildcardFolder
from fewstep.prompt.wildcards import MAX_TEMPLATE, MAX_WILDCARDS, expand

WILDCARDS = {
    "colour": ["red", "green", "blue"],
    "big/animals": ["{old|young} bear"],
    "thing": ["__colour__ __big/animals__"],
    "hair_colour": ["auburn"],
    "empty": [],
    "loop": ["x__loop__"],
}


def all_of(text: str, count: int = 300) -> collections.Counter[str]:
    return collections.Counter(expand(text, seed, WILDCARDS).text for seed in range(count))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (text:1.2)", {"plain (text:1.2)"}),
        ("{a|b|c}", {"a", "b", "c"}),
        ("{a|}x", {"ax", "x"}),
        ("{very |}big", {"very big", "big"}),
        ("{a}", {"a"}),
        ("{}", {""}),
        ("{a|{b|c}d}", {"a", "bd", "cd"}),
        ("{0::a|b}", {"b"}),
        ("{0::a}", {""}),
        ("{2$$a|b|c}", {"a, b", "a, c", "b, a", "b, c", "c, a", "c, b"}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{2$$$$a|b}", {"ab", "ba"}),
        ("{0$$a|b}", {""}),
        ("{9$$a|b}", {"a, b", "b, a"}),
        ("{2$$0::a|b|c}", {"b, c", "c, b"}),
        ("__colour__", {"red", "green", "blue"}),
        ("__hair_colour__", {"auburn"}),
        ("__big/animals__", {"old bear", "young bear"}),
        ("{__hair_colour__|__big/animals__}", {"auburn", "old bear", "young bear"}),
        # Bars in square brackets belong to an alternation, unless nobody closes the bracket.
        ("{[a|b]|c}", {"[a|b]", "c"}),
        ("{[a|b}", {"[a", "b"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        ("{a|{b|c}", {"{a|b", "{a|c"}),
        (r"\{a|b\}", {r"\{a|b\}"}),
        (r"{a\|b}", {r"a\|b"}),
        ("____ a_b __", {"____ a_b __"}),
    ],
)
def test_forms(text: str, expected: set[str]) -> None:
    assert set(all_of(text)) == expected


def test_a_seed_gives_the_same_text_always() -> None:
    text = "{a|b|c} __thing__ {2$$x|y|z}"
    assert [expand(text, seed, WILDCARDS).text for seed in (0, 1, 2**40)] == [
        "c green young bear z, x",
        "a green old bear x, z",
        "a green old bear y, x",
    ]


def test_only_what_is_chosen_is_expanded() -> None:
    first = {seed: expand("{a|b} {c|d}", seed).text for seed in range(20)}
    assert {seed: expand("{a|b} {c|d} {e|__loop__}", seed).text[:3] for seed in range(20)} == first


def test_weights_are_probabilities() -> None:
    found = all_of("{2::a|b|.5::c}", 3500)
    for arm, share in (("a", 2 / 3.5), ("b", 1 / 3.5), ("c", 0.5 / 3.5)):
        assert found[arm] / 3500 == pytest.approx(share, abs=0.04)


def test_many_of_many_are_drawn_as_if_one_after_the_other() -> None:
    # Weights 3, 2, 1 without putting back: P(x, y) = w_x / 6 * w_y / (6 - w_x).
    weights = {"a": 3.0, "b": 2.0, "c": 1.0}
    found = all_of("{2$$3::a|2::b|c}", 4000)
    for x, y in itertools.permutations(weights, 2):
        expected = weights[x] / 6 * weights[y] / (6 - weights[x])
        assert found[f"{x}, {y}"] / 4000 == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("__nothing__", "there is no wildcard of that name"), ("__empty__", "it has no lines")],
)
def test_what_cannot_be_expanded_stays_and_is_said(text: str, reason: str) -> None:
    expansion = expand(f"a {text} b", 0, WILDCARDS)
    assert expansion.text == f"a {text} b"
    assert expansion.warnings == (f"{text} is left as it stands: {reason}",)
    assert expand(text, 0).text == text


def test_a_wildcard_that_contains_itself_ends() -> None:
    expansion = expand("__loop__", 0, WILDCARDS)
    assert expansion.text == "x" * 16 + "__loop__"
    assert "does it contain itself?" in expansion.warnings[0]


def test_the_number_of_wildcards_is_bounded_and_said() -> None:
    expansion = expand("__w__" * (MAX_WILDCARDS + 3), 0, {"w": ["x"]})
    assert expansion.text == "x" * MAX_WILDCARDS + "__w__" * 3
    assert "more than 1000 wildcards" in expansion.warnings[0]


def test_what_wildcards_read_is_bounded_and_said() -> None:
    line = "{" + "a" * 50_000 + "|" + "a" * 50_000 + "}"
    expansion = expand("{0$$__w__|}" * 10 + "{0$$" + "}" * 3 + "__w__" * 9, 0, {"w": [f"{{0$${line}}}"]})
    assert "more than 250000 characters" in expansion.warnings[0]


def test_the_result_is_bounded_and_said() -> None:
    expansion = expand("__w__" * 100, 0, {"w": ["x" * 1000]})
    assert expansion.text == "x" * MAX_CHARACTERS
    assert "the rest is cut off" in expansion.warnings[0]


def test_the_template_is_bounded_and_said() -> None:
    expansion = expand("{a|b}" * 20_000, 0)
    assert "only the first 65536 characters" in expansion.warnings[0]
    assert len(expansion.text) < MAX_TEMPLATE


def test_a_negative_seed_is_refused() -> None:
    # random.Random(-1) would give what seed 1 gives.
    with pytest.raises(UsageError, match="seed is -1"):
        expand("{a|b}", -1)


def test_a_folder_of_wildcards(tmp_path: Path) -> None:
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cats.txt").write_bytes("\ufeff# cats\n lynx \r\n\nöcelot\n".encode())
    (tmp_path / "colour.TXT").write_text("red")
    (tmp_path / "notes.md").write_text("no")
    folder = WildcardFolder(tmp_path)
    assert set(folder) == {"animals/cats", "colour"}
    assert len(folder) == 2
    assert folder["animals/cats"] == ("lynx", "öcelot")
    assert expand("__colour__ {0::x|__animals/cats__}", 1, folder).text in ("red lynx", "red öcelot")


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        WildcardFolder(tmp_path / "none")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x")
    monkeypatch.setattr("fewstep.prompt.wildcard_files.MAX_FILES", 2)
    with pytest.raises(DataError, match="more than 2"):
        WildcardFolder(tmp_path)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.prompt.wildcard_files.MAX_BYTES", 2**20)
    (tmp_path / "large.txt").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "long.txt").write_text("x\n" + "y" * 20_000)
    (tmp_path / "gone.txt").write_text("x")
    folder = WildcardFolder(tmp_path)
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(DataError, match=r"large\.txt: larger than 1 MiB"):
        expand("__large__", 0, folder)
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        expand("__gone__", 0, folder)
    with pytest.raises(DataError, match=r"long\.txt: a line of more than 16384"):
        expand("__long__", 0, folder)
