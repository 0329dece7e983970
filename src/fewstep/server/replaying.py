"""A picture of fewstep once more, from its record alone, and how far the two are from each other."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import ValidationError

from fewstep.engine.upscaling import catalogue
from fewstep.errors import UsageError
from fewstep.prompt.networks import cut_networks
from fewstep.server import media, native
from fewstep.server.schemas.native import GenerateBody
from fewstep.server.schemas.reading import ReplayView

if TYPE_CHECKING:
    from fewstep.server.orders import Drawn, Order
    from fewstep.server.reading import Read
    from fewstep.server.settings import ServerSettings

CLOSE: Final = 8
"""Levels of 255 by which no pixel may differ more, where a difference can hardly be seen."""
_SAME: Final = (
    "prompt", "negative_prompt", "model", "num_inference_steps", "guidance_scale", "guidance_rescale",
    "solver", "eta", "seed", "width", "height", "clip_skip", "emphasis", "insist", "image_guidance_scale",
)  # fmt: skip
_SPACINGS: Final = frozenset("abcdefghijklmnopqrstuvwxyz_")
_IRRELEVANT: Final = frozenset(
    {"warnings", "deterministic", "licence", "template", "negative_template", "history"}
)
"""Entries of a record that decide no pixel."""
_ELSEWHERE: Final = "it began with a picture, which its file does not hold: send it to Create with that one"


def order(record: Mapping[str, Any], settings: ServerSettings, *, owner: str) -> Order:
    """What draws a record again, one picture alone and kept nowhere.

    Args:
        record: from a file, so anybody's.
        settings: of the server.
        owner: who asks.

    Raises:
        UsageError: it cannot be drawn again from its record, and why.
    """
    if "extras" in record:
        raise UsageError("image: it was enlarged after it was drawn: give the picture that it came from")
    if record.get("init_image_hash") or record.get("mask_hash"):
        raise UsageError(f"image: {_ELSEWHERE}")
    if record.get("control"):
        raise UsageError("image: a control network drew it, whose picture its file does not hold")
    values = {name: record[name] for name in _SAME if record.get(name) is not None}
    try:
        # One alone, so that nothing else that is drawn decides how sums are rounded.
        values |= {"n": 1, "deterministic": True, "save": False, **_parts(record)}
        body = GenerateBody.model_validate(values)
        made = native.order(body, settings, owner=owner)
        return dataclasses.replace(made, settings={**made.settings, **_further(record)}, recorded=False)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(f"image: {where} of its record cannot be: {error.errors()[0]['msg']}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"image: its record has another form ({type(error).__name__})") from None


def compared(before: Read, drawn: Drawn) -> ReplayView:
    """What became of it."""
    assert before.facts.record is not None
    now, record = drawn.images[0], drawn.records[0]
    reasons = _reasons(before, record)
    largest: int | None = None
    share: float | None = None
    verdict: Literal["equal", "close", "different"] = "different"
    if now.shape == before.pixels.shape:
        difference = np.abs(now.astype(np.int16) - before.pixels).max(axis=2)
        largest, share = int(difference.max()), float(np.count_nonzero(difference)) / difference.size
        if largest <= CLOSE:
            verdict = "close" if largest else "equal"
    else:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (before.pixels.shape, now.shape)]
        reasons.insert(
            0, f"the file is {sizes[0]}, and its record makes {sizes[1]}: it was changed afterwards"
        )
    if verdict != "equal" and not reasons:
        reasons.append(
            "the record is the same: another processor or library rounds otherwise, as does drawing several "
            "pictures together, or the file was changed afterwards"
        )
    data = media.encode(now, kind="png", infotext=drawn.infotexts[0], record=record)
    return ReplayView(
        verdict=verdict, largest=largest, share=share, reasons=reasons, record=record,
        image=base64.b64encode(data).decode(),
    )  # fmt: skip


def _parts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an order whose form in records is another."""
    found: dict[str, Any] = {"student": (record.get("student") or {"name": "none"})["name"]}
    if variation := record.get("variation"):
        found |= {"variation_seed": variation["seed"], "variation_strength": variation["strength"]}
    if second := record.get("hires"):
        size = ("width", "height") if second.get("scale") is None else ("scale",)
        found["hires"] = {
            **{name: second[name] for name in size}, "steps": second["num_inference_steps"],
            "strength": second["strength"], "upscaler": _upscaler(second["upscaler"]),
        }  # fmt: skip
    tagged = {network.name for network in cut_networks(str(record.get("prompt") or ""))[1]}
    found["adapters"] = [
        {key: one[key] for key in ("name", "weight", "text_weight")}
        for one in record.get("adapters") or ()
        if one["name"] not in tagged
    ]
    if upscale := record.get("upscale"):
        found["upscale"] = {"name": _upscaler(upscale["name"])}
        if "to" in upscale:
            width, height = str(upscale["to"]).split("x")
            found["upscale"] |= {"width": int(width), "height": int(height)}
    return found


def _further(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the engine that the native API has no fields for."""
    found: dict[str, Any] = {}
    spacing = record.get("spacing")
    if isinstance(spacing, str) and set(spacing) <= _SPACINGS:
        found["spacing"] = spacing
    size = (record.get("variation") or {}).get("resize_from")
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        found["seed_resize"] = tuple(size)
    if record.get("vae_tiling") is True:
        found["tiling"] = True
    return found


def _upscaler(name: str) -> str:
    """The name of an upscaler that records call so: by its network's file, or as we do."""
    for own, one in catalogue.UPSCALERS.items():
        if name == own or name in {network.name for network in one.networks.values()}:
            return own
    return str(name)


def _reasons(before: Read, now: Mapping[str, Any]) -> list[str]:
    record = before.facts.record or {}
    found: list[str] = []
    if before.facts.format != "PNG":
        found.append(f"{before.facts.format} does not keep pixels as they were")
    if record.get("fewstep") != now["fewstep"]:
        found.append(f"it was drawn by fewstep {_short(record.get('fewstep'))}, now it is {now['fewstep']}")
    if record.get("model_hash") != now["model_hash"]:
        found.append(
            f"model {_short(now['model'])} is another than the one that drew it: its hash was "
            f"{str(record.get('model_hash'))[:10]}, now it is {now['model_hash'][:10]}"
        )
    known = {"fewstep", "model_hash", "model", *_IRRELEVANT}
    return found + [
        f"{name} was {_short(record.get(name))}, now it is {_short(now.get(name))}"
        for name in _names(record, now)
        if name not in known and _plain(record.get(name)) != _plain(now.get(name))
    ]


def _names(*records: Mapping[str, Any]) -> Iterable[str]:
    return dict.fromkeys(name[:60] for record in records for name in list(record)[:100])


def _plain(value: Any) -> Any:
    """As JSON leaves it."""
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any, most: int = 120) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= most else f"{text[:most]}…"
