"""``fewstep txt2img`` and ``img2img``: what is refused, what a failure leaves, and what is imported."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import compvis
from fewstep.cli.main import main
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine

Output = pytest.CaptureFixture[str]
TEXT = Path("outputs/txt2img-samples")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    """A model of 64x64 pixels that draws in 5 steps."""
    fake = FakeBackend(students={"four": (4,)})
    monkeypatch.setattr(compvis, "open_engine", lambda ckpt: Engine(backend=fake))
    monkeypatch.chdir(tmp_path)
    return fake


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


REFUSED = [
    ("txt2img", ["--laion400m"], 2, "not distributed with fewstep; leave it out for the bundled model"),
    ("txt2img", ["--skip_save", "--skip_grid"], 2, "nothing would be written"),
    ("txt2img", ["--ddim_steps", "0"], 2, "steps is 0: at least one step is needed, give --ddim_steps 1"),
    ("txt2img", ["--ddim_steps", "4.5"], 2, "'4.5' is not a whole number"),
    ("txt2img", ["--plms", "--ddim_eta", "0.5"], 2, "--ddim_eta is 0.5: --plms adds no noise, give 0"),
    ("txt2img", ["--dpm_solver", "--plms", "--ddim_eta", "1"], 2, "--dpm_solver adds no noise"),
    ("txt2img", ["--ddim_eta", "2"], 2, "eta is 2.0"),
    ("txt2img", ["--ddim_eta", "nan"], 2, "eta is nan"),
    ("txt2img", ["--n_iter", "0"], 2, "--n_iter is 0: give 1 or more"),
    ("txt2img", ["--n_samples", "0"], 2, "--n_samples is 0"),
    ("txt2img", ["--n_samples", "65"], 2, "n is 65: give --n_samples at most 64"),
    ("txt2img", ["--n_rows", "-1"], 2, "--n_rows is -1"),
    ("txt2img", ["--seed", "-1"], 2, "--seed is -1"),
    ("txt2img", ["--seed", str(2**63 - 5)], 2, "too large for so many images"),
    ("txt2img", ["--H", "60"], 2, "height is 60: give --W and --H in multiples of 8 pixels"),
    ("txt2img", ["--W", "6400"], 2, "width is 6400: give --W and --H from 32 to 256 pixels"),
    ("txt2img", ["--C", "8"], 2, "--C is 8: fake has 4 latent channels"),
    ("txt2img", ["--f", "4"], 2, "--f is 4: fake has 8 pixels per latent cell"),
    ("txt2img", ["--scale", "0.5"], 2, "guidance is 0.5: give --scale from 1 to 100"),
    ("txt2img", ["--scale", "nan"], 2, "give --scale a finite number"),
    ("txt2img", ["--precision", "half"], 2, "--precision is 'half': give one of full, autocast"),
    ("txt2img", ["--student", "two"], 4, "student 'two'"),
    ("txt2img", ["--student", "four", "--plms"], 2, "leave --plms and --dpm_solver out"),
    ("txt2img", ["--from-file", "nothing.txt"], 6, "nothing.txt: no such file"),
    ("txt2img", ["--from-file", "empty.txt"], 6, "empty.txt: no prompts"),
    ("txt2img", ["--from-file", "start.png"], 6, "start.png: not UTF-8 text"),
    ("txt2img", ["--from-file", "samples"], 6, "samples: cannot be read"),
    ("txt2img", ["--from-file", "huge.txt"], 6, "huge.txt: larger than 10 MB"),
    ("txt2img", ["--from-file", "long.txt"], 2, "prompt has 20001 characters"),
    ("txt2img", ["--prompt", "caf\udce9"], 2, "--prompt is not valid text"),
    ("txt2img", ["--from-file", "null.txt"], 2, "--from-file is not valid text"),
    (
        "txt2img",
        ["--config", "eps.yaml"],
        2,
        "eps.yaml: parameterization is 'eps', and fake has v_prediction",
    ),
    ("txt2img", ["--outdir", "start.png"], 7, "choose another folder with --outdir"),
    ("txt2img", ["--n_sample", "3"], 2, "(Possible options: --n_samples"),
    ("txt2img", ["--from_fil", "x"], 2, "--from_file"),
    ("txt2img", ["--skip-grid"], 2, "--skip_grid"),
    ("img2img", [], 2, "Missing option '--init-img'"),
    ("img2img", ["--init-img", "nothing.png"], 6, "nothing.png: no such file"),
    ("img2img", ["--init-img", "empty.txt"], 6, "empty.txt: empty file"),
    ("img2img", ["--init-img", "tiny.png"], 2, "width is 16: give an --init-img from 32 to 256 pixels"),
    (
        "img2img",
        ["--init-img", "start.png", "--strength", "1.5"],
        2,
        "--strength is 1.5: give a number from 0",
    ),
    ("img2img", ["--init-img", "start.png", "--strength", "nan"], 2, "--strength is nan"),
    ("img2img", ["--init-img", "start.png", "--strength", "-0.1"], 2, "--strength is -0.1"),
    ("img2img", ["--init-img", "start.png", "--H", "64"], 2, "No such option: --H"),
    ("img2img", ["--init-img", "start.png", "--laion400m"], 2, "No such option: --laion400m"),
]


@pytest.mark.parametrize(("name", "arguments", "code", "message"), REFUSED)
def test_what_is_wrong_is_one_line_and_draws_nothing(
    name: str,
    arguments: list[str],
    code: int,
    message: str,
    backend: FakeBackend,
    tmp_path: Path,
    capsys: Output,
) -> None:
    picture(tmp_path / "start.png")
    picture(tmp_path / "tiny.png", (20, 64))
    Path("samples").mkdir()
    for file, text in {
        "empty.txt": "",
        "long.txt": "a dog\n" + "x" * 20_001,
        "null.txt": "a dog\na\0b",
        "eps.yaml": "model: {params: {timesteps: 1000}}",
    }.items():
        Path(file).write_text(text, encoding="utf-8")
    with Path("huge.txt").open("wb") as huge:
        huge.truncate(10 * 2**20 + 1)
    assert main([name, *arguments]) == code
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("fewstep: error: ")
    assert message in seen.err
    assert seen.err.count("\n") == 1
    assert backend.calls == 0
    assert not Path("outputs").exists()


def test_ctrl_c_keeps_and_lists_what_was_done(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    plain = backend.denoise

    def interrupted(*arguments: Any) -> Any:
        if backend.calls == 7:  # the second of three iterations of 5 steps
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(backend, "denoise", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["txt2img", "--n_samples", "2", "--n_iter", "3"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert backend.calls == 8  # the step that was running was finished
    seen = capsys.readouterr()
    assert seen.out.splitlines() == [str(TEXT / "samples" / name) for name in ("00000.png", "00001.png")]
    assert names(TEXT) == ["samples"]
    assert "cancelled" in seen.err


def test_a_full_disk_leaves_no_file(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fewstep.checkpoint.atomic.os.write", full)
    code = main(["txt2img"])
    monkeypatch.undo()
    assert code == 7
    assert "No space left on device" in capsys.readouterr().err
    assert [path for path in Path(TEXT).rglob("*") if path.is_file()] == []
    assert backend.calls == 5


def test_drawing_imports_neither_torch_nor_what_costs_start_up_time(tmp_path: Path) -> None:
    code = (
        "import sys; from fewstep.cli import compvis; from fewstep.cli.main import main;"
        "from fewstep.engine.engine import Engine;"
        "compvis.open_engine = lambda ckpt: Engine(None, 'fake');"
        "code = main(['txt2img', '--n_iter', '1']);"
        "heavy = {'torch', 'diffusers', 'transformers', 'pydantic', 'rich', 'yaml', 'scipy'};"
        "found = heavy & set(sys.modules);"
        "sys.exit(code or ', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
