"""Runtime bundles: OpenVINO IR of every network of a pipeline, quantised on its own trajectories.

`export` reads a folder, `export_components` takes what is in memory, `add_students` adds to a bundle. This
and its neighbours ``export_*`` and ``networks`` use torch, diffusers, OpenVINO and NNCF together; the engine
that reads the result needs none but OpenVINO.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from fewstep.checkpoint import atomic, bundle, safetensors
from fewstep.errors import CheckpointError, DependencyError, OutputError, UsageError
from fewstep.models import export_students, fixed_tokenizer, networks, signal_stack
from fewstep.models.calibration import PROMPTS, trajectories
from fewstep.models.components import Components
from fewstep.models.export_parts import PartReport, Precision, export_part


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What `export` or `add_students` made."""

    folder: Path
    hash: str
    size: int
    """Bytes of all files."""
    parts: Mapping[str, PartReport]
    """What was exported now; a student's denoiser is ``students/NAME``."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """Part -> relative error (text encoder: 1 - cosine) of an int8 version that was not good enough."""


def export(
    pipeline_folder: str | Path,
    out: str | Path,
    *,
    precision: Precision = "int8",
    name: str | None = None,
    calibration_prompts: Sequence[str] | None = None,
    students: Mapping[str, str | Path] | None = None,
    replace: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export a pipeline folder to a bundle.

    ``attribution.json`` of the folder (a list of objects of texts) and the ``license:`` line of its
    ``README.md`` go into ``bundle.json``; the files ``NOTICE`` and ``README.md`` are copied beside it. The
    folder's own students (``students/NAME``) are exported with it.

    Args:
        pipeline_folder: diffusers layout with ``fewstep.json``.
        out: the bundle; appears complete or not at all.
        precision: ``int8`` quantises weights and activations on sampled trajectories where the error stays
            small; ``fp16`` stores half weights that are computed in float32.
        name: the model's name; the folder's name when not given.
        calibration_prompts: real prompts of the model; a general list when not given.
        students: more of them, name -> pipeline folder with the base's text encoder and autoencoder.
        replace: put the bundle in the place of an old one.
        on_stage: told what is being done now, for a progress display.

    Raises:
        NotFoundError, CheckpointError: as `fewstep.models.load.pipeline`; or a student is not of this base.
        UsageError: not a precision, or not a name for a student.
        DependencyError: openvino, nncf, torch or diffusers is missing.
        OutputError: ``out`` exists, or cannot be written.
    """
    _require()
    from fewstep.models import load

    root = Path(pipeline_folder)
    candidates = export_students.from_folders(students or {})
    base = load.pipeline(root)
    own = export_students.from_pipeline(root, base)
    named = {candidate.name: candidate for candidate in [*candidates, *own]}
    if len(named) < len(candidates) + len(own):
        raise UsageError(f"{root}: has a student of a name that was given; give another name")
    return export_components(
        base,
        out,
        precision=precision,
        name=name or root.resolve().name,
        calibration_prompts=calibration_prompts,
        licence=_licence(root),
        attribution=_attribution(root),
        source=safetensors.folder_hash(root),
        texts=[path for path in (root / "NOTICE", root / "README.md") if path.is_file()],
        students=list(named.values()),
        replace=replace,
        on_stage=on_stage,
    )


