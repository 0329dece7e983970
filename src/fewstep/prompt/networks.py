"""Extra networks: ``<lora:name:te:unet:dyn>`` tags, cut out of a prompt.

As in AUTOMATIC1111's web UI 1.10 (``extra_networks.parse_prompt`` and its Lora extension): any
``<word:anything but a closing bracket>`` is a tag and leaves the text; ``te`` is 1 when missing and ``unet``
is ``te``; ``te=``, ``unet=`` and ``dyn=`` override positions. ``<lyco:`` is another word for ``<lora:``.
Unlike there, a broken number skips the tag and says so, where the web UI ends the request.

A name is a key for whoever knows the networks. It is never a path.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

MAX_NETWORKS = 64
_OPENER = re.compile(r"<(\w+):")
_KINDS: dict[str, Literal["lora", "hypernet"]] = {"lora": "lora", "lyco": "lora", "hypernet": "hypernet"}
_NAMED = ("te", "unet", "dyn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One tag."""

    kind: Literal["lora", "hypernet"]
    name: str
    te: float = 1.0
    """Multiplier in the text encoder; the only one of a hypernetwork."""
    unet: float = 1.0
    """Multiplier in the denoiser."""
    dyn: int | None = None
    """Rank to which the network is cut, from 1; None keeps its own."""


def cut_networks(prompt: str) -> tuple[str, tuple[Network, ...], tuple[str, ...]]:
    """Cut the tags out of a prompt; never raises, linear in the prompt.

    Returns:
        The prompt without any tags, the networks in the order of their tags (at most 64), and a warning for
        each tag that asks for nothing that is known.
    """
    kept: list[str] = []
    networks: list[Network] = []
    warnings: list[str] = []
    begin = search = 0
    while (opener := _OPENER.search(prompt, search)) is not None:
        end = prompt.find(">", opener.end())
        if end == -1:
            break
        search = opener.end()
        if end == opener.end():
            continue
        kept.append(prompt[begin : opener.start()])
        begin = search = end + 1
        try:
            networks.append(_network(opener[1], prompt[opener.end() : end]))
        except ValueError as reason:
            warnings.append(
                f"<{_shown(opener[1])}:{_shown(prompt[opener.end() : end])}> is left out: {reason}"
            )
    kept.append(prompt[begin:])
    if len(networks) > MAX_NETWORKS:
        warnings.append(f"only the first {MAX_NETWORKS} of {len(networks)} networks are used")
    return "".join(kept), tuple(networks[:MAX_NETWORKS]), tuple(warnings)


def _network(word: str, arguments: str) -> Network:
    kind = _KINDS.get(word)
    if kind is None:
        raise ValueError(f"kinds of networks are {', '.join(_KINDS)}")
    positional: list[str] = []
    named: dict[str, str] = {}
    # More than a handful of arguments mean nothing; the rest stays one argument, which is ignored.
    for argument in arguments.split(":", 8):
        key, equals, value = argument.partition("=")
        if equals and key in _NAMED:
            named[key] = value
        else:
            positional.append(argument)
    name = positional[0].strip() if positional else ""
    if not name:
        raise ValueError("it has no name")
    given = dict(zip(_NAMED, positional[1:], strict=False)) | named
    te = _multiplier(given.get("te", "1"))
    if kind == "hypernet":
        return Network(kind=kind, name=name, te=te, unet=te)
    unet = _multiplier(given["unet"]) if "unet" in given else te
    dyn = given.get("dyn")
    if dyn is not None and not re.fullmatch(r"\s*0*[1-9][0-9]{0,5}\s*", dyn, re.ASCII):
        raise ValueError(f"dyn={_shown(dyn)} is not a rank from 1")
    return Network(kind=kind, name=name, te=te, unet=unet, dyn=None if dyn is None else int(dyn))


def _multiplier(text: str) -> float:
    try:
        value = float(text) if len(text) <= 64 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{_shown(text)!r} is not a multiplier")
    return value


def _shown(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
