"""Option values from text without pydantic.

Typer 0.29 converts every value, even a plain string, through pydantic, whose import takes as long as all the
rest of the command line together (0.08 s of 0.15). The types that our options have need none of it. An option
of another type, or a typer that works differently inside, still goes typer's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

_CONVERT: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    Path: (Path, "a path"),
    bool: (bool, "a flag"),
}


class _Plain:
    """Stands where typer keeps the converter of one parameter."""

    def __init__(self, kind: Any, many: bool) -> None:
        self.kind = kind
        self.many = many

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if self.many else None
        return [self._one(item, param, ctx) for item in value] if self.many else self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        convert, name = _CONVERT[self.kind]
        try:
            return convert(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not {name}", ctx=ctx, param=param) from None


def use_plain_types(params: Any) -> Any:
    """Give the parameters of a typer command converters that need no pydantic, where their type allows it."""
    for param in params:
        descriptor = getattr(param, "type_descriptor", None)
        # Without this attribute typer does not convert in the way that is replaced here.
        if descriptor is None or getattr(param, "_runtime_param", descriptor) is not None:
            continue
        info = descriptor.parameter_info
        if info.parser is not None or info.min is not None or info.max is not None:
            continue
        annotation = descriptor.annotation
        many = getattr(annotation, "__origin__", None) is list
        kind = annotation.__args__[0] if many else annotation
        if kind in _CONVERT:
            param._runtime_param = _Plain(kind, many)
    return params
