"""Recipes: read from YAML, overridden from the command line, checked strictly, compared on resume."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from fewstep.errors import NotFoundError, RecipeError, RunError
from fewstep.training.adapter_sections import (
    AdapterRecipe,
    DreamboothRecipe,
    LoraRecipe,
    TextualInversionRecipe,
)
from fewstep.training.sections import (
    AutoencoderRecipe,
    DenoiserRecipe,
    EvaluatorRecipe,
    LoopRecipe,
    explain,
)

__all__ = [
    "AdapterRecipe",
    "AutoencoderRecipe",
    "Change",
    "DenoiserRecipe",
    "DreamboothRecipe",
    "EvaluatorRecipe",
    "LoraRecipe",
    "Recipe",
    "TextualInversionRecipe",
    "check_resume",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_diff",
    "recipe_names",
    "recipe_schema",
]

Recipe = (
    AutoencoderRecipe
    | DenoiserRecipe
    | EvaluatorRecipe
    | LoraRecipe
    | DreamboothRecipe
    | TextualInversionRecipe
)
RECIPES: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "denoiser": DenoiserRecipe,
    "evaluator": EvaluatorRecipe,
    "lora": LoraRecipe,
    "dreambooth": DreamboothRecipe,
    "textual_inversion": TextualInversionRecipe,
}
"""Of ``fewstep train``, by ``kind``."""

# What may differ on resume: it changes how long and how visibly the run goes on, not what it learns.
RESUME_MAY_CHANGE = (
    "stop",
    "samples",
    "pipeline",
    "card",
    "runtime.checkpoint_images",
    "runtime.checkpoint_minutes",
    "runtime.keep",
    "runtime.log_images",
    "runtime.prefetch",
    "runtime.prefetch_timeout",
    "runtime.threads",
    "stage.stop",
)


AnyRecipe = TypeVar("AnyRecipe", bound=LoopRecipe)


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs between two recipes; a missing key is None."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.old)} -> {json.dumps(self.new)}"


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name ("emoji-128/denoiser") or by path.

    Args:
        name_or_path: a path that ends in .yaml or .yml, or a name under ``recipes/`` without the suffix.
        overrides: ``a.b=value`` texts; the value is read as YAML.

    Raises:
        NotFoundError: no such recipe; the message lists the names there are.
        RecipeError: the file does not follow the schema.
    """
    text, source = read_recipe(str(name_or_path))
    return parse_recipe(text, overrides, source=source)


def read_recipe(name_or_path: str, kinds: Sequence[str] = tuple(RECIPES)) -> tuple[str, str]:
    """The text of a recipe of some kinds, by name or path, and where it stands; errors as `load_recipe`."""
    path = _find(name_or_path, kinds)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give a readable YAML file") from error


def parse_recipe(text: str, overrides: Sequence[str] = (), *, source: str = "recipe") -> Recipe:
    """Read a recipe from YAML text; arguments and errors as `load_recipe`."""
    values = _values(text, overrides, source)
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in RECIPES:
        raise RecipeError(f"{source}: kind is {kind!r}; use one of: {', '.join(RECIPES)}")
    return _checked(RECIPES[kind], values, source)


def parse_as(
    model: type[AnyRecipe], text: str, overrides: Sequence[str] = (), *, source: str = "recipe"
) -> AnyRecipe:
    """Read a recipe of a known class, which need not be one of this package; errors as `load_recipe`."""
    return _checked(model, _values(text, overrides, source), source)


def dump_recipe(recipe: LoopRecipe) -> str:
    """The recipe with every default written out, as YAML that `parse_recipe` reads back to an equal one."""
    values = recipe.model_dump(mode="json")
    ordered = {"kind": values.pop("kind"), **values}
    text: str = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100)
    return text


def recipe_schema() -> dict[str, Any]:
    """JSON schema of all recipes, told apart by ``kind``; forms are built from it."""
    return TypeAdapter(Annotated[Recipe, Field(discriminator="kind")]).json_schema()


