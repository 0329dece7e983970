"""Plays `fewstep.cli.child` in place of the real one: ``fake_child.py CONFIG``.

The trigger says what it does. ``fast``: makes its product at once. ``slow``: draws a sample and works until
it is told to stop, which it does as a training does, with a note of what it had. ``deaf``: does not stop.
``parent``: starts a process of its own and waits. ``bad``: fails with a path in its message. ``loud``: says
much.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Play one command."""
    config = Path(sys.argv[1])
    given = json.loads(config.read_text())
    options = dict(given["arguments"]["options"])
    run = Path(options["run"]) if "run" in options else config.parent / "run"
    run.mkdir(parents=True, exist_ok=True)
    (config.parent / "seen.json").write_text(
        json.dumps({"given": given, "environment": dict(os.environ), "again": (run / "saved").exists()})
    )
    what = options.get("trigger", "fast")
    note("encoding 1/2")
    if what == "bad":
        note(f"error: {config.parent}/secret/place.txt: cannot be read; give another")
        return 6
    if what == "loud":
        sys.stderr.write("x" * 3_000_000 + "\n")
        sys.stdout.write("y" * 3_000_000)
    if what in ("slow", "deaf", "parent"):
        work(what, run)
    made(given, options)
    note("600 of 600 images, 9.0 images/s loss 0.1000, 0:00:00 left")
    return 0


def work(what: str, run: Path) -> None:
    """Work without an end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if what == "deaf" else stop)
    if what == "parent":
        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (run / "grandchild").write_text(str(started.pid))
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / "0000000300.png").write_bytes(b"\x89PNG")
    note("300 of 600 images, 9.0 images/s loss 0.2000, 0:00:33 left")
    folders.append(run)
    while not (run / "go").exists():
        time.sleep(0.02)


folders: list[Path] = []


def stop(number: int, frame: object) -> None:
    """Save, and end as a training does."""
    (folders[0] / "saved").write_text("x")
    note(f"cancelled: everything is saved; go on with --resume --run {folders[0]}")
    sys.exit(130)


def made(given: dict[str, Any], options: dict[str, str]) -> None:
    """Leave what the command leaves."""
    out = Path(options["out"]) if "out" in options else None
    if given["command"] == "upscale":
        from PIL import Image

        assert out is not None
        for path in sorted(Path(given["arguments"]["positionals"][0]).iterdir()):
            with Image.open(path) as image:
                image.resize((4 * image.width, 4 * image.height)).save(out / f"{path.stem}.png")
    elif given["command"] == "evaluate":
        report = {"model": "fake", "place": str(Path.home() / "private" / "model")}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif given["command"] == "distill":
        (Path(options["run"]) / "student").mkdir()
        (Path(options["run"]) / "student" / "model_index.json").write_text("{}")
    elif out is not None and out.suffix == ".safetensors":
        out.write_bytes(b"weights")
    elif out is not None and given["command"] != "data":
        out.mkdir()
        (out / "model_index.json").write_text("{}")


def note(text: str) -> None:
    """As the command line says things."""
    sys.stderr.write(f"fewstep: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
