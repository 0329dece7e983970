"""Ids of jobs, pictures and servers: 128 random bits in hexadecimal, so that none can be guessed."""

from __future__ import annotations

import re
import secrets

_ID = re.compile(r"[0-9a-f]{32}")


def new_id() -> str:
    """Return an id that nothing has."""
    return secrets.token_hex(16)


def is_id(value: str) -> bool:
    """Whether a text may be an id; no other text reaches a database or a path as one."""
    return _ID.fullmatch(value) is not None
