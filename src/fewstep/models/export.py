"""Runtime bundles: OpenVINO IR of every network of a pipeline, quantised on its own trajectories.

`export` reads a folder, `export_components` takes what is in memory. The only module that uses torch,
diffusers, OpenVINO and NNCF together; the engine that reads the result needs none but OpenVINO.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fewstep.checkpoint import atomic, bundle, safetensors
from fewstep.errors import CheckpointError, DependencyError, OutputError, UsageError
from fewstep.models import fixed_tokenizer
from fewstep.models.calibration import PROMPTS, trajectories

if TYPE_CHECKING:
    from fewstep.models.components import Components

Precision = Literal["int8", "fp16"]

DECODER_LIMIT = 0.03
"""Relative error up to which the decoder is kept in int8: about 35 dB below the picture, under one 8-bit
level on plain areas. Measured on decoded trajectories' ends."""

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
    parts = _Parts(components)
    reports: dict[str, PartReport] = {}
    tried: dict[str, float] = {}

    say("sampling trajectories")
    prompts = list(calibration_prompts or PROMPTS)
    data = trajectories(parts, prompts) if precision == "int8" else parts.probe()
    with atomic.folder(out, replace=replace) as folder:
        for part in bundle.PARTS:
            say(f"exporting {part}")
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


