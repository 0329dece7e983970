"""X/Y/Z plots without a page: what is written for an axis, the orders of the cells, how they are called.

The grammar is the WebUI's: ``1-5`` is 1, 2, 3, 4, 5; ``1-10 (+3)`` 1, 4, 7, 10; ``1-10 [4]`` four numbers
evenly spread; values are separated by commas; texts with a comma stand in double quotes.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from fewstep.errors import UsageError

Kind = Literal["int", "float", "text", "size", "replace"]
Value = int | float | str
AXES: Final[Mapping[str, Kind]] = {
    "seed": "int", "num_inference_steps": "int", "quality": "text", "prompt": "replace",
    "negative_prompt": "replace", "guidance_scale": "float", "solver": "text", "model": "text",
    "student": "text", "adapter_weight": "float", "size": "size", "strength": "float",
    "guidance_rescale": "float", "variation_strength": "float", "eta": "float", "clip_skip": "int",
    "image_guidance_scale": "float",
}  # fmt: skip
"""Settings that may be an axis, and how their values are written."""
MOST_VALUES: Final = 100
MOST_CELLS: Final = 400
TEACHER: Final = "teacher"
"""On the axis of quality: the model itself, with all its steps."""

_NUMBER: Final = r"[+-]?\d+(?:\.\d+)?"
_RANGE: Final = re.compile(
    rf"(?P<first>{_NUMBER})\s*-\s*(?P<last>{_NUMBER})\s*"
    rf"(?:\(\s*(?P<step>[+-]?\d+(?:\.\d+)?)\s*\)|\[\s*(?P<count>\d+)\s*\])?"
)
_SIZE: Final = re.compile(r"(\d+)\s*[x×*]\s*(\d+)", re.IGNORECASE)
_OF_STUDENTS: Final = ("student", "solver", "guidance_scale", "guidance_rescale", "eta")

Stops = Mapping[str, Mapping[str, Any]]
"""Name of a stop of the dial to the fields of an order that it sets."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Args:
        name: of `AXES`.
        values: what it takes one after the other.
    """

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of the plot.

    Args:
        x, y, z: column, row and sheet.
        body: its order, see `fewstep.server.schemas.native.GenerateBody`.
    """

    x: int
    y: int
    z: int
    body: Mapping[str, Any]


def parse(name: str, written: str) -> Axis:
    """The axis of a setting.

    Args:
        name: of `AXES`.
        written: its values, see the module.

    Raises:
        UsageError: names the axis, what is wrong in it and what to write.
    """
    kind = AXES[name]
    parts = [part.strip() for part in _split(written)]
    parts = [part for part in parts if part or kind == "replace"]
    if not any(parts):
        raise UsageError(f"{name}: there is no value; write some, with commas between them")
    values: list[Value] = []
    for part in parts:
        if kind in ("int", "float"):
            values += _numbers(name, part, whole=kind == "int")
        elif kind == "size":
            match = _SIZE.fullmatch(part)
            if match is None:
                raise UsageError(f"{name}: {part!r} is no size; write it as 128x192")
            values.append(f"{int(match[1])}x{int(match[2])}")
        else:
            values.append(part)
    if len(values) > MOST_VALUES:
        raise UsageError(f"{name}: {len(values)} values are too many; give at most {MOST_VALUES}")
    return Axis(name, tuple(values))


def cells(base: Mapping[str, Any], axes: Sequence[Axis], stops: Callable[[str | None], Stops]) -> list[Cell]:
    """The orders of a plot, those of one model together.

    Args:
        base: an order; what no axis says stands in all cells. Its seed must be given.
        axes: one to three, each of another setting.
        stops: those of the dial of a model by its name; None is the server's own model.

    Raises:
        UsageError: two axes are the same, there are too many cells, or a value does not fit the order.
    """
    if not axes:
        raise UsageError("there is no axis: choose a setting for X, and its values")
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise UsageError("two axes are the same setting: choose another one for each")
    counts = ([len(axis.values) for axis in axes] + [1, 1])[:3]
    if counts[0] * counts[1] * counts[2] > MOST_CELLS:
        raise UsageError(
            f"{' x '.join(map(str, counts))} are {counts[0] * counts[1] * counts[2]} pictures; "
            f"give fewer values, for at most {MOST_CELLS}"
        )
    found = []
    for z, y, x in itertools.product(*(range(count) for count in reversed(counts))):
        chosen = {axis.name: axis.values[place] for axis, place in zip(axes, (x, y, z), strict=False)}
        found.append(Cell(x, y, z, order(base, axes, chosen, stops)))
    # Another model's networks have to be loaded: as seldom as may be.
    return sorted(found, key=lambda cell: str(cell.body.get("model") or "")) if "model" in names else found


