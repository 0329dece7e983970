"""``fewstep history``: what a server kept, listed, shown, exported, and its database made anew."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.cli.main import main
from fewstep.server.database import Database
from fewstep.server.history import History

Output = pytest.CaptureFixture[str]
RECORD: dict[str, Any] = {
    "fewstep": "0.1.0", "model": "emoji-128", "model_hash": "e0c5b3fbaf", "prompt": "a red apple",
    "num_inference_steps": 4, "guidance_scale": 1.0, "solver": "ddim", "seed": 3, "width": 16, "height": 16,
}  # fmt: skip
PIXELS = np.zeros((16, 16, 3), np.uint8)
NOON = 1_768_046_400.0  # 2026-01-10 12:00 UTC


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "server"


@pytest.fixture
def ids(data: Path) -> list[str]:
    """A fox, an apple made from it a day later, and one in the trash; by two owners."""
    now = [NOON]
    history = History(Database(data / "fewstep.db"), data / "images", clock=lambda: now[0])
    fox = history.add(PIXELS, {**RECORD, "prompt": "a fox\x1b[31m\n<b>"}, owner="anna", client="a1111").id
    now[0] += 86_400
    apple = history.add(PIXELS, RECORD, owner="bert", parent=fox, timings={"total": 1.5}).id
    history.favourite(apple, None)
    history.tag(apple, None, add=["fruit"])
    now[0] += 1
    gone = history.add(PIXELS, RECORD).id
    history.trash([gone], None)
    history.database.close()
    return [fox, apple, gone]


def run(data: Path, *arguments: str) -> int:
    return main(["history", *arguments, "--data", str(data)])


def found(data: Path, capsys: Output, *arguments: str) -> list[str]:
    assert run(data, *arguments, "--json") == 0
    return [one["id"] for one in json.loads(capsys.readouterr().out)["images"]]


def test_lists_and_searches(data: Path, ids: list[str], capsys: Output) -> None:
    fox, apple, gone = ids
    assert main(["history", "--data", str(data)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{apple}  2026-01-11 12:00:00  16x16  emoji-128  a red apple  * #fruit",
        f"{fox}  2026-01-10 12:00:00  16x16  emoji-128  a fox\\x1b[31m <b>",
    ]
    for arguments, expected in (
        ((), [apple, fox]),
        (("--limit", "1"), [apple]),
        (("--favourite",), [apple]),
        (("--tag", "fruit"), [apple]),
        (("--owner", "anna"), [fox]),
        (("--client", "a1111"), [fox]),
        (("--since", "2026-01-11"), [apple]),
        (("--until", "2026-01-10"), [fox]),
        (("--trash",), [gone]),
        (("--model", "sdxl"), []),
    ):
        assert found(data, capsys, "list", *arguments) == expected, arguments
    assert found(data, capsys, "search", "app", "red") == [apple]
    assert found(data, capsys, "search", "emoji", "--until", "2026-01-10") == [fox]
    assert run(data, "search", "wolf") == 0
    assert capsys.readouterr() == ("", "fewstep: no picture found\n")


def test_shows_all_that_is_known(data: Path, ids: list[str], capsys: Output) -> None:
    assert run(data, "show", ids[1], "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parents"] == [ids[0]] and facts["record"]["history"]["timings"] == {"total": 1.5}
    assert facts["path"] == str(data / "images" / "2026-01-11" / f"{ids[1]}.png")
    assert run(data, "show", ids[0]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"children: {ids[1]}" in lines and "num inference steps: 4" in lines
    assert run(data, "show", "x" * 32) == 4 and run(data, "show") == 2


def test_exports(data: Path, ids: list[str], tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "a.zip"
    assert run(data, "export", "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(out), "images": 2}
    assert run(data, "export", ids[2], "--out", str(out)) == 2
    assert "exists already: give another name, or --replace" in capsys.readouterr().err
    assert run(data, "export", ids[2], "--out", str(out), "--replace") == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"{ids[2]}.png"]
    for arguments, code in (
        (("export", ids[0]), 2),
        (("export", ids[0], "--tag", "x", "--out", str(tmp_path / "b.zip")), 2),
        (("export", "--tag", "x", "--out", str(tmp_path / "b.zip")), 4),
        (("export", ids[0], "0" * 32, "--out", str(tmp_path / "b.zip")), 4),
    ):
        assert run(data, *arguments) == code
    assert not (tmp_path / "b.zip").exists()


def test_rebuilds_and_purges(data: Path, ids: list[str], capsys: Output) -> None:
    for path in data.glob("fewstep.db*"):
        path.unlink()
    assert run(data, "list") == 4
    assert "fewstep history rebuild if only the database is lost" in capsys.readouterr().err
    (data / "images" / "2026-01-10" / f"{'0' * 32}.png").write_bytes(b"x")
    assert run(data, "rebuild") == 0
    assert capsys.readouterr().out == (
        "3 pictures, 3 of them new; 0 forgotten whose files are gone; left out: 1 broken or from elsewhere, "
        "0 other files\n"
    )
    assert found(data, capsys, "search", "fruit") == []
    assert found(data, capsys, "list", "--tag", "fruit") == [ids[1]]
    assert run(data, "purge", "--days", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": 1}
    assert found(data, capsys, "list", "--trash") == []
    url = f"sqlite:///{data / 'another.db'}"
    assert run(data, "rebuild", "--database", url, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert found(data, capsys, "list", "--database", url) == [ids[1], ids[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "ACTION is 'lst': did you mean list?"),
        (["list", "fox"], "WORDS or ID is given: it is for fewstep history search, show, export"),
        (["search", "--out", "x.zip"], "--out is given: it is for fewstep history export"),
        (["rebuild", "--tag", "x"], "--tag is given: it is for fewstep history list, search, export"),
        (["list", "--since", "yesterday"], "--since is 'yesterday': give a day such as"),
        (["list", "--limit", "0"], "--limit is 0: give 1 or more"),
        (["purge", "--days", "-1"], "--days is -1: give 0 or more"),
        (["list", "--database", "nonsense"], "--database is no SQLAlchemy URL"),
    ],
)
def test_what_is_refused(
    data: Path, ids: list[str], arguments: list[str], message: str, capsys: Output
) -> None:
    assert run(data, *arguments) == 2
    assert f"fewstep: error: {message}" in capsys.readouterr().err


def test_what_is_missing(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, "rebuild") == 4
    assert "images: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "fewstep.db").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(tmp_path, "list") == 5
    assert "the history needs sqlmodel, which is not installed" in capsys.readouterr().err
    assert "sqlmodel" in sys.modules  # elsewhere; the command itself does not need it to say so
