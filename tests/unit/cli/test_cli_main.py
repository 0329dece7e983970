"""Dispatch, errors and exit codes; the commands themselves have their own files."""

import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import pytest

from fewstep import errors
from fewstep.cli import main as cli
from fewstep.cli.main import COMMANDS, main

Install = Callable[[Callable[..., None]], None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a function in the place of ``fewstep models``."""

    def install(function: Callable[..., None]) -> None:
        module = types.ModuleType("fewstep.cli.models")
        module.command = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fewstep.cli.models", module)

    yield install


def _raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


ALL_ERRORS = [
    errors.UsageError,
    errors.RecipeError,
    errors.NotFoundError,
    errors.CheckpointError,
    errors.DataError,
    errors.DependencyError,
    errors.OutputError,
    errors.RunError,
    errors.EngineError,
]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_an_error_is_one_line_and_its_exit_code(
    kind: type[errors.FewstepError], command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(kind("apple: too red;\n  give less")))
    assert main(["models"]) == kind.exit_code
    assert capsys.readouterr() == ("", "fewstep: error: apple: too red; give less\n")


@pytest.mark.parametrize("arguments", [["models", "--debug"], ["--debug", "models"]])
def test_debug_shows_the_traceback_as_well(
    arguments: list[str], command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(errors.DataError("apple: too red")))
    assert main(arguments) == 6
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("fewstep: error: apple: too red\n")


def test_debug_behind_two_dashes_is_a_prompt() -> None:
    assert cli._take_debug(["generate", "--", "--debug"]) == (["generate", "--", "--debug"], False)


def test_an_unexpected_exception_is_called_a_bug(
    command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(ZeroDivisionError("one\ntwo")))
    assert main(["models"]) == 1
    err = capsys.readouterr().err
    assert err == (
        "fewstep: error: this is a bug: ZeroDivisionError: one two; run it again with --debug and report "
        "what it prints\n"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), errors.Cancelled("after step 3 of 25")])
def test_an_interrupt_is_130_without_a_traceback(
    error: BaseException, command: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    command(_raising(error))
    assert main(["models"]) == 130
    err = capsys.readouterr().err
    assert err.startswith("fewstep: cancelled")
    assert err.count("\n") == 1


def test_a_full_disk_is_not_called_a_bug(command: Install, capsys: pytest.CaptureFixture[str]) -> None:
    command(_raising(OSError(28, "No space left on device", "/there/file")))
    assert main(["models"]) == 7
    assert capsys.readouterr().err.startswith("fewstep: error: /there/file: No space left on device; free")


def test_out_of_memory_is_not_called_a_bug(command: Install, capsys: pytest.CaptureFixture[str]) -> None:
    command(_raising(MemoryError()))
    assert main(["models"]) == 1
    assert "out of memory" in capsys.readouterr().err


def test_a_wrong_option_names_the_help(command: Install, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda: None)
    assert main(["models", "--colour"]) == 2
    assert capsys.readouterr() == (
        "",
        "fewstep: error: No such option: --colour; see fewstep models --help\n",
    )


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generat"]) == 2
    assert capsys.readouterr().err == (
        "fewstep: error: no such command 'generat'; did you mean 'generate'?; see fewstep --help\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert name in out
        assert text.split()[0] in out


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys; from fewstep.cli.main import main, COMMANDS; main(['--help']);"
        "heavy = {'numpy', 'openvino', 'torch', 'rich', 'pydantic', 'PIL', 'tokenizers', 'yaml'};"
        "heavy |= {f'fewstep.cli.{name}' for name in COMMANDS};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from fewstep import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fewstep {__version__}\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys, types, typer; from fewstep.cli import output, main;"
        "m = types.ModuleType('fewstep.cli.models');"
        "m.command = lambda: [output.result('x' * 100) for _ in range(10000)] and None;"
        "sys.modules['fewstep.cli.models'] = m; sys.exit(main.main(['models']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 1
