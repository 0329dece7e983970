"""History: every picture that was made."""

from __future__ import annotations

from fewstep.studio.frame import Frame


def build(frame: Frame) -> None:
    """The tab."""
