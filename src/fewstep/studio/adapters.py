"""The gallery of adapters: cards with picture, words that call the style, and a weight.

The value of its component is ``{"html": …, "chosen": [{"name", "weight"}, …]}``: Python makes the cards, the
page's script keeps ``chosen``. Names and words of files come from anywhere, so all of them are escaped, and
none of them stands in a template or in a script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from fewstep.checkpoint import atomic
from fewstep.studio import dial
from fewstep.studio.client import Api, ApiError
from fewstep.studio.markup import text
from fewstep.studio.words import Words

TEMPLATE: Final = "${value ? value.html : ''}"
_LOWEST, _HIGHEST = -2.0, 2.0
_LARGEST: Final = 1 << 20
"""Bytes of a picture that is put into the page."""


def value(
    words: Words, adapters: Iterable[Mapping[str, Any]], chosen: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the component shows.

    Args:
        words: texts.
        adapters: as ``/api/v1/adapters`` lists them; their ``picture`` a data URI or None.
        chosen: of {name, weight}; those that are not there, or do not fit, are dropped.
    """
    listed = list(adapters)
    fitting = {one["name"] for one in listed if one["fits"]}
    kept = {one["name"]: one for one in chosen if one.get("name") in fitting}
    cards = "".join(_card(words, one, kept.get(one["name"])) for one in listed)
    shown = f'<div class="adapters">{cards}</div>' if cards else f"<p>{text(words('adapters.none'))}</p>"
    found = [{"name": name, "weight": _weight(one.get("weight"))} for name, one in kept.items()]
    return {"html": shown, "chosen": found}


def chosen(given: Any) -> list[dict[str, Any]]:
    """The adapters that a value of the component names; none for what is no such value."""
    listed = given.get("chosen") if isinstance(given, Mapping) else given
    if not isinstance(listed, list):
        return []
    return [
        {"name": str(one["name"]), "weight": _weight(one.get("weight"))}
        for one in listed
        if isinstance(one, Mapping) and one.get("name")
    ]


async def listed(api: Api, model: str | None) -> list[dict[str, Any]]:
    """The adapters that there are, with their pictures where there are any."""
    found: list[dict[str, Any]] = (await api.get("/api/v1/adapters", model=model))["adapters"]
    for one in found:
        one["picture"] = await _picture(api, one)
    return found


def undrawn(adapters: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that a picture could be drawn for."""
    return [one for one in adapters if one["fits"] and one["picture"] is None]


async def draw(api: Api, model: Mapping[str, Any], adapter: Mapping[str, Any]) -> str:
    """Draw a picture with an adapter and keep it; a data URI.

    Args:
        api: of the visitor.
        model: as ``/api/v1/models/NAME`` describes it.
        adapter: of `listed`.

    Raises:
        ApiError: the server refuses.
    """
    trigger = ", ".join(adapter["trigger_words"][:2])
    body = {
        "prompt": f"a red apple, {trigger}" if trigger else "a red apple",
        "seed": 0, "steps": model["num_inference_steps"], "do_not_save_samples": True,
        "override_settings": {"sd_model_checkpoint": model["name"]},
        "width": model["native_width"], "height": model["native_height"],
    }  # fmt: skip
    body["prompt"] += f" <lora:{adapter['name']}:{adapter['weight']:g}>"
    answer = await api.post("/sdapi/v1/txt2img", body)
    data = base64.b64decode(answer["images"][0])
    path = _kept(adapter)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, data)
    return _uri(data)


async def _picture(api: Api, adapter: Mapping[str, Any]) -> str | None:
    if adapter["picture"]:
        try:
            data = await api.data(adapter["picture"])
        except ApiError:
            data = b""
        if 0 < len(data) <= _LARGEST:
            return _uri(data)
    try:
        return _uri(_kept(adapter).read_bytes())
    except OSError:
        return None


def _kept(adapter: Mapping[str, Any]) -> Path:
    # By what the file is now: another one of the same name has another picture.
    facts = repr([adapter["name"], adapter["bytes"], adapter["modified"]])
    return dial.folder() / "adapters" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.png"


def _uri(data: bytes) -> str:
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "webp" if data.startswith(b"RIFF") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _weight(given: Any) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError):
        return 1.0
    return min(max(number, _LOWEST), _HIGHEST) if number == number else 1.0


def _card(words: Words, one: Mapping[str, Any], kept: Mapping[str, Any] | None) -> str:
    weight = _weight(one["weight"] if kept is None else kept.get("weight"))
    name, on = text(one["name"]), kept is not None
    picture = (
        f'<img src="{text(one["picture"])}" alt="">'
        if one["picture"]
        else f"<span>{text(one['name'][:1])}</span>"
    )
    off = "" if one["fits"] else " disabled"
    classes = " ".join(["adapter", *(["chosen"] if on else []), *([] if one["fits"] else ["unfit"])])
    trigger = ", ".join(one["trigger_words"])
    notes = [words("adapters.trigger", words=trigger)] if trigger else []
    if not one["fits"]:
        notes.append(one["why"] or "")
    lines = "".join(f"<small>{text(note)}</small>" for note in notes)
    title = text(one["alias"] or one["name"])
    return (
        f'<div class="{classes}" data-adapter="{name}">'
        f'<div class="picture" aria-hidden="true">{picture}</div>'
        f'<label><input type="checkbox"{" checked" if on else ""}{off}> {title}</label>'
        f'<div class="weight"><input type="range" min="{_LOWEST:g}" max="{_HIGHEST:g}" step="0.05" '
        f'value="{weight:g}" aria-label="{text(words("adapters.weight", name=one["name"]))}"{off}>'
        f"<output>{weight:.2f}</output></div>{lines}</div>"
    )
