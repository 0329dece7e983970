"""Editing and alternation. The vectors are what the web UI 1.10 gave when they were executed there."""

import pytest

from fewstep.prompt.schedule import Edit, text_schedule


def entries(text: str, steps: int, **options: int) -> list[tuple[int, str]]:
    return list(text_schedule(text, steps, **options).entries)


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("[sand:sea:0.5] view", 8, [(4, "sand view"), (8, "sea view")]),
        ("[sand:sea:4] view", 8, [(4, "sand view"), (8, "sea view")]),
        ("[sand:sea:1]", 8, [(1, "sand"), (8, "sea")]),
        ("[sand:sea:1.0]", 8, [(8, "sand")]),
        ("[sand:sea:0]", 8, [(8, "sea")]),
        ("[a:b:12]", 8, [(8, "a")]),
        ("[p|q|r]", 4, [(1, "p"), (2, "q"), (3, "r"), (4, "p")]),
        ("[[a:b:2]:c:5]", 8, [(2, "a"), (5, "b"), (8, "c")]),
        (r"\[a:b:2\]", 8, [(8, r"\[a:b:2\]")]),
    ],
)
def test_executed_vectors(text: str, steps: int, expected: list[tuple[int, str]]) -> None:
    assert entries(text, steps) == expected


@pytest.mark.parametrize(
    ("when", "expected"),
    [("0.5", [(4, "sea")]), ("1.5", [(2, "sand"), (4, "sea")]), ("10", [(2, "sand"), (4, "sea")])],
)
def test_executed_vectors_of_a_second_pass(when: str, expected: list[tuple[int, str]]) -> None:
    assert entries(f"[sand:sea:{when}]", 8, hires_steps=4) == expected


# Executed with the web UI's own grammar and lark 1.3.1.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [b: 2 ] c", [(2, "a  c"), (4, "a b c")]),
        ("[a::2]", [(2, "a"), (4, "")]),
        ("[fe|]male", [(1, "female"), (2, "male"), (3, "female"), (4, "male")]),
        ("[a:b:2][c|d]", [(1, "ac"), (2, "ad"), (3, "bc"), (4, "bd")]),
        ("[a|[b|c]]", [(1, "a"), (2, "c"), (3, "a"), (4, "c")]),
        ("[(a:b):c:2]", [(2, "(a:b)"), (4, "c")]),
        ("[a:1e1]", [(4, "")]),
        ("[a:1e-1]", [(4, "a")]),
        ("[a:-1]", [(4, "a")]),
        ("[a:+2]", [(2, ""), (4, "a")]),
        ("[a:b:03]", [(3, "a"), (4, "b")]),
        ("[2:3:2]", [(2, "2"), (4, "3")]),
        (r"[a\|b|c]", [(1, r"a\|b"), (2, "c"), (3, r"a\|b"), (4, "c")]),
        (r"[a\:b:2]", [(2, ""), (4, r"a\:b")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (4, "((a][:b:c d")]),
        ("[[a:b:2] c:d:e]", [(2, "[a c:d:e]"), (4, "[b c:d:e]")]),
        ("[a:b:c] [d:e:2]", [(2, "[a:b:c] d"), (4, "[a:b:c] e")]),
    ],
)
def test_more_executed_vectors(text: str, expected: list[tuple[int, str]]) -> None:
    assert entries(text, 4) == expected


@pytest.mark.parametrize(
    "text",
    ["[a]", "[]", "(a:b)", "[a(:b:2]", "[a:b:2 x]", "[a:b:c:2]", "([a:b:2", "a:b:2]", "[a:1_0]", "[a:.5.]"],
)
def test_what_is_no_edit_stays(text: str) -> None:
    assert text_schedule(text, 4).entries == ((4, text),)
    assert text_schedule(text, 4).edits == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a | b [c:d:2]", "outside"), ("[(a|b):c:2]", "outside"), ("[a:b:2] \\", "backslash")],
)
def test_what_the_web_ui_cannot_parse_is_literal_and_said(text: str, reason: str) -> None:
    schedule = text_schedule(text, 4)
    assert schedule.entries == ((4, text),)
    (warning,) = schedule.warnings
    assert reason in warning


def test_texts_without_brackets_are_not_warned_of() -> None:
    assert text_schedule("a | b \\", 4).warnings == ()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 32, "0." + "3" * 30])
def test_huge_numbers_are_steps_too(number: str) -> None:
    schedule = text_schedule(f"[a:b:{number}]", 4)
    assert schedule.entries[-1][0] == 4


def test_equal_neighbours_are_one_entry() -> None:
    # The web UI lists 1, 2, 3, 4 here, with the same texts at 2, 3 and 4.
    assert entries("[fe|||]male", 4) == [(1, "female"), (4, "male")]


def test_too_much_text_is_literal_and_said() -> None:
    text = "[a|b]" + " word" * 100
    schedule = text_schedule(text, 1000, budget=100_000)
    assert schedule.entries == ((1000, text),)
    assert "too much text" in schedule.warnings[0]
    assert len(text_schedule(text, 10, budget=100_000).entries) == 10


def test_edits_say_what_was_drawn() -> None:
    schedule = text_schedule("[a|b|c] [x:[y|z]:0.3]", 2)
    alternation, editing, inner = schedule.edits
    assert alternation == Edit(
        kind="alternation", source="[a|b|c]", arms=("a", "b", "c"), drawn=(True, True, False)
    )
    assert (editing.when, editing.last_step, editing.drawn) == ("0.3", 0, (False, True))
    assert editing.share == pytest.approx(0.6)
    assert inner.drawn == (True, True)


def test_excerpts_are_short() -> None:
    (edit,) = text_schedule("[" + "word " * 50 + ":2]", 4).edits
    assert len(edit.source) == len(edit.arms[1]) == 60
