"""The history: files that say everything, marks, trash with undo, lineage, whose is whose."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from history_pictures import RECORD, Clock, add, listed, pixels, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.checkpoint import atomic
from fewstep.errors import DataError, NotFoundError, OutputError, UsageError
from fewstep.prompt import containers, infotext
from fewstep.server import history as histories
from fewstep.server import history_files as files
from fewstep.server.database import Database
from fewstep.server.history import History

DAY = 86_400.0


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    database = Database(tmp_path / "fewstep.db")
    yield History(database, tmp_path / "images", clock=Clock())
    database.close()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_file_says_everything(history: History, kind: containers.Format) -> None:
    kept = add(
        history, image_format=kind, client="a1111", job_id="b" * 32, parent="c" * 32,
        timings={"denoise": 0.5}, record={"adapters": [{"name": "ink", "hash": "12ab"}]},
    )  # fmt: skip
    assert kept.media_type == f"image/{'jpeg' if kind == 'jpg' else kind}"
    path = history.path(kept.id, "anna")
    assert path == history.root / "2026-11-18" / f"{kept.id}.{kind}"
    data = history.open(kept.id, "anna")
    assert len(data) == kept.size and path.read_bytes() == data
    with Image.open(io.BytesIO(data)) as image:
        said = containers.decode(image)
        if kind == "png":
            assert np.array_equal(np.asarray(image), pixels())
        assert image.size == (kept.width, kept.height) == (24, 16)
    assert said.parameters == infotext.from_record({**RECORD, "adapters": [{"name": "ink", "hash": "12ab"}]})
    assert said.record == {
        **RECORD,
        "adapters": [{"name": "ink", "hash": "12ab"}],
        "history": {
            "id": kept.id, "created": kept.created, "owner": "anna", "client": "a1111", "job_id": "b" * 32,
            "parent": "c" * 32, "timings": {"denoise": 0.5},
        },
    }  # fmt: skip
    assert history.get(kept.id, "anna") == kept
    assert json.loads(json.dumps(kept.facts()))["record"] == said.record
    assert tree(history) == {f"2026-11-18/{kept.id}.{kind}"}


HOSTILE = st.one_of(
    st.sampled_from(
        ["../../etc/passwd", "..\\x", "C:\\x", "a\0b", "/abs", "~", "{seed}", "%2e%2e/", "a" * 5000]
    ),
    st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=50),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=HOSTILE, owner=HOSTILE, model=HOSTILE)
def test_h16_no_name_of_a_file_comes_from_a_caller(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, owner: str, model: str
) -> None:
    root = tmp_path_factory.mktemp("h16")
    history = History(Database("sqlite://"), root / "images")
    kept = add(history, prompt, owner=owner[:64], record={"model": model})
    names = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    assert sorted(names)[0] == "images" and len(names) == 3
    assert re.fullmatch(rf"images/\d{{4}}-\d\d-\d\d/{kept.id}\.png", max(names, key=len))
    assert re.fullmatch("[0-9a-f]{32}", kept.id)


def test_h16_ids_do_not_repeat_for_the_same_prompt(history: History) -> None:
    assert len({add(history).id for _ in range(5)}) == 5


def test_h18_what_is_anothers_is_as_unknown_as_nothing(history: History) -> None:
    mine, theirs = add(history, owner="anna"), add(history, owner="bert")
    token = history.trash([add(history, owner="bert").id], "bert")
    for one in (theirs.id, "0" * 32, "../../secret", "' OR '1'='1", "%", "a\0b", "\ud800", "٣" * 32):
        calls: list[Callable[[], object]] = [
            lambda one=one: history.get(one, "anna"),  # type: ignore[misc]
            lambda one=one: history.path(one, "anna"),  # type: ignore[misc]
            lambda one=one: history.thumbnail(one, "anna"),  # type: ignore[misc]
            lambda one=one: history.favourite(one, "anna"),  # type: ignore[misc]
            lambda one=one: history.tag(one, "anna", add=["x"]),  # type: ignore[misc]
            lambda one=one: history.trash([mine.id, one], "anna"),  # type: ignore[misc]
            lambda one=one: history.restore([one], "anna"),  # type: ignore[misc]
            lambda one=one: history.lineage(one, "anna"),  # type: ignore[misc]
            lambda one=one: history.archive([mine.id, one], "anna"),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(NotFoundError, match=r"^there is no such picture"):
                call()
    for bad in (token, "a\0b", "\ud800"):
        with pytest.raises(NotFoundError, match="no such deletion"):
            history.undo(bad, "anna")
    assert listed(history, "anna") == [mine.id]
    assert listed(history, "anna", text="apple") == [mine.id]
    assert listed(history, "bert") == [theirs.id]
    assert listed(history, None) == [theirs.id, mine.id]
    assert history.purge(0, "anna") == 0


def test_marks_stand_beside_the_picture(history: History) -> None:
    kept = add(history)
    sidecar = history.path(kept.id, None).with_suffix(".json")
    assert not sidecar.exists()
    history.favourite(kept.id, "anna")
    marked = history.tag(kept.id, "anna", add=[" blue ", "アニメ", "blue"], remove=["none"])
    assert (marked.favourite, marked.tags) == (True, ("blue", "アニメ"))
    assert json.loads(sidecar.read_text()) == {"favourite": True, "tags": ["blue", "アニメ"]}
    add(history)
    assert history.tags("anna") == {"blue": 1, "アニメ": 1} and history.tags("bert") == {}
    assert listed(history, favourite=True) == [kept.id] == listed(history, tag="blue")
    history.tag(kept.id, "anna", remove=["blue", "アニメ"])
    assert history.favourite(kept.id, "anna", False) == kept
    assert not sidecar.exists()
    for tag in ("", "  ", "a\nb", "x" * 65):
        with pytest.raises(UsageError, match="tag of"):
            history.tag(kept.id, "anna", add=[tag])
    with pytest.raises(UsageError, match="65 tags"):
        history.tag(kept.id, "anna", add=[f"t{i}" for i in range(65)])


def test_deleting_can_be_undone(history: History) -> None:
    ids = [add(history, prompt=f"number {i}").id for i in range(3)]
    history.favourite(ids[0], "anna")
    before, marked = tree(history), history.get(ids[0], "anna")
    first = history.trash(ids[:1], "anna")
    second = history.trash([ids[0], ids[1], ids[1]], "anna")  # the first is in the trash already
    assert listed(history) == [ids[2]] and listed(history, trashed=True) == [ids[1], ids[0]]
    assert {f".trash/{ids[0]}.png", f".trash/{ids[0]}.json", f".trash/{ids[1]}.png"} <= tree(history)
    assert not (history.root / "2026-11-18" / f"{ids[0]}.json").exists()
    assert history.open(ids[0], "anna")  # still to be looked at
    with pytest.raises(NotFoundError, match="is in the trash: restore it first"):
        history.favourite(ids[0], "anna")
    assert history.tags("anna") == {}
    assert history.undo(second, "anna") == [ids[1]]
    assert history.undo(first, "anna") == [ids[0]]
    assert history.get(ids[0], "anna") == marked
    assert tree(history) == before and set(listed(history)) == set(ids)
    with pytest.raises(NotFoundError, match="no such deletion"):
        history.undo(first, "anna")


@pytest.mark.parametrize("fail_at", [1, 2])
def test_pictures_are_thrown_away_all_or_none(
    history: History, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    ids = [add(history).id for _ in range(2)]
    history.tag(ids[0], "anna", add=["x"])
    before, real, count = tree(history), atomic.rename_file, [0]

    def rename(path: Path, new: Path) -> None:
        count[0] += 1
        if count[0] == fail_at:
            raise OutputError("no")
        real(path, new)

    monkeypatch.setattr(atomic, "rename_file", rename)
    with pytest.raises(OutputError):
        history.trash(ids, "anna")
    assert tree(history) == before
    assert set(listed(history)) == set(ids) and listed(history, tag="x") == [ids[0]]


def test_purge_deletes_what_is_old_for_good(history: History) -> None:
    clock = history._clock
    assert isinstance(clock, Clock)
    old, young, kept = (add(history).id for _ in range(3))
    history.thumbnail(old, "anna")
    history.tag(old, "anna", add=["gone"])
    token = history.trash([old], "anna")
    clock.now += 10 * DAY
    history.trash([young], "anna")
    assert history.purge(7 * DAY) == 1
    assert tree(history) == {f"2026-11-18/{kept}.png", f".trash/{young}.png", f".trash/{young}.json"}
    for call in (lambda: history.get(old, None), lambda: history.undo(token, "anna")):
        with pytest.raises(NotFoundError):
            call()
    assert history.purge(7 * DAY) == 0


def test_lineage(history: History) -> None:
    first = add(history)
    second = add(history, parent=first.id)
    third = add(history, parent=second.id)
    other = add(history, parent=second.id)
    foreign = add(history, owner="bert", parent=second.id)
    gone = add(history, parent=second.id)
    history.trash([gone.id], "anna")
    tree_ = history.lineage(second.id, "anna")
    assert [one.id for one in tree_.parents] == [first.id]
    assert [one.id for one in tree_.children] == [third.id, other.id]
    assert [one.id for one in history.lineage(third.id, "anna").parents] == [second.id, first.id]
    assert history.lineage(foreign.id, "bert").parents == []  # they are another's
    assert [one.id for one in history.lineage(foreign.id, None).parents] == [second.id, first.id]


def test_thumbnails_are_made_once(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    large = history.add(pixels(1, (300, 600)), RECORD, owner="anna")
    small = add(history)
    data = history.thumbnail(large.id, "anna")
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (256, 128))
        assert not containers.decode(image).parameters
    with Image.open(io.BytesIO(history.thumbnail(small.id, "anna"))) as image:
        assert image.size == (24, 16)
    assert f".thumbs/{large.id}.webp" in tree(history)
    history.path(large.id, "anna").write_bytes(b"broken")
    assert history.thumbnail(large.id, "anna") == data
    history.path(small.id, "anna").write_bytes(b"broken")
    (history.root / ".thumbs" / f"{small.id}.webp").unlink()
    with pytest.raises(DataError, match="its file is broken") as error:
        history.thumbnail(small.id, "anna")
    assert str(history.root) not in str(error.value)


def test_an_archive_comes_in_pieces(history: History) -> None:
    ids = [history.add(pixels(i, (400, 400)), RECORD, owner="anna").id for i in range(3)]
    pieces = list(history.archive([*ids, ids[0]], "anna"))
    assert max(map(len, pieces)) < 300_000 and len(pieces) > 4
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.namelist() == [f"{one}.png" for one in ids] and archive.testzip() is None
        assert archive.read(f"{ids[1]}.png") == history.open(ids[1], "anna")
    with pytest.raises(UsageError, match="no ids"):
        history.archive([], "anna")
    with pytest.raises(UsageError, match="1001 pictures at once"):
        history.archive([f"{i:032x}" for i in range(1001)], "anna")


def test_a_file_that_was_deleted_by_hand(history: History) -> None:
    kept = add(history)
    history.path(kept.id, None).unlink()
    for call in (
        lambda: history.open(kept.id, "anna"),
        lambda: history.thumbnail(kept.id, "anna"),
        lambda: history.archive([kept.id], "anna"),
    ):
        with pytest.raises(NotFoundError, match="its file is gone"):
            call()
    history.trash([kept.id], "anna")  # is then forgotten
    assert listed(history) == [] == listed(history, trashed=True)


def test_broken_marks_are_none(tmp_path: Path) -> None:
    picture = tmp_path / f"{'a' * 32}.png"
    for text in ("", "[]", "null", '{"tags": 3}', '{"trashed": "x"}', "[" * 100_000, '{"tags": [[]]}'):
        picture.with_suffix(".json").write_text(text)
        marks = files.read_marks(picture)
        assert not marks.favourite and marks.trashed is None
    picture.with_suffix(".json").write_text(
        '{"day": "../..", "undo": "../x", "trashed": 1, "tags": ["b", "a"]}'
    )
    assert files.read_marks(picture) == files.Marks(tags=("a", "b"), trashed=1.0)


def test_a_tag_is_checked() -> None:
    assert histories.checked_tag(" a b ") == "a b"
