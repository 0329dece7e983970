"""``fewstep serve`` whose fake engine waits at every step for a file: ``gated_server.py GATE -- OPTIONS``.

Warm-up runs through when the file ``GATE.warm`` is there. Every denoiser call adds a byte to ``GATE.calls``;
it ends its thread when ``GATE.die`` is there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fewstep.engine.backends.fake import FakeBackend

gate = Path(sys.argv[1])
warm, calls = gate.with_suffix(".warm"), gate.with_suffix(".calls")
plain = FakeBackend.denoise


def denoise(self: FakeBackend, *given: Any, **named: Any) -> Any:
    with calls.open("ab") as file:
        file.write(b".")
    if gate.with_suffix(".die").exists():
        raise SystemExit("the worker dies")
    while not (gate.exists() or warm.exists()):
        time.sleep(0.005)
    warm.unlink(missing_ok=True)  # good for one call, which is the warm-up's
    return plain(self, *given, **named)


if __name__ == "__main__":
    FakeBackend.denoise = denoise  # type: ignore[method-assign]
    from fewstep.cli.main import main

    sys.argv = ["fewstep", "serve", "--engine", "fake", *sys.argv[3:]]
    sys.exit(main())
