"""Tokenizers for folders made from single files, which hold none.

`tokenizers` is the one place that decides where they are taken from: a folder that the user names, that of
the model the rest is taken from, or, for CLIP, the vocabulary that comes with the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewstep.checkpoint.part_configs import Family
from fewstep.errors import CheckpointError, NotFoundError

CLASSES: dict[Family, dict[str, str]] = {
    "sd1": {"tokenizer": "CLIPTokenizer"},
    "sd2": {"tokenizer": "CLIPTokenizer"},
    "sdxl": {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
    "sd3": {
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5TokenizerFast",
    },
    "pixart-alpha": {"tokenizer": "T5Tokenizer"},
    "pixart-sigma": {"tokenizer": "T5Tokenizer"},
}
"""Class of every tokenizer folder, by family."""

_END = "<|endoftext|>"
PADDING: dict[tuple[Family, str], str] = {
    ("sd2", "tokenizer"): "!",
    ("sdxl", "tokenizer_2"): "!",
    ("sd3", "tokenizer_2"): "!",
}
"""OpenCLIP pads with the token of number 0, CLIP with the end of the text."""

Vocabulary = Callable[[], Mapping[str, bytes]]
"""Makes the files of CLIP's vocabulary."""

_VOCABULARY = ("vocab.json", "merges.txt")
_FILES = (
    *_VOCABULARY,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
_MAX_BYTES = 64_000_000


def tokenizers(
    family: Family,
    given: Path | None,
    base: Path | None = None,
    *,
    packaged: Vocabulary | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, dict[str, bytes]]:
    """The tokenizer folders of a family, as far as they can be had.

    Args:
        family: of the model.
        given: a pipeline folder, whose tokenizer folders are copied, or a folder with CLIP's ``vocab.json``
            and ``merges.txt``, from which every CLIP tokenizer of the family is made.
        base: the pipeline folder that networks are taken from, if any; used where ``given`` has nothing.
        packaged: makes the ``vocab.json`` and ``merges.txt`` of CLIP; used where neither has anything.
        sizes: words that each text encoder knows; ``packaged`` is only for those that know as many as it.

    Returns:
        Folder name -> file name -> content; what is not to be had is not in it.

    Raises:
        NotFoundError: ``given`` holds no tokenizer of this family.
        CheckpointError: a file in it is too large, or asks for code.
    """
    found: dict[str, dict[str, bytes]] = {}
    for name, class_name in CLASSES[family].items():
        clip = class_name == "CLIPTokenizer"
        for source in (given, base):
            if source is None:
                continue
            files = _read(source / name)
            if not files and clip and source is given:
                files = _clip(_read(source), PADDING.get((family, name), _END))
            if files:
                found[name] = files
                break
    if given is not None and not found:
        raise NotFoundError(
            f"{given}: no tokenizer of {family} here; give a folder with vocab.json and merges.txt, or a "
            "pipeline folder of the family"
        )
    if packaged is not None:
        found |= _from_package(family, packaged, sizes or {}, found)
    return found


def _from_package(
    family: Family,
    packaged: Vocabulary,
    sizes: Mapping[str, int],
    found: Mapping[str, Mapping[str, bytes]],
) -> dict[str, dict[str, bytes]]:
    wanted = {
        name: sizes.get(name.replace("tokenizer", "text_encoder"))
        for name, class_name in CLASSES[family].items()
        if class_name == "CLIPTokenizer" and name not in found
    }
    if not any(wanted.values()):
        return {}
    files = dict(packaged())
    words = len(json.loads(files["vocab.json"]))
    return {
        name: _clip(files, PADDING.get((family, name), _END))
        for name, size in wanted.items()
        if size == words
    }


def missing(family: Family, found: dict[str, dict[str, bytes]], encoders: set[str]) -> list[str]:
    """Tokenizer folders that the text encoders that are there would need."""
    return [
        name
        for name in CLASSES[family]
        if name not in found and name.replace("tokenizer", "text_encoder") in encoders
    ]


def _read(folder: Path) -> dict[str, bytes]:
    """The known files of a tokenizer folder."""
    found = {}
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: too large for a tokenizer; fetch it again")
        found[name] = path.read_bytes()
    settings: Any = {}
    if "tokenizer_config.json" in found:
        try:
            settings = json.loads(found["tokenizer_config.json"])
        except (ValueError, RecursionError):
            raise CheckpointError(f"{folder}/tokenizer_config.json: not JSON; fetch it again") from None
    if isinstance(settings, dict) and "auto_map" in settings:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: auto_map asks for code from the folder; remove that entry"
        )
    return found


def _clip(files: dict[str, bytes], padding: str) -> dict[str, bytes]:
    """A tokenizer folder made of CLIP's vocabulary; empty when the vocabulary is not there."""
    if not set(_VOCABULARY) <= files.keys():
        return {}
    start = "<|startoftext|>"
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        "bos_token": start,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": padding,
    }
    special = {"bos_token": start, "eos_token": _END, "unk_token": _END, "pad_token": padding}
    return {
        **{name: files[name] for name in _VOCABULARY},
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")
