"""X/Y/Z plot: pictures over two or three settings."""

from __future__ import annotations

from fewstep.studio.frame import Frame


def build(frame: Frame) -> None:
    """The tab."""
