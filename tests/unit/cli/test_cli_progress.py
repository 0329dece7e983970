"""Progress: nothing for quick work, lines elsewhere, a bar on a terminal."""

import io
import sys

import pytest

from fewstep.cli.progress import progress

Output = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("fewstep.cli.progress.time.monotonic", lambda: now[0])
    return now


def test_quick_work_says_nothing(clock: list[float], capsys: Output) -> None:
    with progress("step") as report:
        for done in range(1, 26):
            clock[0] += 0.01
            report(done, 25)
    assert capsys.readouterr() == ("", "")


def test_lines_now_and_then_and_at_the_end(clock: list[float], capsys: Output) -> None:
    with progress("step") as report:
        for done in range(1, 6):
            clock[0] += 3.0
            report(done, 5)
    assert capsys.readouterr().err == "fewstep: step 2/5\nfewstep: step 4/5\nfewstep: step 5/5\n"


def test_quiet_is_quiet(clock: list[float], capsys: Output) -> None:
    with progress("step", quiet=True) as report:
        clock[0] += 60.0
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("step") as report:
        clock[0] += 60.0
        report(1, 2)
        report(2, 2)
    assert "step" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
