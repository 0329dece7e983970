"""The "parameters" text that AUTOMATIC1111's web UI writes into images, as text: writer and reader.

The form is that of its ``create_infotext`` and ``parse_generation_parameters`` (version 1.10)::

    text   = prompt [newline "Negative prompt: " negative] newline items
    items  = item *(", " item)
    item   = key ": " value        or just the key when the value equals it
    value  = bare text, or a JSON string when the text holds a comma, a newline or a colon

Where the text sits inside an image file is the business of `fewstep.prompt.containers`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import DataError
from fewstep.prompt import infotext_modes

# Bounds against text made to be slow to read: real keys have at most about 40 characters, real texts at most
# about 100 items and a few kilobytes.
_MAX_CHARACTERS = 262_144
_MAX_ITEMS = 256
_MIN_ITEMS = 3
_NEGATIVE = "Negative prompt:"
_ITEM = re.compile(r'(\w[\w \-/]{1,63}):[ \t]*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SAMPLERS: Mapping[str, str] = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "plms": "PLMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
    "flow_euler": "Euler",
}
"""Our solvers by the names that the web UI and its relatives show; flow models use plain Euler there."""

SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "linspace": "Uniform",
    "trailing": "Simple",
    "leading": "DDIM",
}
"""Our spacings by the names of the web UI; others keep ours."""

EMPHASIS: Mapping[str, str] = {"no_norm": "No norm", "ignore": "Ignore", "none": "None"}
"""Emphasis modes by the names of the web UI, which writes them, as here, where it is not "Original"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Infotext:
    """What a "parameters" text says; ``fields`` keeps its order and its values as plain strings."""

    prompt: str = ""
    negative_prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


def write(prompt: str, negative_prompt: str = "", fields: Mapping[str, object] | None = None) -> str:
    """Return the "parameters" text of one image.

    Args:
        prompt: the prompt as it was typed; may hold newlines.
        negative_prompt: left out when empty.
        fields: key and value of every item, written in this order; a value of None leaves the item out.
    """
    items = ", ".join(
        key if str(value) == key else f"{key}: {_quoted(str(value))}"
        for key, value in (fields or {}).items()
        if value is not None
    )
    negative = f"\n{_NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{items}".strip()


def from_record(record: Mapping[str, Any]) -> str:
    """Return the "parameters" text of an image's JSON record, in the field order of the web UI.

    Args:
        record: needs ``prompt``, ``num_inference_steps``, ``solver``, ``guidance_scale``, ``seed``,
            ``width``, ``height``, ``model``, ``model_hash`` and ``fewstep`` (our version); may have
            ``negative_prompt``, ``spacing``, ``student`` ({name, method, hash}), ``strength``,
            ``guidance_rescale``,
            ``eta``, ``init_image_hash``, ``upscale`` ({name, scale or to}), ``emphasis``, ``template``,
            ``negative_template``, ``adapters`` and ``embeddings`` (of {name, hash}), and what
            `infotext_modes` reads.
    """
    upscale = record.get("upscale") or {}
    student = record.get("student") or {}
    fields = {
        "Steps": record["num_inference_steps"],
        "Sampler": SAMPLERS.get(record["solver"], record["solver"]),
        "Schedule type": SCHEDULES.get(spacing, spacing) if (spacing := record.get("spacing")) else None,
        "CFG scale": record["guidance_scale"],
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": record["model_hash"][:10],
        "Model": record["model"],
        "Student": student.get("name"),
        "Student method": student.get("method"),
        "Student hash": (student.get("hash") or "")[:10] or None,
        **infotext_modes.seeds(record),
        "Init image hash": (record.get("init_image_hash") or "")[:10] or None,
        "Eta": record.get("eta"),
        "Guidance rescale": record.get("guidance_rescale") or None,
        **infotext_modes.further(record),
        "Lora hashes": _hashes(record.get("adapters") or ()),
        "TI hashes": _hashes(record.get("embeddings") or ()),
        "Emphasis": EMPHASIS.get(record.get("emphasis", "original")),
        "Template": record.get("template"),
        "Negative Template": record.get("negative_template"),
        "Postprocess upscale by": upscale.get("scale"),
        "Postprocess upscale to": upscale.get("to"),
        "Postprocess upscaler": upscale.get("name"),
        "Version": f"fewstep {record['fewstep']}",
    }
    return write(record["prompt"], record.get("negative_prompt", ""), fields)


def _hashes(named: Iterable[Mapping[str, Any]]) -> str | None:
    """As the web UI writes them, which leaves colons and commas of names out."""
    pairs = (f"{re.sub('[:,]', '', one['name'])}: {one['hash']}" for one in named)
    return ", ".join(pairs) or None


def read(text: str) -> Infotext:
    """Read a "parameters" text, of fewstep or of another tool that writes the same form.

    The last line counts as items only when it holds at least three; otherwise it belongs to the prompt, as in
    the web UI. Unlike there, no defaults are filled in and sizes stay one value ("512x768").

    Raises:
        DataError: the text is longer than 262,144 characters.
    """
    if len(text) > _MAX_CHARACTERS:
        raise DataError(
            f"generation parameters of {len(text)} characters: more than {_MAX_CHARACTERS} are not read; "
            "the file is not one that an image tool wrote"
        )
    *lines, last = text.strip().split("\n")
    fields = _items(last)
    if len(fields) < _MIN_ITEMS:
        lines.append(last)
        fields = {}
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in (line.strip() for line in lines):
        if line.startswith(_NEGATIVE):
            target = negative
            line = line[len(_NEGATIVE) :].strip()
        target.append(line)
    return Infotext(
        prompt="\n".join(prompt).strip(), negative_prompt="\n".join(negative).strip(), fields=fields
    )


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,\n:]", value) else value


def _items(line: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for match in itertools.islice(_ITEM.finditer(line), _MAX_ITEMS):
        key, value = match[1].strip(), match[2].strip()
        if value.startswith('"') and value.endswith('"'):
            try:
                value = str(json.loads(value))
            except json.JSONDecodeError:
                pass  # a bare value that merely looks quoted: the web UI keeps it as it stands
        if value:
            fields[key] = value
    return fields
