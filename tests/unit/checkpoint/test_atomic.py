from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.checkpoint import atomic
from fewstep.errors import OutputError

PRIMITIVES = ("write", "fsync", "replace", "open")


class Fault(Exception):
    """Not an OSError, so that nothing on the way can mistake it for a full disk."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Fails the k-th call of the primitives that `atomic` stands on; k is ``calls["fail_at"]``."""
    state = {"count": 0, "fail_at": 0}

    def shim(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*args: object, **kwargs: object) -> object:
            state["count"] += 1
            if state["count"] == state["fail_at"]:
                raise Fault(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, wrapped)

    for name in PRIMITIVES:
        shim(name)
    yield state


def test_bytes_and_text_come_back(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a" / "b.bin", b"\x00\x01" * 1000)
    atomic.write_text(tmp_path / "c.txt", "größer\n")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\x01" * 1000
    assert (tmp_path / "c.txt").read_bytes() == "größer\n".encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c.txt"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    atomic.write_bytes(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


def test_t01_a_file_is_old_or_new_whichever_primitive_fails(
    tmp_path: Path, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    atomic.write_bytes(target, b"new")
    total = calls["count"]
    assert total >= 6  # open, write, open, fsync, replace, open, fsync
    seen = set()
    for k in range(1, total + 1):
        calls["fail_at"] = 0
        atomic.write_bytes(target, b"old")
        calls.update(count=0, fail_at=k)
        with pytest.raises(Fault):
            atomic.write_bytes(target, b"new")
        seen.add(target.read_bytes())
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert seen == {b"old", b"new"}  # new only once the rename was done


def test_t01_a_folder_is_there_completely_or_not_at_all(tmp_path: Path, calls: dict[str, int]) -> None:
    def build(parent: Path) -> None:
        with atomic.folder(parent / "0000000001") as folder:
            atomic.write_bytes(folder / "weights", b"w" * 100)
            atomic.write_text(folder / "state.json", "{}")

    build(tmp_path / "whole")
    total = calls["count"]
    outcomes = set()
    for k in range(1, total + 1):
        parent = tmp_path / str(k)
        parent.mkdir()
        calls.update(count=0, fail_at=k)
        with pytest.raises(Fault):
            build(parent)
        names = sorted(p.relative_to(parent).as_posix() for p in parent.rglob("*"))
        outcomes.add(tuple(names))
    assert outcomes == {(), ("0000000001", "0000000001/state.json", "0000000001/weights")}


def test_t02_data_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd: int) -> None:
        log.append(("fsync", Path(f"/proc/self/fd/{fd}").resolve().name))
        fsync(fd)

    def note_replace(a: Path, b: Path) -> None:
        log.append(("replace", f"{Path(a).name} {Path(b).name}"))
        replace(a, b)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to name file descriptors")
    with atomic.folder(tmp_path / "final") as folder:
        (folder / "weights").write_bytes(b"w")
        (folder / "sub").mkdir()
        (folder / "sub" / "more").write_bytes(b"m")
        inner = folder.name
    assert log.index(("fsync", "weights")) < log.index(("replace", f"{inner} final"))
    assert log.index(("fsync", "more")) < log.index(("fsync", "sub")) < log.index(("fsync", inner))
    assert log.index(("fsync", inner)) < log.index(("replace", f"{inner} final"))
    assert log[-1] == ("fsync", tmp_path.name)


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(OutputError, match="exists already"), atomic.folder(tmp_path / "a"):
        pass
    with atomic.folder(tmp_path / "a", replace=True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    real, count = os.replace, [0]

    def second_fails(a: Path, b: Path) -> None:
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OutputError, match="No space left"), atomic.folder(tmp_path / "a", replace=True):
        pass
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["a", "a/old"]


def test_sweep_takes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    dead = 2**22 + 12345  # beyond the largest pid of Linux
    (tmp_path / f".x.tmp-{dead}-0123abcd").mkdir()
    (tmp_path / f".y.tmp-{os.getpid()}-0123abcd").write_text("of an earlier process with our pid")
    (tmp_path / f".z.tmp-{os.getppid()}-0123abcd").write_text("of a living process")
    (tmp_path / f".moved.was-{dead}-0123abcd").mkdir()
    (tmp_path / "x.tmp-1-0123abcd").write_text("a name of the user's")
    with atomic.file(tmp_path / "busy") as temporary:
        temporary.write_text("in the making")
        atomic.sweep(tmp_path)
        assert temporary.exists()
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [f".z.tmp-{os.getppid()}-0123abcd", "busy", "moved", "x.tmp-1-0123abcd"]
    atomic.sweep(tmp_path, all_processes=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["busy", "moved", "x.tmp-1-0123abcd"]
    assert atomic.sweep(tmp_path / "missing") == []


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        atomic.write_text(tmp_path / "file" / "below", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder has this name"):
        atomic.write_text(tmp_path / "folder", "x")


def test_lines_are_appended(tmp_path: Path) -> None:
    for line in ("a", "b\n"):
        atomic.append_line(tmp_path / "deep" / "log", line)
    assert (tmp_path / "deep" / "log").read_text() == "a\nb\n"


def test_remove_folder_is_content_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    atomic.remove_folder(tmp_path / "a")
    atomic.remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
