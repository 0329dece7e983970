"""The guide for people who come from CompVis' scripts says what the commands have."""

import re
from pathlib import Path

import pytest

from fewstep.cli.main import group, main

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "txt2img.md").read_text(encoding="utf-8")
SCRIPTS = {
    "txt2img": "prompt outdir skip_grid skip_save ddim_steps plms dpm_solver laion400m fixed_code ddim_eta "
    "n_iter H W C f n_samples n_rows scale from-file config ckpt seed precision",
    "img2img": "prompt init-img outdir skip_grid skip_save ddim_steps plms fixed_code ddim_eta n_iter C f "
    "n_samples n_rows scale strength from-file config ckpt seed precision",
}


def options(name: str) -> set[str]:
    command = group().get_command(None, name)
    return {option for param in command.params for option in param.opts} - {"--help"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_of_the_script_is_taken(name: str) -> None:
    assert {f"--{option}" for option in SCRIPTS[name].split()} <= options(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_guide_has_every_option_and_no_other(name: str) -> None:
    known = {option for command in ("txt2img", "img2img", "generate") for option in options(command)}
    named = set(re.findall(r"`(--[A-Za-z][\w-]*)", GUIDE))
    assert options(name) <= named <= known


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_what_is_the_scripts_and_what_is_added(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    same, added = capsys.readouterr().out.split("Additional:")
    assert "Same as in CompVis' script:" in same
    for option in SCRIPTS[name].split():
        assert f"--{option}" in same
    assert "--student" in added
    assert "--student" not in same
