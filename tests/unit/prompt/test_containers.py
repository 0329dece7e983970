"""Metadata survives each file format, and the bytes depend on nothing but the input."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import OutputError
from fewstep.prompt import containers

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
TEXT = "ein Apfel 🍎, größer\nSteps: 4, Sampler: DDIM, Seed: 1"
RECORD: dict[str, Any] = {"prompt": "Apfel 🍎", "seed": 1, "nested": {"a": [1, 2.5, None]}}


@pytest.mark.parametrize("image_format", containers.FORMATS)
def test_metadata_round_trip(image_format: containers.Format) -> None:
    data = containers.encode(PIXELS, image_format, parameters=TEXT, record=RECORD)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (24, 16)
        assert containers.decode(image) == containers.Metadata(parameters=TEXT, record=RECORD)


@pytest.mark.parametrize("image_format", containers.FORMATS)
def test_same_input_same_bytes(image_format: containers.Format) -> None:
    assert containers.encode(PIXELS, image_format, parameters=TEXT, record=RECORD) == containers.encode(
        PIXELS, image_format, parameters=TEXT, record=RECORD
    )


def test_png_keeps_every_pixel_and_uses_the_keyword_of_the_web_ui() -> None:
    data = containers.encode(PIXELS, "png", parameters="plain latin text", record=None)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["parameters"] == "plain latin text"
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert b"tEXtparameters\0plain latin text" in data


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
def test_user_comment_is_utf16_big_endian_after_its_prefix(image_format: containers.Format) -> None:
    data = containers.encode(PIXELS, image_format, parameters=TEXT)
    assert b"UNICODE\0" + TEXT.encode("utf-16-be") in data


@pytest.mark.parametrize("image_format", containers.FORMATS)
def test_image_without_metadata(image_format: containers.Format) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, {"jpg": "JPEG"}.get(image_format, image_format))
    with Image.open(buffer) as image:
        assert containers.decode(image) == containers.Metadata()


def test_png_text_behind_the_pixels_is_found() -> None:
    data = containers.encode(PIXELS, "png", parameters=TEXT)
    head, chunk, tail = data[:33], data[33 : data.index(b"IDAT") - 4], data[data.index(b"IDAT") - 4 :]
    moved = head + tail[:-12] + chunk + tail[-12:]
    with Image.open(io.BytesIO(moved)) as image:
        assert containers.decode(image).parameters == TEXT


@pytest.mark.parametrize("prefix", [b"UNICODE\0" + TEXT.encode("utf-16-le"), TEXT.encode()])
def test_user_comments_of_other_writers(prefix: bytes) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: prefix}
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", exif=exif)
    with Image.open(buffer) as image:
        assert containers.decode(image).parameters == TEXT


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '"x"'])
def test_broken_record_is_ignored(text: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("fewstep", text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=chunks)
    with Image.open(buffer) as image:
        assert containers.decode(image).record is None


def test_metadata_too_long_for_exif_says_what_to_do() -> None:
    with pytest.raises(OutputError, match="use --format png"):
        containers.encode(PIXELS, "jpg", parameters="a" * 40_000)
    assert containers.encode(PIXELS, "png", parameters="a" * 40_000)


def test_side_too_long_for_webp_says_what_to_do() -> None:
    with pytest.raises(OutputError, match="16383 pixels a side; use --format png"):
        containers.encode(np.zeros((1, 16_384, 3), np.uint8), "webp")
