"""A model put together from its parts, before any weights are read: what it is, and how it is sampled.

A pipeline folder or a single file is the base. A denoiser of its own (how SDXL-Lightning is published) and
an autoencoder of its own, TAESD among them, take the place of the base's. What is a published checkpoint by
`fewstep.models.recognise` has that checkpoint's contract; anything else has its folder's, or its family's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.checkpoint import folder_writing, safetensors, tokenizers
from fewstep.checkpoint.naming import shown
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.published import Kind
from fewstep.errors import CheckpointError
from fewstep.models import clip_tokenizer, families, load, overlays, recognise
from fewstep.models.families import Family, Index
from fewstep.models.model_parts import FilePart, FolderPart, Part
from fewstep.models.source import ModelSource, plain_name

_UNFIT_KINDS = {
    "denoiser": "a denoiser alone; give the model that it belongs to, and this file with --unet",
    "vae": "an autoencoder alone; give a model, and this file with --vae",
    "taesd": "a tiny autoencoder alone; give a model, and this file with --vae",
    "text_encoder": "a text encoder alone; give a whole model",
    "lora": "an adapter; give a model, and this file's name with --lora and its folder with --loras-dir",
    "embedding": "an embedding; give a model, and this file with --embedding",
}


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """What is known of a model whose networks are not loaded yet."""

    name: str
    index: Index
    """Family, and the class of every part that there is."""
    parts: Mapping[str, Part]
    """Networks by their name in a pipeline."""
    tokenizers: Callable[[], list[Any]]
    """Of the text encoders that there are, in their order; raises CheckpointError, DependencyError."""
    contract: SamplingContract
    hash: str
    """See design "Hashes"; of several sources the SHA-256 of the list of theirs."""
    folder: Path | None = None
    """The pipeline folder, where the base is one."""
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What stands in for a part of the base -> its name and its hash."""
    notes: tuple[str, ...] = ()
    """What was found odd but not wrong."""

    @property
    def family(self) -> Family:
        """Of its networks."""
        return self.index.family

    @property
    def denoiser(self) -> Part:
        """The U-Net or transformer."""
        return self.parts[self.family.denoiser]

    @property
    def text_parts(self) -> list[str]:
        """Text encoders that there are, in their order."""
        return [encoder for encoder, _ in self.family.text_parts if encoder in self.parts]


def open_model(source: ModelSource) -> OpenedModel:
    """Read what a model is from its configurations and headers.

    Raises:
        NotFoundError: a path where nothing is.
        CheckpointError: something that is refused, or parts of different models.
        UsageError: a table of hashes does not follow its format.
    """
    base = _folder(source.base) if source.base.is_dir() else _file(source)
    if source.denoiser is not None:
        base = _with_denoiser(base, source.denoiser)
    if source.vae is not None:
        base = _with_vae(base, source.vae)
    if "vae" not in base.parts:
        raise CheckpointError(f"{source.base}: holds no autoencoder; give one of its family with --vae")
    return dataclasses.replace(base, name=source.name)


def recognised(path: Path, kind: Kind, family: Family) -> tuple[recognise.Recognised | None, tuple[str, ...]]:
    """What a file or folder is known to be, when it is of this family; and what speaks against it.

    Raises:
        CheckpointError, UsageError: as `recognise.recognise`.
    """
    found = recognise.recognise(path, kind=kind)
    if isinstance(found, recognise.Unclear):
        return None, (f"settings are those of any {family.title} model: {found.why}",)
    if found is None:
        return None, ()
    if families.named(found.base_family) is not family:
        said = f"{shown(path.name)} was recognised by {found.why} as made for {found.base_family}"
        return None, (f"{said}, and it is of {family.title}: its settings are those of any such model",)
    return found, ()


def _folder(root: Path) -> OpenedModel:
    load.check_folder(root)
    index = load.check_index(root)
    title = index.family.title
    parts: dict[str, Part] = {
        name: FolderPart(folder=root / name, class_name=class_name, title=title)
        for name, class_name in index.classes.items()
        if name != "scheduler" and not name.startswith("tokenizer")
    }
    contract = load.contract(root)
    notes: tuple[str, ...] = ()
    if not (root / load.CONTRACT_FILE).is_file():
        found, notes = recognised(root, "full", index.family)
        contract = contract if found is None else found.contract

    def read_tokenizers() -> list[Any]:
        there = [tokenizer for encoder, tokenizer in index.family.text_parts if encoder in index.classes]
        return [load.tokenizer(root, tokenizer, index) for tokenizer in there]

    return OpenedModel(
        name=plain_name(root),
        index=index,
        parts=parts,
        tokenizers=read_tokenizers,
        contract=contract,
        hash=safetensors.folder_hash(root),
        folder=root,
        notes=notes,
    )


