"""What a merged checkpoint was made of, read from its header: A1111's recipe and family tree.

Two texts tell it. ``sd_merge_recipe`` is a JSON object with the hashes of the models
(``primary_model_hash``, ``secondary_model_hash``, ``tertiary_model_hash``), ``interp_method`` and
``multiplier``; ``sd_merge_models`` is another: SHA-256 -> ``{"name", "legacy_hash", "sd_merge_recipe"}`` of
every ancestor. A1111's web UI, its forks and several mergers write them, each with fields of its own.

They are anybody's text. A tree can name itself as its parent or have more branches than there are atoms:
depth and number of the models are bounded, and a model inside of itself is not opened again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.checkpoint.naming import shown

RECIPE = "sd_merge_recipe"
MODELS = "sd_merge_models"
MAX_DEPTH = 32
MAX_MODELS = 500
"""Of a tree that is read: one with more is cut there."""

_ROLES = {
    "A": ("primary_model_hash", "model_a"),
    "B": ("secondary_model_hash", "model_b"),
    "C": ("tertiary_model_hash", "model_c"),
}
"""Role -> names of its hash, A1111's and supermerger's."""
_METHODS = ("interp_method", "mode", "merge_mode")
_MULTIPLIERS = ("multiplier", "alpha")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredient:
    """One model that went into a merge.

    Attributes:
        role: ``A``, ``B`` or ``C``.
        sha256: of the file as the recipe has it (of a pipeline folder: `safetensors.folder_hash`).
        name: of the file, "" where the header does not say.
        legacy_hash: A1111's old short hash, "" where the header does not say.
        merge: what it was made of itself; None if it was no merge, or the tree is cut here.
    """

    role: str
    sha256: str
    name: str = ""
    legacy_hash: str = ""
    merge: MergeTree | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeTree:
    """A merge, with the models that went into it.

    Attributes:
        tool: what made it, as it calls itself: ``webui``, ``fewstep`` …; "" where it does not say.
        method: such as ``Weighted sum``; "" where the recipe does not say.
        multiplier: M; None where there is none, or one that is no finite number.
        models: what went into it, A first.
        recipe: every field of the recipe, as parsed.
    """

    tool: str
    method: str
    multiplier: float | None
    models: tuple[Ingredient, ...]
    recipe: Mapping[str, Any] = field(repr=False)

    def lines(self, indent: int = 0) -> Iterator[str]:
        """The tree as text, one line for a model, indented by two spaces a generation, printable."""
        said = [self.method or "merge"]
        if self.multiplier is not None:
            said.append(f"M = {self.multiplier:g}")
        if self.tool:
            said.append(f"by {self.tool}")
        yield " " * indent + shown(", ".join(said), 200)
        for model in self.models:
            name = model.name or "unnamed"
            yield " " * indent + f"  {model.role}: {shown(name)} [{shown(model.sha256[:10] or '?')}]"
            if model.merge is not None:
                yield from model.merge.lines(indent + 4)

    def as_dict(self) -> dict[str, Any]:
        """The tree as plain values for JSON, without the fields that only one tool writes."""
        return {
            "tool": self.tool,
            "method": self.method,
            "multiplier": self.multiplier,
            "models": [
                {
                    "role": model.role,
                    "name": model.name,
                    "sha256": model.sha256,
                    "legacy_hash": model.legacy_hash,
                    "merge": model.merge.as_dict() if model.merge is not None else None,
                }
                for model in self.models
            ],
        }


def merge_tree(metadata: Mapping[str, str]) -> MergeTree | None:
    """What a checkpoint was merged from, of the metadata in its safetensors header.

    Args:
        metadata: of the header (`safetensors.read_metadata`, `tensorfile.TensorFile.metadata`).

    Returns:
        The tree; None when the file was not merged, or its recipe is no JSON object. Never raises: what has
        another type than expected is left out.
    """
    recipe = parsed(metadata.get(RECIPE))
    if not recipe:
        return None
    models = parsed(metadata.get(MODELS))
    return _Reader(models).tree(recipe, ())


def parsed(value: Any) -> dict[str, Any]:
    """A JSON object, or its text; empty when it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


class _Reader:
    """Follows hashes from a recipe to its ancestors."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models
        self._left = MAX_MODELS

    def tree(self, recipe: Mapping[str, Any], above: tuple[str, ...]) -> MergeTree:
        found = []
        for role, keys in _ROLES.items():
            digest = next((recipe[key] for key in keys if isinstance(recipe.get(key), str)), "")
            if digest and self._left > 0:
                self._left -= 1
                found.append(self._model(role, digest, above))
        numbers = [recipe[key] for key in _MULTIPLIERS if _is_number(recipe.get(key))]
        return MergeTree(
            tool=_text(recipe.get("type")),
            method=next((_text(recipe[key]) for key in _METHODS if _text(recipe.get(key))), ""),
            multiplier=float(numbers[0]) if numbers else None,
            models=tuple(found),
            recipe=recipe,
        )

    def _model(self, role: str, digest: str, above: tuple[str, ...]) -> Ingredient:
        about = parsed(self._models.get(digest))
        recipe = parsed(about.get(RECIPE))
        opened = recipe and digest not in above and len(above) < MAX_DEPTH
        return Ingredient(
            role=role,
            sha256=digest,
            name=_text(about.get("name")),
            legacy_hash=_text(about.get("legacy_hash")),
            merge=self.tree(recipe, (*above, digest)) if opened else None,
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
