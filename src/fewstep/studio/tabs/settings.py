"""Settings: of the studio, kept on disk."""

from __future__ import annotations

from fewstep.studio.frame import Frame


def build(frame: Frame) -> None:
    """The tab."""
