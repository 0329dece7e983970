"""Whether an adapter fits a base model, and if not, why not: no adapter is applied in part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fewstep.checkpoint.adapters import about, deltas, names
from fewstep.checkpoint.adapters.deltas import Delta, Full, Shape
from fewstep.checkpoint.adapters.names import shown
from fewstep.checkpoint.adapters.reading import AdapterFile, BaseShapes

FAMILIES = {768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner", 384: "emoji-128"}
"""Width of the text that a U-Net's cross attention reads -> family of base models."""

EMBEDDINGS = "bundle_emb."
"""Tensors of textual-inversion embeddings that A1111 finds in adapter files begin so."""

_CROSS_ATTENTION = (".attn2.to_k", ".attn2.to_v")
_JOINT_ATTENTION = (".attn.to_q", ".attn.to_k", ".attn.to_v")
_SD3 = {1536: "SD3", 2432: "SD3"}  # medium, large


def family(adapter: AdapterFile) -> str | None:
    """The family of base models that an adapter was made for: one of `FAMILIES` or SD3; None if unknown.

    Widths come first; what the header says (`about.base_model`) last, because anybody can write it.
    """
    shapes = {
        part: {layer: shape for layer, delta in layers.items() if len(shape := deltas.shape(delta) or ()) > 1}
        for part, layers in adapter.parts.items()
    }
    if found := _family(shapes):
        return found
    open_clip_h = any(shape[1] == 1024 for shape in shapes.get("text_encoder", {}).values())
    return "SD2" if open_clip_h and "unet" not in shapes else about.base_model(adapter.metadata)


def family_of_base(base: BaseShapes) -> str | None:
    """The family of a base model by the shapes of its tensors; None where it is none of the known ones."""
    return _family(
        {
            part: {name.removesuffix(".weight"): shape for name, shape in tensors.items() if len(shape) > 1}
            for part, tensors in base.items()
        }
    )


def layer_in(layer: str, tensors: Mapping[str, Shape]) -> str | None:
    """The name that a layer has in a base, with or without CLIP's ``text_model.``; None where it has none."""
    for name in (layer, names.without_text_model(layer)):
        if f"{name}.weight" in tensors:
            return name
    return None


def check_fits(adapter: AdapterFile, base: BaseShapes) -> list[str]:
    """Everything in an adapter that does not fit a base; an empty list where it fits.

    Args:
        adapter: of `fewstep.checkpoint.adapters.reading.read_adapter`.
        base: the parts of the base that it is for, with the shapes of their state dicts.

    Returns:
        One sentence for each thing, the most telling first: another family of base models, tensors without a
        meaning, parts and layers that the base does not have, shapes that differ.
    """
    found: list[str] = []
    made_for, given = family(adapter), family_of_base(base)
    if made_for is not None and given is not None and made_for != given:
        found.append(f"it was made for {made_for} and the base is {given}")
    found += [
        f"nobody knows what {shown(name)} is" for name in adapter.unmatched if not name.startswith(EMBEDDINGS)
    ]
    for part, layers in adapter.parts.items():
        if part not in base:
            found.append(f"the base has no {part}, for which it has {len(layers)} layers")
            continue
        for layer, delta in layers.items():
            found += _misfits(part, layer, delta, base[part])
    return found


def _misfits(part: str, layer: str, delta: Delta, tensors: Mapping[str, Shape]) -> Iterator[str]:
    name = layer_in(layer, tensors)
    if name is None:
        yield f"the base's {part} has no layer {shown(layer)}"
        return
    weight, made_for = tuple(tensors[f"{name}.weight"]), deltas.shape(delta)
    if made_for is not None and not deltas.reaches(made_for, weight):
        yield f"{part} layer {shown(layer)} is for weights of {made_for}, the base's is {weight}"
        return
    if delta.diff_b is not None:
        bias, size = tensors.get(f"{name}.bias"), tuple(delta.diff_b.shape)
        if bias is None or tuple(bias) != size:
            has = "none" if bias is None else tuple(bias)
            yield f"{part} layer {shown(layer)} is for a bias of {size}, the base has {has}"
    if not isinstance(delta, Full) and delta.dora_scale is not None:
        try:
            deltas.dora_axis(delta.dora_scale, weight)
        except ValueError as error:
            yield f"{part} layer {shown(layer)}: {error}"


def _family(parts: Mapping[str, Mapping[str, Shape]]) -> str | None:
    for part, ends, known in (("unet", _CROSS_ATTENTION, FAMILIES), ("transformer", _JOINT_ATTENTION, _SD3)):
        widths = {shape[1] for layer, shape in parts.get(part, {}).items() if layer.endswith(ends)}
        if len(widths) == 1:
            return known.get(widths.pop())
    return None
