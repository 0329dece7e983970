"""Builds hostile files; nothing hostile is kept in the repository."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(canary: Path) -> dict[str, Any]:
    import pip

    return {
        "system": Payload(os.system, f"touch {canary}"),
        "exec": Payload(exec, f"open({str(canary)!r}, 'w')"),
        "open": Payload(open, str(canary), "w"),
        "pip": Payload(pip.main, ["download", "--dest", str(canary), "nothing"]),
    }


def hostile(path: Path, payload: Any, form: str = "torch") -> Path:
    """A checkpoint that calls the payload, as torch writes it or as a bare pickle."""
    content = {"state_dict": {"weight": torch.ones(2), "x": payload}}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"x": payload}, protocol=int(form)))
    return path
