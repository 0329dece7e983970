"""The models that are merged, opened: what each is, and its tensors under the names of the first.

A file's tensors have one name each; a pipeline folder's have the folder of their network besides. Where two
models name a tensor alike it is read as it stands. Where they do not (a bare U-Net in diffusers' names beside
a checkpoint in its authors', a folder beside a file), it is found through `fewstep.checkpoint.detect`, and
changed into the form that the first model has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fewstep.checkpoint import half, single_file
from fewstep.checkpoint.detect import Detected, detect_folder
from fewstep.checkpoint.keymaps.moves import IDENTITY, Change, original_shape, to_original
from fewstep.checkpoint.merging import folders
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.parts import TEXT_ENCODERS, Part, text_encoder
from fewstep.checkpoint.single_file import PartView
from fewstep.checkpoint.tensorfile import Entry, Store
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Key = tuple[str, str]
"""Folder of the network ("" in a file), and name of the tensor."""

DENOISERS = ("unet", "transformer")
_UNFIT = {
    "lora": "a LoRA, which is drawn with as it is (--lora) and not merged here",
    "embedding": "an embedding, which is no network",
    "taesd": "a tiny autoencoder (TAESD), which is not merged",
}


class Origin(NamedTuple):
    """What a tensor of a file is in its network: the network, diffusers' names, and the change from them."""

    part: str
    names: tuple[str, ...]
    change: Change


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """An open model.

    Attributes:
        role: ``A``, ``B``, ``C``, or ``VAE`` for the autoencoder to bake in.
        path: of the file or the folder.
        in_folders: whether it is a folder of networks, each with weights of its own.
        detected: what it is.
        stores: tensors by folder of the network; one, named "", of a file.
        entries: every tensor but factors of 8-bit floats.
        scales: weight -> its factor, of 8-bit floats.
        metadata: texts of the header; of a folder, those of its denoiser.
        views: its networks under diffusers' names.
        origins: what its tensors are; those outside of all networks are not in it.
    """

    role: str
    path: Path
    in_folders: bool
    detected: Detected
    stores: Mapping[str, Store] = field(repr=False)
    entries: Mapping[Key, Entry] = field(repr=False)
    scales: Mapping[Key, str] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    views: Mapping[str, PartView] = field(repr=False)
    origins: Mapping[Key, Origin] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor of a model, in the form that the first model has it.

    Attributes:
        role: of its model.
        file: name of its model.
        key: of the first model's tensor.
        dtype: in its file, as safetensors names it.
        full_shape: as it is.
    """

    role: str
    file: str
    key: Key
    dtype: str
    full_shape: tuple[int, ...]
    _store: Store | None = None
    _name: str = ""
    _scale: str | None = None
    _view: PartView | None = None
    _origin: Origin | None = None
    _kept: list[torch.Tensor] = field(default_factory=list, repr=False)

    @property
    def label(self) -> str:
        """Model and name, for messages."""
        return f"{self.role} ({shown(self.file)}): {shown(shown_key(self.key))}"

    @property
    def shape(self) -> tuple[int, ...]:
        """With at least one dimension; see `formulas.Rows`."""
        return self.full_shape or (1,)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """See `formulas.Rows`.

        Raises:
            CheckpointError: values that are not finite, or the file was changed.
        """
        import torch

        if self._store is not None and self._scale is None and self.full_shape:
            values = self._store.read(self._name, (start, stop)).to(torch.float32)
        else:
            values = self._read().reshape(self.shape)[start:stop].to(torch.float32, copy=True)
        return self._checked(values)

    def raw(self) -> torch.Tensor:
        """In its own type; raises as `rows`."""
        return self._checked(self._read())

    def forget(self) -> None:
        """Let go of what `rows` and `raw` keep."""
        self._kept.clear()

    def _read(self) -> torch.Tensor:
        if not self._kept:
            if self._store is None:
                assert self._view is not None
                assert self._origin is not None
                _, names, change = self._origin
                self._kept.append(to_original([self._view.read(name) for name in names], change))
            else:
                tensor = self._store.read(self._name)
                if self._scale is not None:
                    tensor = tensor.float() * self._store.read(self._scale).float()
                self._kept.append(tensor)
        return self._kept[0]

    def _checked(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        if values.is_floating_point():
            plain = values.to(torch.float16) if values.element_size() == 1 else values
            finite = torch.isfinite(plain)
            if not bool(finite.all()):
                wrong = plain.numel() - int(finite.sum())
                raise CheckpointError(
                    f"{self.label} has {wrong} values that are not finite (NaN or infinite), and the result "
                    "would have them too; get a sound copy of the file"
                )
        return values


def open_model(role: str, path: Path, stack: contextlib.ExitStack) -> Model:
    """Open a safetensors file, a pipeline folder, a student's folder or the folder of one network.

    Raises:
        NotFoundError: nothing there, or a folder without weights.
        CheckpointError: a pickle, broken, unknown, or an adapter.
    """
    if path.is_dir():
        stores = {name: folders.open_network(path, name, stack) for name in folders.networks(path)}
        if stores:
            return _of_folder(role, path, stores)
        path = folders.lone_file(path)
    return _of_file(role, path, stack)


def find(model: Model, key: Key, first: Model) -> Tensor | None:
    """The tensor of a model that stands for one of the first model's; None when it has none."""
    if model.in_folders == first.in_folders and key in model.entries:
        group, name = key
        entry = model.entries[key]
        return Tensor(
            role=model.role,
            file=model.path.name,
            key=key,
            dtype=entry.dtype,
            full_shape=entry.shape,
            _store=model.stores[group],
            _name=name,
            _scale=model.scales.get(key),
        )
    origin = first.origins.get(key)
    return None if origin is None else of_origin(model, origin, key)


