"""The picture that a form starts from: which fields an order gets, and what is said of it."""

from __future__ import annotations

import asyncio
import base64
import io
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.engine.outpaint import Outpaint
from fewstep.errors import DataError, UsageError
from fewstep.server.schemas.native import GenerateBody
from fewstep.studio import edit, painted
from fewstep.studio.words import Words

FACTS = {"native_width": 128, "native_height": 128, "size_multiple": 8, "max_size": 256}


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def payload(background: bytes | None, *layers: bytes) -> Any:
    return SimpleNamespace(background=background, layers=list(layers), id=None)


def stroke(wide: int = 40, tall: int = 30, alpha: int = 153) -> bytes:
    """A layer whose left half is painted once."""
    pixels = np.zeros((tall, wide, 4), dtype=np.uint8)
    pixels[:, : wide // 2] = (124, 58, 237, alpha)
    return png(pixels)


PICTURE = png(np.full((30, 40, 3), 90))


def values(picture: painted.Painted | None, **changed: Any) -> list[Any]:
    form = {
        "picture": picture, "strength": 0.5, "content": "auto", "blur": 0, "only_masked": False,
        "padding": 32, "inverted": False, "left": 0, "right": 0, "top": 0, "bottom": 0, "parent": None,
    }  # fmt: skip
    return list((form | changed).values())


def test_without_a_picture_there_are_no_fields() -> None:
    assert painted.read(None) is None
    assert painted.read(payload(None, stroke())) is None
    assert edit.fields(*values(None, left=8, content="fill")) == {}


def test_a_picture_that_cannot_be_read_is_said_where_it_is_used() -> None:
    unread = values(painted.Unread("paint: no picture <b>"))
    with pytest.raises(UsageError, match="paint: no picture") as told:
        edit.fields(*unread)
    assert told.value.field == "image"
    api: Any = None  # not asked
    hint, _ = asyncio.run(edit._look(Words("en"), edit._Wish(*unread), None, api))
    assert hint == "paint: no picture &lt;b&gt;"


def test_a_stroke_is_a_white_mask_however_dense() -> None:
    found = painted.read(payload(PICTURE, stroke(), png(np.zeros((30, 40, 4)))))
    assert found is not None and found.mask is not None
    assert (found.mask[:, :20] == 255).all() and not found.mask[:, 20:].any()
    assert found.data == PICTURE  # as it came, not decoded and encoded again
    fields = edit.fields(*values(found, content="fill", blur=3))
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(fields["mask"]))))
    assert (mask == found.mask).all()
    assert fields["masked_content"] == "fill" and fields["mask_blur"] == 3 and "padding" not in fields


def test_what_has_no_meaning_without_paint_is_left_out() -> None:
    found = painted.read(payload(PICTURE, png(np.zeros((30, 40, 4)))))
    fields = edit.fields(*values(found, content="fill", blur=3, only_masked=True, inverted=True))
    assert set(fields) == {"image", "width", "height", "strength"}
    assert fields["width"] is None  # the picture decides


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"only_masked": True, "padding": 12}, {"only_masked": True, "padding": 12}),
        ({"inverted": True}, {"invert_mask": True}),
        (
            {"left": 16, "bottom": None, "blur": 5},  # the edges of an extended picture blend as they are
            {"outpaint": {"left": 16, "right": 0, "top": 0, "bottom": 0}},
        ),
        ({"parent": ("a" * 32, "digest")}, {"parent": "a" * 32}),
    ],
)
def test_every_field_is_one_of_an_order(changed: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = edit.fields(*values(painted.read(payload(PICTURE, stroke())), **changed))
    assert set(fields) - {"image", "mask", "width", "height", "strength"} == set(expected)
    assert {name: fields[name] for name in expected} == expected
    GenerateBody.model_validate({"prompt": "x", **fields})


def test_a_file_of_gradio_is_read(tmp_path: Path) -> None:
    path = tmp_path / ("b" * 32 + ".png")
    path.write_bytes(PICTURE)
    found = painted.read(payload(SimpleNamespace(path=str(path))))
    assert found is not None and found.data == PICTURE and found.digest() == painted.digest(PICTURE)


def test_hostile_paint_is_refused_by_its_header() -> None:
    head = stroke()
    chunk = b"IHDR" + (10_000).to_bytes(4, "big") * 2 + head[24:29]  # 100 megapixels, by what it says
    bomb = head[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + head[33:]
    with pytest.raises(DataError, match="too many pixels, 10000x10000"):
        painted.read(payload(PICTURE, bomb))
    with pytest.raises(DataError, match="not an image"):
        painted.read(payload(PICTURE, b"<svg onload=alert(1)>"))
    with pytest.raises(DataError, match="two sizes"):
        painted.read(payload(PICTURE, stroke(), stroke(50, 30)))


def test_too_many_bytes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painted, "MAX_BYTES", 100)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(101))
    with pytest.raises(DataError, match="larger than"):
        painted.read(payload(SimpleNamespace(path=str(path))))


def shown(found: painted.Painted | None, **how: Any) -> painted.Shown:
    assert found is not None
    return painted.shown(found, **({"blur": 0, "inverted": False, "extended": None, "step": 8} | how))


def test_the_preview_tints_what_is_redrawn() -> None:
    found = painted.read(payload(PICTURE, stroke()))
    plain, turned = shown(found), shown(found, inverted=True)
    assert plain.share == pytest.approx(0.5) and turned.share == pytest.approx(0.5)
    left, right = np.asarray(plain.picture)[15, 4], np.asarray(plain.picture)[15, 36]
    assert left[2] > 150 and tuple(right) == (90, 90, 90)
    assert tuple(np.asarray(turned.picture)[15, 4]) == (90, 90, 90)
    wider = shown(found, extended=Outpaint(right=20))
    assert wider.size == (64, 32) and wider.before == (40, 30)  # rounded to multiples of eight


def said(found: painted.Painted | None, **changed: Any) -> str:
    wish = edit._Wish(*values(found, **changed))
    view = shown(found, inverted=wish.inverted, extended=wish.extended)
    return edit._said(Words("en"), wish, view, FACTS)


def test_sizes_are_said() -> None:
    large = painted.read(payload(png(np.zeros((480, 640, 3))), stroke(640, 480)))
    assert "at 144×112" in said(large) and "keep its size" in said(large)
    assert "Only the part around them is drawn, at 128×128" in said(large, only_masked=True)
    assert "larger than the 256 pixels" in said(large, left=8)
    plain = painted.read(payload(png(np.zeros((480, 640, 3)))))
    assert "All of it is redrawn" in said(plain) and "draws no larger" in said(plain)


def test_all_painted_and_turned_round_redraws_nothing() -> None:
    white = png(np.full((30, 40, 4), 255))
    assert "nothing would be redrawn" in said(painted.read(payload(PICTURE, white)), inverted=True)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [(4, 0.5, "2 of 4"), (4, 0.99, "3 of 4"), (4, 0.2, "20% of 4 steps is less than one"), (0, 0.5, "")],
)
def test_few_steps_are_said(steps: int, strength: float, expected: str) -> None:
    assert expected in edit._share(Words("en"), steps, strength)


def test_what_is_sent_and_never_taken_does_not_pile_up() -> None:
    waiting = edit._Newest()
    for number in range(100):
        waiting[str(number)] = number
    assert list(waiting) == [str(number) for number in range(84, 100)]