def _file(source: ModelSource) -> OpenedModel:
    path = source.base
    detected = overlays.detect(path)
    if detected.kind != "checkpoint":
        raise CheckpointError(f"{path}: {_UNFIT_KINDS[detected.kind]}")
    assert detected.family is not None
    family = families.named(detected.family)
    assert family is not None
    parts: dict[str, Part] = {
        name: FilePart(
            file=path, name=name, class_name=part.class_name, config=part.config, detected=detected
        )
        for name, part in detected.parts.items()
    }
    notes: tuple[str, ...] = ()
    if "text_encoder_3" in parts:  # SD3 draws without, T5's vocabulary is not at hand
        del parts["text_encoder_3"]
        notes = ("the file's T5 is not used, as its vocabulary is not in it: give a pipeline folder for it",)
    _check_text(path, family, parts)
    try:
        scheduler = folder_writing.scheduler_config(
            detected.family, detected.prediction_type, detected.zero_terminal_snr
        )
        contract = families.contract_of(family, scheduler, parts[family.denoiser].config, _downscale(parts))
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}, with: fewstep convert, and draw with the folder that it makes"
        ) from None
    found, more = recognised(path, "full", family)

    def make_tokenizers() -> list[Any]:
        padding = tokenizers.PADDING
        there = [name for encoder, name in family.text_parts if encoder in parts]
        return [
            clip_tokenizer.tokenizer(padding.get((detected.family, name), clip_tokenizer.END))  # type: ignore[arg-type]
            for name in there
        ]

    return OpenedModel(
        name=plain_name(path),
        index=Index(
            family=family,
            classes={name: part.class_name for name, part in parts.items()},
            zero_empty_negative=family.zero_empty_negative,
        ),
        parts=parts,
        tokenizers=make_tokenizers,
        contract=contract if found is None else found.contract,
        hash=safetensors.sha256_file(path),
        notes=notes + more,
    )


def _downscale(parts: Mapping[str, Part]) -> int:
    return families.downscale(parts["vae"].config) if "vae" in parts else 8


def _check_text(path: Path, family: Family, parts: Mapping[str, Part]) -> None:
    if family.text == "t5":
        raise CheckpointError(
            f"{path}: {family.title} reads its text with T5, whose vocabulary is in no single file; give a "
            "pipeline folder, and this file with --unet"
        )
    for encoder, _ in family.text_parts:
        if encoder in family.optional:
            continue
        if encoder not in parts:
            raise CheckpointError(
                f"{path}: holds no {encoder}; give a pipeline folder of {family.title}, and this file with "
                "--unet"
            )
        clip_tokenizer.check(int(parts[encoder].config["vocab_size"]), str(path))


def _with_denoiser(base: OpenedModel, path: Path) -> OpenedModel:
    name, family = base.family.denoiser, base.family
    part, predicts = overlays.denoiser(path, base.parts, base.index)
    contract, notes = base.contract, base.notes
    kind: Kind = "full" if path.is_dir() and (path / "model_index.json").is_file() else "unet"
    found, more = recognised(path, kind, family)
    if found is not None:
        contract = found.contract
    else:
        contract = overlays.contract_for(base.contract, base.folder, base.index, part, _downscale(base.parts))
        if predicts is not None and predicts != contract.prediction_type:
            contract = dataclasses.replace(contract, prediction_type=predicts)
    return _replaced(base, name, part, path, contract=contract, notes=notes + more)


def _with_vae(base: OpenedModel, path: Path) -> OpenedModel:
    part = overlays.autoencoder(path, base.parts, base.index)
    channels = base.denoiser.config.get(
        "in_channels" if base.family.denoiser == "transformer" else "out_channels"
    )
    if part.config.get("latent_channels") != channels:
        raise CheckpointError(
            f"{path}: has {part.config.get('latent_channels')} latent channels, and {base.name} has "
            f"{channels}; give an autoencoder of {base.family.title}"
        )
    return _replaced(base, "vae", part, path)


def _replaced(base: OpenedModel, name: str, part: Part, path: Path, **changes: Any) -> OpenedModel:
    own = overlays.hash_of(path, name)
    lines = f"{base.hash}  base\n{own}  {name}\n"
    return dataclasses.replace(
        base,
        parts={**base.parts, name: part},
        index=dataclasses.replace(base.index, classes={**base.index.classes, name: part.class_name}),
        hash=hashlib.sha256(lines.encode()).hexdigest(),
        hashes={**base.hashes, name: {"name": plain_name(path), "hash": own}},
        **changes,
    )
