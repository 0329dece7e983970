"""Distil: fewer steps for a model."""

from __future__ import annotations

from fewstep.studio.frame import Frame


def build(frame: Frame) -> None:
    """The tab."""
