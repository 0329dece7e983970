"""H22: no pinned version has one of the holes that were known when this was written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]

FLOORS = {
    "torch": ("2.10", "CVE-2026-24747: the loader of weights runs code"),
    "pillow": ("11.3", "CVE-2025-48379: a write beyond a buffer"),
    "starlette": ("0.49.1", "CVE-2025-62727: ranges of files in quadratic time"),
    "python-multipart": ("0.0.18", "CVE-2024-53981: forms that keep a core busy"),
    "h11": ("0.16", "CVE-2025-43859: requests smuggled in chunks"),
    "jinja2": ("3.1.6", "CVE-2025-27516: out of the sandbox"),
    "aiohttp": ("3.10.11", "CVE-2024-52304: requests smuggled in chunks"),
    "urllib3": ("2.5", "CVE-2025-50181: redirects that were turned off"),
    "protobuf": ("6.31.1", "CVE-2025-4565: recursion without end"),
    "ray": ("2.52", "CVE-2025-62593: a web page runs code in a cluster; tokens came with it"),
}


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.strip().lower(): Version(version.split(";")[0].strip()) for name, version in pairs}


@pytest.mark.parametrize("name", FLOORS)
def test_h22_no_pin_is_below_a_known_hole(name: str) -> None:
    floor, hole = FLOORS[name]
    assert pinned()[name] >= Version(floor), hole


@pytest.mark.parametrize("name", ["torch", "ray"])
def test_h22_the_range_of_what_runs_code_excludes_it_too(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    found = [asked for text in every if (asked := Requirement(text)).name == name]
    assert found
    below = Version(FLOORS[name][0] + ".dev0")
    assert not any(asked.specifier.contains(below, prereleases=True) for asked in found)
