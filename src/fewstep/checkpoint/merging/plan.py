"""What is to be done with every tensor of the first model, found out before any is read.

A1111's rules: what only the first model has goes through; what only the second has is left out; a tensor of
the second that the third lacks counts as no difference; positions are never mixed. A U-Net of 9 or 8 input
channels (inpainting, instruct-pix2pix) takes one of 4 in its first channels, and only as the first model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from fewstep.checkpoint import half
from fewstep.checkpoint.detect import VARIANTS
from fewstep.checkpoint.half import Precision
from fewstep.checkpoint.keymaps import unet
from fewstep.checkpoint.merging import blocks
from fewstep.checkpoint.merging.formulas import Formula
from fewstep.checkpoint.merging.sources import (
    DENOISERS,
    Key,
    Model,
    Origin,
    Tensor,
    find,
    of_origin,
    shown_key,
)
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.parts import original_naming
from fewstep.checkpoint.tensorfile import Entry
from fewstep.errors import CheckpointError, UsageError

Mode = Literal["weighted-sum", "add-difference", "no-interpolation", "slerp", "make-few-step"]

FORMULAS: dict[Mode, Formula | None] = {
    "weighted-sum": "weighted sum",
    "add-difference": "add difference",
    "no-interpolation": None,
    "slerp": "slerp",
    "make-few-step": "add difference",
}

_WHAT = {"text": "a text-to-image model", "inpainting": "an inpainting model", "instruct": "instruct-pix2pix"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One tensor of the result.

    Attributes:
        entry: its type and shape there.
        a: of the first model, or of the autoencoder that is baked in.
        b: of the second; None for a tensor that goes through as it is.
        c: of the third; None for no difference.
        m: the multiplier.
    """

    entry: Entry
    a: Tensor
    b: Tensor | None = None
    c: Tensor | None = None
    m: float = 0.0


@dataclass(slots=True)
class Plan:
    """All tensors of the result, in the order of the first model's files.

    Attributes:
        steps: by their place there.
        weights: multipliers by block; empty where all are the same.
        remarks: what the user should know.
        mixed: how many tensors are mixed.
    """

    steps: dict[Key, Step] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    mixed: int = 0


def make_plan(
    mode: Mode,
    m: float,
    a: Model,
    b: Model | None = None,
    c: Model | None = None,
    *,
    vae: Model | None = None,
    block_weights: str | None = None,
    dtype: Precision | None = None,
    discard: re.Pattern[str] | None = None,
) -> Plan:
    """Say what becomes of every tensor.

    Args:
        mode: how the models are mixed.
        m: the multiplier of everything that ``block_weights`` does not name.
        a: the first model, whose form and names the result has.
        b: the second.
        c: the third.
        vae: the model whose autoencoder is baked in.
        block_weights: see `blocks.read_weights`.
        dtype: of the result; as in the first model when None.
        discard: names in which this is found are left out.

    Raises:
        CheckpointError: models of different families or of unequal shapes, in the wrong order, or without
            anything in common.
        UsageError: a block that the model has not, or a pattern that discards everything.
    """
    models = [model for model in (a, b, c) if model is not None]
    _check_families([*models, *([vae] if vae is not None else [])])
    plan = Plan()
    where, there = blocks.assign(_unet_names(a))
    if block_weights is not None:
        plan.weights = blocks.read_weights(block_weights, there, m)
    for key, entry in a.entries.items():
        if discard is not None and discard.search(shown_key(key)):
            continue
        own = find(a, key, a)
        assert own is not None
        step = Step(entry=Entry(half.target(entry.dtype, dtype), entry.shape), a=own)
        if FORMULAS[mode] is not None and _is_mixed(mode, a, key, entry):
            assert b is not None
            at = m
            if plan.weights:
                origin = a.origins.get(key)
                other = blocks.VAE if origin is not None and origin.part == "vae" else blocks.BASE
                at = plan.weights[where.get(key, other)]
            step = _mixed(step, find(b, key, a), None if c is None else find(c, key, a), at)
        plan.steps[key] = step
    plan.mixed = sum(step.b is not None for step in plan.steps.values())
    discarded = len(a.entries) - len(plan.steps)
    if not plan.steps:
        raise UsageError("--discard leaves nothing; give a pattern that some names do not have")
    if discard is not None:
        plan.remarks.append(f"{discarded} tensors are discarded")
    if b is not None:
        _check_common(plan, mode, a, b, c)
    if vae is not None:
        _bake(plan, a, vae, dtype, discard)
    return plan


def _check_families(models: list[Model]) -> None:
    known = [model for model in models if model.detected.family is not None]
    for model in known[1:]:
        if model.detected.family != known[0].detected.family:
            raise CheckpointError(
                f"{_is(known[0])} and {_is(model)}: only models of one family can be merged; "
                f"give another {model.role}"
            )


def _is(model: Model) -> str:
    detected = model.detected
    kind = detected.kind.replace("_", " ")
    return f"{model.role} ({shown(model.path.name)}) is a {kind} of {detected.family}"


def _unet_names(model: Model) -> dict[Key, str]:
    """CompVis' names of the tensors of a model's U-Net."""
    part = model.detected.parts.get("unet")
    if part is None:
        return {}
    own = {key: origin for key, origin in model.origins.items() if origin.part == "unet"}
    if part.layout == "original":
        return {key: key[1].removeprefix(part.prefix) for key in own}
    keymap = unet.keymap(unet.from_diffusers(part.places.keys()))
    places = {key: keymap.backward(origin.names[0]) for key, origin in own.items()}
    return {key: "" if place is None else place.original for key, place in places.items()}


