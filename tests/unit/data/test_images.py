from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.data.images import TooManyPixels, image_size, open_header, open_image, open_mask, open_pixels
from fewstep.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


RED = Image.new("RGB", (6, 4), (255, 0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_modes_become_rgb(mode: str) -> None:
    image = open_image(encoded(RED.convert(mode), "TIFF"))
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    if mode not in ("1", "L", "LA"):
        assert image[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert open_image(encoded(deep))[0, 0].tolist() == [128, 128, 128]


def test_transparency_shows_the_background() -> None:
    clear = encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))
    assert open_image(clear)[0, 0].tolist() == [255, 255, 255]
    assert open_image(clear, background=(1, 2, 3))[0, 0].tolist() == [1, 2, 3]
    assert open_mask(clear)[0, 0] == 0
    palette = RED.convert("P")
    assert open_image(encoded(palette, transparency=palette.getpixel((0, 0))))[0, 0].tolist() == [255] * 3


def test_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RED, "JPEG", exif=exif)
    assert open_image(data).shape == (6, 4, 3)
    assert image_size(data) == (4, 6)


def test_mask() -> None:
    mask = open_mask(encoded(Image.new("L", (3, 5), 200)))
    assert mask.shape == (5, 3) and mask.dtype == np.uint8 and (mask == 200).all()


def bad_files() -> dict[str, tuple[bytes, str]]:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    png, jpeg = encoded(noisy), encoded(noisy, "JPEG")
    return {
        "empty": (b"", "empty file"),
        "text": (b"<html>not found</html>", "not an image"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "cut png": (png[: len(png) // 2], "cut off"),
        "cut jpeg": (jpeg[: len(jpeg) // 2], "cut off"),
        "flipped bits": (png[:60] + bytes(b ^ 255 for b in png[60:200]) + png[200:], "damaged"),
        "bomb": (png_header(40_000, 40_000), "too many pixels"),
        "large": (png_header(8_000, 8_000), "too many pixels"),
        "float": (encoded(Image.new("F", (2, 2)), "TIFF"), "mode F"),
        "int32": (encoded(Image.new("I", (2, 2)), "TIFF"), "mode I"),
    }


@pytest.mark.parametrize("kind", list(bad_files()))
@pytest.mark.filterwarnings("error")
def test_bad_files_get_one_clear_line(kind: str, tmp_path: Path) -> None:
    data, reason = bad_files()[kind]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for source in (path, str(path), data):
        with pytest.raises(DataError, match=reason) as caught:
            open_image(source, name="picture.png")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("picture.png: ")


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(DataError, match="not a file"):
        open_image(tmp_path)
    with pytest.raises(DataError):
        open_image("a\0b.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(DataError, match="not a file"):
            open_image(tmp_path / "pipe.png")


def test_limit_is_checked_before_decoding() -> None:
    with pytest.raises(DataError, match="6x4"):
        open_image(encoded(RED), max_pixels=23)
    assert open_image(encoded(RED), max_pixels=24).shape == (4, 6, 3)


def test_too_many_pixels_is_told_from_damage() -> None:
    for source in (encoded(RED), png_header(40_000, 40_000)):
        with pytest.raises(TooManyPixels):
            open_image(source, max_pixels=23)


def test_pixels_keep_transparency() -> None:
    assert open_pixels(encoded(RED)).shape == (4, 6, 3)
    clear = open_pixels(encoded(Image.new("LA", (3, 2), (7, 9))))
    assert clear.shape == (2, 3, 4) and clear[0, 0].tolist() == [7, 7, 7, 9]


def test_only_the_formats_that_are_asked_for() -> None:
    with pytest.raises(DataError, match=r"give one of PNG, WEBP$"):
        open_pixels(encoded(RED, "GIF"), formats=("PNG", "WEBP"))


def crumbs() -> dict[str, bytes]:
    """Files of 8 MB in parts of at most 12 bytes."""
    png, jpeg = encoded(RED), encoded(RED, "JPEG")
    part = b"\0\0\0\0" + b"aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    return {
        "chunks": png[:33] + part * 700_000 + png[33:],
        "segments": jpeg[:2] + b"\xff\xfe\0\2" * 2_000_000 + jpeg[2:],
        "fill bytes": jpeg[:20] + b"\xff" * 8_000_000 + jpeg[20:],
    }


@pytest.mark.parametrize("kind", ["chunks", "segments", "fill bytes"])
def test_a_file_of_crumbs_is_left_early(kind: str) -> None:
    with pytest.raises(DataError, match="small parts"):
        open_image(crumbs()[kind])


def test_header_gives_metadata() -> None:
    image, name = open_header(encoded(RED), name="x")
    assert (image.format, image.size, name) == ("PNG", (6, 4), "x")


SEEDS = [encoded(RED.resize((16, 16)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=20))
def test_any_damage_is_a_data_error_or_an_image(data: bytes, edits: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    try:
        image = open_image(bytes(damaged), max_pixels=1_000_000)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert image.ndim == 3 and image.shape[2] == 3
