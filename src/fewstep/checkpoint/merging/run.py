"""Merging: checked first, then written tensor by tensor; the result appears when it is complete.

Memory: one tensor of the result, and some rows of each model; a model in another form than the first one's
(file and folder, other names) besides keeps one tensor whole.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.checkpoint import atomic
from fewstep.checkpoint.conversion import SUFFIX
from fewstep.checkpoint.half import Precision
from fewstep.checkpoint.merging import blocks, folders, recipe, writing
from fewstep.checkpoint.merging.plan import FORMULAS, Mode, Plan, make_plan
from fewstep.checkpoint.merging.sources import Model, open_model
from fewstep.checkpoint.merging.writing import Contract, Report
from fewstep.errors import NotFoundError, OutputError, UsageError

NEEDS: dict[Mode, int] = {
    "weighted-sum": 2,
    "add-difference": 3,
    "no-interpolation": 1,
    "slerp": 2,
    "make-few-step": 3,
}
"""How many models a mode takes."""

_FORMULA_TEXTS: dict[Mode, str] = {
    "weighted-sum": "(1 - M) A + M B",
    "add-difference": "A + M (B - C)",
    "no-interpolation": "A",
    "slerp": "the turn from A to B by M of their angle",
    "make-few-step": "A + M (B - C): a fine-tune, a distilled model, and the base of both",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to merge.

    Attributes:
        mode: see `formulas`.
        multiplier: M.
        blocks: multipliers by block of the U-Net; see `blocks.read_weights`.
        dtype: of floating point tensors; as A has them when None (8-bit floats become float16).
        vae: a file or folder whose autoencoder is baked in.
        discard: a regular expression; tensors in whose name it is found are left out.
        contract: how the result is sampled, where it is not as A is.
        copy_metadata: keep all texts in the models' headers.
        metadata: further texts for the header.
        replace: put the output in the place of what has its name.
    """

    mode: Mode = "weighted-sum"
    multiplier: float = 0.5
    blocks: str | None = None
    dtype: Precision | None = None
    vae: Path | None = None
    discard: str | None = None
    contract: Contract | None = None
    copy_metadata: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    replace: bool = False


def merge(
    models: Sequence[Path], out: Path | None, options: Options, *, on_progress: Report | None = None
) -> tuple[Path, list[str]]:
    """Merge models of one family; the result has the form of the first: a file, or a pipeline folder.

    Args:
        models: A, and as many of B and C as the mode takes.
        out: of the result; A1111's name for the merge in the current folder when None.
        options: see `Options`.
        on_progress: told how far it is.

    Returns:
        The path of the result, and sentences that the user should read.

    Raises:
        UsageError: options or models that do not go together.
        NotFoundError: no such model.
        CheckpointError: a model that is refused, models that do not fit, or values that are not finite.
        OutputError: the output exists already, or cannot be written.
    """
    pattern = _check_options(models, options)
    sources = [*models, *([options.vae] if options.vae is not None else [])]
    for path in sources:
        if not path.exists():
            raise NotFoundError(f"{path}: no such file or folder; check the path")
    with contextlib.ExitStack() as stack:
        opened = [open_model(role, path, stack) for role, path in zip("ABC", models, strict=False)]
        first = opened[0]
        vae = open_model("VAE", options.vae, stack) if options.vae is not None else None
        plan = make_plan(
            options.mode,
            options.multiplier,
            *opened,
            vae=vae,
            block_weights=options.blocks,
            dtype=options.dtype,
            discard=pattern,
        )
        target = out if out is not None else Path(default_name(models, options, first))
        _check_output(target, out is None, sources, first, options.replace)
        atomic.sweep(target.parent)
        _check_space(target, plan)
        written = sum(step.entry.nbytes for step in plan.steps.values())
        tick = writing.Ticks(on_progress, sum(map(size, opened)) + written)
        identities = [recipe.identify(model.path, tick) for model in opened]
        texts = recipe.header(
            [(identity, model.metadata) for identity, model in zip(identities, opened, strict=True)],
            mode=options.mode,
            multiplier=options.multiplier,
            block_weights=plan.weights,
            dtype=options.dtype,
            custom_name=None if out is None else out.stem,
            vae=None if vae is None else recipe.identify(vae.path, lambda _: None),
            discard=options.discard,
            variant=first.detected.variant,
            contract=None if options.contract is None else options.contract.text,
            copy=options.copy_metadata,
            extra=options.metadata,
        )
        tick.at_least(sum(map(size, opened)))
        remarks = _warnings(options, plan, identities) + plan.remarks
        if first.in_folders:
            contract = options.contract
            remarks += writing.write_folder(
                target, first, plan, options.mode, texts, contract, tick, replace=options.replace
            )
        else:
            writing.write_file(target, plan, options.mode, texts, tick)
        return target, remarks


