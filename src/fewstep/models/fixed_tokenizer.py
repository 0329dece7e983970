"""A transformers tokenizer as one `tokenizers` file that pads and cuts to the text encoder's length."""

from __future__ import annotations

import json
from typing import Any

from fewstep.errors import CheckpointError


def to_json(tokenizer: Any, *, length: int | None = None, lowered: bool = False) -> str:
    """The text of a ``tokenizer.json`` that needs no settings beside it.

    Args:
        tokenizer: a fast transformers tokenizer.
        length: L; None is its ``model_max_length``.
        lowered: bring texts to small letters and strip them first, as diffusers' PixArt pipelines do.

    Raises:
        CheckpointError: it is not a fast tokenizer, or has no length or padding token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    length = int(tokenizer.model_max_length) if length is None else length
    # transformers writes 1e30 where a tokenizer has no length
    if backend is None or tokenizer.pad_token_id is None or length > 65536:
        raise CheckpointError(
            "tokenizer: has no tokenizer.json, length or padding token; save it again as a fast tokenizer"
        )
    spec = json.loads(backend.to_str())
    spec["truncation"] = {
        "max_length": length,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    spec["padding"] = {
        "strategy": {"Fixed": length},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": int(tokenizer.pad_token_id),
        "pad_type_id": 0,
        "pad_token": tokenizer.pad_token,
    }
    if lowered:
        first = [{"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}]
        own = spec.get("normalizer")
        spec["normalizer"] = {"type": "Sequence", "normalizers": first if own is None else [*first, own]}
    return json.dumps(spec, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
