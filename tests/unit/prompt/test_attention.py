"""Attention brackets. The vectors are what the web UI 1.10 gave when they were executed there."""

import math

import pytest

from fewstep.prompt.attention import BREAK, MAX_WEIGHT, Segment, parse_attention

VECTORS = {
    "red (fox:1.3) in snow": [("red ", 1.0), ("fox", 1.3), (" in snow", 1.0)],
    "[(kite:2)]": [("kite", 2 / 1.1)],
    "[moth]": [("moth", 1 / 1.1)],
    "(a:1.2": [("a:1.2", 1.1)],
    "(w:abc)": [("w:abc", 1.1)],
    "(a:b:1.4)": [("a:b", 1.4)],
    "(a:1.2)(b:1.2)": [("ab", 1.2)],
    "mist BREAK sun": [("mist", 1.0), ("BREAK", -1), ("sun", 1.0)],
}


@pytest.mark.parametrize("text", VECTORS)
def test_executed_vectors(text: str) -> None:
    found = [(segment.text, pytest.approx(segment.weight, abs=1e-12)) for segment in parse_attention(text)]
    assert found == VECTORS[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", [("plain text", 1.0)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("(x)", [("x", 1.1)]),
        ("((x))", [("x", 1.21)]),
        ("(x:.5)", [("x", 0.5)]),
        ("(x: -2 )", [("x", -2.0)]),
        ("(x:+1.)", [("x", 1.0)]),
        ("(a (b:2) c:3)", [("a ", 3.0), ("b", 6.0), (" c", 3.0)]),
        # An explicit weight works in round brackets only; the closer of a square one takes no number.
        ("[x:2]", [("x:2", 1 / 1.1)]),
        # Unmatched closers are text, with a number too.
        ("x) y] z:1.5)", [("x) y] z:1.5)", 1.0)]),
        # Round and square brackets pair up independently of each other.
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
        (r"(\(:2)", [("(", 2.0)]),
        # Any other backslash vanishes.
        (r"a\b\{", [("ab{", 1.0)]),
        ("[[x]", [("x", 1 / 1.21)]),
    ],
)
def test_rules(text: str, expected: list[tuple[str, float]]) -> None:
    found = parse_attention(text)
    assert [segment.text for segment in found] == [text for text, _ in expected]
    assert [segment.weight for segment in found] == pytest.approx([weight for _, weight in expected])


def test_break_inside_weights_breaks() -> None:
    # In the web UI the marker becomes -1.2 here, and BREAK a word. The departure is on purpose.
    assert parse_attention("(mist BREAK sun:1.2)") == (Segment("mist", 1.2), BREAK, Segment("sun", 1.2))


@pytest.mark.parametrize(
    ("text", "breaks"),
    [("BREAK", 1), ("a BREAK", 1), ("a BREAK BREAK b", 2), ("BREAKS aBREAK", 0), ("(-1) (x:-1)", 0)],
)
def test_break_is_a_word_of_its_own(text: str, breaks: int) -> None:
    assert sum(segment.is_break for segment in parse_attention(text)) == breaks


def test_a_weight_of_minus_one_is_no_break() -> None:
    # In the web UI "(x:-1)" behind BREAK merges into the marker, because the weights are equal.
    assert parse_attention("BREAK(x:-1)") == (BREAK, Segment("x", -1.0))


@pytest.mark.parametrize("number", ["1.2.3", "..", "-", "1e2", "1" * 40])
def test_a_number_that_is_none_is_text(number: str) -> None:
    assert parse_attention(f"(x:{number})") == (Segment(f"x:{number}", 1.1),)


def test_without_emphasis_everything_is_literal() -> None:
    text = r"(a:1.2) \( BREAK [b]"
    assert parse_attention(text, "none") == (Segment(text, 1.0),)
    assert parse_attention(text, "ignore") == parse_attention(text, "original")


@pytest.mark.parametrize("text", ["(" * 100_000 + "x", "(x:9999999)", "(((x:-99999):99999):99999)"])
def test_H13_weights_stay_finite(text: str) -> None:
    weights = [segment.weight for segment in parse_attention(text)]
    assert all(math.isfinite(weight) and abs(weight) == MAX_WEIGHT for weight in weights)
