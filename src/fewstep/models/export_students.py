"""Students in a runtime bundle: a denoiser each, converted and quantised on its own trajectories.

A student comes in a pipeline folder of its own, as a distillation leaves it, but goes into the bundle without
its text encoder, tokenizer and autoencoder: they must be the base's, and that is checked before any work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fewstep.checkpoint import bundle, safetensors
from fewstep.errors import CheckpointError
from fewstep.models import fixed_tokenizer, load, networks, signal_stack
from fewstep.models.calibration import trajectories
from fewstep.models.components import Components
from fewstep.models.export_parts import PartReport, Precision, export_part
from fewstep.models.students import check_contract, check_same, fingerprint

ALIKE = {"fp16": 0.01, "int8": 0.2, "int8_weights": 0.1}
"""Relative error up to which a network in a bundle counts as the same as one in torch, by its precision. The
rounding of half precision is below 0.002, another network is at about 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A student that is to go into a bundle."""

    name: str
    load: Callable[[], Components]
    """Its networks; loaded twice, so that not all of them are in memory at once."""
    source: str
    """Hash of its weights."""


def from_folders(students: Mapping[str, str | Path]) -> list[Candidate]:
    """Students in pipeline folders of their own, by name.

    Raises:
        UsageError: not a name for a student.
        NotFoundError: there is no such folder, or no weight file in it.
        CheckpointError: it is a file.
    """
    found = []
    for name, folder in students.items():
        bundle.student_part(name)
        root = load.check_folder(folder)
        found.append(_candidate(name, partial(load.pipeline, root), root))
    return found


def from_pipeline(folder: Path, base: Components) -> list[Candidate]:
    """The students in a pipeline folder, see `fewstep.models.load.save_student`."""

    def with_base(name: str) -> Components:
        denoiser, contract = load.load_student(folder, name)
        return Components(base.autoencoder, denoiser, base.text_encoder, base.tokenizer, contract)

    return [
        _candidate(name, partial(with_base, name), folder / bundle.student_part(name))
        for name in load.student_contracts(folder)
    ]


def facts(parts: networks.Networks) -> dict[str, object]:
    """What a student and its base must have in common, by its name in a message."""
    components = parts.components
    return {
        "base family": components.contract.base_family,
        "native size": (parts.width, parts.height),
        "number of latent channels": parts.latent_channels,
        "number of denoiser channels": int(components.denoiser.config.in_channels),
        "downscaling": parts.downscale,
        "scaling factor": parts.scaling_factor,
        "shift factor": parts.shift_factor,
        "text length": parts.text_length,
        "text width": parts.text_width,
        "use of the attention mask": parts.text_mask,
        "tokenizer": fixed_tokenizer.to_json(components.tokenizer),
        "text encoder": fingerprint(components.text_encoder),
        "autoencoder": fingerprint(components.autoencoder),
    }


def bundle_facts(made: bundle.Bundle) -> dict[str, object]:
    """`facts` as a bundle tells them; the two networks only where their hashes were recorded."""
    told: dict[str, object] = {
        "base family": made.contract.get("base_family"),
        "native size": made.native_size,
        "number of latent channels": made.latent_channels,
        "number of denoiser channels": made.latent_channels,
        "downscaling": made.downscale,
        "scaling factor": made.scaling_factor,
        "shift factor": made.shift_factor,
        "text length": made.text_length,
        "text width": made.text_width,
        "use of the attention mask": made.text_mask,
        "tokenizer": (made.folder / bundle.TOKENIZER).read_text(encoding="utf-8"),
    }
    for what, key in RECORDED.items():
        if key in made.made_by:
            told[what] = made.made_by[key]
    return told


RECORDED = {"text encoder": "text_encoder", "autoencoder": "vae"}
"""Of `facts`, what goes into ``made_by`` of a bundle, and its key there."""


def check(
    candidates: Sequence[Candidate], ours: Mapping[str, object], made: bundle.Bundle | None = None
) -> None:
    """Refuse students that cannot share what they would have to.

    Args:
        candidates: the students.
        ours: facts of the base.
        made: the base's bundle, when its networks have to be compared by what they compute.

    Raises:
        CheckpointError: one line that says which student and what differs.
    """
    for candidate in candidates:
        components = candidate.load()
        check_contract(candidate.name, components.contract)
        parts = networks.Networks(components)
        check_same(candidate.name, facts(parts), ours)
        if made is not None and not set(RECORDED) <= ours.keys():
            _check_outputs(candidate.name, parts, made)


def write(
    candidates: Sequence[Candidate],
    folder: Path,
    precision: Precision,
    prompts: Sequence[str],
    say: Callable[[str], None],
    *,
    bars: bool = False,
) -> tuple[list[bundle.Student], dict[str, PartReport]]:
    """Write the networks of students into the folder of a bundle.

    Args:
        candidates: students that `check` has let through.
        folder: of the bundle that is being written.
        precision: as of the whole export.
        prompts: what is drawn for calibration, with the student itself, as its contract says.
        say: told what is being done.
        bars: show NNCF's progress bars on stderr.

    Returns:
        Their entries in ``bundle.json``, and the reports by part.
    """
    entries, reports = [], {}
    for candidate in candidates:
        part = bundle.student_part(candidate.name)
        (folder / part).parent.mkdir(exist_ok=True)
        parts = networks.Networks(candidate.load())
        with signal_stack.kept():
            say(f"sampling trajectories of {candidate.name}")
            calls = trajectories(parts, prompts, decode=False) if precision == "int8" else parts.probe()
            say(f"exporting {part}")
            report = export_part(
                parts, "denoiser", calls["denoiser"], folder / f"{part}.xml", precision, bars=bars
            )
        reports[part] = report
        contract = json.loads(parts.components.contract.to_json())
        entries.append(
            bundle.Student(
                name=candidate.name, contract=contract, precision=report.precision, source=candidate.source
            )
        )
    return entries, reports


def _candidate(name: str, loader: Callable[[], Components], folder: Path) -> Candidate:
    return Candidate(name=name, load=loader, source=safetensors.folder_hash(folder))


def _check_outputs(name: str, parts: networks.Networks, made: bundle.Bundle) -> None:
    """Compare networks by what they compute: for bundles that do not record what they were made from."""
    probe = parts.probe()
    for part in ("text_encoder", "vae_encoder", "vae_decoder"):
        with signal_stack.kept():
            error, _ = networks.compare(parts, part, networks.read(made.path(part)), probe[part])
        limit = ALIKE.get(made.precision[part], 0.0)
        if not error <= limit:
            raise CheckpointError(
                f"student {name!r}: its {part} computes something else than the bundle's (relative error "
                f"{error:.2g}, rounding makes up to {limit:g}), so it cannot share it; give one of this base"
            )