def recipe_names(kinds: Sequence[str] = tuple(RECIPES)) -> list[str]:
    """Names of the recipes of these kinds that come with the package or stand in the checkout, sorted."""
    return sorted(
        {
            path.relative_to(root).with_suffix("").as_posix()
            for root in _roots()
            for path in root.rglob("*.yaml")
            if _is_recipe(path, kinds)
        }
    )


def recipe_diff(old: LoopRecipe, new: LoopRecipe) -> list[Change]:
    """Every leaf that differs, in the order of the new recipe."""
    before, after = (_flatten(recipe.model_dump(mode="json")) for recipe in (old, new))
    keys = list(dict.fromkeys([*after, *before]))
    return [
        Change(key, before.get(key), after.get(key))
        for key in keys
        if before.get(key, ...) != after.get(key, ...)
    ]


def check_resume(old: LoopRecipe, new: LoopRecipe, *, override: bool = False) -> list[Change]:
    """Compare a run's recipe with the one it is resumed with.

    Returns:
        All changes, for printing.

    Raises:
        RunError: a key outside the allowed list changed and ``override`` is false.
    """
    changes = recipe_diff(old, new)
    refused = [change for change in changes if not _may_change(change.key)]
    if refused and not override:
        listed = "; ".join(str(change) for change in refused)
        raise RunError(
            f"the recipe changed since this run began ({listed}); use the old values, "
            "or give --override to continue with the new ones"
        )
    return changes


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUME_MAY_CHANGE)


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict) and (value or not prefix):
        parts = (_flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
        return {key: item for part in parts for key, item in part.items()}
    return {prefix: value}


def _roots() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    candidates = [package.parents[1] / "recipes", package / "recipes"]
    # The first exists in a checkout only; pyproject.toml beside it tells it from a stranger's folder.
    in_checkout = (package.parents[1] / "pyproject.toml").is_file()
    return [root for root in candidates if root.is_dir() and (in_checkout or root != candidates[0])]


def _find(name: str, kinds: Sequence[str]) -> Path:
    path = Path(name).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise NotFoundError(
            f"{name}: no such file; recipes by name: {', '.join(recipe_names(kinds)) or 'none'}"
        )
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", name):
        for root in _roots():
            found = root / f"{name}.yaml"
            if found.is_file() and _is_recipe(found, kinds):
                return found
    names = recipe_names(kinds)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise NotFoundError(f"recipe {name!r}: not found; {hint}there are: {', '.join(names) or 'none'}")


def _is_recipe(path: Path, kinds: Sequence[str]) -> bool:
    # Backgrounds and prompt lists stand beside the recipes.
    try:
        head = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"(?m)^kind:\s*[\"']?({'|'.join(kinds)})\b", head) is not None


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: ``3e-4`` is a number, a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = key_node.value
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} is given twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _values(text: str, overrides: Sequence[str], source: str) -> dict[str, Any]:
    values = _yaml(text, source)
    if not isinstance(values, dict):
        raise RecipeError(f"{source}: not a mapping of sections; start it with 'kind: denoiser'")
    for override in overrides:
        _override(values, override)
    return values


def _checked(model: type[AnyRecipe], values: dict[str, Any], source: str) -> AnyRecipe:
    try:
        encoded = json.dumps(values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source}: {error}; use plain numbers, texts, lists and mappings") from None
    try:
        # Through JSON, because strict JSON still takes a list where the schema says tuple.
        return model.model_validate_json(encoded)
    except ValidationError as error:
        raise RecipeError(f"{source}: {explain(model, error)}") from None


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{source}: not valid YAML ({problem}); correct the file") from None


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {text}: not of the form section.key=value; write --set stop.images=1000")
    target = values
    for part in parts[:-1]:
        inner = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {text}: {part} is a value, not a section; set it directly")
        target = inner
    target[parts[-1]] = _yaml(value, f"--set {text}")