def of_origin(model: Model, origin: Origin, key: Key) -> Tensor | None:
    """A tensor put together from those of a model under diffusers' names; None when one is not there."""
    view = model.views.get(origin.part)
    if view is None or any(name not in view.entries for name in origin.names):
        return None
    entries = [view.entries[name] for name in origin.names]
    shape = original_shape([entry.shape for entry in entries], origin.change)
    if shape is None:
        return None
    return Tensor(
        role=model.role,
        file=model.path.name,
        key=key,
        dtype=entries[0].dtype,
        full_shape=shape,
        _view=view,
        _origin=origin,
    )


def shown_key(key: Key) -> str:
    """The name of a tensor for messages and patterns; of a folder with the network in front."""
    return ".".join(filter(None, key))


def _of_file(role: str, path: Path, stack: contextlib.ExitStack) -> Model:
    reader = stack.enter_context(single_file.open_file(path))
    detected = reader.detected
    if detected.kind in _UNFIT:
        raise CheckpointError(f"{path}: {_UNFIT[detected.kind]}; give a checkpoint as {role}")
    return _model(role, path, False, detected, {"": reader.file}, reader.file.metadata)


def _of_folder(role: str, path: Path, stores: Mapping[str, Store]) -> Model:
    shapes = {name: {key: e.shape for key, e in store.entries.items()} for name, store in stores.items()}
    denoiser = next((name for name in DENOISERS if name in stores), None)
    if denoiser is None:
        raise CheckpointError(
            f"{path}: has no unet and no transformer with safetensors; give a pipeline folder"
        )
    known = {name: stores[name].entries for name in (denoiser, "vae") if name in stores}
    family = detect_folder(known, str(path)).family
    assert family is not None
    for name, encoder in TEXT_ENCODERS[family].items():  # another text encoder (BERT) is merged by its names
        if name in stores:
            with contextlib.suppress(CheckpointError):
                if text_encoder(shapes[name], name, encoder, "", "diffusers") is not None:
                    known[name] = stores[name].entries
    detected = detect_folder(known, str(path))
    return _model(role, path, True, detected, stores, folders.metadata(stores[denoiser]))


def _model(
    role: str,
    path: Path,
    in_folders: bool,
    detected: Detected,
    stores: Mapping[str, Store],
    metadata: Mapping[str, str],
) -> Model:
    entries: dict[Key, Entry] = {}
    scales: dict[Key, str] = {}
    for group, store in stores.items():
        found = half.scales({name: entry.shape for name, entry in store.entries.items()})
        scales |= {(group, name): factor for name, factor in found.items()}
        for name, entry in store.entries.items():
            if not (found and half.is_scale(name)):
                entries[group, name] = entry
    origins: dict[Key, Origin] = {}
    for part in detected.parts.values():
        group = part.name if in_folders else ""
        origins |= {(group, name): origin for name, origin in _origins(part).items()}
    return Model(
        role=role,
        path=path,
        in_folders=in_folders,
        detected=detected,
        stores=stores,
        entries=entries,
        scales=scales,
        metadata=metadata,
        views={
            name: single_file.view(part, stores[name if in_folders else ""])
            for name, part in detected.parts.items()
        },
        origins=origins,
    )


def _origins(part: Part) -> dict[str, Origin]:
    """A network's tensors by their names in the file."""
    found: dict[str, dict[int, tuple[str, Change]]] = {}
    for name, (place, _) in part.places.items():
        if place is not IDENTITY:
            found.setdefault(part.prefix + place.original, {})[place.index] = name, place.change
    return {
        original: Origin(part.name, tuple(members[i][0] for i in sorted(members)), members[0][1])
        for original, members in found.items()
    }
