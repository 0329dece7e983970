"""The repository keeps its own rules: sizes, names, docstrings, pins, licences, what imports torch."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fewstep.data.emoji_sets import CHANGES, SOURCES, DrawingSource

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fewstep"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [
    path for folder in ("tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")

# Importing any of these must not import torch: the fast path, and all a user meets before training.
TORCH_FREE = ("errors", "diffusion", "prompt", "checkpoint", "engine", "cli")
TORCH_ALLOWED = {f"fewstep.engine.backends.{name}" for name in ("torch", "torch_adapters", "torch_control")}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 10


@pytest.mark.parametrize("path", MODULES + PROGRAMS, ids=relative)
def test_no_module_is_longer_than_500_lines(path: Path) -> None:
    assert lines_of(path) <= 500, "split it by topic; 200 to 300 lines is the aim"


def test_examples_have_at_most_100_lines() -> None:
    assert [relative(p) for p in PROGRAMS if relative(p).startswith("examples/") and lines_of(p) > 100] == []


def test_no_catch_all_modules() -> None:
    catch_all = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}
    assert [relative(path) for path in MODULES if path.stem in catch_all] == []


def public_definitions(path: Path) -> list[ast.AST]:
    """Module, public classes and functions of the module, public methods of public classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[ast.AST] = [tree]
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    for scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name.startswith("_"):
                    continue
                overload = any(
                    "overload" in ast.unparse(d) or ".setter" in ast.unparse(d) for d in node.decorator_list
                )
                if not overload:
                    found.append(node)
                if isinstance(node, ast.ClassDef):
                    scopes.append(node)
    return found


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_names_have_docstrings(path: Path) -> None:
    bare = [
        getattr(node, "name", "the module")
        for node in public_definitions(path)
        if not ast.get_docstring(node)
    ]
    assert bare == []


def test_torch_free_parts_import_without_torch() -> None:
    names = [
        name
        for name in map(module_name, MODULES)
        if name.split(".")[1:2] and name.split(".")[1] in TORCH_FREE and name not in TORCH_ALLOWED
    ]
    program = (
        "import importlib, sys\n"
        "heavy = ('torch', 'diffusers', 'transformers')\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    found = [h for h in heavy if h in sys.modules]\n"
        "    assert not found, f'{name} imports {found}'\n"
        "print(len(sys.argv) - 1)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) == len(names) > 5


def test_warnings_of_our_own_lines_are_errors_and_others_are_not() -> None:
    with pytest.raises(UserWarning):
        warnings.warn_explicit("ours", UserWarning, "emoji.py", 1, module="fewstep.data.emoji")
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="fewsteps_of_others")


def test_no_module_of_ours_is_checked_less_strictly() -> None:
    """Shrinking lists: an entry may be taken out here and in pyproject.toml, not put in."""
    looser: set[str] = set()
    mypy = PYPROJECT["tool"]["mypy"]
    assert mypy["strict"] is True
    assert {m for o in mypy["overrides"] for m in o["module"] if m.startswith("fewstep")} == looser
    ignored_warnings = [
        f for f in PYPROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"] if "ignore" in f
    ]
    assert ignored_warnings == []


def pins() -> dict[str, str]:
    found = {}
    for line in CONSTRAINTS.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9][a-z0-9.-]*)==([0-9][0-9a-z.]*)", line)
            assert match, f"constraints.txt: {line!r} is not an exact `name==version`"
            assert match[1] not in found, f"constraints.txt pins {match[1]} twice"
            found[match[1]] = match[2]
    return found


def test_constraints_are_exact_sorted_and_portable() -> None:
    names = list(pins())
    assert names == sorted(names)
    assert pins()["torch"] == "2.13.0"  # no local suffix: the same line serves CPU and CUDA builds
    assert not set(names) & {"torchvision", "pyright", "fewstep"}


def test_constraints_cover_every_dependency() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    listed = [Requirement(line) for group in (project["dependencies"], *extras.values()) for line in group]
    for requirement in listed:
        name = canonicalize_name(requirement.name)
        if name != "fewstep":
            assert name in pins(), f"constraints.txt has no version of {name}"
            assert requirement.specifier.contains(pins()[name]), (
                f"{requirement} excludes the pinned {pins()[name]}"
            )


def test_base_install_is_light() -> None:
    project = PYPROJECT["project"]
    light = [*project["dependencies"], *project["optional-dependencies"]["upscale"]]
    heavy = {"torch", "diffusers", "transformers", "accelerate", "nncf", "scipy", "matplotlib"}
    assert not {Requirement(line).name for line in light} & heavy


def test_licence_is_apache_2_to_the_letter() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda source: source.style)
def test_notice_names_every_art_set(source: DrawingSource) -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    heading = re.escape(f"{source.package} {source.version}")
    section = re.search(rf"^{heading}\n(.*?)\n\n", notice, re.DOTALL | re.MULTILINE)
    assert section, f"NOTICE has no section on {source.package} {source.version}"
    text = " ".join(section[1].split())
    for said in (source.holder, source.url, f"licence: {source.licence}", source.licence_url, CHANGES):
        assert said in text, f"NOTICE, {source.package}: {said!r} is missing"


def test_notice_carries_the_mit_text_and_no_endorsement() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) Microsoft Corporation" in notice
    assert 'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND' in " ".join(notice.split())
    assert "endorse" in notice
    assert "openmoji" not in notice.lower()  # CC-BY-SA: kept out of the data


def test_change_log_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = PYPROJECT["project"]["version"]
    assert re.search(rf"^## \[({re.escape(version)}|Unreleased)\]", changelog, re.MULTILINE)


def test_citation_has_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PYPROJECT['project']['version']}\n" in citation


def test_links_in_the_documents_lead_somewhere() -> None:
    links = [
        (document, target)
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:")
    ]
    assert [f"{relative(d)} -> {target}" for d, target in links if not (d.parent / target).exists()] == []
