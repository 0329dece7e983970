"""Single-file checkpoints: opened, read part by part as diffusers names it, and written from parts.

A reader holds one tensor at a time. What a file keeps of a model: every tensor that has a place in one of
its parts, bit by bit (a round trip to diffusers and back changes none). What it does not keep: averages
(``model_ema``), noise tables (``betas``, ``alphas_cumprod`` …), ``position_ids``, ``logit_scale``, the layer
of OpenCLIP that Stable Diffusion 2 does not use, counters and optimisers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, get_args

from fewstep.checkpoint import half, tensorfile
from fewstep.checkpoint.detect import Detected, detect
from fewstep.checkpoint.half import Oddities, Precision
from fewstep.checkpoint.keymaps.moves import IDENTITY, Place, original_shape, to_diffusers, to_original
from fewstep.checkpoint.naming import first, shown
from fewstep.checkpoint.part_configs import Config, Family
from fewstep.checkpoint.parts import KINDS, PROJECTION, Layout, Part, original_naming
from fewstep.checkpoint.tensorfile import Entry, Store, TensorFile
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

EMA = "model_ema."
_EMA_NETWORK = f"{EMA}diffusion_model"

Report = Callable[[int, int], None]
"""Called with how many tensors are done and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartView:
    """One network in a file, under diffusers' names, read on demand.

    Attributes:
        part: what is known of it.
        entries: type in the file, and shape, of every tensor.
        odd: what was noticed in the values that were read.
    """

    part: Part
    entries: Mapping[str, Entry]
    odd: Oddities = field(default_factory=Oddities)
    _store: Store
    _names: Mapping[str, str]
    _scales: Mapping[str, str]

    @property
    def config(self) -> Config:
        """As in ``config.json``."""
        return self.part.config

    def read(self, name: str, precision: Precision | None = None) -> torch.Tensor:
        """A tensor, in the file's type unless a precision is asked for (8-bit floats become float16).

        Raises:
            CheckpointError: the file was changed, or a value does not fit the precision.
        """
        place: Place = self.part.places[name][0]
        source = self._names[name]
        if place is IDENTITY:
            import torch

            code = half.target(self.entries[name].dtype, precision)
            return torch.eye(self.entries[name].shape[0]).to(half.torch_type(code))
        rows = None
        if place.count > 1:
            each = self.entries[name].shape[0]
            rows = (place.index * each, (place.index + 1) * each)
        tensor = to_diffusers(self._store.read(source, rows), place.change)
        if source in self._scales:
            tensor = tensor.float() * self._store.read(self._scales[source]).float()
        self.odd.look(name, tensor)
        return half.cast(tensor, half.target(self.entries[name].dtype, precision), name)

    def tensors(self, precision: Precision | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor by name, in the order of the file; raises as `read`."""
        for name in self.entries:
            yield name, self.read(name, precision)
        self._store.check_unchanged()


class Reader:
    """An open single-file checkpoint.

    Attributes:
        file: its tensors under its own names.
        detected: what it is.

    Raises:
        CheckpointError: as `fewstep.checkpoint.detect.detect`; or no averages where they are asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        family: Family | None = None,
        prediction_type: str | None = None,
        ema: bool = False,
    ) -> None:
        self.file = TensorFile(path)
        try:
            self.detected: Detected = detect(
                self.file.entries,
                self.file.metadata,
                self.file.path.name,
                family=family,
                prediction_type=prediction_type,
            )
            self._ema = ema
            if ema and not any(name.startswith(_EMA_NETWORK) for name in self.file.entries):
                raise CheckpointError(f"{self.file.path}: holds no averaged weights; leave --ema out")
        except BaseException:
            self.file.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def part(self, name: str) -> PartView:
        """One of its networks.

        Raises:
            CheckpointError: it has none of that name.
        """
        part = self.detected.parts.get(name)
        if part is None:
            there = ", ".join(self.detected.parts) or f"no network ({self.detected.kind})"
            raise CheckpointError(f"{self.file.path}: has no {name}; it has {there}")
        return view(part, self.file, ema=self._ema and name == "unet")


