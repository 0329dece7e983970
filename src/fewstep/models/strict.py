"""Reading a network's folder: safetensors or nothing, every key and every shape as the class has them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import safetensors
from fewstep.errors import CheckpointError, FewstepError
from fewstep.models import families

if TYPE_CHECKING:
    import torch

DIFFUSERS = "diffusion_pytorch_model"
TRANSFORMERS = "model"
"""Stems of weight files."""

_SHOWN = 10
_MAY_BE_MISSING: Mapping[str, tuple[str, ...]] = {"BertModel": ("pooler.",)}
"""Starts of keys that nothing here uses."""
_MAY_BE_LEFT = (".position_ids",)
"""Ends of keys that older libraries wrote and that are counted anew when a network is built."""


def diffusers_network(cls: Any, folder: Path, dtype: torch.dtype, title: str) -> Any:
    """Load a diffusers class in evaluation mode.

    Args:
        cls: a class with diffusers' ``from_pretrained``.
        folder: with ``config.json`` and weights.
        dtype: of the weights in memory.
        title: of the family, for the message.

    Raises:
        NotFoundError: no weights there.
        CheckpointError: a pickle, a broken file, or weights of another network.
    """
    families.config(folder)
    variant = check_files(folder, DIFFUSERS)
    with _readable(folder), quiet():
        model, info = cls.from_pretrained(
            folder, variant=variant, local_files_only=True, use_safetensors=True, torch_dtype=dtype,
            low_cpu_mem_usage=False, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        _check(folder, title, cls.__name__, info)
    return model.eval().requires_grad_(False)


def transformers_network(cls: Any, folder: Path, dtype: torch.dtype, title: str) -> Any:
    """Load a transformers class; as `diffusers_network`."""
    families.config(folder)
    variant = check_files(folder, TRANSFORMERS)
    with _readable(folder), quiet():
        model, info = cls.from_pretrained(
            folder, variant=variant, local_files_only=True, use_safetensors=True, dtype=dtype,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        _check(folder, title, cls.__name__, info)
    return model.eval().requires_grad_(False)


def check_files(folder: Path, stem: str) -> str | None:
    """Find a network's weight files and refuse what is not safetensors.

    Returns:
        ``fp16`` where only files of that variant are there, else None.

    Raises:
        NotFoundError: none are there.
        CheckpointError: pickles only, a broken file, or an index that names files elsewhere.
    """
    for variant, dot in ((None, ""), ("fp16", ".fp16")):
        whole = folder / f"{stem}{dot}.safetensors"
        index = folder / f"{stem}.safetensors.index{dot}.json"
        if whole.is_file() and index.is_file():  # diffusers reads the index's files, others the whole one
            raise CheckpointError(f"{folder}: {whole.name} and {index.name} contradict; remove one of them")
        if whole.is_file():
            safetensors.check_content(whole)
            return variant
        if index.is_file():
            for name in _shards(index):
                safetensors.check_content(folder / name)
            return variant
    pickles = [path for path in folder.glob("*.bin") if path.is_file()]
    if pickles:
        raise CheckpointError(
            f"{folder}: {pickles[0].name} is a pickle checkpoint, which could run code when read; "
            "convert it once with: fewstep convert --allow-pickle"
        )
    safetensors.check_content(folder / f"{stem}.safetensors")  # says that it is not there
    return None


def _shards(index: Path) -> list[str]:
    """The files that an index names, each in its own folder and a safetensors file by its name."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a list of weight files; fetch the folder again") from error
    for name in names:
        plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names {name!r:.80}, not a safetensors file beside it; fetch the folder again"
            )
    if not names:
        raise CheckpointError(f"{index}: lists no weight files; fetch the folder again")
    return sorted(names)


def _check(folder: Path, title: str, class_name: str, info: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly the network's."""
    unused = _MAY_BE_MISSING.get(class_name, ())
    shapes = sorted(tuple(entry) for entry in info["mismatched_keys"])
    other = {key for key, _, _ in shapes}
    missing = sorted(
        key for key in set(info["missing_keys"]) - other if not key.startswith(unused or ("\0",))
    )
    left = sorted(key for key in set(info["unexpected_keys"]) - other if not key.endswith(_MAY_BE_LEFT))
    if not (shapes or missing or left or info["error_msgs"]):
        return
    lines = [f"{_plain(k)} has shape {tuple(a)} instead of {tuple(b)}" for k, a, b in shapes]
    lines += [f"{_plain(key)} is missing" for key in missing] + [
        f"{_plain(key)} is not known" for key in left
    ]
    more = len(lines) - _SHOWN
    listed = "; ".join(lines[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise CheckpointError(
        f"{folder}: not the weights of a {class_name} of {title} as its config.json describes it "
        f"({listed}); fetch the folder again, or give weights and config.json of the same model"
    )


def _plain(key: str) -> str:
    """A tensor's name, which may be hostile text, for a message."""
    return "".join(c if c.isprintable() else "?" for c in str(key)[:100])


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what diffusers and transformers raise on a broken folder into a CheckpointError."""
    try:
        yield
    except FewstepError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: cannot be loaded ({text}); fetch or export the folder again"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars for small files, and no warnings about keys: they are errors here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: Iterable[Any] = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for library in libraries:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
