"""The reference page says what the program says."""

from pathlib import Path

import pytest

from fewstep import errors
from fewstep.cli import reference
from fewstep.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[3]


def test_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == reference.page(), "run: python -m fewstep.cli.reference > docs/reference/cli.md"


def test_page_lists_every_exit_code() -> None:
    page = reference.page()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 5
    for kind in kinds:
        assert f"\n| {getattr(kind, 'exit_code', None)} | " in page


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_begins_like_its_line_in_the_list(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert COMMANDS[name].rstrip(".").split(",")[0] in out


def test_guide_names_only_options_that_exist() -> None:
    import re

    guide = (ROOT / "docs" / "guides" / "command-line.md").read_text(encoding="utf-8")
    page = reference.page()
    for option in set(re.findall(r"--[a-z][a-z-]+", guide)):
        assert re.search(rf"{option}\b", page), option
