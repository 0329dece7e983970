"""What image files say of their making: in our own words, the web UI's, and those of other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewstep.prompt import containers, infotext
from fewstep.prompt.printable import MAX_TEXT, plain

if TYPE_CHECKING:
    from PIL import Image

_TOOLS: dict[str, tuple[frozenset[str], ...]] = {
    "InvokeAI": (frozenset({"invokeai_metadata"}), frozenset({"sd-metadata"}), frozenset({"Dream"})),
    "NovelAI": (frozenset({"Comment", "Description", "Source"}),),
}
"""Tool -> the text chunks by which it is known. ComfyUI writes a JSON object as ``prompt``, Fooocus one where
A1111 writes its text."""

_LIMITS = {"Dream": 10_000, "Source": 1_000}
"""Characters of texts that the parsers search by patterns whose time grows with the square."""

_MAX_WORK = 1_000_000
_MAX_INPUTS = 24
"""Of a ComfyUI graph: samplers times the square of its nodes, and inputs of a node. Its parser copies, for
every prompt that it reaches, the inputs of all nodes on the way."""


def read(image: Image.Image, *, install: str) -> dict[str, Any]:
    """Prompt and settings of an opened image; decodes it, because the texts of a PNG may follow its pixels.

    Args:
        image: opened by whoever has checked its size.
        install: what to do for images of other tools when sd-parsers is not installed.

    Returns:
        ``parameters`` (the text of the web UI, or None), ``record`` (fewstep's, or None), ``texts`` (every
        text of the file, by its name); where they are known ``prompt``, ``negative_prompt`` and ``fields`` of
        ``parameters``, or what `other_tool` gives. All as `fewstep.prompt.printable.plain` leaves it.

    Raises:
        DataError: ``parameters`` are longer than any tool writes.
        Exception: whatever a decoder raises on a damaged file.
    """
    metadata = containers.decode(image)
    texts = _texts(image)
    found: dict[str, Any] = {"parameters": metadata.parameters}
    if metadata.parameters is not None and not _is_object(metadata.parameters):
        text = infotext.read(metadata.parameters)
        found["prompt"] = text.prompt
        found["negative_prompt"] = text.negative_prompt
        found["fields"] = dict(text.fields)
    elif metadata.parameters is not None:
        texts["parameters"] = metadata.parameters
    found["record"] = metadata.record
    if metadata.record is None and "prompt" not in found:
        found |= other_tool(texts, install=install)
    found["texts"] = texts
    return {key: plain(value) for key, value in found.items()}


def other_tool(texts: Mapping[str, str], *, install: str) -> dict[str, Any]:
    """Prompt and settings in the text chunks of an image that another tool made; empty if there are none.

    ComfyUI, InvokeAI, NovelAI and Fooocus are read by the library sd-parsers, which the extra ``metadata``
    installs; without it the tool is named, and ``install`` says how to read more.
    """
    tool = _tool(texts)
    if tool is None:
        return {}
    try:
        from sd_parsers import parsers
    except ImportError:
        return {"tool": tool, "note": f"its settings are read with: {install}"}
    makers: dict[str, Any] = {
        "ComfyUI": parsers.ComfyUIParser,
        "InvokeAI": parsers.InvokeAIParser,
        "NovelAI": parsers.NovelAIParser,
        "Fooocus": parsers.FooocusParser,
    }
    try:
        given = _bounded(tool, texts)
        read = makers[tool]().parse(given)
        return {
            "tool": tool,
            "prompt": read.full_prompt,
            "negative_prompt": read.full_negative_prompt,
            "models": [str(sampler.model) for sampler in read.samplers if sampler.model is not None],
            "samplers": [{"name": one.name, **one.parameters} for one in read.samplers],
            "more": read.metadata,
        }
    except Exception as error:  # whatever its texts lead the parser to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return {"tool": tool, "note": f"its settings cannot be read ({reason})"}


def _tool(texts: Mapping[str, str]) -> str | None:
    if _is_object(texts.get("prompt", "")):
        return "ComfyUI"
    for tool, choices in _TOOLS.items():
        if any(keys <= texts.keys() for keys in choices):
            return tool
    return "Fooocus" if _is_object(texts.get("parameters", "")) else None


def _bounded(tool: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The texts of a tool, when its parser is done with them soon; raises ValueError otherwise."""
    wanted = {"parameters", "prompt", "workflow"}.union(*(keys for keys in _TOOLS.get(tool, ())))
    given = {key: text for key, text in texts.items() if key in wanted}
    for key, text in given.items():
        if len(text) > _LIMITS.get(key, MAX_TEXT):
            raise ValueError(f"{key} has {len(text)} characters")
    if tool != "ComfyUI":
        return dict(given)
    prompt = json.loads(given["prompt"])
    nodes = {
        key: {**node, "inputs": dict(list(node["inputs"].items())[:_MAX_INPUTS])}
        for key, node in prompt.items()
    }
    samplers = sum({"sampler_name", "steps", "cfg"} <= node["inputs"].keys() for node in nodes.values())
    links = _links(nodes)
    if samplers * len(nodes) ** 2 > _MAX_WORK or len(links) > 10 * _MAX_WORK**0.5:
        raise ValueError(f"a graph of {len(nodes)} nodes and {samplers} samplers")
    return {"prompt": nodes, "workflow": {"links": links}}


def _links(nodes: Mapping[str, Any]) -> list[list[Any]]:
    """Links of a ComfyUI graph as its editor saves them, from the nodes: images of its API have no others.

    An input that is another node's output is ``[node, number]``. Of their type only that of ``clip`` matters,
    along which no prompt is looked for.
    """
    return [
        [0, value[0], 0, key, 0, "CLIP" if name == "clip" else "*"]
        for key, node in nodes.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes
    ]


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _texts(image: Image.Image) -> dict[str, str]:
    """Text chunks of an image that is decoded: of PNG they may follow the pixels."""
    info = dict(getattr(image, "text", None) or image.info)
    return {key: str(text) for key, text in info.items() if isinstance(key, str) and isinstance(text, str)}
