"""What ``fewstep info`` says of a weight file, from its header: no tensor is read, nothing unpickled."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.info_values import parsed
from fewstep.errors import CheckpointError, FewstepError
from fewstep.prompt.printable import plain

if TYPE_CHECKING:
    from fewstep.checkpoint.detect import Detected
    from fewstep.checkpoint.header import Entry, Header
    from fewstep.diffusion.published import Kind
    from fewstep.models.known_hashes import Recognised

_OWN = "fewstep"
_PUBLISHED: dict[str, Kind] = {"checkpoint": "full", "denoiser": "unet", "lora": "lora"}
"""What detection calls a file -> what the table of published checkpoints does."""

_LORA_TEXTS = ("ss_tag_frequency", "ssmd_cover_images", "ss_bucket_info", "ss_dataset_dirs", "ss_datasets")
"""Header texts of a page or more, of which what matters is told otherwise."""


def facts(path: Path, *, with_hash: bool = False) -> dict[str, Any]:
    """Kind, family, tensors, parts, contract, training and ancestry of a safetensors file.

    Args:
        path: of the file.
        with_hash: also its SHA-256, for which the whole file is read.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, or a file whose header does not describe its bytes.
    """
    from fewstep.checkpoint import header, safetensors
    from fewstep.checkpoint.adapters.summary import TRAINING
    from fewstep.checkpoint.merging.tree import MODELS, RECIPE, merge_tree

    head = header.read(path)
    detected, problem = _detected(path, head)
    kind = "unknown" if detected is None else detected.kind
    found: dict[str, Any] = {"kind": kind, "path": str(path), "bytes": path.stat().st_size}
    if with_hash:
        found["hash"] = safetensors.sha256_file(path)
    if detected is not None:
        found |= _model(detected)
    if problem:
        found["note"] = problem
    found |= counts(head.entries.values())
    if detected is not None and detected.parts:
        found["parts"] = _parts(detected, head)
        found["left_out"] = len(detected.left_out)
    if kind == "lora":
        found["adapter"] = _adapter(path, head)
    found |= _recognised(path, head, kind, with_hash=with_hash)
    tree = merge_tree(head.metadata)
    if tree is not None:
        found["merged_from"] = {"text": list(tree.lines()), **tree.as_dict()}
    own = {key: parsed(text) for key, text in head.metadata.items() if key.startswith(_OWN)}
    found["contract"] = own or None
    told = {
        *own,
        *_LORA_TEXTS,
        *(TRAINING if kind == "lora" else ()),
        *((RECIPE, MODELS) if tree is not None else ()),
    }
    found["metadata"] = {key: text for key, text in sorted(head.metadata.items()) if key not in told}
    found["long_texts"] = {key: len(text) for key, text in head.metadata.items() if key in _LORA_TEXTS}
    return {key: plain(value) for key, value in found.items() if value not in (None, {}) or key == "contract"}


def counts(entries: Iterable[Entry]) -> dict[str, Any]:
    """How many tensors and numbers there are, and of which types."""
    types: Counter[str] = Counter()
    tensors = parameters = 0
    for entry in entries:
        tensors += 1
        types[entry.dtype] += 1
        parameters += math.prod(entry.shape)
    return {"tensors": tensors, "parameters": parameters, "types": dict(types.most_common())}


def _detected(path: Path, head: Header) -> tuple[Detected | None, str]:
    from fewstep.checkpoint.detect import detect

    try:
        return detect(head.entries, head.metadata, path.name), ""
    except CheckpointError as error:
        return None, str(error)


def _model(detected: Detected) -> dict[str, Any]:
    found: dict[str, Any] = {"family": detected.family, "variant": detected.variant}
    if detected.variant is not None:
        found["prediction_type"] = detected.prediction_type or "unknown"
        sources = {"keys": "its keys", "metadata": "its metadata", "name": "its name", "family": "its family"}
        found["prediction_told_by"] = sources.get(detected.prediction_source)
        found["zero_terminal_snr"] = detected.zero_terminal_snr or None
    return {key: value for key, value in found.items() if value is not None}


def _parts(detected: Detected, head: Header) -> dict[str, Any]:
    found = {}
    for name, part in detected.parts.items():
        sources = {part.prefix + place.original for place, _ in part.places.values()}
        entries = [head.entries[source] for source in sources if source in head.entries]
        told = counts(entries)
        found[name] = {
            "class": part.class_name,
            "names": "diffusers" if part.layout == "diffusers" else "the authors'",
            "prefix": part.prefix,
            "tensors": told["tensors"],
            "parameters": told["parameters"],
            "bytes": sum(entry.nbytes for entry in entries),
            "types": sorted(told["types"]),
        }
    return found


def _adapter(path: Path, head: Header) -> dict[str, Any]:
    from fewstep.checkpoint.adapters.summary import summary

    told = dataclasses.asdict(summary(path, head))
    for key in ("ranks", "alphas"):
        told[key] = {f"{value:g}": layers for value, layers in told[key].items()}
    return {key: value for key, value in told.items() if value not in (None, 0, {})}


def _recognised(path: Path, head: Header, kind: str, *, with_hash: bool) -> dict[str, Any]:
    """Which published checkpoint it is, and how that is drawn; what speaks against it."""
    from fewstep.models.recognise import Unclear, recognise

    if kind not in _PUBLISHED:
        return {}
    try:
        # A table of hashes would make the whole file be read.
        known: dict[str, Recognised] | None = None if with_hash else {}
        found = recognise(path, metadata=head.metadata, kind=_PUBLISHED[kind], known=known)
    except (FewstepError, RecursionError) as error:
        return {"recognised": {"note": str(error)}}
    if found is None:
        return {}
    if isinstance(found, Unclear):
        return {"recognised": {"note": found.why, "candidates": list(found.candidates)}}
    contract = found.contract
    return {
        "recognised": {
            "checkpoint": found.key,
            "by": found.why,
            "method": found.method,
            "base_family": found.base_family,
            "prediction_type": contract.prediction_type,
            "solver": contract.solver,
            "steps": list(contract.allowed_steps or (contract.num_inference_steps,)),
        }
    }
