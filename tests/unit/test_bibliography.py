"""docs/bibliography.md is complete, and what it points to exists. So do the tests that SECURITY.md names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fewstep"
BIBLIOGRAPHY = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")

NOT_AN_ALGORITHM = {"__init__.py", "base.py"}
ALGORITHMS = [
    *(PACKAGE / "diffusion" / "solvers").glob("*.py"),
    *(PACKAGE / "training" / "objectives").glob("*.py"),
    *(
        PACKAGE / "diffusion" / f"{name}.py"
        for name in (
            "guidance",
            "noise",
            "noise_levels",
            "prediction",
            "schedule",
            "timesteps",
            "toys",
            "weighting",
        )
    ),
    *(
        PACKAGE / "distillation" / f"{name}.py"
        for name in (
            "consistency",
            "conversion",
            "dmd",
            "flash",
            "lightning",
            "losses",
            "progressive",
            "stages",
            "targets",
        )
    ),
    *(
        PACKAGE / "evaluation" / f"{name}.py"
        for name in (
            "accuracy",
            "colour",
            "curves",
            "distances",
            "diversity",
            "intervals",
            "manifolds",
            "reconstruction",
            "setfigures",
        )
    ),
    PACKAGE / "models" / "discriminators.py",
    PACKAGE / "models" / "ema.py",
    PACKAGE / "training" / "muon.py",
]


class Row(NamedTuple):
    algorithm: str
    paper: str
    place: str
    module: str
    test: str


def rows() -> list[Row]:
    lines = [line for line in BIBLIOGRAPHY.splitlines() if line.startswith("| ") and "`fewstep." in line]
    return [Row(*(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines]


def missing_tests(text: str) -> list[str]:
    """Every `tests/...py` or `tests/...py::name` in the text that does not exist."""
    missing = []
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        path = ROOT / file
        if not path.is_file() or (name and f"def {name}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{name}" if name else file)
    return missing


def modules_of(row: Row) -> list[str]:
    return re.findall(r"`(fewstep\.[\w.]+)`", row.module)


@pytest.mark.parametrize(
    "path", [p for p in ALGORITHMS if p.name not in NOT_AN_ALGORITHM], ids=lambda p: p.stem
)
def test_every_algorithm_has_a_row(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    assert module in {name for row in rows() for name in modules_of(row)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.algorithm)
def test_every_row_is_whole(row: Row) -> None:
    assert re.search(
        r"\]\(https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/\S+|openreview\.net/\S+)\)", row.paper
    )
    assert re.search(r"\b(eq|Algorithm|section|Table|appendix|Figure|code)\b", row.place), (
        "name the place in the paper"
    )
    for module in modules_of(row):
        assert (PACKAGE.parent / (module.replace(".", "/") + ".py")).is_file(), f"there is no {module}"
    assert "`tests/" in row.test
    assert missing_tests(row.test) == []


def test_rows_are_found() -> None:
    assert len(rows()) > 20


def test_tests_named_in_the_security_policy_exist() -> None:
    assert missing_tests(SECURITY) == []
    promises = [line for line in SECURITY.splitlines() if re.match(r"\| [A-Z]\d\d|\| – ", line)]
    assert promises
    assert [line for line in promises if "`tests/" not in line] == []


def test_the_check_sees_what_is_missing() -> None:
    assert missing_tests("`tests/unit/test_no_such_file.py`") == ["tests/unit/test_no_such_file.py"]
    own = "tests/unit/test_bibliography.py"
    assert missing_tests(f"`{own}::test_rows_are_found` `{own}::test_gone`") == [f"{own}::test_gone"]
