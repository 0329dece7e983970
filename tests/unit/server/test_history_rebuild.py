"""The database is made from the files: equal to what it was, whatever else lies among them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from history_pictures import RECORD, Clock, add, listed, pixels, tree
from PIL import Image

from fewstep.prompt import containers
from fewstep.server.database import Database
from fewstep.server.history import History
from fewstep.server.history_rebuild import Rebuilt, rebuild
from fewstep.server.history_search import Search


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    database = Database(tmp_path / "fewstep.db")
    yield History(database, tmp_path / "images", clock=Clock())
    database.close()


def everything(history: History) -> list[dict[str, Any]]:
    both = [history.search(Search(trashed=trashed, limit=1000)).images for trashed in (False, True)]
    return [one.facts() for images in both for one in images]


def test_a_lost_database_is_made_again_equal(history: History, tmp_path: Path) -> None:
    first = add(history, "a fox", image_format="webp", record={"adapters": [{"name": "ink", "hash": "1"}]})
    second = add(history, "一个红苹果", image_format="jpg", parent=first.id, owner="bert", job_id="d" * 32)
    third = add(history, "null \0 and \ud83d", parameters="x")
    history.favourite(first.id, None)
    history.tag(second.id, None, add=["one", "two"])
    token = history.trash([third.id], None)
    before = everything(history)
    anew = History(Database(tmp_path / "anew.db"), history.root, clock=history._clock)
    assert rebuild(anew) == Rebuilt(images=3, added=3, removed=0, broken=0, foreign=0)
    assert everything(anew) == before
    for text in ("fox", "ink", "苹果", "null"):
        assert listed(anew, None, text=text) == listed(history, None, text=text)
    assert [one.id for one in anew.lineage(first.id, None).children] == [second.id]
    assert rebuild(anew) == Rebuilt(images=3, added=0, removed=0, broken=0, foreign=0)
    assert everything(anew) == before and anew.tags(None) == {"one": 1, "two": 1}
    assert anew.undo(token, "anna") == [third.id]
    history.database.close()


def test_what_is_no_picture_of_the_history_is_left_out_and_left(history: History) -> None:
    kept = add(history)
    path = history.path(kept.id, None)
    day = path.parent
    data = path.read_bytes()

    def picture(image_id: str, record: dict[str, Any] | None) -> None:
        (day / f"{image_id}.png").write_bytes(containers.encode(pixels(), "png", record=record))

    known = {"id": "1" * 32, "created": 1.0, "owner": ""}
    picture("0" * 32, None)  # of another tool
    picture("1" * 32, {**RECORD})  # of fewstep generate
    for number, change in enumerate(
        ({"id": "f" * 32}, {"created": "x"}, {"created": -1}, {"created": True}, {"owner": None}), 2
    ):
        image_id = str(number) * 32
        picture(image_id, {**RECORD, "history": {**known, "id": image_id, **change}})
    (day / f"{'a' * 32}.png").write_bytes(data)  # a copy
    (day / f"{'b' * 32}.png").write_bytes(data[: len(data) // 2])
    (day / f"{'c' * 32}.png").write_bytes(b"")
    (day / f"{'d' * 32}.jpg").write_bytes(data)  # another kind than its name says
    (day / f"{'e' * 32}.png").mkdir()
    (history.root / "2026-11-19").mkdir()
    shutil.copy(path, history.root / "2026-11-19")  # the same id twice
    (day / "notes.txt").write_text("mine")
    (day / "IMG_1.png").write_bytes(data)
    (history.root / "elsewhere").mkdir()
    (history.root / "elsewhere" / path.name).write_bytes(data)
    (day / f".{path.name}.tmp-999999-0123abcd").write_bytes(data)  # of a killed process
    before = tree(history)
    assert rebuild(history) == Rebuilt(images=1, added=0, removed=0, broken=13, foreign=2)
    assert listed(history, None) == [kept.id]
    assert before - tree(history) == {f"2026-11-18/.{path.name}.tmp-999999-0123abcd"}


def test_records_that_are_strange_are_read_all_the_same(history: History) -> None:
    """A record from elsewhere, with the history's entry: every field may have any type."""
    image_id = "7" * 32
    known = {"id": image_id, "created": 5, "owner": "x" * 100, "client": 3, "job_id": "../x", "parent": []}
    record = {"prompt": None, "model": ["x"], "adapters": "x", "student": 5, "history": known}
    (history.root / "2026-01-01").mkdir(parents=True)
    target = history.root / "2026-01-01" / f"{image_id}.png"
    target.write_bytes(containers.encode(pixels(), "png", record=record))
    assert rebuild(history).added == 1
    kept = history.get(image_id, None)
    assert (kept.prompt, kept.model, kept.client, kept.job_id, kept.parent) == ("", "", "", None, None)
    assert len(kept.owner) == 64 and history.path(image_id, None) == target


def test_a_picture_that_is_too_large_is_not_decoded(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.server import history_files

    add(history)
    monkeypatch.setattr(history_files, "_MAX_PIXELS", 24 * 16)
    assert rebuild(history).images == 1
    monkeypatch.setattr(history_files, "_MAX_PIXELS", 24 * 16 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert rebuild(history).broken == 1


def test_at_a_start_only_what_is_new_is_read(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.server import history_files

    known, gone, thrown, missed = (add(history) for _ in range(4))
    history.trash([thrown.id], None)
    history.path(gone.id, None).unlink()
    with history.database.writing() as session:  # as if killed between file and row
        session.delete(history.row(session, missed.id, None))
    read, real = [], history_files.read
    monkeypatch.setattr(history_files, "read", lambda path: read.append(path.stem) or real(path))
    assert rebuild(history, only_new=True) == Rebuilt(images=3, added=1, removed=1, broken=0, foreign=0)
    assert read == [missed.id] and listed(history) == [missed.id, known.id]


def test_what_a_server_adds_meanwhile_stays(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.server import history_files

    add(history)
    late, real = [], history_files.read

    def read(path: Path) -> history_files.Found:
        if not late:
            late.append(add(history).id)
        return real(path)

    monkeypatch.setattr(history_files, "read", read)
    rebuild(history)
    assert late[0] in listed(history) and len(listed(history)) == 2


def test_many_pictures_are_written_in_batches(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.server import history_rebuild

    monkeypatch.setattr(history_rebuild, "_BATCH", 3)
    ids = [add(history).id for _ in range(7)]
    seen: list[int] = []
    anew = History(Database("sqlite://"), history.root)
    assert rebuild(anew, on_image=seen.append).added == 7 and seen == list(range(1, 8))
    assert listed(anew) == ids[::-1]
    for one in ids[:5]:
        history.path(one, None).unlink()
    assert rebuild(anew).removed == 5