class _Parts:
    """The four networks as plain functions of tensors, with the sizes that a bundle states."""

    def __init__(self, components: Components) -> None:
        import torch

        from fewstep.models import wrappers

        self.components = components
        auto, denoiser = components.autoencoder, components.denoiser
        for module in (auto, denoiser, components.text_encoder):
            module.to(device="cpu", dtype=torch.float32).eval()
        self.latent_channels = int(auto.config.latent_channels)
        self.downscale = 2 ** (len(auto.config.block_out_channels) - 1)
        self.scaling_factor = float(auto.config.scaling_factor)
        self.shift_factor = float(auto.config.shift_factor or 0.0)
        self.width, self.height = components.contract.native_sizes[0]
        if self.width != self.height or self.width % self.downscale:
            # One square shape is quantised; other sizes are reshaped from it when the bundle is loaded.
            raise CheckpointError(
                f"native size {self.width}x{self.height}: only a square multiple of {self.downscale} "
                "can be exported; correct native_sizes in fewstep.json"
            )
        self.latent_size = self.width // self.downscale
        self.text_width = int(denoiser.config.cross_attention_dim)
        self.text_length = int(components.tokenizer.model_max_length)
        self.text_mask = bool(getattr(components.text_encoder.config, "use_attention_mask", False))
        self.modules: dict[str, Any] = {
            "text_encoder": wrappers.text_encoder(components.text_encoder, masked=self.text_mask),
            "denoiser": wrappers.denoiser(denoiser),
            "vae_encoder": wrappers.encoder(auto),
            "vae_decoder": wrappers.decoder(auto),
        }
        self._models: dict[str, Any] = {}
        self._compiled: dict[str, Any] = {}

    def model(self, part: str) -> Any:
        """One network as an OpenVINO model with fixed shapes; converted at the first call."""
        if part not in self._models:
            self._models[part] = _convert(self, part)
        return self._models[part]

    def run(self, part: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run one network in OpenVINO, float32: much faster than torch here, and equal to 1e-5."""
        if part not in self._compiled:
            self._compiled[part] = _compile(self.model(part))
        result: np.ndarray = self._compiled[part](_batch(self.model(part), inputs))[0]
        return result[: len(inputs[0])].copy()

    def run_torch(self, part: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run one network in torch, float32: what every error is measured against."""
        import torch

        with torch.no_grad():
            output = self.modules[part](*(torch.from_numpy(array) for array in inputs))
        result: np.ndarray = output.numpy()
        return result

    def tokens(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Inputs of the text encoder: ids of shape (B, L), and the mask where it is used; int64."""
        encoded = self.components.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="np",
        )
        names = ("input_ids", "attention_mask") if self.text_mask else ("input_ids",)
        return [np.asarray(encoded[key], dtype=np.int64) for key in names]

    def probe(self) -> dict[str, list[list[np.ndarray]]]:
        """One call of every part on noise and a real text: enough to measure an fp16 conversion."""
        rng = np.random.default_rng(0)
        side = self.latent_size
        x = rng.standard_normal((2, self.latent_channels, side, side), dtype=np.float32)
        tokens = self.tokens(["", PROMPTS[0]])
        text = self.run_torch("text_encoder", tokens)
        pixels = rng.uniform(-1, 1, (1, 3, self.height, self.width)).astype(np.float32)
        return {
            "text_encoder": [tokens],
            "denoiser": [[x, np.full(2, 500, dtype=np.float32), text]],
            "vae_encoder": [[pixels]],
            "vae_decoder": [[x[:1]]],
        }

    def example(self, part: str) -> list[np.ndarray]:
        """Inputs to trace with.

        The latents have an odd size: diffusers then records the size of the skip connection at every
        upsampling, and the graph is right for every size instead of only for multiples of the deepest
        level's factor.
        """
        inputs = self.probe()[part][0]
        if part == "denoiser":
            odd = 2 * (inputs[0].shape[-1] // 2) + 1
            inputs[0] = np.zeros((*inputs[0].shape[:2], odd, odd), dtype=np.float32)
        return inputs


def _export_part(
    parts: _Parts,
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
    error, cosine = _compare(parts, part, model, check)
    # The encoder runs once per picture and only when a picture comes in: not worth any error.
    if precision == "int8" and part != "vae_encoder":
        quantised = _quantise(model, part, fit)
        int8_error, int8_cosine = _compare(parts, part, quantised, check)
        good = {"vae_decoder": int8_error <= DECODER_LIMIT, "text_encoder": int8_cosine > TEXT_COSINE}
        if good.get(part, True):
            model, kind, error, cosine = quantised, "int8", int8_error, int8_cosine
        else:
            tried[part] = int8_error if part == "vae_decoder" else 1 - int8_cosine
            if part == "text_encoder":
                smaller = _compress(model.clone())
                less_error, less_cosine = _compare(parts, part, smaller, check)
                if less_cosine > TEXT_COSINE:
                    model, kind, error, cosine = smaller, "int8_weights", less_error, less_cosine
    _save(model, folder / f"{part}.xml")
    return PartReport(
        precision=kind,
        size=sum((folder / f"{part}.{suffix}").stat().st_size for suffix in ("xml", "bin")),
        relative_error=error,
        cosine=cosine,
        seconds=time.perf_counter() - started,
    )


_INPUTS = {
    "text_encoder": ("ids", "mask"),
    "denoiser": ("x", "t", "text"),
    "vae_encoder": ("pixels",),
    "vae_decoder": ("latents",),
}


def _convert(parts: _Parts, part: str) -> Any:
    import torch
    from openvino.tools.ovc import convert_model

    example = tuple(torch.from_numpy(array) for array in parts.example(part))
    with torch.no_grad(), _quiet():
        model = convert_model(parts.modules[part], example_input=example)
    for port, name in zip(model.inputs, _INPUTS[part], strict=False):
        port.get_tensor().set_names({name})
    return _native(parts, part, model)


def _native(parts: _Parts, part: str, model: Any) -> Any:
    """Fix every shape: batch 2 (cond and uncond) for text and denoiser, 1 for pictures, the native size."""
    latent = [parts.latent_channels, parts.latent_size, parts.latent_size]
    text = [2, parts.text_length]
    shapes: dict[str, list[int]] = {
        "ids": text, "mask": text, "x": [2, *latent], "t": [2],
        "text": [*text, parts.text_width],
        "pixels": [1, 3, parts.height, parts.width], "latents": [1, *latent],
    }  # fmt: skip
    model.reshape({port: shapes[port.any_name] for port in model.inputs})
    return model


def _quantise(model: Any, part: str, calls: list[list[np.ndarray]]) -> Any:
    """Post-training quantisation of weights and activations, calibrated on recorded calls.

    The first and last convolution and the time embedding cost next to nothing and carry the whole signal,
    so they stay in floating point; attention and normalisation do as NNCF's transformer setting leaves
    them.
    """
    import nncf

    names = _INPUTS[part]
    data = [dict(zip(names, _batch(model, call), strict=False)) for call in calls]
    ignored = {
        "denoiser": [".*conv_in.*", ".*conv_out.*", ".*time_embedding.*"],
        "vae_decoder": [".*conv_out.*"],
    }
    with _quiet():
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(data),
            subset_size=len(data),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(patterns=ignored.get(part, []), validate=False),
        )


def _compress(model: Any) -> Any:
    import nncf

    with _quiet():
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _batch(model: Any, call: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Repeat or cut the batch of a recorded call to the model's own."""
    size = model.inputs[0].shape[0]
    return [np.resize(array, (size, *array.shape[1:])) for array in call]


def _compare(parts: _Parts, part: str, model: Any, calls: list[list[np.ndarray]]) -> tuple[float, float]:
    """Relative root-mean-square error, and smallest cosine, of OpenVINO in float32 compute against torch."""
    compiled = _compile(model)
    square = reference = 0.0
    cosine = 1.0
    for call in calls:
        inputs = _batch(model, call)
        want = parts.run_torch(part, inputs).astype(np.float64)
        got = compiled(inputs)[0].astype(np.float64)
        square += float(((got - want) ** 2).sum())
        reference += float((want**2).sum())
        shape = (-1, want.shape[-1]) if part == "text_encoder" else (want.shape[0], -1)
        a, b = want.reshape(shape), got.reshape(shape)
        dots = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
        cosine = min(cosine, float(dots.min()))
    return (square / max(reference, 1e-30)) ** 0.5, cosine


def _compile(model: Any) -> Any:
    import openvino

    return openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})


def _save(model: Any, path: Path) -> None:
    import openvino

    openvino.save_model(model, str(path), compress_to_fp16=True)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence tracing warnings (sizes, which the graph keeps dynamic) and NNCF's progress bars."""
    import logging
    import warnings

    import nncf

    level = logging.getLogger("nncf").level
    nncf.set_log_level(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        nncf.set_log_level(level or logging.INFO)


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
