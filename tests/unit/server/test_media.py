"""Pictures in and out of the server: reliability H10."""

from __future__ import annotations

import base64
import io
import json
import resource
import struct
import subprocess
import sys
import textwrap
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from fewstep.data.images import open_image
from fewstep.errors import DataError, FewstepError, OutputError, TooLarge
from fewstep.prompt import containers
from fewstep.server.media import MEDIA_TYPES, decode_image, decode_text, encode
from fewstep.server.settings import Limits

LIMITS = Limits(max_pixels=1_000_000)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 32, 3), np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says a size and is a few hundred bytes long."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + data + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little") + b"VP8 " + struct.pack("<I", 10) + b"\0" * 10
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg(width: int, height: int) -> bytes:
    good = saved(NOISE, "JPEG")
    place = good.index(b"\xff\xc0") + 5
    return good[:place] + struct.pack(">HH", height, width) + good[place + 4 :]


def decode(data: bytes, **given: Any) -> np.ndarray:
    return decode_image(data, what="init_images[0]", limits=LIMITS, **given)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pixels_come_through(kind: str) -> None:
    np.testing.assert_array_equal(decode(saved(NOISE, kind, lossless=True)), NOISE)


BOMBS = {
    "png": png(50_000, 50_000),
    "png just over": png(1_001, 1_000),
    "png, a line": png(1_000_001, 1),
    "png of 2**31": png(2**31 - 1, 2**31 - 1),
    "jpeg": jpeg(65_000, 65_000),
    "webp": saved(np.zeros((3000, 3000, 3), np.uint8), "WEBP"),  # Pillow opens no WebP without its frame
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_h10_bombs_are_seen_in_the_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert len(BOMBS[name]) < 20_000
    with pytest.raises(TooLarge, match=r"^init_images\[0\]: too many pixels") as refused:
        decode(BOMBS[name])
    assert refused.value.http_status == 413


def test_h10_the_limit_itself_passes() -> None:
    assert decode(saved(np.zeros((1_000, 1_000, 3), np.uint8))).shape == (1_000, 1_000, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 50_000), (50_000, 1), (15, 16), (16, 15)])
def test_h10_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]} pixels; give a picture of at least 16"):
        decode(saved(Image.new("RGB", size)))


def test_h10_too_many_bytes() -> None:
    with pytest.raises(TooLarge, match="bytes"):
        decode_image(b"x" * 2_000, what="x", limits=Limits(max_body=1_999))


FOREIGN = {
    "gif": saved(NOISE, "GIF"),
    "bmp": saved(NOISE, "BMP"),
    "tiff": saved(NOISE, "TIFF"),
    "icns": saved(Image.new("RGBA", (64, 64)), "ICNS"),
    "ico": saved(NOISE, "ICO"),
    "tga": saved(NOISE, "TGA"),
    "ppm": saved(NOISE, "PPM"),
    "jpeg 2000": saved(NOISE, "JPEG2000"),
    "avif": saved(NOISE, "AVIF"),
    "pdf": saved(NOISE, "PDF"),
    "eps": saved(NOISE, "EPS"),
    "psd": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + b"\0" * 100,
    "fits": b"SIMPLE  =                    T".ljust(80)
    + b"BITPIX  =                    8".ljust(80)
    + b"END".ljust(2720),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
    "html": b"<!doctype html><script>alert(1)</script>",
    "html behind a comment": b"<!--\x89PNG\r\n\x1a\n--><html>",
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "pickle": b"\x80\x04}\x94.",
    "empty": b"",
    "magic only": b"\x89PNG\r\n\x1a\n",
    "riff that is no webp": b"RIFF\x24\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_h10_other_formats_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"^init_images\[0\]: ") as refused:
        decode(FOREIGN[name])
    assert refused.value.http_status == 422 and "\n" not in str(refused.value)


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    good = saved(Image.new("RGB", (64, 64), (9, 99, 9)), "JPEG", progressive=True)
    last = good.rindex(b"\xff\xda")
    return good[:last] + good[last:-2] * count + good[-2:]


DAMAGED = {
    "png cut": saved(NOISE)[:-200],
    "jpeg cut": saved(NOISE, "JPEG")[:-300],
    "webp cut": saved(NOISE, "WEBP")[:-300],
    "webp, said to be larger": webp(64, 64),
    "zTXt bomb": png(64, 64, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 50_000_000, 9))),
    "iTXt bomb": png(64, 64, chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"\0" * 50_000_000, 9))),
    "iCCP bomb": png(64, 64, chunk(b"iCCP", b"k\0\0" + zlib.compress(b"\0" * 50_000_000, 9))),
    "many chunks": png(64, 64, chunk(b"aaAa", b"") * 200_000),
    "many scans": scans(200),
    "palette without entries": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 3, 0, 0, 0)),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_h10_damage_is_one_clear_line(name: str) -> None:
    with pytest.raises(DataError, match=r"^init_images\[0\]: ") as refused:
        decode(DAMAGED[name])
    assert "\n" not in str(refused.value)


