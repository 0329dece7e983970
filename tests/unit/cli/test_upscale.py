"""``fewstep upscale``: names, what is kept, what is skipped, what is refused, and how it ends."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fewstep.checkpoint import atomic
from fewstep.cli import upscale_files
from fewstep.cli.main import main
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import Cancelled
from fewstep.prompt import containers

PLAIN = ("--upscaler", "nearest", "--scale", "2")


def noise(height=6, width=8, channels=3):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(path: Path, pixels=None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if pixels is None else pixels).save(path, **options)
    return path


def doubled(pixels):
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def opened(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_picture_keeps_its_record_and_gets_that_of_the_web_ui(capsys):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a red apple\nSteps: 4, Sampler: DDIM, CFG scale: 1, Seed: 7")
    chunks.add_text("fewstep", '{"prompt":"a red apple","seed":7}')
    saved(Path("a.png"), pnginfo=chunks)
    assert main(["upscale", "a.png", *PLAIN]) == 0
    assert capsys.readouterr() == ("outputs/upscaled/a.png\n", "")
    with Image.open("outputs/upscaled/a.png") as image:
        assert np.array_equal(np.array(image), doubled(noise()))
        text = dict(image.text)
    assert text["parameters"].startswith("a red apple\nSteps: 4")
    assert text["postprocessing"] == text["extras"]
    assert text["extras"] == "Postprocess upscale by: 2, Postprocess upscaler: nearest"
    record = json.loads(text["fewstep"])
    assert record["seed"] == 7 and record["extras"]["upscaler"] == "nearest"
    assert (record["extras"]["width"], record["extras"]["height"]) == (16, 12)


def test_formats_follow_the_picture_or_the_option():
    saved(Path("b.jpg"), quality=95)
    saved(Path("c.webp"))
    saved(Path("d.bmp"))
    assert main(["upscale", "b.jpg", "c.webp", "d.bmp", *PLAIN, "--quiet"]) == 0
    made = sorted(path.name for path in Path("outputs/upscaled").iterdir())
    assert made == ["b.jpg", "c.webp", "d.png"]
    with Image.open("outputs/upscaled/b.jpg") as image:
        found = containers.decode(image)
    assert found.parameters == "Postprocess upscale by: 2, Postprocess upscaler: nearest"
    assert found.record["extras"]["scale"] == 2.0
    assert main(["upscale", "b.jpg", *PLAIN, "--quiet", "--format", "png", "--out", "p"]) == 0
    assert np.array_equal(opened("p/b.png"), doubled(opened("b.jpg")))


def test_grey_deep_transparent_and_turned_pictures(capsys):
    grey = noise(6, 8, 1)[..., 0]
    saved(Path("grey.png"), grey)
    saved(Path("deep.png"), grey.astype(np.uint16) * 256 + 255)
    clear = noise(6, 8, 4)
    clear[..., 3] |= 1  # colours of what is quite transparent are not kept
    saved(Path("clear.png"), clear)
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(Path("turned.png"), exif=exif)
    assert main(["upscale", "grey.png", "deep.png", "clear.png", "turned.png", *PLAIN, "--out", "o"]) == 0
    assert "deep.png: the lower 8 of 16 bits cannot be kept" in capsys.readouterr().err
    assert np.array_equal(opened("o/grey.png"), doubled(grey))
    assert np.array_equal(opened("o/deep.png"), doubled(grey))
    assert np.array_equal(opened("o/clear.png"), doubled(clear))
    assert np.array_equal(opened("o/turned.png"), doubled(np.rot90(noise(), -1)))


def test_jpeg_lays_transparency_over_white_and_says_so(capsys):
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    saved(Path("a.png"), pixels)
    assert main(["upscale", "a.png", *PLAIN, "--format", "jpg"]) == 0
    assert "no transparency" in capsys.readouterr().err
    assert opened("outputs/upscaled/a.jpg").min() > 250


def test_folders_and_patterns_once_each_and_names_that_do_not_collide(capsys):
    saved(Path("in/a.png"), noise(4, 4))
    saved(Path("in/a.bmp"), noise(4, 5))
    saved(Path("more/a.png"), noise(4, 6))
    Path("in/notes.txt").write_text("no picture")
    assert main(["upscale", "in", "more/*.png", "in/a.png", *PLAIN]) == 0
    lines = capsys.readouterr().out.split()
    assert lines == [f"outputs/upscaled/{name}.png" for name in ("a", "a-2", "a-3")]
    assert [opened(line).shape[1] for line in lines] == [10, 8, 12]


def test_what_exists_is_skipped_unless_it_is_to_be_made_again(capsys):
    saved(Path("a.png"))
    assert main(["upscale", "a.png", *PLAIN, "--size", "9x9"]) == 2
    for options, said in (
        (("--upscaler", "nearest", "--size", "12x12"), ""),
        (("--upscaler", "nearest", "--size", "12x12"), "exists already;"),
        (PLAIN, "exists already, made with other settings"),
    ):
        capsys.readouterr()
        assert main(["upscale", "a.png", *options]) == 0
        assert said in capsys.readouterr().err
    assert opened("outputs/upscaled/a.png").shape == (12, 12, 3)
    assert main(["upscale", "a.png", *PLAIN, "--overwrite"]) == 0
    assert opened("outputs/upscaled/a.png").shape == (12, 16, 3)
    assert len(list(Path("outputs/upscaled").iterdir())) == 1


def test_nothing_of_anybody_else_is_overwritten(capsys):
    source = saved(Path("in/a.png"))
    before = source.read_bytes()
    other = saved(Path("o/a.png"), noise(3, 3)).read_bytes()
    assert main(["upscale", "in/a.png", *PLAIN, "--out", "in", "--overwrite"]) == 0
    assert main(["upscale", "in/a.png", *PLAIN, "--out", "o", "--overwrite"]) == 0
    assert capsys.readouterr().out.split() == ["in/a-2.png", "o/a-2.png"]
    assert source.read_bytes() == before and Path("o/a.png").read_bytes() == other


def test_five_bad_pictures_of_ten_are_a_sentence_each_and_the_rest_is_done(capsys, bomb):
    for index in range(5):
        saved(Path(f"in/good{index}.png"), noise(4, 5 + index))
    whole = saved(Path("in/cut.png"), noise(40, 40)).read_bytes()
    Path("in/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("in/empty.png").write_bytes(b"")
    Path("in/text.jpg").write_text("hello")
    Path("in/bomb.png").write_bytes(bomb)
    saved(Path("in/wide.png"), np.zeros((2, 200_000, 3), dtype=np.uint8))
    assert main(["upscale", "in", "--upscaler", "lanczos", "--scale", "16", "--out", "o"]) == 6
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("fewstep: error: ")]) == 6
    assert lines[-1] == (
        "fewstep: error: 5 of 10 pictures cannot be used, see above; the other 5 are done"
    ), lines
    for name in (
        "cut.png: damaged",
        "empty.png: empty",
        "text.jpg: not an",
        "bomb.png: too many",
        "wide.png: the",
    ):
        assert sum(name in line for line in lines) == 1
    assert len(list(Path("o").iterdir())) == 5


def test_one_bad_picture_alone_ends_with_its_own_sentence(capsys):
    assert main(["upscale", "none.png", *PLAIN]) == 6
    assert capsys.readouterr().err == "fewstep: error: none.png: no such file; check the name\n"


def test_a_full_disk_stops_and_leaves_no_half_file(capsys, monkeypatch):
    for name in ("a", "b", "c"):
        saved(Path(f"in/{name}.png"), noise(4, 4 + ord(name) % 5))
    write = atomic._write_all

    def full(path, data):
        if "b.png" in path.name:
            path.write_bytes(bytes(data[:10]))
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(atomic, "_write_all", full)
    assert main(["upscale", "in", *PLAIN, "--out", "o"]) == 7
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in Path("o").iterdir()] == ["a.png"]


def test_a_stop_keeps_what_is_done_and_the_same_command_goes_on(capsys, monkeypatch):
    for name in ("a", "b", "c"):
        saved(Path(f"in/{name}.png"), noise(4, 4 + ord(name) % 5))
    real = upscale_files.enlarge.extras
    calls = []

    def stop(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise Cancelled("stopped by request while upscaling")
        return real(*args, **options)

    monkeypatch.setattr(upscale_files.enlarge, "extras", stop)
    assert main(["upscale", "in", *PLAIN, "--out", "o"]) == 130
    assert "1 done, 2 left" in capsys.readouterr().err
    assert main(["upscale", "in", *PLAIN, "--out", "o"]) == 0
    assert len(calls) == 4 and len(list(Path("o").iterdir())) == 3


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "no picture is given"),
        (("a.png", "--upscaler", "lanzcos"), 2, "did you mean lanczos"),
        (("a.png", "--format", "gif"), 2, "--format is 'gif'"),
        (("a.png", "--upscaler", "lanczos", "--noise", "1"), 2, "no noise levels"),
        (("a.png", "--upscaler", "lanczos", "--size", "large"), 2, "width and height in pixels"),
        (("a.png", "--upscaler", "lanczos", "--threads", "0"), 2, "give 1 or more"),
        (("a.png", "--upscaler", "lanczos", "--prompt", "x"), 2, "give --restore a strength"),
        (("a.png", "--upscaler", "lanczos", "--restore", "0.2"), 2, "with --prompt"),
        (("a.png", "--upscaler", "lanczos", "--restore", "2", "--prompt", "x"), 2, "at most 1"),
        (("a.png", "--upscaler", "none.pth"), 4, "no such file"),
        (("empty", "--upscaler", "lanczos"), 4, "no images in this folder"),
        (("x*.png", "--upscaler", "lanczos"), 4, "no file fits this pattern"),
    ],
)
def test_refusals_come_before_any_work(options, code, message, capsys):
    saved(Path("a.png"))
    Path("empty").mkdir()
    assert main(["upscale", *options]) == code
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_the_list_names_everything(capsys):
    assert main(["upscale", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 and lines[0].startswith("lanczos")
    assert main(["upscale", "--list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"]: row["scales"] for row in rows}["waifu2x-cunet-noise3"] == [1, 2]


def test_drawing_anew_is_said_and_recorded(capsys, monkeypatch):
    backend = FakeBackend()
    monkeypatch.setattr(upscale_files, "open_engine", lambda *names: Engine(backend=backend))
    side = backend.info.native_size[0]
    saved(Path("a.png"), noise(side, side))
    options = ["--restore", "0.5", "--prompt", "an apple", "--steps", "4", *PLAIN]
    assert main(["upscale", "a.png", *options, "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"a.png: drawn anew whole at {side}x{side} by {backend.info.name}, then enlarged" in err
    record = json.loads(out)
    assert record["restore"]["prompt"] == "an apple" and record["restore"]["strength"] == 0.5
    assert main(["upscale", "a.png", *options, "--restore-at", "tiles", "--overwrite"]) == 0
    assert "enlarged, then drawn anew in 9 tiles" in capsys.readouterr().err