def export_components(
    components: Components,
    out: str | Path,
    *,
    name: str,
    precision: Precision = "int8",
    calibration_prompts: Sequence[str] | None = None,
    licence: str = "unknown",
    attribution: Sequence[Mapping[str, str]] = (),
    source: str = "unknown",
    texts: Sequence[Path] = (),
    students: Sequence[export_students.Candidate] = (),
    replace: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export networks in memory (any float type; computed in float32 on the CPU). See `export`."""
    _check_precision(precision)
    if Path(out).exists() and not replace:
        raise OutputError(f"{out}: exists already; remove it or choose another folder")
    _require()
    say = on_stage or (lambda stage: None)
    parts = networks.Networks(components)
    facts = export_students.facts(parts)
    export_students.check(students, facts)
    reports: dict[str, PartReport] = {}

    say("sampling trajectories")
    prompts = list(calibration_prompts or PROMPTS)
    data = trajectories(parts, prompts) if precision == "int8" else parts.probe()
    with atomic.folder(out, replace=replace) as folder:
        for part in bundle.PARTS:
            say(f"exporting {part}")
            with signal_stack.kept():
                reports[part] = export_part(
                    parts, part, data[part], folder / f"{part}.xml", precision, bars=on_stage is not None
                )
        (folder / bundle.TOKENIZER).write_text(
            fixed_tokenizer.to_json(components.tokenizer), encoding="utf-8"
        )
        for text in texts:
            (folder / text.name).write_bytes(text.read_bytes())
        entries, more = export_students.write(
            students, folder, precision, prompts, say, bars=on_stage is not None
        )
        made = bundle.Bundle(
            folder=folder,
            name=name,
            contract=json.loads(components.contract.to_json()),
            latent_channels=parts.latent_channels,
            downscale=parts.downscale,
            scaling_factor=parts.scaling_factor,
            shift_factor=parts.shift_factor,
            text_length=parts.text_length,
            text_width=parts.text_width,
            text_mask=parts.text_mask,
            native_size=(parts.width, parts.height),
            size_multiple=parts.downscale,
            max_size=4 * parts.width,
            precision={part: report.precision for part, report in reports.items()},
            files=bundle.describe_files(folder, [entry.name for entry in entries]),
            licence=licence,
            attribution=tuple(attribution),
            made_by=_made_by(source, facts),
            students=tuple(entries),
        )
        bundle.write(made)
    return _report(Path(out), {**reports, **more})


def add_students(
    folder: str | Path,
    students: Mapping[str, str | Path],
    *,
    precision: Precision | None = None,
    calibration_prompts: Sequence[str] | None = None,
    replace: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> ExportReport:
    """Add students to a bundle; what it has stays as it is, and an interruption leaves the bundle as it was.

    Args:
        folder: the bundle.
        students: name -> pipeline folder with the text encoder and autoencoder that the bundle was made from.
        precision: as for `export`; that of the bundle's own denoiser when not given.
        calibration_prompts: as for `export`.
        replace: put a student in the place of an old one of its name.
        on_stage: told what is being done now, for a progress display.

    Raises:
        NotFoundError, CheckpointError, UsageError, DependencyError: as `export`.
        OutputError: there is such a student already, or the bundle cannot be written.
    """
    _check_precision(precision)
    root = Path(folder).resolve()
    before = bundle.open_bundle(root, verify=True)
    taken = [student.name for student in before.students if student.name in students]
    if taken and not replace:
        raise OutputError(
            f"{folder}: has a student {taken[0]!r} already; choose another name, or replace it (--replace)"
        )
    _require()
    say = on_stage or (lambda stage: None)
    candidates = export_students.from_folders(students)
    export_students.check(candidates, export_students.bundle_facts(before), before)
    with atomic.folder(root, replace=True) as copy:
        shutil.copytree(root, copy, dirs_exist_ok=True)
        entries, reports = export_students.write(
            candidates,
            copy,
            precision or ("int8" if before.precision["denoiser"] == "int8" else "fp16"),
            list(calibration_prompts or PROMPTS),
            say,
            bars=on_stage is not None,
        )
        by_name = {student.name: student for student in (*before.students, *entries)}
        made = dataclasses.replace(
            before,
            folder=copy,
            students=tuple(by_name.values()),
            files=bundle.describe_files(copy, list(by_name)),
        )
        bundle.write(made)
    return _report(Path(folder), reports)


def _report(folder: Path, reports: Mapping[str, PartReport]) -> ExportReport:
    done = bundle.open_bundle(folder)
    refused = {part: report.refused for part, report in reports.items()}
    return ExportReport(
        folder=folder,
        hash=done.hash,
        size=sum(entry.size for entry in done.files.values()),
        parts=reports,
        tried={part: error for part, error in refused.items() if error is not None},
    )


def _check_precision(precision: str | None) -> None:
    if precision not in ("int8", "fp16", None):
        raise UsageError(f"precision is {precision!r}: only int8 and fp16 can be exported, give one of them")


def _require() -> None:
    # The import of OpenVINO's converter reports itself over the network unless its telemetry cannot be
    # imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for package in ("torch", "diffusers", "transformers", "openvino", "nncf"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise DependencyError(
                f"{package} is not installed and exporting needs it; "
                "install it with: pip install 'fewstep[torch]'"
            ) from None


def _made_by(source: str, facts: Mapping[str, object]) -> dict[str, str]:
    versions = {package: metadata.version(package) for package in ("openvino", "nncf", "torch", "diffusers")}
    shared = {key: str(facts[what]) for what, key in export_students.RECORDED.items()}
    return {"fewstep": _own_version(), **versions, "source": source, **shared}


def _own_version() -> str:
    try:
        return metadata.version("fewstep")
    except metadata.PackageNotFoundError:
        return "unknown"


def _licence(root: Path) -> str:
    card = root / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8").splitlines()[:40]:
            if line.lower().startswith("license:"):
                return line.split(":", 1)[1].strip().strip("\"'") or "unknown"
    return "unknown"


def _attribution(root: Path) -> list[dict[str, str]]:
    path = root / "attribution.json"
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); correct or remove it") from None
    plain = isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values()) for entry in entries
    )
    if not plain:
        raise CheckpointError(f"{path}: not a list of objects of texts; correct or remove it")
    return list(entries)
