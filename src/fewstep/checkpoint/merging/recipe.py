"""What a merge writes into the header of its result: A1111's recipe and family tree, and what A said.

`merge_tree` reads it back. ``type`` is ``fewstep``, as other mergers put their own names there. Besides
A1111's fields there are ``recipe`` (the mode by our name), ``dtype``, ``block_weights`` and
``bake_in_vae_hash``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.merging.plan import Mode
from fewstep.checkpoint.merging.tree import MODELS, RECIPE, parsed

METHODS: dict[Mode, str] = {
    "weighted-sum": "Weighted sum",
    "add-difference": "Add difference",
    "no-interpolation": "No interpolation",
    "slerp": "SLERP",
    "make-few-step": "Add difference",
}
"""``interp_method``, in A1111's words where it has the method."""

CONTRACT = "fewstep.contract"
"""Header key of a sampling contract."""

_KEPT = ("modelspec.architecture", "modelspec.prediction_type", "modelspec.resolution", CONTRACT)
"""Texts of A that are true of the result too."""
_NEVER = (RECIPE, MODELS, "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
"""Hashes of the values, which change, and what is written anew."""
_NO_CONFIG = 3
"""A1111's ``config_source`` for a result without a config file beside it."""
_MAX_TREE = 1_000_000
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who a model is, for the tree.

    Attributes:
        name: of its file or folder, without the path.
        sha256: of the file; of a folder see `safetensors.folder_hash`.
        legacy_hash: A1111's old one; "" of a folder.
    """

    name: str
    sha256: str
    legacy_hash: str


def identify(path: Path, on_bytes: Callable[[int], None]) -> Identity:
    """Hash a model's weights; ``on_bytes`` is told how many bytes were read since it was last told."""
    if path.is_dir():
        digest = safetensors.folder_hash(path)
        return Identity(name=path.resolve().name, sha256=digest, legacy_hash="")
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_BLOCK):
            whole.update(data)
            on_bytes(len(data))
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    return Identity(name=path.name, sha256=whole.hexdigest(), legacy_hash=legacy)


def header(
    models: Sequence[tuple[Identity, Mapping[str, str]]],
    *,
    mode: Mode,
    multiplier: float,
    block_weights: Mapping[str, float],
    dtype: str | None,
    custom_name: str | None,
    vae: Identity | None,
    discard: str | None,
    variant: str | None,
    contract: str | None,
    copy: bool = False,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Texts for the header of the result.

    Args:
        models: A, B and C as far as they are used, each with the texts of its own header.
        mode: of the merge.
        multiplier: M.
        block_weights: multipliers by block; empty where all are M.
        dtype: of the result; None if as A.
        custom_name: that the user gave the result.
        vae: the autoencoder that is baked in.
        discard: pattern of what is left out.
        variant: of the result, see `fewstep.checkpoint.detect.Variant`.
        contract: how the result is sampled; A's own when None.
        copy: keep all texts of the models; A's go before B's, B's before C's.
        extra: texts of the user, which go before all.
    """
    identities = [identity for identity, _ in models]
    hashes = [*(identity.sha256 for identity in identities), None, None][:3]
    recipe: dict[str, Any] = {
        "type": "fewstep",
        "primary_model_hash": hashes[0],
        "secondary_model_hash": hashes[1],
        "tertiary_model_hash": hashes[2],
        "interp_method": METHODS[mode],
        "multiplier": multiplier,
        "save_as_half": dtype == "fp16",
        "custom_name": custom_name,
        "config_source": _NO_CONFIG,
        "bake_in_vae": "None" if vae is None else vae.name,
        "discard_weights": discard or "",
        "is_inpainting": variant == "inpainting",
        "is_instruct_pix2pix": variant == "instruct",
        "recipe": mode,
        "dtype": dtype,
    }
    if block_weights:
        recipe["block_weights"] = dict(block_weights)
    if vae is not None:
        recipe["bake_in_vae_hash"] = vae.sha256
    found: dict[str, str] = {}
    for _, texts in reversed(models if copy else models[:1]):
        found |= {key: text for key, text in texts.items() if copy or key in _KEPT}
    for key in _NEVER:
        found.pop(key, None)
    if contract is not None:
        found[CONTRACT] = contract
    found |= extra or {}
    found |= {"format": "pt", RECIPE: json.dumps(recipe), MODELS: _tree(models)}
    return found


def _tree(models: Sequence[tuple[Identity, Mapping[str, str]]]) -> str:
    """The models with their own recipes, and all that their headers tell of their ancestors."""
    own: dict[str, Any] = {}
    for identity, texts in models:
        own[identity.sha256] = {
            "name": identity.name,
            "legacy_hash": identity.legacy_hash,
            RECIPE: parsed(texts.get(RECIPE)) or None,
        }
    ancestors: dict[str, Any] = {}
    for _, texts in models:
        ancestors |= {
            key: about for key, about in parsed(texts.get(MODELS)).items() if isinstance(about, dict)
        }
    whole = json.dumps({**ancestors, **own})
    if len(whole) <= _MAX_TREE:
        return whole
    return json.dumps({key: {**about, RECIPE: None} for key, about in own.items()})
