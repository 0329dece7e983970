"""What ``fewstep info`` says of a model folder: a runtime bundle or a pipeline folder of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import CheckpointError, FewstepError, NotFoundError
from fewstep.prompt.printable import plain

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract

_MAX_JSON = 1_000_000
_ORIGIN = "fewstep-origin.json"


def facts(path: Path) -> dict[str, Any]:
    """Kind, hash, parts, contract and students of a model folder.

    Raises:
        NotFoundError: neither a bundle nor a pipeline folder.
        CheckpointError: it is broken.
    """
    from fewstep.checkpoint import bundle

    if bundle.is_bundle(path):
        return {key: plain(value) for key, value in _bundle(path).items()}
    index = path / "model_index.json"
    if not index.is_file():
        raise NotFoundError(
            f"{path}: neither a runtime bundle (bundle.json) nor a pipeline folder (model_index.json); "
            "give one of them or a single file"
        )
    return {key: plain(value) for key, value in _pipeline(path, _read_json(index)).items()}


def student_facts(contract: SamplingContract) -> dict[str, Any]:
    """Return what a person wants to know of a student: its method, and how it draws."""
    return {
        "method": contract.method,
        "steps": list(contract.allowed_steps or (contract.num_inference_steps,)),
        "solver": contract.solver,
    }


def _bundle(path: Path) -> dict[str, Any]:
    from fewstep.checkpoint import bundle
    from fewstep.engine.backends.openvino import model_info

    found = bundle.open_bundle(path, verify=True)
    students = model_info(found).students if found.students else ()
    return {
        "kind": "bundle",
        "path": str(path),
        "name": found.name,
        "hash": found.hash,
        "bytes": sum(entry.size for entry in found.files.values()),
        "native_size": list(found.native_size),
        "max_size": found.max_size,
        "latent_channels": found.latent_channels,
        "text_length": found.text_length,
        "precision": dict(found.precision),
        "licence": found.licence,
        "attribution": [dict(entry) for entry in found.attribution],
        "made_by": dict(found.made_by),
        "contract": dict(found.contract),
        "students": {
            student.name: {
                **student_facts(student.contract),
                "hash": student.hash,
                "precision": entry.precision,
                "source": entry.source,
                "contract": dict(entry.contract),
            }
            for entry, student in zip(found.students, students, strict=True)
        },
    }


def _pipeline(path: Path, index: dict[str, Any]) -> dict[str, Any]:
    from fewstep.checkpoint.bundle import student_part
    from fewstep.checkpoint.safetensors import folder_hash
    from fewstep.models.load import student_contracts

    parts = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or not any(value) or "/" in name:
            continue
        found = [_part(file) for file in sorted((path / name).glob("*.safetensors"))]
        parts[name] = {
            "class": ".".join(str(piece) for piece in value),
            "bytes": sum(one["bytes"] for one in found),
            "parameters": sum(one["parameters"] for one in found),
            "types": sorted({kind for one in found for kind in one["types"]}),
        }
    contract, origin = path / "fewstep.json", path / _ORIGIN
    return {
        "kind": "pipeline",
        "path": str(path),
        "class": str(index.get("_class_name")),
        **_drawn(path),
        "hash": folder_hash(path),
        "bytes": sum(part["bytes"] for part in parts.values()),
        "parts": parts,
        "contract": _read_json(contract) if contract.is_file() else None,
        "downloaded": _origin(origin) if origin.is_file() else None,
        "students": {
            name: {
                **student_facts(found),
                "hash": folder_hash(path / student_part(name)),
                "contract": json.loads(found.to_json()),
            }
            for name, found in student_contracts(path).items()
        },
    }


def _part(file: Path) -> dict[str, Any]:
    from fewstep.checkpoint import header
    from fewstep.cli.info_weights import counts

    return {"bytes": file.stat().st_size, **counts(header.read(file).entries.values())}


def _drawn(path: Path) -> dict[str, Any]:
    """Family and how it is drawn; a note where the folder is of no family that is."""
    from fewstep.models import families, load

    try:
        family = families.read_index(path).family
        contract = load.contract(path)
    except (FewstepError, OSError) as error:
        return {"note": f"fewstep does not draw with it: {error}"}
    return {
        "family": family.name,
        "prediction_type": contract.prediction_type,
        "solver": contract.solver,
        "steps": contract.num_inference_steps,
    }


def _origin(path: Path) -> dict[str, Any]:
    origin = _read_json(path)
    return {key: origin[key] for key in ("repository", "revision", "commit") if key in origin}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            value = json.loads(handle.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); make the folder again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; make the folder again")
    return value
