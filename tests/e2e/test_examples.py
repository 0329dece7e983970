"""The programs in examples/: short, and they draw."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
LONG = 400.0


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_examples_stay_under_60_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_every_example_is_tested_and_explained() -> None:
    assert {path.stem for path in PROGRAMS} == {"flash_loras", "lightning"}
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in PROGRAMS:
        port = re.search(r"default=(\d+)", path.read_text(encoding="utf-8"))
        assert port and f"]({path.name})" in readme and f"127.0.0.1:{port[1]}" in readme


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "first", "other"),
    [
        ("lightning", ("a banana, noto style", 4), ("a banana, noto style", 1)),
        ("flash_loras", ("a red apple", "gold", 1.0, 0), ("a red apple", "blueprint", 1.0, 0)),
    ],
    ids=["lightning", "flash_loras"],
)
def test_an_example_draws(program: str, first: tuple, other: tuple, tmp_path: Path) -> None:
    """A picture comes back, the same for the same order, and another one for another step count or LoRA."""
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "HOME": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
        "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / f"{program}.py"), "--port", str(port)],
            env=environment, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            until = time.monotonic() + LONG
            while b"Running on" not in log.read_bytes():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            client = Client(
                f"http://127.0.0.1:{port}",
                verbose=False,
                analytics_enabled=False,
                download_files=str(tmp_path),
            )
            pictures = [pixels(client.predict(*order, api_name="/draw")) for order in (first, first, other)]
        finally:
            process.kill()
            process.wait(LONG)
    assert pictures[0].shape == (128, 128, 3)
    assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 100  # not one colour
    assert np.array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0].astype(int) - pictures[2]).mean() > 3


def pixels(answer: str) -> np.ndarray:
    with Image.open(answer) as image:
        return np.asarray(image.convert("RGB"))
