"""What the list of models looks like, and what is known of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fewstep.studio.markup import rows, text
from fewstep.studio.words import Words
from fewstep.studio.working import size

_ORIGINS: Final = ("bundled", "named", "user")


def table(models: Sequence[Mapping[str, Any]], chosen: str | None, words: Words) -> str:
    """All models, of ``/api/v1/models``; the name of each is a button that chooses it."""
    titles = "".join(
        f"<th scope='col' class='{kind}'>{text(words(f'models.{name}'))}</th>"
        for name, kind in (
            ("name", ""), ("kind", ""), ("size", "number"), ("state", ""), ("origin", "origin"),
        )
    )  # fmt: skip
    lines = []
    for one in models:
        marks = [words(f"models.{name}") for name in ("loaded", "default", "draft") if one[name]]
        state = "".join(f"<span class='mark'>{text(mark)}</span>" for mark in marks)
        name = text(one["name"])
        pressed = "true" if one["name"] == chosen else "false"
        lines.append(
            f"<tr data-open='{name}' class='{'chosen' if one['name'] == chosen else ''}'>"
            f"<td><button type='button' aria-pressed='{pressed}' data-open='{name}'>{name}</button></td>"
            f"<td>{text(words('models.kind_' + one['kind']))}</td>"
            f"<td class='number'>{text(size(one['bytes']))}</td><td>{state}</td>"
            f"<td class='origin'>{text(_origin(one, words))}</td></tr>"
        )
    label = text(words("models.list"))
    return (
        f"<table aria-label='{label}'><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def details(model: Mapping[str, Any] | None, words: Words) -> str:
    """What is known of a model, of ``/api/v1/models/NAME``."""
    if model is None:
        return f"<p>{text(words('models.choose'))}</p>"
    students = [
        words(
            "models.student", name=one["name"], steps=", ".join(map(str, one["steps"])), method=one["method"]
        )
        for one in model["students"]
    ]
    sizes = words("models.sizes_value", max=model["max_size"], multiple=model["size_multiple"])
    pairs: list[tuple[str, object]] = [
        (words("models.kind"), words("models.kind_" + model["kind"])),
        (words("models.size"), size(model["bytes"])),
        (words("models.licence"), model["licence"]),
        (words("models.family"), model["family"]),
        (words("models.native"), f"{model['native_width']} x {model['native_height']}"),
        (words("models.sizes"), sizes),
        (words("models.students"), "\n".join(students)),
        (words("models.steps"), model["num_inference_steps"]),
        (words("models.guidance"), f"{model['guidance_scale']:g}"),
        (words("models.solver"), model["solver"]),
        (words("models.predicts"), model["prediction_type"]),
        (words("models.origin"), _origin(model, words)),
        (words("models.hash"), model["hash"]),
    ]
    return f"<h3>{text(model['name'])}</h3>{rows(pairs)}"


def _origin(model: Mapping[str, Any], words: Words) -> str:
    origin = model["origin"]
    return words(f"models.origin_{origin}" if origin in _ORIGINS else "models.origin_folder")
