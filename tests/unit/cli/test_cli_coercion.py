"""Option values are converted as typer would, without importing pydantic."""

import sys
import types
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from fewstep.cli.main import main


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def command(
        prompt: str,
        steps: Annotated[int | None, typer.Option()] = None,
        guidance: Annotated[float | None, typer.Option()] = None,
        out: Annotated[Path, typer.Option()] = Path("outputs"),
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
        folders: Annotated[list[Path] | None, typer.Option("--dir")] = None,
        words: Annotated[list[str] | None, typer.Option("--set")] = None,
    ) -> None:
        values.update(locals())

    module = types.ModuleType("fewstep.cli.models")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fewstep.cli.models", module)
    for name in [name for name in sys.modules if name.startswith("pydantic")]:
        monkeypatch.delitem(sys.modules, name)
    return values


def test_values_have_their_types(seen: dict[str, Any]) -> None:
    line = "models apple --steps 4 --guidance 2.5 --out x/y --quiet --dir a --dir b --set k=v"
    assert main(line.split()) == 0
    seen.pop("values", None)
    assert seen == {
        "prompt": "apple",
        "steps": 4,
        "guidance": 2.5,
        "out": Path("x/y"),
        "quiet": True,
        "folders": [Path("a"), Path("b")],
        "words": ["k=v"],
    }
    assert "pydantic" not in sys.modules, "typer's insides changed: see fewstep.cli.coercion"


def test_defaults_stay(seen: dict[str, Any]) -> None:
    assert main(["models", "apple"]) == 0
    assert seen["steps"] is None
    assert seen["out"] == Path("outputs")
    assert not seen["folders"]
    assert seen["quiet"] is False


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "four", "Invalid value for '--steps': 'four' is not a whole number"),
        ("--steps", "2.5", "Invalid value for '--steps': '2.5' is not a whole number"),
        ("--guidance", "high", "Invalid value for '--guidance': 'high' is not a number"),
    ],
)
def test_a_wrong_type_names_option_and_value(
    option: str, value: str, message: str, seen: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "apple", option, value]) == 2
    assert capsys.readouterr().err == f"fewstep: error: {message}; see fewstep models --help\n"
    assert not seen
