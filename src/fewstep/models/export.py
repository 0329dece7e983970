"""Runtime bundles: OpenVINO IR of every network of a pipeline, quantised on its own trajectories.

`export` reads a folder, `export_components` takes what is in memory. The only module that uses torch,
diffusers, OpenVINO and NNCF together; the engine that reads the result needs none but OpenVINO.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fewstep.checkpoint import atomic, bundle, safetensors
from fewstep.errors import CheckpointError, DependencyError, OutputError, UsageError
from fewstep.models import fixed_tokenizer, networks, signal_stack
from fewstep.models.calibration import PROMPTS, trajectories

if TYPE_CHECKING:
    from fewstep.models.components import Components

Precision = Literal["int8", "fp16"]

DECODER_LIMIT = 0.03
"""Relative error up to which the decoder is kept in int8: about 2.7 of 255 levels root mean square, 39 dB
PSNR, far below what the autoencoder itself loses. Measured on decoded ends of trajectories."""

TEXT_COSINE = 0.999
"""Smallest cosine between an int8 and a torch embedding vector up to which the text encoder is kept in
int8."""

_HELD_OUT = 4  # every 4th recorded call is kept from calibration, for the error


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """How one network came out: size on disk in bytes, and its error against torch in float32."""

    precision: str
    size: int
    relative_error: float
    """Root mean square of the difference over root mean square of torch's output, on data kept from
    calibration."""
    cosine: float
    """Smallest cosine between matching vectors along the channel axis (text), or between whole outputs."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What `export` made."""

    folder: Path
    hash: str
    size: int
    """Bytes of all files."""
    parts: Mapping[str, PartReport]
    tried: Mapping[str, float] = field(default_factory=dict)
    """Part -> relative error (text encoder: 1 - cosine) of an int8 version that was not good enough."""


def export(
    pipeline_folder: str | Path,
    out: str | Path,
    *,
    precision: Precision = "int8",
    name: str | None = None,
    calibration_prompts: Sequence[str] | None = None,
    replace: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export a pipeline folder to a bundle.

    ``attribution.json`` of the folder (a list of objects of texts) and the ``license:`` line of its
    ``README.md`` go into ``bundle.json``; the files ``NOTICE`` and ``README.md`` are copied beside it.

    Args:
        pipeline_folder: diffusers layout with ``fewstep.json``.
        out: the bundle; appears complete or not at all.
        precision: ``int8`` quantises weights and activations on sampled trajectories where the error stays
        small;
            ``fp16`` stores half weights that are computed in float32.
        name: the model's name; the folder's name when not given.
        calibration_prompts: real prompts of the model; a general list when not given.
        replace: put the bundle in the place of an old one.
        on_stage: told what is being done now, for a progress display.

    Raises:
        NotFoundError, CheckpointError: as `fewstep.models.load.pipeline`.
        DependencyError: openvino, nncf, torch or diffusers is missing.
        OutputError: ``out`` exists, or cannot be written.
    """
    _require()
    from fewstep.models import load

    root = Path(pipeline_folder)
    return export_components(
        load.pipeline(root),
        out,
        precision=precision,
        name=name or root.resolve().name,
        calibration_prompts=calibration_prompts,
        licence=_licence(root),
        attribution=_attribution(root),
        source=safetensors.folder_hash(root),
        texts=[path for path in (root / "NOTICE", root / "README.md") if path.is_file()],
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
    replace: bool = False,
    on_stage: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export networks in memory (any float type; computed in float32 on the CPU). See `export`."""
    if precision not in ("int8", "fp16"):
        raise UsageError(f"precision is {precision!r}: only int8 and fp16 can be exported, give one of them")
    if Path(out).exists() and not replace:
        raise OutputError(f"{out}: exists already; remove it or choose another folder")
    _require()
    say = on_stage or (lambda stage: None)
    parts = networks.Networks(components)
    reports: dict[str, PartReport] = {}
    tried: dict[str, float] = {}

    say("sampling trajectories")
    prompts = list(calibration_prompts or PROMPTS)
    data = trajectories(parts, prompts) if precision == "int8" else parts.probe()
    with atomic.folder(out, replace=replace) as folder:
        for part in bundle.PARTS:
            say(f"exporting {part}")
            with signal_stack.kept():
                reports[part] = _export_part(parts, part, data[part], folder, precision, tried)
        (folder / bundle.TOKENIZER).write_text(
            fixed_tokenizer.to_json(components.tokenizer), encoding="utf-8"
        )
        for text in texts:
            (folder / text.name).write_bytes(text.read_bytes())
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
            files=bundle.describe_files(folder),
            licence=licence,
            attribution=tuple(attribution),
            made_by=_made_by(source),
        )
        bundle.write(made)
    done = bundle.open_bundle(out)
    size = sum(entry.size for entry in done.files.values())
    return ExportReport(folder=Path(out), hash=done.hash, size=size, parts=reports, tried=tried)


def _export_part(
    parts: networks.Networks,
    part: str,
    calls: list[list[np.ndarray]],
    folder: Path,
    precision: Precision,
    tried: dict[str, float],
) -> PartReport:
    started = time.perf_counter()
    check = calls[::_HELD_OUT] if len(calls) >= 2 * _HELD_OUT else calls
    fit = [call for index, call in enumerate(calls) if index % _HELD_OUT] if check is not calls else calls
    model = parts.model(part)
    kind = "fp16"
    # The encoder runs once per picture and only when a picture comes in: not worth any error.
    if precision == "int8" and part != "vae_encoder":
        quantised = networks.quantise(model, part, fit)
        int8_error, int8_cosine = networks.compare(parts, part, quantised, check)
        good = {"vae_decoder": int8_error <= DECODER_LIMIT, "text_encoder": int8_cosine > TEXT_COSINE}
        if good.get(part, True):
            model, kind = quantised, "int8"
        else:
            tried[part] = int8_error if part == "vae_decoder" else 1 - int8_cosine
            if part == "text_encoder":
                smaller = networks.compress(model.clone())
                _, less_cosine = networks.compare(parts, part, smaller, check)
                if less_cosine > TEXT_COSINE:
                    model, kind = smaller, "int8_weights"
    saved = networks.save(model, folder / f"{part}.xml")
    error, cosine = networks.compare(parts, part, saved, check)
    return PartReport(
        precision=kind,
        size=sum((folder / f"{part}.{suffix}").stat().st_size for suffix in ("xml", "bin")),
        relative_error=error,
        cosine=cosine,
        seconds=time.perf_counter() - started,
    )


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


def _made_by(source: str) -> dict[str, str]:
    versions = {package: metadata.version(package) for package in ("openvino", "nncf", "torch", "diffusers")}
    return {"fewstep": _own_version(), **versions, "source": source}


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
