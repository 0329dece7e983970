"""What the history looks like: HTML of its grid, of one picture's facts, and of where it came from."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from fewstep.prompt import infotext
from fewstep.studio.markup import rows, text
from fewstep.studio.words import Words

_ALT: Final = 200
"""Characters of a prompt that stand for a picture."""


def grid(
    images: Sequence[Mapping[str, Any]], words: Words, *, chosen: Collection[str] = (), empty: str
) -> str:
    """Small pictures that can be chosen.

    Args:
        images: of ``/api/v1/images``.
        words: texts.
        chosen: ids of those that are.
        empty: what is said when there are none.
    """
    if not images:
        return f"<p class='empty'>{text(empty)}</p>"
    focus = next((one["id"] for one in images if one["id"] in chosen), images[0]["id"])
    tiles = [
        f"<li role='option' id='history-{one['id']}' data-id='{one['id']}' "
        f"tabindex='{0 if one['id'] == focus else -1}' "
        f"aria-selected='{'true' if one['id'] in chosen else 'false'}' aria-label='{_name(one, words)}'>"
        f"<img src='{one['thumbnail']}' alt='' loading='lazy' decoding='async'>"
        f"<span class='pick' aria-hidden='true'></span>"
        f"{_star(one)}</li>"
        for one in images
    ]
    label = text(words("history.grid"))
    return f"<ul role='listbox' aria-multiselectable='true' aria-label='{label}'>{''.join(tiles)}</ul>"


def details(view: Mapping[str, Any] | None, words: Words) -> str:
    """A picture and its facts; empty without one."""
    if view is None:
        return ""
    record = view["record"]
    student = record.get("student")
    pairs: list[tuple[str, object]] = [
        (words("history.prompt"), view["prompt"]),
        (words("history.negative_prompt"), view["negative_prompt"]),
        (words("history.model"), view["model"]),
        (words("history.student"), student.get("name") if isinstance(student, Mapping) else student),
        (words("history.steps"), record.get("num_inference_steps")),
        (words("history.guidance"), record.get("guidance_scale")),
        (words("history.solver"), record.get("solver")),
        (words("history.seed"), record.get("seed")),
        (words("history.size"), f"{view['width']} x {view['height']}"),
        (words("history.file"), f"{view['kind'].upper()}, {view['size'] / 1000:.1f} kB"),
        (words("history.made"), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view["created"]))),
        (words("history.client"), view["client"]),
        (words("history.tags"), ", ".join(view["tags"])),
    ]
    return (
        f"<figure><img id='history-picture' data-id='{view['id']}' src='{view['url']}' "
        f"alt='{_name(view, words)}' width='{view['width']}' height='{view['height']}'></figure>{rows(pairs)}"
    )


def lineage(found: Mapping[str, Any] | None, parent: str | None, words: Words) -> str:
    """Pictures that one came from and that came from it, as buttons that lead there.

    Args:
        found: of ``/api/v1/images/ID/lineage``; None before a picture is chosen.
        parent: id of what it was made from, which may be gone.
        words: texts.
    """
    if found is None:
        return ""
    parts = []
    for name in ("parents", "children"):
        if there := found[name]:
            inside = "".join(
                f"<button type='button' data-open='{one['id']}' aria-label='{_name(one, words)}'>"
                f"<img src='{one['thumbnail']}' alt='' loading='lazy'></button>"
                for one in there
            )
            parts.append(f"<h4>{text(words(f'history.{name}'))}</h4><div class='row {name}'>{inside}</div>")
    if parent is not None and not found["parents"]:
        parts.append(f"<p>{text(words('history.gone'))}</p>")
    return "".join(parts) or f"<p>{text(words('history.no_lineage'))}</p>"


def infotext_of(view: Mapping[str, Any] | None) -> str:
    """The settings of a picture as the WebUI writes them; empty for a record that has none."""
    if view is None:
        return ""
    try:
        return infotext.from_record(view["record"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def _name(view: Mapping[str, Any], words: Words) -> str:
    prompt = view["prompt"][:_ALT] or words("history.grid")
    return text(f"★ {prompt}" if view["favourite"] else prompt)


def _star(view: Mapping[str, Any]) -> str:
    return "<span class='star' aria-hidden='true'>★</span>" if view["favourite"] else ""