def default_name(models: Sequence[Path], options: Options, first: Model) -> str:
    """A1111's name for a merge: ``0.7(a) + 0.3(b)``, ``a + 0.5(b - c)``, or A's name."""
    names = [path.name.removesuffix(SUFFIX) for path in models]
    m = round(options.multiplier, 2)
    match options.mode:
        case "weighted-sum" | "slerp":
            name = f"{round(1 - m, 2)}({names[0]}) + {m}({names[1]})"
        case "no-interpolation":
            name = names[0]
        case _:
            name = f"{names[0]} + {m}({names[1]} - {names[2]})"
    variant = {"inpainting": ".inpainting", "instruct": ".instruct-pix2pix"}.get(first.detected.variant or "")
    return name + (variant or "") + ("" if first.in_folders else SUFFIX)


def size(model: Model) -> int:
    """Bytes of a model's weight files."""
    if model.in_folders:
        return folders.sizes(model.path, model.stores)
    return model.path.stat().st_size


def _check_options(models: Sequence[Path], options: Options) -> re.Pattern[str] | None:
    mode, needed = options.mode, NEEDS[options.mode]
    roles = "ABC"
    if len(models) < needed:
        lacking = " and no ".join(roles[len(models) : needed])
        raise UsageError(
            f"--mode {mode} is {_FORMULA_TEXTS[mode]}, and there is no {lacking}; give {needed} models"
        )
    if len(models) > needed:
        extra = models[needed]
        raise UsageError(f"--mode {mode} is {_FORMULA_TEXTS[mode]}, without {extra}; leave it out")
    if not math.isfinite(options.multiplier):
        raise UsageError(f"--ratio is {options.multiplier}: give a number, sensibly from 0 to 1")
    if options.blocks is not None and FORMULAS[mode] is None:
        raise UsageError(f"--blocks has no meaning for --mode {mode}, which mixes nothing; leave it out")
    if options.discard is None:
        return None
    try:
        return re.compile(options.discard)
    except re.error as error:
        raise UsageError(
            f"--discard {options.discard!r} is no regular expression ({error}); to leave out averaged "
            "weights give '^model_ema'"
        ) from None


def _check_output(out: Path, named: bool, sources: Sequence[Path], first: Model, replace: bool) -> None:
    hint = "give --out with another name" if named else "give another name"
    if first.in_folders and out.suffix == SUFFIX:
        raise UsageError(
            f"{out}: A is a folder, and so is the result; give a name without {SUFFIX} (fewstep convert "
            "makes a file of it)"
        )
    if not first.in_folders and out.suffix != SUFFIX:
        raise UsageError(
            f"{out}: A is a file, and so is the result; give a name that ends in {SUFFIX} (fewstep convert "
            "makes a folder of it)"
        )
    place = out.resolve()
    for source in sources:
        own = source.resolve()
        same = out.exists() and out.samefile(source)
        if same or own == place or own.is_relative_to(place) or place.is_relative_to(own):
            raise UsageError(f"{out}: is {source}, which is merged and would be lost; {hint}")
    if out.exists():
        if not replace:
            raise OutputError(f"{out}: exists already; give --replace or another name")
        if out.is_dir() != first.in_folders:
            kind = "a folder" if out.is_dir() else "a file"
            raise OutputError(f"{out}: is {kind}, which is not replaced by the other kind; {hint}")


def _check_space(out: Path, plan: Plan) -> None:
    """Refuse what will not fit before minutes of work."""
    needed = sum(step.entry.nbytes for step in plan.steps.values())
    parent = next((folder for folder in out.absolute().parents if folder.is_dir()), None)
    if parent is None:
        return
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"{out}: needs {needed / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left; free some space "
            "or choose another place"
        )


def _warnings(options: Options, plan: Plan, identities: Sequence[recipe.Identity]) -> list[str]:
    found = []
    if FORMULAS[options.mode] is not None:
        if plan.weights:
            beyond = blocks.out_of_range(plan.weights)
            if beyond:
                found.append(f"warning: the multipliers of {', '.join(beyond)} are not from 0 to 1")
        elif not 0.0 <= options.multiplier <= 1.0:
            found.append(
                f"warning: M is {options.multiplier:g}; beyond 0 to 1 a result soon draws nothing but noise"
            )
    hashes = [identity.sha256 for identity in identities]
    if len(hashes) == 3 and hashes[1] == hashes[2]:
        found.append("warning: B and C are the same model: there is no difference to add")
    return found
