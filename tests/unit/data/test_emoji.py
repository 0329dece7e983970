from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fewstep.data import emoji, emoji_sets
from fewstep.data.emoji_sets import STYLES
from fewstep.data.sources import npm
from fewstep.errors import DataError, DependencyError, UsageError


def names(packages: Path, **selection: object) -> set[tuple[str, str]]:
    return {(d.style, d.label) for d, _ in emoji.collect(packages, **selection)}  # type: ignore[arg-type]


def test_what_is_taken_and_what_is_left_out(packages: Path) -> None:
    found = names(packages)
    assert {label for _, label in found} == {"red apple", "grapes", "fox", "goose", "left arrow", "boy"}
    assert {style for style, label in found if label == "red apple"} == set(STYLES)
    assert ("twemoji", "fox") not in found, "hidden"
    assert ("emojione", "boy") not in found, "a mirrored alias"
    assert ("noto", "grapes") in found, "a plain alias"
    assert ("firefox", "red apple") in found, "glued name"


def test_selection(packages: Path) -> None:
    found = names(packages, styles=["noto", "fluent flat"], groups=["food-drink"])
    assert found == {(s, o) for s in ("noto", "fluent flat") for o in ("red apple", "grapes")}
    assert ("noto", "OK button") in names(packages, letters=True)
    assert not any("clock" in label or "keycap" in label for _, label in names(packages, letters=True))


def test_drawing_is_centred_on_a_transparent_canvas(drawings: emoji.Drawings) -> None:
    assert drawings.rgba.shape == (len(drawings.items), 128, 128, 4)
    row = next(i for i, d in enumerate(drawings.items) if (d.style, d.label) == ("twemoji", "red apple"))
    image = drawings.rgba[row]
    assert not image[:8].any() and not image[-8:].any() and not image[:, :8].any() and not image[:, -8:].any()
    assert image[64, 64].tolist() == [255, 0, 0, 255], "straight alpha, sRGB as the file says"
    edge = image[(image[..., 3] > 0) & (image[..., 3] < 255)]
    assert len(edge) and (edge[:, :3].sum(axis=1, dtype=int) >= 240).all(), (
        "edges keep their colour: alpha is straight"
    )


def test_terms_are_recorded(drawings: emoji.Drawings) -> None:
    by_style = {source["style"]: source for source in drawings.sources}
    assert set(by_style) == set(STYLES)
    for source in by_style.values():
        assert source["holder"] and source["url"].startswith("https://") and source["changed"]
        assert source["licence_url"].startswith("https://")
        assert source["version"] == emoji_sets.SOURCES[source["style"]].version
    assert by_style["firefox"]["licence"] == "CC-BY-4.0"
    assert {s["licence"] for s in by_style.values()} == {"Apache-2.0", "MIT", "CC-BY-4.0"}
    assert all(d.licence == by_style[d.style]["licence"] for d in drawings.items)


def test_whole_objects_are_marked_held_out(drawings: emoji.Drawings) -> None:
    assert Counter(d.split for d in drawings.items if d.label == "goose") == {"object": 6}
    assert {d.label for d in drawings.items if d.split == "object"} == {"goose"}


def test_same_set_is_opened_and_another_refused(
    drawings: emoji.Drawings, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "_renderer", None)  # would fail if it rendered again
    again = emoji.build_drawings(drawings.folder, packages, workers=1)
    assert again.fingerprint == drawings.fingerprint
    with pytest.raises(DataError, match="other styles"):
        emoji.build_drawings(drawings.folder, packages, styles=["noto"], workers=1)


def test_rendering_is_reproducible_and_worker_processes_agree(
    drawings: emoji.Drawings, packages: Path, tmp_path: Path
) -> None:
    again = emoji.build_drawings(tmp_path / "again", packages, workers=2)
    assert again.fingerprint == drawings.fingerprint
    emoji.open_drawings(tmp_path / "again", verify=True)


def test_damage_is_noticed(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    emoji.build_drawings(folder, packages, styles=["noto"], workers=1)
    pixels = np.load(folder / "drawings.npy")
    pixels[0, 64, 64] ^= 1
    np.save(folder / "drawings.npy", pixels)
    emoji.open_drawings(folder)
    with pytest.raises(DataError, match="fingerprint"):
        emoji.open_drawings(folder, verify=True)
    np.save(folder / "drawings.npy", pixels[1:])
    with pytest.raises(DataError, match="listed"):
        emoji.open_drawings(folder)
    with pytest.raises(DataError, match="drawing set"):
        emoji.open_drawings(tmp_path)


def test_broken_drawings_are_skipped_up_to_the_limit(packages: Path, tmp_path: Path) -> None:
    copy = tmp_path / "node_modules"
    shutil.copytree(packages, copy)
    file = copy / "@iconify-json" / "noto" / "icons.json"
    icons = json.loads(file.read_text())
    icons["icons"]["fox"]["body"] = "<g"
    file.write_text(json.dumps(icons))
    with pytest.raises(DataError, match="limit"):
        emoji.build_drawings(tmp_path / "set", copy, workers=1)
    assert not (tmp_path / "set").exists()
    assert isinstance(emoji.render("<svg"), str)
    blank = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1" width="112" height="112"></svg>'
    assert "empty" in str(emoji.render(blank))


def test_errors(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="noto, twemoji"):
        emoji.build_drawings(tmp_path / "a", packages, styles=["notto"])
    with pytest.raises(UsageError, match="food-drink"):
        emoji.build_drawings(tmp_path / "a", packages, groups=[])
    with pytest.raises(DataError, match="npm install"):
        emoji.build_drawings(tmp_path / "a", tmp_path)


def test_npm_cache_is_used_without_npm(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    versions = {s.package: s.version for s in emoji_sets.SOURCES.values()}
    assert npm.fetch(versions, packages.parent) == packages
    with pytest.raises(DependencyError, match="Node"):
        npm.fetch(versions | {"@iconify-json/noto": "9.9.9"}, packages.parent)


def test_npm_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> object:
        assert "--ignore-scripts" in command and "@iconify-json/noto@1.2.9" in command
        return npm.subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\n")

    monkeypatch.setattr(npm.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(npm.subprocess, "run", fail)
    with pytest.raises(DataError, match="ENOTFOUND"):
        npm.fetch({"@iconify-json/noto": "1.2.9"}, tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
