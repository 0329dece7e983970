"""Shared by the command line tests."""

import logging
import struct
import zlib
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    """Commands install a handler for their process; here other tests share it."""
    logger = logging.getLogger("fewstep")
    before = (list(logger.handlers), logger.level)
    yield
    logger.handlers, logger.level = before


@pytest.fixture
def bomb() -> bytes:
    """A PNG of a few bytes whose header says 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
