"""Styles that callers write: whose they are, what a file keeps, and that a name is never a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import DataError, Forbidden, NotFoundError, OutputError, UsageError
from fewstep.prompt.styles import Style
from fewstep.server.styles import FILE, Styles

INK = Style("ink", "ink drawing", "photo")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_without_keys_the_servers_file_is_written(tmp_path: Path) -> None:
    made = Styles(tmp_path, keyed=False)
    assert made.known("") == made.own("") == ()
    made.keep("", INK)
    made.keep("", Style(" film ", "film still of {prompt}"))
    made.keep("", Style("ink", "ink, {prompt}"))
    assert made.known("") == (Style("film", "film still of {prompt}"), Style("ink", "ink, {prompt}"))
    assert Styles(tmp_path, keyed=False).known("") == made.known("")
    assert files(tmp_path) <= {FILE, "styles.lock"}
    made.remove("", "ink ")
    assert [one.name for one in made.known("")] == ["film"]
    with pytest.raises(NotFoundError, match="'ink' is not known"):
        made.remove("", "ink")


def test_with_keys_everybody_has_their_own_and_the_operators_stay(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / FILE).write_text("name,prompt,negative_prompt\nink,of the operator,\n", "utf-8")
    made = Styles(data, keyed=True)
    made.keep("ann", INK)
    made.keep("..", Style("dots", "dots"))
    assert made.known("ann") == (INK,) and made.own("ann") == (INK,)
    assert made.known("bob") == (Style("ink", "of the operator"),) and made.own("bob") == ()
    assert {one.name for one in made.known("..")} == {"ink", "dots"}
    with pytest.raises(Forbidden, match="which its operator changes"):
        made.remove("bob", "ink")
    made.remove("ann", "ink")
    assert made.known("ann") == (Style("ink", "of the operator"),)
    assert (data / FILE).read_text("utf-8") == "name,prompt,negative_prompt\nink,of the operator,\n"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["", "  ", "# a", "a\nb", "a\x00b", "\ud800"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="give a name that prints") as told:
        Styles(tmp_path, keyed=False).keep("", Style(name, "x"))
    assert told.value.field == "name" and not files(tmp_path)


def test_a_style_that_says_nothing_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says nothing"):
        Styles(tmp_path, keyed=False).keep("", Style("a", " ", "\n"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "C:\\x", "..", 'a,"b', "=1+1", "墨"])
def test_a_name_is_a_value_in_a_file(tmp_path: Path, name: str) -> None:
    made = Styles(tmp_path, keyed=False)
    made.keep("", Style(name, 'x,\n"y"'))
    assert made.known("") == (Style(name, 'x,\n"y"'),)
    assert files(tmp_path) <= {FILE, "styles.lock"}
    made.remove("", name)
    assert made.known("") == ()


def test_what_a_person_wrote_into_the_file_stays(tmp_path: Path) -> None:
    rows = (
        "name,text,notes",
        "old,an old one,mine",
        "# rest,x,y",
        ",nameless,z",
        "ink,first,",
        "ink,second,n",
    )
    (tmp_path / FILE).write_bytes("\ufeff".encode() + "\n".join(rows).encode())
    made = Styles(tmp_path, keyed=False)
    made.keep("", INK)
    assert (tmp_path / FILE).read_text("utf-8").splitlines() == [
        "name,text,notes,negative_prompt", "old,an old one,mine", "# rest,x,y", ",nameless,z",
        "ink,ink drawing,,photo",
    ]  # fmt: skip
    assert made.known("") == (Style("old", "an old one"), INK)


@pytest.mark.parametrize("data", [b"title,prompt\na,b\n", "name,prompt\na,\xe4\n".encode("latin-1")])
def test_a_file_that_is_none_is_not_replaced(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(DataError, match="style file"):
        Styles(tmp_path, keyed=False).keep("", INK)
    assert (tmp_path / FILE).read_bytes() == data


def test_a_file_that_would_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    whole = "name,prompt\n" + "".join(f"{n},x\n" for n in range(10_000))
    (tmp_path / FILE).write_text(whole, "utf-8")
    with pytest.raises(DataError, match="more than 10000 styles"):
        Styles(tmp_path, keyed=False).keep("", INK)
    assert (tmp_path / FILE).read_text("utf-8") == whole


def test_another_server_that_writes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewstep.checkpoint import locking
    from fewstep.server import styles

    monkeypatch.setattr(styles, "_LOCK_SECONDS", 0.05)
    lock = locking.acquire(tmp_path / "styles.lock")
    try:
        with pytest.raises(OutputError, match="another server holds its lock"):
            Styles(tmp_path, keyed=False).keep("", INK)
    finally:
        lock.release()
    Styles(tmp_path, keyed=False).keep("", INK)
    assert Styles(tmp_path, keyed=False).known("") == (INK,)
