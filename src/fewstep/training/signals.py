"""Signals: the first asks the loop to save and stop, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


class StopSignals:
    """Context manager that notes SIGTERM, SIGINT and SIGUSR1 in `received` and restores the handlers at exit.

    Outside the main thread Python cannot install handlers; then nothing is caught.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)  # SIGUSR1 does not exist on Windows
                if number is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
            return
        # Someone is in a hurry: no saving, no clean-up that could hang; the last checkpoint is complete.
        os._exit(128 + number)
