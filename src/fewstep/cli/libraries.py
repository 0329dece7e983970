"""Settings of the libraries that only torch commands use."""

from __future__ import annotations

import os


def quiet_libraries(*, offline: bool = True) -> None:
    """Keep torch's companions from printing progress of their own and from telling about their use.

    Their settings are read when they are imported, so this goes first. What the user has set stays.

    Args:
        offline: also keep them from reaching the network; not for training, whose data may come from there.
    """
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        *([("HF_HUB_OFFLINE", "1")] if offline else []),
    ):
        os.environ.setdefault(name, value)