def open_file(
    path: str | os.PathLike[str],
    *,
    family: Family | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
) -> Reader:
    """Open a single-file checkpoint; use it in a ``with`` block.

    Args:
        path: a safetensors file.
        family: what it is said to be; another one is an error. An autoencoder alone needs it for its config.
        prediction_type: what the denoiser is said to predict.
        ema: take the averaged weights of the U-Net, which some full checkpoints have besides.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, or not a model that is known.
    """
    return Reader(path, family=family, prediction_type=prediction_type, ema=ema)


def read_part(
    path: str | os.PathLike[str],
    part: str,
    *,
    family: Family | None = None,
    precision: Precision | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one part of a file under diffusers' names, one at a time; raises as `open_file`."""
    with open_file(path, family=family) as reader:
        yield from reader.part(part).tensors(precision)


def view(part: Part, store: Store, *, ema: bool = False) -> PartView:
    """Bind a part to the tensors of its file or files.

    Raises:
        CheckpointError: a tensor's average is missing, or its numbers are of a type that is not read.
    """
    scales = half.scales({name: entry.shape for name, entry in store.entries.items()})
    entries, names = {}, {}
    for name, (place, shape) in part.places.items():
        source = part.prefix + place.original
        if place is IDENTITY:
            source = next(part.prefix + p.original for p, _ in part.places.values() if p is not IDENTITY)
        if ema:
            source = _EMA_NETWORK + place.original.replace(".", "")
            if source not in store.entries or store.entries[source].shape != shape:
                raise CheckpointError(
                    f"its averaged weights have no {shown(place.original)}; leave --ema out"
                )
        entries[name], names[name] = Entry(store.entries[source].dtype, shape), source
    in_order = {source: index for index, source in enumerate(store.entries)}
    order = sorted(entries, key=lambda name: (in_order[names[name]], part.places[name][0].index))
    return PartView(
        part=part,
        entries={name: entries[name] for name in order},
        _store=store,
        _names=names,
        _scales=scales,
    )


def write(
    path: str | os.PathLike[str],
    parts: Sequence[PartView],
    *,
    family: Family,
    layout: Layout = "original",
    dtype: Precision | None = None,
    metadata: Mapping[str, str] | None = None,
    markers: Sequence[str] = (),
    on_tensor: Report | None = None,
) -> None:
    """Write parts as one file, atomically and one tensor at a time.

    Args:
        path: of the file.
        parts: of one model.
        family: whose single-file naming is used.
        layout: ``original`` for the authors' naming, ``diffusers`` for one part under diffusers' names.
        dtype: of the floating point tensors; as they are when None (8-bit floats become float16).
        metadata: texts for the header.
        markers: names of empty tensors to write besides.
        on_tensor: told of every tensor that was written.

    Raises:
        CheckpointError: a tensor has no place in that naming, or does not fit the type.
        OutputError: the file cannot be written.
    """
    assert layout in get_args(Layout)
    assert layout == "original" or len(parts) == 1
    plan: dict[str, Entry] = {}
    sources: dict[str, tuple[PartView, tuple[str, ...], Place]] = {}
    for part in parts:
        for name, (names, place) in _targets(part, family, layout).items():
            shape = original_shape([part.entries[n].shape for n in names], place.change)
            if shape is None:
                raise CheckpointError(f"{names[0]} has the shape {part.entries[names[0]].shape}; {KINDS}")
            plan[name] = Entry(half.target(part.entries[names[0]].dtype, dtype), shape)
            sources[name] = part, names, place

    plan |= {name: Entry("F32", (0,)) for name in markers}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        yield from ((name, torch.zeros(0)) for name in markers)
        for done, (name, (part, names, place)) in enumerate(sources.items(), 1):
            yield name, to_original([part.read(n, dtype) for n in names], place.change)
            if on_tensor is not None:
                on_tensor(done, len(sources))

    tensorfile.write(path, plan, tensors(), {"format": "pt", **(metadata or {})})


def retype(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: Precision | None,
    *,
    odd: Oddities | None = None,
    on_tensor: Report | None = None,
) -> None:
    """Write a safetensors file again under its own names, with its metadata, in another type.

    Raises:
        NotFoundError: no such file.
        CheckpointError: it is broken, quantised in a form that is not read, or a value does not fit.
        OutputError: the file cannot be written.
    """
    with TensorFile(source) as file:
        scales = half.scales({name: entry.shape for name, entry in file.entries.items()})
        names = [name for name in file.entries if not (scales and half.is_scale(name))]
        plan = {
            name: Entry(half.target(file.entries[name].dtype, dtype), file.entries[name].shape)
            for name in names
        }

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for done, name in enumerate(names, 1):
                tensor = file.read(name)
                if name in scales:
                    tensor = tensor.float() * file.read(scales[name]).float()
                if odd is not None:
                    odd.look(name, tensor)
                yield name, half.cast(tensor, plan[name].dtype, name)
                if on_tensor is not None:
                    on_tensor(done, len(names))

        tensorfile.write(out, plan, tensors(), file.metadata)


def fill(
    module: Any, part: PartView, precision: Precision | None = None, *, family: Family | None = None
) -> None:
    """Give a torch module its tensors, which it then owns: no second copy of the network is made.

    Args:
        module: of diffusers or transformers; its parameters may be on the ``meta`` device, its buffers not.
        part: the tensors.
        precision: type of the parameters; the file's when None.
        family: for the message.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape; the module is as it was.
    """
    names = check(part, {name: tuple(value.shape) for name, value in module.state_dict().items()}, family)
    module.load_state_dict(
        {names[name]: tensor for name, tensor in part.tensors(precision)}, strict=False, assign=True
    )
    if hasattr(module, "tie_weights"):
        module.tie_weights()


def check(
    part: PartView, expected: Mapping[str, tuple[int, ...]], family: Family | None = None
) -> dict[str, str]:
    """Compare a part with what its class expects, and return the name of each tensor there.

    Args:
        part: the tensors.
        expected: shapes by the class's names; transformers 5 has CLIP without ``text_model.``.
        family: for the message.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape; the message has the first ten.
    """
    bare = not any(name.startswith("text_model.") for name in expected)
    names = {name: name.removeprefix("text_model.") if bare else name for name in part.entries}
    tied = {"encoder.embed_tokens.weight"} if "shared.weight" in names else set()
    there = {names[name]: entry.shape for name, entry in part.entries.items()}
    wrong = [f"{name} is missing" for name in expected if name not in there and name not in tied]
    wrong += [f"{name} is left over" for name in there if name not in expected]
    wrong += [
        f"{name} is {there[name]} and not {shape}"
        for name, shape in expected.items()
        if there.get(name, shape) != shape
    ]
    if wrong:
        of = f" of {family}" if family else ""
        raise CheckpointError(
            f"the {part.part.name}{of} is no {part.part.class_name}: {len(wrong)} tensors do not fit: "
            f"{first(wrong)}; give a whole file of the right family"
        )
    return names


def _targets(part: PartView, family: Family, layout: Layout) -> dict[str, tuple[tuple[str, ...], Place]]:
    """Name in the file -> diffusers' names that make it, in their order, and the first one's place."""
    if layout == "diffusers":
        return {name: ((name,), Place(name)) for name in part.entries}
    prefix, keymap = original_naming(part.part, family)
    found: dict[str, dict[int, tuple[str, Place]]] = {}
    strange = []
    for name in part.entries:
        place = keymap.backward(name)
        if family == "sd3" and name == PROJECTION and part.part.name == "text_encoder" and _is_identity(part):
            continue
        if place is None:
            strange.append(name)
        else:
            found.setdefault(prefix + place.original, {})[place.index] = name, place
    strange += [members[min(members)][0] for members in found.values() if _incomplete(members)]
    if strange:
        raise CheckpointError(
            f"{len(strange)} tensors of the {part.part.name} have no place in a single file of {family}, the "
            f"first: {first(strange)}; keep the folder"
        )
    return {
        original: (tuple(members[i][0] for i in sorted(members)), members[0][1])
        for original, members in found.items()
    }


def _is_identity(part: PartView) -> bool:
    import torch

    rows, columns = part.entries[PROJECTION].shape
    return rows == columns and torch.equal(part.read(PROJECTION).float(), torch.eye(rows))


def _incomplete(members: Mapping[int, tuple[str, Place]]) -> bool:
    return len(members) != next(iter(members.values()))[1].count
