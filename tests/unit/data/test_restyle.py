"""Styles on a shape whose picture is known, and the folders that are written of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data import style_sets
from fewstep.data.backgrounds import recipe_folder
from fewstep.data.emoji_sets import STYLES as EMOJI_SETS
from fewstep.data.preparation import load_selection
from fewstep.data.sources.folder import FolderSource
from fewstep.data.split import object_held_out
from fewstep.errors import DataError, RecipeError, UsageError

pytest.importorskip("resvg_py")
pytest.importorskip("scipy")

from fewstep.data import restyle
from fewstep.data.style_sets import Styled, StyleEntry, StyleSets

ROOT = Path(__file__).resolve().parents[3]
# A red disc of radius 40 px in the middle of the picture, with a nearly black one of radius 10 px in it.
DISC = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 112 112" width="112" height="112">'
    '<circle cx="56" cy="56" r="40" fill="#e02020"/><circle cx="56" cy="56" r="10" fill="#101010"/></svg>'
)
SKY = (135, 206, 235)


def drawn(style: str, seed: int = 0) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(seed))
    return restyle.restyle(style, restyle.artwork(DISC), SKY, rng).astype(int)


def test_outline_is_a_line_with_dark_shapes_filled() -> None:
    picture = drawn("outline")
    row = picture[64]
    assert (row[5] == 255).all() and (row[40] == 255).all(), "white outside and inside"
    assert (row[64] < 30).all(), "what is nearly black stays filled"
    assert (row[24] < 60).all() and (row[103] < 60).all(), "a line at the edge of the disc"
    dark = np.flatnonzero(row[:40].max(-1) < 128)
    assert 3 <= len(dark) <= 5, "half the line inside, and 2 px outside"


def test_blueprint_has_light_lines_and_nothing_filled() -> None:
    picture = drawn("blueprint")
    assert picture[64, 24].min() > 180 and picture[64, 54].min() > 180, "both edges are lines"
    assert picture[64, 64, 2] - picture[64, 64, 0] > 80, "the dark shape is blue inside"
    assert picture[2, 2, 2] - picture[2, 2, 0] > 100 and picture[2, 16, 0] > picture[2, 2, 0] + 40, "a grid"


def test_pixel_art_is_cells_on_the_grid_of_the_latents() -> None:
    picture = drawn("pixel art")
    cells = picture.reshape(16, 8, 16, 8, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) <= 12
    assert tuple(picture[0, 0]) == SKY
    assert picture[64, 64].max() < 60 and picture[64, 40, 0] > 200, "the black dot and the red disc"
    assert tuple(picture[64, 20]) == (34, 28, 52), "the cell before the disc is its edge"


def test_sticker_has_a_white_border_on_its_background() -> None:
    picture = drawn("sticker")
    assert tuple(picture[2, 2]) == SKY
    radius = 0.86 * 40
    for x, y in ((1, 0), (-1, 0), (0, -1), (0.7, 0.7)):
        at = (int(64 + y * (radius + 2.5)), int(64 + x * (radius + 2.5)))
        assert (picture[at] == 255).all(), "between the disc and the end of the border"
    assert picture[64, 40, 0] > 200 and picture[64, 40, 1] < 60
    shaded = picture[int(64 + 0.8 * 43), int(64 + 0.6 * 43)]
    assert shaded.sum() < sum(SKY) - 60, "the shadow lies below"


def test_gold_is_golden_all_over_and_takes_no_colour_of_the_drawing() -> None:
    picture = drawn("gold")
    body = picture[40:60, 40:60].reshape(-1, 3)
    assert (body[:, 0] > body[:, 1]).all() and (body[:, 1] > body[:, 2]).all()
    blue = restyle.restyle(
        "gold", restyle.artwork(DISC.replace("#e02020", "#2020e0")), SKY, np.random.default_rng(0)
    ).astype(int)[40:60, 40:60]
    assert (blue[..., 0] > blue[..., 2]).all()


def test_night_is_dark_blue_with_a_rim_towards_the_moon() -> None:
    picture = drawn("night")
    corner = picture[120, 3]
    assert corner.max() < 150 and corner[2] > corner[0] + 40
    radius = 0.86 * 40 - 1.5
    towards, away = (picture[int(64 - s * radius * 0.707), int(64 + s * radius * 0.707)] for s in (1, -1))
    assert towards.mean() > away.mean() + 60
    assert picture[26, 113].sum() > 500, "the lit side of the crescent"


@pytest.mark.parametrize("style", list(restyle.STYLES))
def test_the_same_three_give_the_same_picture(style: str) -> None:
    first, again = drawn(style, 3), drawn(style, 3)
    assert first.shape == (128, 128, 3) and (first == again).all()


def test_chance_only_where_there_is_some() -> None:
    assert (drawn("night", 1) != drawn("night", 2)).any()
    assert (drawn("gold", 1) == drawn("gold", 2)).all()


def test_lines_have_their_width_whatever_the_view_box() -> None:
    widths = []
    for factor in (1, 4):
        box = f'viewBox="0 0 {112 * factor} {112 * factor}"'
        circle = f'<circle cx="{56 * factor}" cy="{56 * factor}" r="{40 * factor}" fill="#e02020"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box} width="112" height="112">{circle}</svg>'
        row = restyle.artwork(svg).lines(filled=True)[64 * restyle.SCALE, : 64 * restyle.SCALE]
        widths.append(row.sum() / restyle.SCALE)
    assert widths == pytest.approx([restyle.LINE] * 2, abs=0.15)


@pytest.mark.parametrize(
    ("svg", "said"),
    [
        ("<svg", "not rendered"),
        (DISC.replace("circle", "g"), "nothing is drawn"),
    ],
)
def test_drawings_that_cannot_be_used(svg: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        restyle.artwork(svg)


def test_unknown_style() -> None:
    with pytest.raises(UsageError, match="known are outline"):
        restyle.restyle("fresco", restyle.artwork(DISC), SKY, np.random.default_rng(0))


# The folders

SETS = StyleSets(
    styles={
        "outline": StyleEntry(drawings="fluent flat", licence="MIT"),
        "sticker": StyleEntry(drawings="noto", licence="Apache-2.0", backgrounds=("sky blue", "pink")),
    },
    objects=("red apple", "fox", "grapes"),
    held_out=("goose",),
)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_folders_have_pictures_captions_and_terms(packages: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folders = style_sets.write_sets(
        tmp_path, SETS, packages, n=2, on_progress=lambda done, total: seen.append((done, total))
    )
    assert folders == {"outline": tmp_path / "outline", "sticker": tmp_path / "sticker"}
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    source = FolderSource(folders["sticker"])
    captions = {source.key(i): source.read(i).caption.strip() for i in range(len(source))}
    assert captions == {
        "red-apple.png": "a red apple, sticker style, on a sky blue background",
        "fox.png": "a fox, sticker style",
    }
    with Image.open(folders["sticker"] / "red-apple.png") as image:
        assert image.size == (128, 128) and image.mode == "RGB" and image.getpixel((1, 1)) == SKY
    notice = (folders["sticker"] / "NOTICE").read_text("utf-8")
    assert "Google" in notice and "Apache-2.0" in notice and "changed:" in notice


def test_a_broken_run_goes_on_and_ends_the_same(packages: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    style_sets.write_sets(whole, SETS, packages)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        style_sets.write_sets(broken, SETS, packages, on_progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in broken.rglob("*.png")}
    (broken / "sticker" / "fox.txt").write_text(
        "a fox, sticker style\n"
    )  # killed between caption and picture
    style_sets.write_sets(broken, SETS, packages)
    assert hashes(broken) == hashes(whole)
    assert len(kept) == 4 and all(path.stat().st_mtime_ns == at for path, at in kept.items())
    style_sets.write_sets(broken, SETS, packages, n=3)
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())


def test_other_pictures_are_not_mixed_in(packages: Path, tmp_path: Path) -> None:
    style_sets.write_sets(tmp_path, SETS, packages, styles=("outline",), n=1)
    style_sets.write_sets(tmp_path, SETS, packages, styles=("outline",), n=3)
    with pytest.raises(DataError, match="4 files of other pictures"):
        style_sets.write_sets(tmp_path, SETS, packages, styles=("outline",), n=1)
    with pytest.raises(DataError, match="6 files of other pictures"):
        style_sets.write_sets(tmp_path, SETS, packages, styles=("outline",), held_out=True)
    style_sets.write_sets(tmp_path, SETS, packages, styles=("outline",), held_out=True, replace=True)
    assert sorted(p.name for p in (tmp_path / "outline").glob("*.*")) == [
        "goose.png",
        "goose.txt",
        "style.json",
    ]


def test_what_cannot_be_listed(packages: Path) -> None:
    with pytest.raises(UsageError, match="give 1 to 3"):
        style_sets.styled(SETS, "outline", packages, n=4)
    with pytest.raises(UsageError, match="known are outline, sticker"):
        style_sets.styled(SETS, "night", packages)
    more = SETS.model_copy(update={"objects": ("rocket",)})
    with pytest.raises(DataError, match="'rocket': fluent flat has no drawing"):
        style_sets.styled(more, "outline", packages)


def test_a_picture_does_not_depend_on_the_others(packages: Path) -> None:
    found = {item.label: item for item in style_sets.styled(SETS, "sticker", packages)}
    alone = Styled("sticker", "fox", "", found["fox"].background, found["fox"].svg)
    assert (alone.draw() == found["fox"].draw()).all()


# The command


def test_the_command_writes_folders_and_prints_them(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.cli.main import main

    monkeypatch.setattr(style_sets, "load_sets", lambda: SETS)
    place = tmp_path / "sets"
    call = ["data", "styles", "--packages", str(packages), "--out", str(place), "--n", "1", "--quiet"]
    assert main([*call, "--style", "sticker"]) == 0
    assert capsys.readouterr().out.split() == [str(place / "sticker")]
    assert sorted(path.name for path in place.rglob("*.png")) == ["red-apple.png"]
    held_out = [str(tmp_path / "held-out") if part == str(place) else part for part in call]
    assert main([*held_out, "--held-out"]) == 0
    assert sorted(path.name for path in (tmp_path / "held-out").rglob("*.png")) == ["goose.png"] * 2
    assert main([*call, "--style", "fresco"]) == 2
    assert "known are outline, sticker" in capsys.readouterr().err
    assert main(["data", "emoji-128", "--held-out"]) == 2
    assert "belong to 'fewstep data styles'" in capsys.readouterr().err


# The recipe


def test_the_recipe_has_six_styles_and_no_object_twice() -> None:
    sets = style_sets.load_sets()
    assert tuple(sets.styles) == tuple(restyle.STYLES) and len(sets.styles) == 6
    assert len(sets.objects) >= 40 and len(set(sets.objects)) == len(sets.objects)
    assert len(sets.held_out) >= 12 and not set(sets.held_out) & set(sets.objects)
    assert not any(object_held_out(label) for label in (*sets.objects, *sets.held_out)), (
        "the model knows them"
    )
    assert all(entry.drawings in load_selection().styles for entry in sets.styles.values())
    assert not set(sets.styles) & set(EMOJI_SETS), "styles that the model has not seen"


def test_the_model_has_a_word_for_every_style_and_object() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    known = tokenizers.Tokenizer.from_file(
        str(ROOT / "weights" / "emoji-128" / "tokenizer" / "tokenizer.json")
    )
    assert "[UNK]" in known.encode("\u16a0").tokens, "the check can fail"
    sets = style_sets.load_sets()
    for style in sets.styles:
        for said in (f"{style} style", *sets.styles[style].captions):
            assert "[UNK]" not in known.encode(said.replace("{object}", "fox")).tokens
    for label in (*sets.objects, *sets.held_out):
        assert "[UNK]" not in known.encode(label).tokens


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('- "{object}, black', '- "a fox, black', "put {object} into it once"),
        ("  - red apple\n", "  - fox\n", "'fox' is trained and held out"),
        ("licence: MIT", "licence: CC0-1.0", "outline names the licence 'CC0-1.0'"),
        ("drawings: noto", "drawings: segoe", "segoe"),
        ("sky blue", "sky grey", "sky grey"),
        ("  gold:", "  golden:", "golden"),
        ("held_out:", "heldout:", "held_out"),
    ],
)
def test_a_recipe_that_is_wrong_says_where(tmp_path: Path, before: str, after: str, said: str) -> None:
    text = (recipe_folder() / style_sets.FILE).read_text("utf-8")
    assert before in text
    file = tmp_path / "styles.yaml"
    file.write_text(text.replace(before, after, 1), "utf-8")
    with pytest.raises(RecipeError, match=said):
        style_sets.load_sets(file)
