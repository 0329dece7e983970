"""Texts of the studio: every one in both languages, with the same fields, and none that is missing."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from fewstep.studio.words import COOKIE, LANGUAGES, Words, language_of, texts

STUDIO = Path(__file__).parents[3] / "src" / "fewstep" / "studio"
PARTS = sorted(path.stem for path in (STUDIO / "words").glob("*.yaml"))
SOURCES = {
    path.relative_to(STUDIO).as_posix(): path.read_text("utf-8")
    for path in sorted(STUDIO.rglob("*.py"))
    if path.parent.name != "words"
}
SAME = {"Eta", "LoRA", "PNG", "ZIP", "JSON", "CLIP", "curl", "Python", "webuiapi", "openai", "main"}
"""What both languages call by the same name."""


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("part", PARTS)
def test_every_text_is_there_in_both_languages(part: str) -> None:
    for name, entry in texts(part).items():
        assert list(entry) == list(LANGUAGES), f"{part}.{name}"
        for language, text in entry.items():
            own = part == "refusals" and language == "en"  # the server's own sentence is English
            assert isinstance(text, str) and (text.strip() or own), f"{part}.{name}"
        assert fields(entry["en"]) == fields(entry["zh"]), f"{part}.{name}"


@pytest.mark.parametrize("part", PARTS)
def test_the_chinese_is_chinese(part: str) -> None:
    """A text without one Chinese character is a name that both languages have."""
    for name, entry in texts(part).items():
        if not re.search(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", entry["zh"]):
            said = re.sub(r"\{.*?\}", "", entry["zh"])
            typed = name.endswith(("_hint", "_value"))  # what one may type: models understand English
            same = entry["zh"] == entry["en"] and (typed or said in SAME)
            assert same or not re.search("[A-Za-z]{2}", said) or f"{part}.{name}" == "page.language", name
        assert not re.search(r"[\u4e00-\u9fff][,;!?]", entry["zh"]), (
            f"{part}.{name}: punctuation of the other width"
        )


@pytest.mark.parametrize("source", SOURCES)
def test_every_text_that_is_asked_for_is_there(source: str) -> None:
    """Those that the code names in full; of names that it puts together at least the part."""
    for part, name in re.findall(r"""words\(\s*f?["']([a-z_]+)\.([^"']*)["']""", SOURCES[source]):
        if "{" not in name and not name.endswith("_"):
            assert name in texts(part), f"{part}.{name}"
        else:
            begin = name.split("{")[0]
            assert any(key.startswith(begin) for key in texts(part)), f"{part}.{name}"


def test_there_is_something_to_check() -> None:
    asked = sum(len(re.findall(r"words\(", text)) for text in SOURCES.values())
    assert len(PARTS) > 2 and asked > 20


def test_fields_are_filled_in_and_missing_texts_are_errors() -> None:
    assert Words("en")("page.failed", why="{x} <b>") == "The studio could not start: {x} <b>"
    with pytest.raises(KeyError):
        Words("en")("page.nothing_like_it")


@pytest.mark.parametrize(
    ("accepted", "cookie", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", None, "zh"),
        ("de-DE,de;q=0.9,zh;q=0.5,en;q=0.3", None, "zh"),
        ("en-US,en", None, "en"),
        ("fr", None, "en"),
        ("", None, "en"),
        ("zh-CN", "en", "en"),
        ("en", "zh", "zh"),
        ("zh", "../../etc", "zh"),
    ],
)
def test_the_language_is_the_chosen_one_else_the_browsers_first(
    accepted: str, cookie: str | None, language: str
) -> None:
    assert language_of({"accept-language": accepted}, {} if cookie is None else {COOKIE: cookie}) == language
