"""The form of Extras as an order, and what is shown of its results."""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import UsageError
from fewstep.server.schemas.work import EnlargeBody
from fewstep.studio.tabs import extras, extras_results
from fewstep.studio.words import Words

WORDS = Words("en")
FORM: dict[str, Any] = {
    "upscaler": "auto", "upscaler_2": "none", "visibility": 0.5, "by": "factor", "factor": 4, "width": 64,
    "height": 48, "crop": True, "noise": -1, "restore": False, "strength": 0.2, "prompt": "", "negative": "",
    "student": "", "steps": 0,
}  # fmt: skip
ID = "a" * 32


def test_the_form_has_every_value_once() -> None:
    assert tuple(FORM) == extras._FORM


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {"upscaler": "auto", "scale": 4.0}),
        (
            {"by": "size", "crop": False},
            {"upscaler": "auto", "width": 64, "height": 48, "crop": False},
        ),
        (
            {"upscaler": "waifu2x-photo", "noise": 2, "factor": 2},
            {"upscaler": "waifu2x-photo", "noise": 2, "scale": 2.0},
        ),
        ({"noise": 2}, {"upscaler": "auto", "scale": 4.0}),  # of an upscaler that was chosen before
        (
            {"upscaler_2": "lanczos", "visibility": 0.25},
            {"upscaler": "auto", "scale": 4.0, "upscaler_2": "lanczos", "visibility": 0.25},
        ),
        (
            {"restore": True, "prompt": "a fox", "student": "none", "steps": 4},
            {
                "upscaler": "auto", "scale": 4.0,
                "restore": {
                    "strength": 0.2, "prompt": "a fox", "student": "none", "num_inference_steps": 4,
                },
            },
        ),
    ],
)  # fmt: skip
def test_every_choice_is_in_the_order(changed: dict[str, Any], expected: dict[str, Any]) -> None:
    body = extras.order(WORDS, None, [], ID, FORM | changed)
    assert body == {"kind": "upscale", "images": [ID], **expected}
    EnlargeBody.model_validate(body)


def test_where_the_picture_comes_from(tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
        paths.append(str(tmp_path / name))
    one = extras.order(WORDS, paths[0], [], None, FORM)
    assert base64.b64decode(one["image"]) == b"a" and "images" not in one
    many = extras.order(WORDS, paths[0], paths, ID, FORM)
    assert [base64.b64decode(text) for text in many["files"]] == [b"a", b"b"] and "image" not in many
    with pytest.raises(UsageError, match="Choose a picture first"):
        extras.order(WORDS, None, [], None, FORM)
    with pytest.raises(UsageError, match="65 pictures"):
        extras.order(WORDS, None, paths[:1] * 65, None, FORM)


def test_files_that_no_request_could_hold_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "MAX_BYTES", 1 << 20)
    path = tmp_path / "large.png"
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(UsageError, match="2 MB; at most 1 MB"):
        extras.order(WORDS, str(path), [], None, FORM)


def test_both_sides_of_the_slider_have_one_size(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(small)
    Image.fromarray(np.full((96, 64, 3), 255, np.uint8)).save(large)
    before, after = extras_results.pair(str(small), str(large))
    assert before.size == after.size == (64, 96)
    assert np.asarray(before).max() == 0 and np.asarray(after).min() == 255


def test_the_archive_has_the_files_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    paths = []
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(name.encode())
        paths.append(str(tmp_path / name))
    with zipfile.ZipFile(extras_results.packed(paths)) as archive:
        assert archive.namelist() == ["01-b.png", "02-a.png"]
        assert archive.read("02-a.png") == b"a.png"
    assert not list((tmp_path / "extras").glob("*.part"))


@pytest.mark.parametrize(
    ("job", "text", "share"),
    [
        ({"state": "queued", "position": 2}, "number 2", 0.0),
        ({"state": "running", "progress": None}, "Begins", 0.0),
        ({"state": "running", "progress": {"step": 3, "total": 4, "seconds": 2.0}}, "Part 3 of 4", 0.75),
        ({"state": "failed", "error": "<b>no</b>"}, "It failed: <b>no</b>", None),
        ({"state": "cancelled"}, "Stopped", None),
        (
            {
                "state": "done", "started": 1.0, "finished": 3.5,
                "result": {"images": [{"width": 8, "height": 9}]},
            },
            "8×9 pixels, in 2.5 s", None,
        ),
    ],
)  # fmt: skip
def test_the_state_is_said_and_stays_text(job: dict[str, Any], text: str, share: float | None) -> None:
    said, done = extras._said(WORDS, job)
    assert text in said and done == share
    assert "<b>" not in extras._state(WORDS, job)
