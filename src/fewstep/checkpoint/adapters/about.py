"""What an adapter file says about itself: base model, alias, and the hash that pictures name it by."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

from fewstep.checkpoint import safetensors

HASHES = frozenset({"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"})
"""Header texts that are true of one file only, not of a converted one."""

_HASH = re.compile(r"[0-9a-f]{12,64}")
_VERSIONS = {"sdxl": "SDXL", "sd3": "SD3", "sd_v2": "SD2", "sd_v1": "SD1"}
_ARCHITECTURES = {
    "stable-diffusion-xl": "SDXL",
    "stable-diffusion-3": "SD3",
    "stable-diffusion-v2": "SD2",
    "stable-diffusion-v1": "SD1",
}


def base_model(metadata: Mapping[str, str]) -> str | None:
    """The family of base models that the header names: SD1, SD2, SDXL or SD3; None where it names none.

    Read are kohya's ``ss_base_model_version`` and ``ss_v2``, and ``modelspec.architecture``, in this order.
    """
    version = metadata.get("ss_base_model_version", "")
    for start, family in _VERSIONS.items():
        if version.startswith(start):
            return family
    if metadata.get("ss_v2") == "True":
        return "SD2"
    architecture = metadata.get("modelspec.architecture", "")
    return next((name for start, name in _ARCHITECTURES.items() if architecture.startswith(start)), None)


def alias(metadata: Mapping[str, str]) -> str | None:
    """The name that the trainer gave it, by which the web UIs know it too; None where there is none."""
    name = metadata.get("ss_output_name", "")
    return name if name and len(name) <= 200 and name.isprintable() else None


def short_hash(path: str | os.PathLike[str]) -> str:
    """Twelve hexadecimal digits for the "Lora hashes" of a picture's parameters, as A1111 computes them.

    They are the first of the header's ``sshs_model_hash``, or else of the SHA-256 of what follows the header,
    so that editing the header does not change them.

    Raises:
        NotFoundError: no such file.
        CheckpointError: not a safetensors file.
    """
    header = safetensors.read_metadata(path)
    if _HASH.fullmatch(stated := header.get("sshs_model_hash", "")):
        return stated[:12]
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        handle.seek(8 + int.from_bytes(handle.read(8), "little"))
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
