"""Published checkpoints of few steps: found by a key, or by the name of a file or of a repository.

The settings themselves stand in `fewstep.diffusion.published_contracts`. No file is read here.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable

from fewstep.diffusion import published_contracts
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.published_contracts import Kind, Published
from fewstep.errors import NotFoundError

__all__ = ["Kind", "Published", "find", "guide_table", "named", "plain", "published"]


@functools.cache
def published() -> tuple[Published, ...]:
    """Every published checkpoint that is known here, by method."""
    return published_contracts.rows()


def find(key: str) -> Published:
    """The row of that key.

    Raises:
        NotFoundError: there is none; the message names the nearest.
    """
    rows = {row.key: row for row in published()}
    if key in rows:
        return rows[key]
    near = difflib.get_close_matches(key, rows, n=1)
    hint = f"did you mean {near[0]}?" if near else "the guide fewstep-checkpoints lists them"
    raise NotFoundError(f"checkpoint {key!r} is not a published one that is known here: {hint}")


_WEIGHTS = re.compile(r"\.(safetensors|sft|bin|pt|pth|ckpt|onnx|gguf)$")
_COPY = re.compile(r"\s*\(\d+\)$")
_PACKINGS = frozenset({"fp16", "fp32", "bf16", "fp8", "converted"})
"""Endings of names that say how the same weights are stored, not what they are."""


def plain(name: str) -> str:
    """A file's or repository's name for comparison: small letters, ``-`` for all else, no packing, no ending.

    ``Hyper-SDXL-8steps-lora_fp16 (1).safetensors`` is ``hyper-sdxl-8steps-lora``.
    """
    stem = _COPY.sub("", _WEIGHTS.sub("", name.strip().lower()))
    words = [word for word in re.split(r"[^a-z0-9]+", stem) if word]
    while len(words) > 1 and words[-1] in _PACKINGS:
        words.pop()
    return "-".join(words)


def named(name: str) -> tuple[Published, ...]:
    """The checkpoints that a name stands for: none, one, or all of a repository that holds several.

    Only whole names count. ``DreamShaperXL_Lightning`` is not SDXL-Lightning: its makers' settings differ.

    Args:
        name: of a file, with or without its ending, or of a repository, with or without its owner.
    """
    wanted = plain(name.rpartition("/")[2])
    return _by_file().get(wanted) or _by_repository().get(wanted, ())


@functools.cache
def _by_file() -> dict[str, tuple[Published, ...]]:
    return _index((plain(file), row) for row in published() for file in row.files)


@functools.cache
def _by_repository() -> dict[str, tuple[Published, ...]]:
    whole = {_repository(row) for row in published() if not row.files}
    # A file that lies beside what the repository is about has its own name and does not share this one.
    named = (row for row in published() if not (row.files and _repository(row) in whole))
    return _index((_repository(row), row) for row in named)


def _repository(row: Published) -> str:
    return plain(row.repository.rpartition("/")[2])


def _index(pairs: Iterable[tuple[str, Published]]) -> dict[str, tuple[Published, ...]]:
    index: dict[str, tuple[Published, ...]] = {}
    for name, row in pairs:
        index[name] = (*index.get(name, ()), row)
    return index


def guide_table() -> str:
    """Markdown table of every row, for docs/guides/fewstep-checkpoints.md."""
    head = ("file or repository", "kind", "base", "solver", "steps", "times", "guidance", "predicts", "px")
    lines = [f"| {' | '.join(head)} | from |", f"|{'---|' * (len(head) + 1)}"]
    for row in published():
        contract = row.contract
        alone = [other.repository for other in published()].count(row.repository) == 1
        name = row.repository if alone or not row.files else row.files[0]
        weight = "" if row.lora_weight == 1.0 else f", weight {row.lora_weight:g}"
        solver = contract.solver if contract.gamma is None else f"{contract.solver}, gamma {contract.gamma:g}"
        cells = (
            f"`{name}`", row.kind + weight, contract.base_family, solver, _counts(contract), _times(contract),
            _guidance(contract), contract.prediction_type.removesuffix("_prediction"),
            "x".join(map(str, contract.native_sizes[0])), row.sources,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _counts(contract: SamplingContract) -> str:
    allowed, own = contract.allowed_steps, contract.num_inference_steps
    if allowed is None:
        return f"any ({own})"
    if len(allowed) == 1:
        return str(own)
    run = allowed == tuple(range(allowed[0], allowed[-1] + 1))
    text = f"{allowed[0]}-{allowed[-1]}" if run and len(allowed) > 2 else ", ".join(map(str, allowed))
    return f"{text} ({own})"


def _times(contract: SamplingContract) -> str:
    explicit = contract.timesteps.get(contract.num_inference_steps)
    if explicit is None:
        return contract.spacing
    return ", ".join(f"{time:.4g}" for time in explicit)


def _guidance(contract: SamplingContract) -> str:
    if contract.guidance == "off":
        return "none"
    if contract.guidance == "embedded":
        return f"embedded {contract.guidance_scale:g}"
    if contract.guidance_range is None:
        return f"{contract.guidance_scale:g}"
    low, high = contract.guidance_range
    return f"{low:g}-{high:g} ({contract.guidance_scale:g})"
