"""`gated_server.py` as a process, for tests of how a server starts and ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
LONG = 60.0
"""Seconds after which a test has failed; nothing takes that long, also on a busy machine."""

sys.path.insert(0, str(HERE.parents[1] / "api"))

from served import until  # noqa: E402


class Server:
    """A server in its own process, with one order at a time."""

    def __init__(self, folder: Path, *options: str, warm: bool = True) -> None:
        self.gate = folder / "gate"
        if warm:
            self.gate.with_suffix(".warm").touch()
        self.data = folder / "data"
        environment = {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [
                sys.executable, str(HERE / "gated_server.py"), str(self.gate), "--", "--data", str(self.data),
                "--port", "0", "--batch", "1", *options,
            ],
            env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.log = ""
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not (self._listening.wait(LONG) and self.url):
            self.process.kill()
            raise AssertionError(self.log)
        if warm:
            until(self.ready, LONG)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            found = re.search(r"listening on (http://127\.0\.0\.1:[1-9]\d*)", line)
            if found:
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    def get(self, path: str, **given: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=LONG, **given)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=LONG)

    def ready(self) -> bool:
        return self.get("/readyz").status_code == 200

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    @property
    def calls(self) -> int:
        """Denoiser calls that began, the warm-up's too."""
        return self.gate.with_suffix(".calls").stat().st_size

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        self._reader.join(LONG)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def ended(self, seconds: float = LONG) -> int:
        code = self.process.wait(seconds)
        self._reader.join(LONG)
        return code


@contextlib.contextmanager
def server(folder: Path, *options: str, warm: bool = True) -> Iterator[Server]:
    """A server that listens, and, unless it is told not to be, is ready; at the end it is gone."""
    made = Server(folder, *options, warm=warm)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait(LONG)
        made.close()
