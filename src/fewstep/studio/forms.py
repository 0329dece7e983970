"""Fields of an order of long work as components, from the schema of its body.

Names, choices and bounds are the schema's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import gradio as gr
from pydantic import BaseModel

from fewstep.errors import UsageError
from fewstep.studio.words import Words

_COLUMNS: Final = 2
_NUMBERS: Final[Mapping[str, type[int] | type[float]]] = {"integer": int, "number": float}


def optional(
    words: Words, part: str, body: type[BaseModel], names: Iterable[str], *, tab: str
) -> dict[str, gr.Textbox | gr.Dropdown]:
    """Components by name of the field; what is left empty is not in the order.

    Args:
        words: ``part.NAME`` is the label of a field.
        part: of the texts.
        body: a model of `fewstep.server.schemas.work`.
        names: its fields.
        tab: begin of the components' ids.
    """
    made: dict[str, gr.Textbox | gr.Dropdown] = {}
    row = None
    for place, name in enumerate(names):
        if place % _COLUMNS == 0:
            row = gr.Row()
        assert row is not None
        with row:
            made[name] = _component(words, part, body, name, tab)
    return made


def _component(
    words: Words, part: str, body: type[BaseModel], name: str, tab: str
) -> gr.Textbox | gr.Dropdown:
    schema, label = _schema(body, name), words(f"{part}.{name}")
    how: dict[str, Any] = {"label": label, "elem_id": f"{tab}-{name.replace('_', '-')}", "min_width": 140}
    if choices := schema.get("enum"):
        listed = [(words("forms.auto"), ""), *((str(one), str(one)) for one in choices)]
        return gr.Dropdown(listed, value="", **how)
    return gr.Textbox(placeholder=_bounds(words, schema), max_lines=1, **how)


def given(words: Words, part: str, body: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an order from what stands in the components of `optional`.

    Raises:
        UsageError: a text that is no number where there must be one; the server checks everything else.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or str(value).strip() == "":
            continue
        schema = _schema(body, name)
        convert = _NUMBERS.get(schema.get("type", ""), str)
        if choices := schema.get("enum"):
            convert = type(choices[0])
        try:
            found[name] = convert(str(value).strip())
        except ValueError:
            raise UsageError(words("forms.no_number", name=words(f"{part}.{name}"), value=value)) from None
    return found


def _schema(body: type[BaseModel], name: str) -> Mapping[str, Any]:
    whole = body.model_json_schema()["properties"][name]
    parts = [one for one in whole.get("anyOf", [whole]) if one.get("type") != "null"]
    schema: Mapping[str, Any] = parts[0]
    return schema


def _bounds(words: Words, schema: Mapping[str, Any]) -> str:
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    if least is None or most is None:
        return words("forms.auto")
    return words("forms.between", least=f"{least:g}", most=f"{most:,.10g}")