def _is_mixed(mode: Mode, a: Model, key: Key, entry: Entry) -> bool:
    if entry.dtype not in half.FLOATS or key[1].endswith("position_ids"):
        return False
    origin = a.origins.get(key)
    if mode == "make-few-step":
        return origin is not None and origin.part in DENOISERS
    return a.in_folders or origin is not None or "model" in key[1]


def _mixed(step: Step, b: Tensor | None, c: Tensor | None, m: float) -> Step:
    """A step with the second and the third model's tensors, when their shapes allow it."""
    if b is None or b.dtype not in half.FLOATS:
        return step
    ours, theirs = step.a.full_shape, b.full_shape
    if ours != theirs:
        alike = len(ours) == len(theirs) == 4 and (ours[0], *ours[2:]) == (theirs[0], *theirs[2:])
        variants = (VARIANTS.get(ours[1]), VARIANTS.get(theirs[1])) if alike else (None, None)
        if variants[0] == "text" and variants[1] is not None:
            raise CheckpointError(
                f"{b.label} takes {theirs[1]} channels ({_WHAT[variants[1]]}) and A 4; give the model of "
                f"{theirs[1]} channels as A"
            )
        if variants[1] != "text" or variants[0] is None:
            raise CheckpointError(
                f"{b.label} has the shape {theirs} and A {ours}; give models of the same make"
            )
    if c is not None and c.full_shape != theirs:
        raise CheckpointError(
            f"{c.label} has the shape {c.full_shape} and B {theirs}; give a C of the same make as B"
        )
    return replace(step, b=b, c=c, m=m)


def _check_common(plan: Plan, mode: Mode, a: Model, b: Model, c: Model | None) -> None:
    mixed = [step for step in plan.steps.values() if step.b is not None]
    if not mixed:
        raise CheckpointError(
            f"B ({shown(b.path.name)}) has none of the tensors of A ({shown(a.path.name)}) that are mixed; "
            "give models of the same make"
        )
    if c is not None:
        lacking = sum(step.c is None for step in mixed)
        if lacking == len(mixed):
            raise CheckpointError(
                f"C ({shown(c.path.name)}) has none of the tensors of B ({shown(b.path.name)}); "
                "give the model that B was made from"
            )
        if lacking:
            plan.remarks.append(f"{lacking} tensors of B are not in C: they count as no difference")
    more = _names(b) - _names(a)
    networks = sorted(name for part, name in more if part in DENOISERS)
    if mode == "make-few-step" and networks:
        raise CheckpointError(
            f"B ({shown(b.path.name)}): its denoiser has {len(networks)} tensors that A's has not, the first "
            f"{shown(networks[0])}, and would be another network without them; give a distilled model that "
            "takes no guidance scale"
        )
    if more:
        plan.remarks.append(f"{len(more)} tensors are only in B and are left out")
    kept = sum(step.b is None and _is_mixed(mode, a, key, a.entries[key]) for key, step in plan.steps.items())
    if kept:
        plan.remarks.append(f"{kept} tensors are not in B and stay as A has them")
    said = [model.detected.prediction_type for model in (a, b)]
    if None not in said and said[0] != said[1]:
        plan.remarks.append(f"warning: A predicts {said[0]} and B {said[1]}: such models rarely mix")


def _names(model: Model) -> set[tuple[str, str]]:
    return {(part, name) for part, view in model.views.items() for name in view.entries}


def _bake(plan: Plan, a: Model, vae: Model, dtype: Precision | None, discard: re.Pattern[str] | None) -> None:
    """Put another autoencoder in the place of the first model's."""
    if "vae" not in vae.views:
        raise CheckpointError(f"{vae.path}: holds no autoencoder to bake in; give another --vae")
    wanted = {key: origin for key, origin in a.origins.items() if origin.part == "vae"}
    new = not wanted
    if new:
        wanted = _places_for_vae(a, vae)
    for key, origin in wanted.items():
        if discard is not None and discard.search(shown_key(key)):
            continue
        tensor = of_origin(vae, origin, key)
        if tensor is None or (not new and tensor.full_shape != a.entries[key].shape):
            has = f"has the shape {tensor.full_shape}" if tensor else "is not there"
            raise CheckpointError(
                f"{vae.path}: {shown(origin.names[0])} {has}, and A has {a.entries[key].shape}; give an "
                "autoencoder of the same make"
            )
        plan.steps[key] = Step(entry=Entry(half.target(tensor.dtype, dtype), tensor.full_shape), a=tensor)
    plan.mixed = sum(step.b is not None for step in plan.steps.values())


def _places_for_vae(a: Model, vae: Model) -> dict[Key, Origin]:
    """Where an autoencoder goes in a single file that has none."""
    denoiser = next((a.detected.parts[name] for name in DENOISERS if name in a.detected.parts), None)
    family = a.detected.family
    if a.in_folders or denoiser is None or not denoiser.prefix or denoiser.layout != "original":
        raise CheckpointError(f"{a.path}: has no autoencoder and no place for one; leave --vae out")
    assert family is not None
    part = vae.detected.parts["vae"]
    prefix, keymap = original_naming(part, family)
    found: dict[Key, Origin] = {}
    for name in part.places:
        place = keymap.backward(name)
        assert place is not None, name
        found["", prefix + place.original] = Origin("vae", (name,), place.change)
    return found