def test_h10_a_whole_picture_of_too_many_chunks() -> None:
    """Nothing else is wrong with it, so nothing else refuses it."""
    good, head = saved(NOISE), 8 + 25
    assert decode(good).shape
    with pytest.raises(DataError, match="too many small parts"):
        decode(good[:head] + chunk(b"aaAa", b"") * 200_000 + good[head:])


def test_h10_memory_stays_small() -> None:
    """All of the above in a process that may not take more than 400 MB beyond its libraries."""
    program = textwrap.dedent(
        """
        import resource, sys, base64, json
        import numpy, PIL.Image
        from fewstep.errors import FewstepError
        from fewstep.server.media import decode_image
        from fewstep.server.settings import Limits
        files = [base64.b64decode(text) for text in json.load(sys.stdin)]
        PIL.Image.preinit()
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 400_000_000,) * 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for data in files:
            try:
                decode_image(data, what="x", limits=Limits())
            except FewstepError:
                pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    files = [
        base64.b64encode(data).decode() for data in [*BOMBS.values(), *DAMAGED.values(), *FOREIGN.values()]
    ]
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(files), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * (1 if sys.platform == "darwin" else 1024) < 200e6
    assert resource.getpagesize() > 0


def test_h10_colours_of_other_kinds() -> None:
    deep = Image.fromarray(np.full((20, 20), 0x80FF, np.uint16))
    assert decode(saved(deep))[0, 0].tolist() == [128] * 3
    ink = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    red = decode(saved(ink, "JPEG"))[0, 0]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(saved(palette))[0, 0].tolist() == [10, 20, 30]
    assert decode(saved(Image.new("1", (20, 20), 1)))[0, 0].tolist() == [255] * 3
    assert decode(saved(Image.new("RGBA", (20, 20), (1, 2, 3, 0))))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_h10_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data)[0, 0].tolist() == [200, 0, 0]


def test_h10_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    left = np.zeros((20, 40, 3), np.uint8)
    left[:, :20] = 255
    upright = decode(saved(left, "PNG", exif=exif))
    assert upright.shape == (40, 20, 3) and upright[0, 0, 0] == 255 and upright[-1, 0, 0] == 0


def test_h10_a_colour_profile_is_no_burden() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(saved(NOISE, icc_profile=profile)).shape == NOISE.shape
    # Ten megabytes: JPEG holds them in pieces, and nothing reads them.
    assert decode(saved(NOISE, "JPEG", icc_profile=b"\0" * 10_000_000)).shape == NOISE.shape


def test_masks() -> None:
    grey = np.arange(400, dtype=np.uint8).reshape(20, 20)
    np.testing.assert_array_equal(decode(saved(grey), mask=True), grey)
    clear = np.dstack([np.full((20, 20, 3), 255, np.uint8), grey])
    for kind in (True, "auto", "alpha"):
        np.testing.assert_array_equal(decode(saved(clear), mask=kind), grey)
    luminance = decode(saved(clear), mask="luminance")
    np.testing.assert_array_equal(luminance, grey)  # white over black, as much as is there
    opaque = np.dstack([np.repeat(grey[..., None], 3, 2), np.full((20, 20), 255, np.uint8)])
    np.testing.assert_array_equal(decode(saved(opaque), mask=True), grey)
    assert (decode(saved(opaque), mask="alpha") == 255).all()
    with pytest.raises(DataError, match="no transparency"):
        decode(saved(grey), mask="alpha")


def text(given: str, **options: Any) -> np.ndarray:
    return decode_text(given, what="mask", limits=LIMITS, **options)


def test_texts() -> None:
    body = base64.b64encode(saved(NOISE)).decode()
    lines = "\n".join(body[i : i + 76] for i in range(0, len(body), 76))
    uri = "data:image/png;base64,"
    for given in (
        body,
        uri + body,
        f"  {lines}\r\n",
        uri.upper() + body,
        body.rstrip("="),
        "data:image/jpeg;charset=x;base64," + body,
    ):
        np.testing.assert_array_equal(text(given), NOISE)
    assert text(body, mask=True).shape == NOISE.shape[:2]


@pytest.mark.parametrize(
    "given",
    [
        "",
        "   ",
        "====",
        "A",
        "not base64!",
        "é" * 8,
        "data:image/png;base64,",
        "data:image/png,AAAA",
        "data:text/html;base64,PGI+",
        "data:application/x;base64,AAAA",
        "\ud800",
        "iVBORw0KGgo=",
        "-_-_",
        "A" * 1001,
        "data:,x",
        "\0" * 8,
    ],
)
def test_texts_that_hold_no_picture(given: str) -> None:
    with pytest.raises(DataError, match=r"^mask: "):
        text(given)


def test_long_texts() -> None:
    with pytest.raises(TooLarge):
        decode_text("A" * 4_000, what="x", limits=Limits(max_body=2_000))


def test_what_is_written_is_read_again() -> None:
    record = {"seed": 7, "prompt": "ein Apfel 🍎"}
    for kind in MEDIA_TYPES:
        data = encode(NOISE, kind=kind, infotext="a\nSteps: 4, Seed: 7", record=record, quality=90)
        with Image.open(io.BytesIO(data)) as image:
            assert image.get_format_mimetype() == MEDIA_TYPES[kind]
            found = containers.decode(image)
        assert found.parameters == "a\nSteps: 4, Seed: 7" and found.record == record
        assert decode(data).shape == NOISE.shape
    assert decode(encode(NOISE, kind="png")).tolist() == NOISE.tolist()


def test_quality_and_transparency() -> None:
    sizes = [len(encode(NOISE, kind="jpeg", quality=quality)) for quality in (0, 50, 100, 1000)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
    clear = np.dstack([NOISE, np.zeros(NOISE.shape[:2], np.uint8)])
    assert open_image(encode(clear, kind="webp")).min() == 255


def test_a_record_that_has_no_room_is_left_out() -> None:
    record = {"prompt": "x" * 70_000}
    with Image.open(io.BytesIO(encode(NOISE, kind="jpeg", infotext="Steps: 4", record=record))) as image:
        found = containers.decode(image)
    assert (found.parameters, found.record) == ("Steps: 4", None)
    with Image.open(io.BytesIO(encode(NOISE, kind="png", infotext="Steps: 4", record=record))) as image:
        assert containers.decode(image).record == record
    with pytest.raises(OutputError):
        encode(NOISE, kind="webp", infotext="x" * 70_000)


def test_errors_are_of_fewstep() -> None:
    assert issubclass(TooLarge, FewstepError)
