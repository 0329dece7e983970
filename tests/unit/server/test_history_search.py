"""Searches find the same in every database, pages neither skip nor repeat, and no text breaks the syntax."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from history_pictures import Clock, add, listed
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fewstep.errors import UsageError
from fewstep.server.database import Database
from fewstep.server.history import History
from fewstep.server.history_search import Search, searchable, statement, words
from fewstep.server.tables import ImageRow


@pytest.fixture(params=["full text", "like"])
def history(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[History]:
    database = Database("sqlite://", full_text=request.param == "full text")
    yield History(database, tmp_path / "images", clock=Clock())
    database.close()


def test_words() -> None:
    assert words("A red-Apple, (café:1.2) dpmpp_2m") == [[w] for w in "a red apple cafe 1 2 dpmpp 2m".split()]
    assert words("一个红苹果 fox狐狸") == [["一", "个", "红", "苹", "果"], ["fox"], ["狐", "狸"]]
    assert words("ガ") == words("が".translate({0x304C: 0x30AC})) and len(words("사과")[0]) == 2
    assert words("STRASSE") == words("straße") and words(' "*^:-+()\0 ') == []
    assert searchable(["a b", "", "c"]) == " a b c " and searchable([]) == " "


def test_beginnings_of_words_in_all_that_a_picture_says(history: History) -> None:
    fox = add(history, "a Red fox, watercolour <lora:ink:0.8>").id
    apple = add(
        history,
        "ein roter Apfel, café",
        record={"negative_prompt": "blurry", "model": "sdxl-base_1.0",
                "adapters": [{"name": "InkWash", "hash": "1"}], "student": {"name": "lightning-4"}},
    ).id  # fmt: skip
    chinese = add(history, "一个红苹果，水彩").id
    for text, found in {
        "red": [fox], "RED wat": [fox], "ed": [], "fox red": [fox], "red wolf": [], "lora": [fox],
        "cafe": [apple], "CAFÉ": [apple], "blur": [apple], "sdxl": [apple], "1.0": [apple, fox],
        "inkw": [apple], "ink": [apple, fox], "light 4": [apple], "苹果": [chinese], "红苹": [chinese],
        "苹": [chinese], "果苹": [], "红 水彩": [chinese], "": [chinese, apple, fox],
        "  ": [chinese, apple, fox],
        "base": [apple], "...": [], "emoji": [chinese, fox],
    }.items():  # fmt: skip
        assert listed(history, text=text) == found, text


NASTY = [
    '"', "'", '""', "a\"b", "red*", "^red", "red AND", "OR", "NOT red", "NEAR(red fox)", "words:red", "-red",
    "{words} : red", "red + fox", "(red", "red)", "%", "_", "\\", "a%b_", ";DROP TABLE images", "red\0fox",
    "*", "NEAR/2", "image_words", "𝕣𝕖𝕕", "red\u200bfox", "\ud800", "İ", "ß", "ﷺ", "ａ", "़", "\u0301",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_no_text_is_more_than_words(history: History, text: str) -> None:
    add(history, "a red fox")
    found = listed(history, text=text)
    assert len(found) == (
        1 if all(run[0] in ("red", "fox", "a") for run in words(text)) and words(text) else 0
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=12),
    text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=8),
)
@example(prompt="ƀ", text="ƀ")
def test_both_ways_find_the_same(prompt: str, text: str) -> None:
    """The index' own tokeniser must not disagree with ours about what a letter is."""
    indexed = _shared()
    with indexed.writing() as session:
        row = ImageRow(
            id="a" * 32, created=1.0, owner="", client="", day="2026-01-01", kind="png", width=1, height=1,
            size=1, model="", prompt="", negative_prompt="", record={}, words=searchable([prompt]),
        )  # fmt: skip
        session.add(row)
    try:
        with indexed.reading() as session:
            for wanted in (text, prompt, prompt[:3]):
                index, like = (statement(Search(text=wanted), full_text=way) for way in (True, False))
                assert len(session.exec(index).all()) == len(session.exec(like).all()), words(wanted)
    finally:
        with indexed.writing() as session:
            session.delete(row)


_opened: list[Database] = []


def _shared() -> Database:
    if not _opened:
        _opened.append(Database("sqlite://"))
    return _opened[0]


def test_pages_hold_every_picture_once_though_times_are_equal(history: History) -> None:
    clock = history._clock
    assert isinstance(clock, Clock)
    random.seed(0)
    ids = []
    for number in range(23):
        if number % 5:
            clock.now -= 0.25  # the same moment as the picture before
        ids.append(add(history).id)
    found: list[str] = []
    page = history.search(Search(owner="anna", limit=4))
    while True:
        found += [one.id for one in page.images]
        if page.next is None:
            break
        if len(found) == 8:
            add(history)  # what is made meanwhile belongs to no later page
        page = history.search(Search(owner="anna", limit=4, before=page.next))
    assert sorted(found) == sorted(ids)
    created = [history.get(one, None).created for one in found]
    assert created == sorted(created, reverse=True)
    assert history.search(Search(limit=24)).next is None


def test_filters(history: History) -> None:
    clock = history._clock
    assert isinstance(clock, Clock)
    first = add(history, client="a1111", record={"model": "m1"})
    clock.now += 1000
    second = add(history, client="openai", record={"model": "m2"})
    history.favourite(second.id, "anna")
    assert listed(history, model="m1") == [first.id] == listed(history, client="a1111")
    assert listed(history, favourite=False) == [first.id]
    assert listed(history, since=second.created) == [second.id] == listed(history, since=first.created + 1)
    assert listed(history, until=second.created) == [first.id]
    assert listed(history, since=first.created, until=second.created, text="apple", model="m2") == []
    assert listed(history, model="m'; --") == [] == listed(history, tag="%")
    for bad in ("a\0b", "\ud800"):
        assert listed(history, model=bad) == [] == listed(history, tag=bad) == listed(history, client=bad)


@pytest.mark.parametrize("wanted", [{}, {"owner": "a"}, {"owner": "a", "before": "5.0-" + "a" * 32}])
def test_a_page_is_read_off_an_index_and_not_sorted(wanted: dict[str, str]) -> None:
    """20,000 pictures otherwise cost five times as much for every page."""
    database = _shared()
    query = statement(Search(**wanted), full_text=True)  # type: ignore[arg-type]
    text = query.compile(database.engine, compile_kwargs={"literal_binds": True})
    with database.reading() as session:
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
    assert len(plan) == 1 and "USING INDEX images_" in plan[0][3]


def test_what_no_search_can_be(history: History) -> None:
    for wanted, message in (
        ({"limit": 0}, "limit is 0"),
        ({"limit": 1001}, "limit is 1001"),
        ({"before": "1-x"}, "the page does not exist"),
        ({"before": "1e5-" + "a" * 32}, "the page does not exist"),
        ({"text": "x" * 1001}, "search of 1001 characters"),
        ({"text": "x " * 33}, "search of 33 words"),
    ):
        with pytest.raises(UsageError, match=message):
            history.search(Search(**wanted))  # type: ignore[arg-type]


def test_a_changed_text_is_found_by_its_new_words(history: History) -> None:
    kept = add(history, "old words")
    with history.database.writing() as session:
        row = history.row(session, kept.id, None)
        row.words = searchable(["new ones"])
    assert listed(history, text="old") == [] and listed(history, text="new") == [kept.id]
