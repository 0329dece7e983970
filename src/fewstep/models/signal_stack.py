"""Keeping the thread's alternate signal stack out of OpenVINO's hands.

OpenVINO's CPU plugin (seen with 2026.4) gives the thread that compiles a network an alternate signal
stack of its own, and takes it away in the thread that frees the plugin. If that is another thread, the
first one is left with a stack whose memory is gone. Python's signal handlers run on that stack, so the
next Ctrl-C is a segmentation fault instead of a KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from typing import Any


class _Stack(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Give the calling thread the alternate signal stack back that it had, when the block ends.

    Networks that the block made and dropped are collected first: freeing one is what spoils the stack. Does
    nothing where there is no such stack (Windows) or its layout is another (macOS).
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc: Any = ctypes.CDLL(None, use_errno=True)
    before = _Stack()
    if libc.sigaltstack(None, ctypes.byref(before)) != 0:
        yield
        return
    try:
        yield
    finally:
        gc.collect()
        libc.sigaltstack(ctypes.byref(before), None)
