"""What the "parameters" text of an image says of variations, second passes, masks and control networks.

Keys and words are AUTOMATIC1111's where it has any; outpainting (a script there), tiled autoencoders and
control networks (an extension with a form of its own) have keys of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos", "nearest": "Nearest"}


def seeds(record: Mapping[str, Any]) -> dict[str, object]:
    """Items behind the model's."""
    variation = record.get("variation") or {}
    size = variation.get("resize_from")
    strength = variation.get("strength") or None
    return {
        "Variation seed": variation.get("seed") if strength else None,
        "Variation seed strength": strength,
        "Seed resize from": f"{size[0]}x{size[1]}" if size else None,
        "Denoising strength": (record.get("hires") or record).get("strength"),
    }


def further(record: Mapping[str, Any]) -> dict[str, object]:
    """Items behind those that every image has."""
    return {**_hires(record), **_masking(record), **_control(record)}


def _hires(record: Mapping[str, Any]) -> dict[str, object]:
    second = record.get("hires")
    if not second:
        return {}
    scale = second["scale"]
    size = f"{second['width']}x{second['height']}"
    return {
        "Hires upscale": scale,
        "Hires resize": size if scale is None else None,
        "Hires steps": second["runs"],
        "Hires upscaler": _UPSCALERS.get(second["upscaler"], second["upscaler"]),
    }


def _masking(record: Mapping[str, Any]) -> dict[str, object]:
    masking = record.get("masking") or {}
    extended = record.get("outpaint")
    sides = ("left", "right", "top", "bottom")
    return {
        "Mask mode": "Inpaint not masked" if masking.get("inverted") else None,
        "Mask blur": masking.get("blur"),
        "Inpaint area": "Only masked" if masking.get("only_masked") else None,
        "Masked area padding": masking.get("padding"),
        "Masked content": (masking.get("content") or "").replace("_", " ") or None,
        "Outpaint": " ".join(f"{side} {extended[side]}" for side in sides) if extended else None,
        "Tiled VAE": True if record.get("vae_tiling") else None,
    }


def _control(record: Mapping[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {}
    for index, use in enumerate(record.get("control") or ()):
        found[f"Control {index}"] = f"{use['name']}, scale {use['scale']:g}"
        found[f"Control {index} image hash"] = use["image_hash"][:10]
    return found
