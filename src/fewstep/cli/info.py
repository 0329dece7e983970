"""``fewstep info``: what an image, a weight file or a model folder is, from its header and metadata."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import output
from fewstep.errors import CheckpointError, DataError, NotFoundError

_IMAGE_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".tif", ".tiff"}
_MAX_JSON = 1_000_000


def command(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Image, safetensors file, pipeline folder or runtime bundle."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Say what an image, a weight file or a model folder is.

    Of an image this prints the generation parameters, as other tools show them. Nothing is unpickled.
    """
    facts = _facts(path)
    if as_json:
        output.result_json(facts, indent=2)
    elif facts["kind"] == "image":
        _print_image(facts)
    else:
        _print_plain(facts)


def _facts(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return _folder(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file or folder; check the path") from None
    if head.startswith(_IMAGE_HEADS) or path.suffix.lower() in _IMAGE_SUFFIXES:
        return _image(path)
    return _weights(path)


def _image(path: Path) -> dict[str, Any]:
    from PIL import Image

    from fewstep.data import images
    from fewstep.prompt import containers, infotext

    width, height = images.image_size(
        path
    )  # refuses what is too large or no image, before anything is decoded
    try:
        with Image.open(path, formats=images.FORMATS) as image:
            image_format = image.format
            metadata = containers.decode(image)
    except Exception as error:  # decoders raise almost anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or cut off ({reason}); save the image again") from error
    facts: dict[str, Any] = {
        "kind": "image",
        "path": str(path),
        "format": image_format,
        "width": width,
        "height": height,
    }
    facts["parameters"] = metadata.parameters
    if metadata.parameters is not None:
        text = infotext.read(metadata.parameters)
        facts["prompt"] = text.prompt
        facts["negative_prompt"] = text.negative_prompt
        facts["fields"] = dict(text.fields)
    facts["record"] = metadata.record
    return facts


def _weights(path: Path) -> dict[str, Any]:
    import math

    from safetensors import SafetensorError, safe_open

    from fewstep.checkpoint.safetensors import check_content

    try:
        check_content(path)
    except CheckpointError as error:
        if path.suffix == ".safetensors" or "pickle" in str(error):
            raise
        raise CheckpointError(
            f"{path}: neither an image nor a safetensors file; give one, or a model folder"
        ) from None
    types: Counter[str] = Counter()
    parameters = 0
    try:
        with safe_open(path, framework="np") as handle:
            names = list(handle.keys())
            for name in names:
                tensor = handle.get_slice(name)
                types[tensor.get_dtype()] += 1
                parameters += math.prod(tensor.get_shape())
            metadata = dict(handle.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download or export it again") from None
    contract = {key: _parsed(value) for key, value in metadata.items() if key.startswith("fewstep")}
    return {
        "kind": "safetensors",
        "path": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(names),
        "parameters": parameters,
        "types": dict(types.most_common()),
        "metadata": {key: value for key, value in metadata.items() if key not in contract},
        "contract": contract or None,
    }


def _folder(path: Path) -> dict[str, Any]:
    from fewstep.checkpoint import bundle
    from fewstep.cli.models import student_facts
    from fewstep.engine.backends.openvino import model_info

    if bundle.is_bundle(path):
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
    index = path / "model_index.json"
    if not index.is_file():
        raise NotFoundError(
            f"{path}: neither a runtime bundle (bundle.json) nor a pipeline folder (model_index.json); "
            "give one of them or a single file"
        )
    return _pipeline(path, _read_json(index))


def _pipeline(path: Path, index: dict[str, Any]) -> dict[str, Any]:
    from fewstep.checkpoint.bundle import student_part
    from fewstep.checkpoint.safetensors import folder_hash
    from fewstep.cli.models import student_facts
    from fewstep.models.load import student_contracts

    parts = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or not any(value):
            continue
        files = sorted(path.glob(f"{name}/*.safetensors"))
        facts = [_weights(file) for file in files]
        parts[name] = {
            "class": ".".join(str(piece) for piece in value),
            "bytes": sum(fact["bytes"] for fact in facts),
            "parameters": sum(fact["parameters"] for fact in facts),
            "types": sorted({kind for fact in facts for kind in fact["types"]}),
        }
    contract = path / "fewstep.json"
    return {
        "kind": "pipeline",
        "path": str(path),
        "class": str(index.get("_class_name")),
        "hash": folder_hash(path),
        "parts": parts,
        "contract": _read_json(contract) if contract.is_file() else None,
        "students": {
            name: {
                **student_facts(found),
                "hash": folder_hash(path / student_part(name)),
                "contract": json.loads(found.to_json()),
            }
            for name, found in student_contracts(path).items()
        },
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            value = json.loads(handle.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); make the folder again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; make the folder again")
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _print_image(facts: dict[str, Any]) -> None:
    output.note(f"{facts['path']}: {facts['format']}, {facts['width']}x{facts['height']}")
    if facts["parameters"] is not None:
        output.result(facts["parameters"])
    elif facts["record"] is not None:
        output.result_json(facts["record"], indent=2)
    else:
        output.note("it holds no generation parameters")


def _print_plain(facts: dict[str, Any], indent: str = "") -> None:
    for key, value in facts.items():
        label = f"{indent}{key}:"
        if isinstance(value, dict) and value:
            output.result(label)
            _print_plain(value, indent + "  ")
        elif value not in (None, {}, []):
            output.result(f"{label} {value if isinstance(value, str) else json.dumps(value)}")
