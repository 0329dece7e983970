"""H22: no version with a hole that is known; and the table of promises names tests that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[3]

FIXED = {
    "torch": "2.6.0",  # CVE-2025-32434: code in weights in spite of weights_only
    "pillow": "11.3.0",  # CVE-2025-48379: overflow in writing DDS
    "starlette": "0.49.1",  # CVE-2025-62727: quadratic Range headers; CVE-2025-54121 before
    "python-multipart": "0.0.18",  # CVE-2024-53981: slow with bytes before a boundary
    "h11": "0.16.0",  # CVE-2025-43859: chunked bodies, request smuggling
    "safetensors": "0.4.0",
    "jinja2": "3.1.6",  # CVE-2025-27516: out of the sandbox
}
"""Package and the first version without the hole that is named."""


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, _, version in found}


@pytest.mark.parametrize("name", FIXED)
def test_h22_pinned_versions_have_no_hole_that_is_known(name: str) -> None:
    pinned = pins().get(name)
    assert pinned is None or pinned >= Version(FIXED[name])
    assert pinned is not None or name in ("h11", "jinja2")  # these may be left out


def test_h22_what_fewstep_asks_for_has_floors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *project["dependencies"],
        *(one for some in project["optional-dependencies"].values() for one in some),
    ]
    for text in asked:
        one = Requirement(text)
        if one.name.lower() in FIXED:
            floor = min(Version(part.version) for part in one.specifier if part.operator in (">=", "=="))
            assert floor >= Version(FIXED[one.name.lower()]), text


def test_the_table_of_promises_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "results" / "reliability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([HO]\d\d) \|(.*)$", text, re.MULTILINE))
    assert list(rows) == [f"H{n:02}" for n in range(1, 23)] + [f"O{n:02}" for n in range(1, 22)]
    for row, rest in rows.items():
        named = re.findall(r"`(tests/[\w/.]+)::([\w]+)`", rest)
        assert named, row
        for file, test in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test}(" in source, (row, file, test)