def order(
    base: Mapping[str, Any], axes: Sequence[Axis], chosen: Mapping[str, Value],
    stops: Callable[[str | None], Stops],
) -> dict[str, Any]:  # fmt: skip
    """The order of one cell.

    Args:
        base: what stands in all of them.
        axes: of the plot; the first value of a text axis is what the others take the place of.
        chosen: value of each axis, by name.
        stops: see `cells`.

    Raises:
        UsageError: a text that is not in the prompt, a stop that the model does not have, no adapter.
    """
    body = {**base, "n": 1}
    if "model" in chosen:
        body["model"] = chosen["model"]
    if "num_inference_steps" in chosen and body.get("student", "none") != "none":
        # Of a student that cannot: the server finds the one for so many steps.
        for name in _OF_STUDENTS:
            body.pop(name, None)
    if "quality" in chosen:
        there = stops(body.get("model"))
        wanted = str(chosen["quality"]).strip().lower()
        if wanted not in there:
            raise UsageError(f"quality: there is no {wanted!r}; this model has {', '.join(there)}")
        body |= there[wanted]
    for axis in axes:
        _set(body, axis, chosen[axis.name])
    return body


def label(name: str, value: Value) -> str:
    """What stands beside a row or above a column."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def key_of(plan: str, cell: Cell) -> str:
    """Idempotency key of a cell: the same plot, continued after a reload, draws nothing twice."""
    return f"xyz-{plan}-{cell.x}-{cell.y}-{cell.z}"


def table(found: Mapping[tuple[int, int, int], str], axes: Sequence[Axis]) -> list[list[list[str | None]]]:
    """Ids by sheet, row and column, as ``/api/v1/images/grid`` takes them."""
    counts = ([len(axis.values) for axis in axes] + [1, 1])[:3]
    return [
        [[found.get((x, y, z)) for x in range(counts[0])] for y in range(counts[1])] for z in range(counts[2])
    ]


def _set(body: dict[str, Any], axis: Axis, value: Value) -> None:
    name = axis.name
    if name in ("quality", "model"):
        return
    if AXES[name] == "replace":
        wanted, text = str(axis.values[0]), str(body.get(name) or "")
        if wanted not in text:
            where = "the prompt" if name == "prompt" else "the negative prompt"
            raise UsageError(f"{name}: {wanted!r} is not in {where}; begin with a text that is")
        body[name] = text.replace(wanted, str(value))
    elif name == "size":
        width, height = str(value).split("x")
        body |= {"width": int(width), "height": int(height)}
    elif name == "adapter_weight":
        if not body.get("adapters"):
            raise UsageError("adapter_weight: no adapter is chosen; choose one in Create")
        body["adapters"] = [{**one, "weight": value} for one in body["adapters"]]
    else:
        if name == "strength" and not body.get("image"):
            raise UsageError("strength: there is no picture to start from; give one in Create")
        body[name] = value


def _split(written: str) -> list[str]:
    lines = [line for line in written.splitlines() if line.strip()] or [""]
    return [part for row in csv.reader(lines, skipinitialspace=True) for part in row]


def _numbers(name: str, part: str, *, whole: bool) -> list[Value]:
    what = "whole number" if whole else "number"
    match = _RANGE.fullmatch(part)
    if match is None:
        if re.fullmatch(_NUMBER, part) is None:
            raise UsageError(f"{name}: {part!r} is no {what}; write 4, 1-5, 1-10 (+3) or 1-10 [4]")
        found = [Decimal(part)]
    else:
        first, last = Decimal(match["first"]), Decimal(match["last"])
        found = (
            _spread(name, first, last, int(match["count"]), whole=whole) if match["count"]
            else _stepped(name, part, first, last, match["step"])
        )  # fmt: skip
    if whole and any(value != int(value) for value in found):
        raise UsageError(f"{name}: {part!r} has a fraction; give whole numbers")
    return [int(value) if whole else float(value) for value in found]


def _spread(name: str, first: Decimal, last: Decimal, count: int, *, whole: bool) -> list[Decimal]:
    if not 1 <= count <= MOST_VALUES:
        raise UsageError(f"{name}: [{count}] values; give 1 to {MOST_VALUES}")
    if count == 1:
        return [first]
    found = [first + (last - first) * i / (count - 1) for i in range(count)]
    return [Decimal(round(value)) for value in found] if whole else found


def _stepped(name: str, part: str, first: Decimal, last: Decimal, written: str | None) -> list[Decimal]:
    step = Decimal(written) if written else Decimal(1 if last >= first else -1)
    if step == 0 or (last - first) * step < 0:
        raise UsageError(f"{name}: {part!r} never gets to {last}; give a step that leads there")
    count = int((last - first) / step) + 1
    if count > MOST_VALUES:
        raise UsageError(f"{name}: {part!r} is {count} values; give at most {MOST_VALUES}")
    return [first + step * i for i in range(count)]
