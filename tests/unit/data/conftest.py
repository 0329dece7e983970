"""A tiny folder of fake npm packages in Iconify's form, and the drawing set made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.data import emoji, emoji_sets

LABELS = [
    ("red apple", 4, 42, ["apple", "fruit", "red"]),
    ("grapes", 4, 42, ["fruit"]),
    ("fox", 3, 30, ["animal"]),
    ("goose", 3, 31, ["bird"]),  # held out whole
    ("left arrow", 8, 78, ["west"]),
    ("OK button", 8, 90, ["OK"]),
    ("TOP arrow", 8, 78, ["top"]),
    ("keycap: 1", 8, 89, ["keycap"]),
    ("one o’clock", 5, 60, ["clock"]),
    ("flag: France", 9, 99, ["flag"]),
    ("light skin tone", 2, 32, []),
    ("regional indicator A", None, None, []),
    ("boy", 1, 23, ["young"]),
]
GROUPS = {
    "0": "smileys-emotion",
    "1": "people-body",
    "2": "component",
    "3": "animals-nature",
    "4": "food-drink",
    "5": "travel-places",
    "8": "symbols",
    "9": "flags",
}
SUBGROUPS = {
    "42": "food-fruit",
    "78": "arrow",
    "89": "keycap",
    "90": "alphanum",
    "60": "time",
    "32": "skin-tone",
}


def body(colour: str) -> str:
    return f'<circle cx="16" cy="16" r="16" fill="{colour}"/><path d="M0 0h8v8z" fill="#00f"/>'


def icons(prefix: str) -> dict[str, object]:
    names = ["red-apple", "grapes", "fox", "goose", "left-arrow", "ok-button", "top-arrow", "keycap-1"]
    names += ["one-oclock", "flag-france", "boy", "boy-light", "boy-light-skin-tone", "unknown-thing"]
    if prefix == "fxemoji":
        names = [name.replace("-", "") for name in names]
    found: dict[str, dict[str, object]] = {name: {"body": body("#f00")} for name in names}
    if prefix == "twemoji":
        found["fox"]["hidden"] = True
    if prefix == "noto":
        del found["grapes"]
        found["bunch"] = {"body": body("#80f"), "left": 8, "width": 16}
    aliases = {"grapes": {"parent": "bunch"}} if prefix == "noto" else {}
    if prefix == "emojione":
        del found["boy"]
        aliases = {"boy": {"parent": "boy-light", "hFlip": True}}
    return {"prefix": prefix, "icons": found, "aliases": aliases, "width": 32, "height": 32}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def make_packages(root: Path) -> Path:
    for source in emoji_sets.SOURCES.values():
        write(root / source.package / "package.json", {"name": source.package, "version": source.version})
        write(root / source.package / "icons.json", icons(source.package.partition("/")[2]))
    data = [
        {"label": label, "group": group, "subgroup": subgroup, "tags": tags}
        for label, group, subgroup, tags in LABELS
    ]
    base = root / emoji_sets.LABELS_PACKAGE
    write(base / "package.json", {"name": "emojibase-data", "version": emoji_sets.LABELS_VERSION})
    write(base / "en" / "data.json", data)
    write(base / "meta" / "groups.json", {"groups": GROUPS, "subgroups": SUBGROUPS})
    return root


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packages(tmp_path_factory.mktemp("npm") / "node_modules")


@pytest.fixture(scope="session")
def drawings(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> emoji.Drawings:
    pytest.importorskip("resvg_py")
    return emoji.build_drawings(tmp_path_factory.mktemp("set") / "drawings", packages, workers=1)
