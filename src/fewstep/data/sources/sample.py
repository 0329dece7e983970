"""One sample of an image-text set as it comes from disk, before anything about it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file, not yet opened, and its caption.

    Attributes:
        key: name of the sample in reports.
        image: the image file, or its bytes.
        caption: the caption, as it stands in the set.
        metadata: whatever else the set says about the sample (scores, sizes).
    """

    key: str
    image: Path | bytes
    caption: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """An image-text set with a fixed order."""

    def __len__(self) -> int:
        """Return the number of samples, broken ones included."""
        ...

    def key(self, index: int) -> str:
        """Return the name of a sample, also of one that cannot be read."""
        ...

    def read(self, index: int) -> Sample:
        """Return a sample; the image is not opened.

        Raises:
            DataError: this sample cannot be read (the message is the reason for the report).
        """
        ...

    def fingerprint(self) -> str:
        """Return a hash (hex digits) of names, sizes and captions."""
        ...
