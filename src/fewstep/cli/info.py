"""``fewstep info``: what an image, a weight file or a model folder is, from its header and metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import output
from fewstep.errors import CheckpointError, NotFoundError

_IMAGE_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".tif", ".tiff"}


def command(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Image, safetensors file, pipeline folder or runtime bundle."),
    ],
    with_hash: Annotated[
        bool, typer.Option("--hash", help="Also the SHA-256 of a weight file, which is read whole for it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Say what an image, a weight file or a model folder is.

    Of an image this prints the prompt and the settings, as other tools show them; those of ComfyUI, InvokeAI,
    NovelAI and Fooocus with the extra "metadata". Of a weight file it tells kind, family, what the model
    predicts, tensors by type and part, what a LoRA was trained with, how the file is to be sampled, and what
    it was merged from: from the header alone. Nothing is unpickled.
    """
    found = facts(path, with_hash=with_hash)
    if as_json:
        output.result_json(found, indent=2)
    else:
        print_facts(found)


def facts(path: Path, *, with_hash: bool = False) -> dict[str, Any]:
    """Everything that is told of a file or folder, JSON-able.

    Args:
        path: an image, a safetensors file or a model folder.
        with_hash: also the SHA-256 of a weight file; a folder's is told in any case.

    Raises:
        NotFoundError: nothing is there, or no model in the folder.
        CheckpointError: a pickle, a broken file or folder, or neither image nor weights.
        DataError: an image that is damaged or too large.
    """
    if path.is_dir():
        from fewstep.cli import info_folders

        return info_folders.facts(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file or folder; check the path") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give a readable file") from None
    if head.startswith(_IMAGE_HEADS) or path.suffix.lower() in _IMAGE_SUFFIXES:
        from fewstep.cli import info_images

        return info_images.facts(path)
    from fewstep.cli import info_weights

    try:
        return info_weights.facts(path, with_hash=with_hash)
    except CheckpointError as error:
        if path.suffix == ".safetensors" or "pickle" in str(error):
            raise
        raise CheckpointError(
            f"{path}: neither an image nor a safetensors file; give one, or a model folder"
        ) from None


def print_facts(found: dict[str, Any]) -> None:
    """Print `facts` for a person: an image's settings as they stand in it, anything else a line a fact."""
    from fewstep.cli import info_values

    if found["kind"] != "image":
        shown = {**found, "merged_from": found["merged_from"]["text"]} if "merged_from" in found else found
        info_values.print_facts(shown)
        return
    output.note(f"{found['path']}: {found['format']}, {found['width']}x{found['height']}")
    if "tool" in found:
        keys = ("tool", "prompt", "negative_prompt", "models", "samplers", "more", "note")
        info_values.print_facts({key: found[key] for key in keys if key in found})
    elif found["parameters"] is not None:
        output.result(found["parameters"])
    elif found["record"] is not None:
        output.result_json(found["record"], indent=2)
    else:
        output.note("it holds no generation parameters")
