"""One network of a pipeline becomes a file of a bundle, in the precision that it bears."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fewstep.models import networks

Precision = Literal["int8", "fp16"]

DECODER_LIMIT = 0.03
"""Relative error up to which the decoder is kept in int8: about 2.7 of 255 levels root mean square, 39 dB
PSNR, far below what the autoencoder itself loses. Measured on decoded ends of trajectories."""

TEXT_COSINE = 0.999
"""Smallest cosine between an int8 and a torch embedding vector up to which the text encoder is kept in
int8."""

_HELD_OUT = 4  # one in so many recorded calls is kept from calibration, for the error


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
    refused: float | None = None
    """Relative error (text encoder: 1 - cosine) of an int8 version that was not good enough."""


def export_part(
    parts: networks.Networks,
    part: str,
    calls: list[list[np.ndarray]],
    file: Path,
    precision: Precision,
    *,
    bars: bool = False,
) -> PartReport:
    """Convert one network, quantise it where that is asked for and good enough, and measure what was saved.

    Args:
        parts: the float networks.
        part: which of them.
        calls: recorded calls; a part of them is kept from calibration.
        file: the ``.xml`` file to write; its folder is there.
        precision: of the whole export.
        bars: show NNCF's progress bars on stderr.
    """
    started = time.perf_counter()
    fit, check = split(calls)
    model = parts.model(part)
    kind, refused = "fp16", None
    # The encoder runs once per picture and only when a picture comes in: not worth any error.
    if precision == "int8" and part != "vae_encoder":
        quantised = networks.quantise(model, part, fit, bars=bars)
        int8_error, int8_cosine = networks.compare(parts, part, quantised, check)
        good = {"vae_decoder": int8_error <= DECODER_LIMIT, "text_encoder": int8_cosine > TEXT_COSINE}
        if good.get(part, True):
            model, kind = quantised, "int8"
        else:
            refused = int8_error if part == "vae_decoder" else 1 - int8_cosine
            if part == "text_encoder":
                smaller = networks.compress(model.clone(), bars=bars)
                _, less_cosine = networks.compare(parts, part, smaller, check)
                if less_cosine > TEXT_COSINE:
                    model, kind = smaller, "int8_weights"
    saved = networks.save(model, file)
    error, cosine = networks.compare(parts, part, saved, check)
    return PartReport(
        precision=kind,
        size=sum(file.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")),
        relative_error=error,
        cosine=cosine,
        seconds=time.perf_counter() - started,
        refused=refused,
    )


def split(calls: list[list[np.ndarray]]) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """What to calibrate on and what to measure on, both all of it where there is little.

    Drawn by lot: every fourth call of a model of four steps would be the same step of each picture.
    """
    if len(calls) < 2 * _HELD_OUT:
        return calls, calls
    order = np.random.default_rng(0).permutation(len(calls))
    held = set(order[: len(calls) // _HELD_OUT].tolist())
    return (
        [call for index, call in enumerate(calls) if index not in held],
        [call for index, call in enumerate(calls) if index in held],
    )
