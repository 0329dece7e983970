"""What PNG Info shows: every text of a file stays a text, and the verdict is said with its numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from fewstep.studio.client import ApiError
from fewstep.studio.tabs import extras, info
from fewstep.studio.words import Words

WORDS = Words("en")
HOSTILE = "<script>alert(1)</script>{{x}}"


def facts(**given: Any) -> dict[str, Any]:
    known = {
        "format": "PNG", "width": 8, "height": 9, "tool": None, "prompt": "", "negative_prompt": "",
        "settings": {}, "models": [], "parameters": None, "record": None, "texts": {}, "note": None,
    }  # fmt: skip
    return known | given


def test_nothing_that_a_file_says_becomes_markup() -> None:
    made, *_, table = info._view(
        WORDS,
        facts(tool=HOSTILE, note=HOSTILE, settings={HOSTILE: HOSTILE}, models=[HOSTILE], prompt=HOSTILE),
    )[:4]
    for markup in (made, table):
        assert "<script" not in markup and "{{" not in markup and "alert(1)" in markup


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"verdict": "equal", "largest": 0, "share": 0.0, "reasons": []}, "The same, bit for bit."),
        ({"verdict": "close", "largest": 3, "share": 0.0123, "reasons": []}, "more than 3 of 255, 1.2%"),
        ({"verdict": "different", "largest": 99, "share": 0.5, "reasons": ["<b>"]}, "up to 99 of 255, 50%"),
        ({"verdict": "different", "largest": None, "share": None, "reasons": ["x"]}, "another size"),
    ],
)
def test_the_verdict(found: dict[str, Any], text: str) -> None:
    said = info._verdict(WORDS, found)
    assert text in said and f'data-verdict="{found["verdict"]}"' in said and "<b>" not in said


class Kept:
    """A history with one picture."""

    async def data(self, path: str) -> bytes:
        if path != f"/api/v1/images/{'a' * 32}/file":
            raise ApiError("unknown", "", 404)
        return b"the file"


@pytest.mark.parametrize(
    ("record", "data", "expected"),
    [
        ({"history": {"id": "a" * 32}}, b"the file", "a" * 32),
        ({"history": {"id": "a" * 32}}, b"changed", None),
        ({"history": {"id": "b" * 32}}, b"the file", None),
        ({"history": {"id": "../../x"}}, b"the file", None),
        ({"history": ["a" * 32]}, b"the file", None),
        (None, b"the file", None),
    ],
)
def test_only_the_very_same_file_is_one_of_the_history(
    record: Any, data: bytes, expected: str | None
) -> None:
    kept: Any = Kept()
    assert asyncio.run(info._kept(kept, facts(record=record), data)) == expected


def test_files_that_no_request_could_hold_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "MAX_BYTES", 10)
    (tmp_path / "x.png").write_bytes(bytes(11))
    with pytest.raises(gr.Error, match="at most"):
        info._file(WORDS, str(tmp_path / "x.png"))
