"""diffusers' ``scheduler_config.json`` as fields of a sampling contract, for folders that have no contract.

A key that the file leaves out has diffusers' own default, which differs from class to class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fewstep.diffusion.contract import ScheduleSpec
from fewstep.errors import CheckpointError

_DDPM: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
_HALF: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
_LCM: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

_CLASSES: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "DDIMScheduler": ("ddim", "leading", _DDPM),
    "DDPMScheduler": ("ddpm", "leading", _DDPM),
    "PNDMScheduler": ("plms", "leading", _DDPM),
    "EulerDiscreteScheduler": ("euler", "linspace", _DDPM),
    "EulerAncestralDiscreteScheduler": ("euler_a", "linspace", _DDPM),
    "HeunDiscreteScheduler": ("heun", "linspace", _HALF),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace", _DDPM),
    "UniPCMultistepScheduler": ("unipc", "linspace", _DDPM),
    "LCMScheduler": ("lcm", "leading", _LCM),
    "TCDScheduler": ("tcd", "leading", _LCM),
    # Not among our solvers; their schedule and prediction type hold for any.
    "LMSDiscreteScheduler": (None, "linspace", _DDPM),
    "DEISMultistepScheduler": (None, "linspace", _DDPM),
    "DPMSolverSinglestepScheduler": (None, "linspace", _DDPM),
    "KDPM2DiscreteScheduler": (None, "linspace", _HALF),
    "KDPM2AncestralDiscreteScheduler": (None, "linspace", _HALF),
}
"""Scheduler -> our solver, its default spacing, its default betas."""

FLOW_CLASSES = {"FlowMatchEulerDiscreteScheduler": "flow_euler", "FlowMatchLCMScheduler": "lcm"}
TABLE_CLASSES = frozenset(_CLASSES)
"""Schedulers on a table of betas that can be read."""

_BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
_SPACINGS = ("leading", "trailing", "linspace")
_MAX_TIMESTEPS = 100_000
_REFUSED = {
    "trained_betas": "a table of betas",
    "use_beta_sigmas": "beta sigmas",
    "use_lu_lambdas": "Lu's lambdas",
    "use_flow_sigmas": "flow sigmas on a scheduler of betas",
    "use_dynamic_shifting": "a shift that depends on the size",
    "invert_sigmas": "inverted sigmas",
    "shift_terminal": "a stretched end",
}
"""Settings that change the schedule in a way that a contract cannot say."""


def from_scheduler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `SamplingContract` that a scheduler's configuration decides.

    Args:
        config: the JSON object of a ``scheduler_config.json``.

    Returns:
        ``solver`` (the scheduler's own; None where it is not among ours), ``prediction_type``, ``schedule``,
        ``spacing`` and what else the scheduler says.

    Raises:
        CheckpointError: an unknown scheduler, a value of the wrong type or out of range, or a schedule that a
            contract cannot say.
    """
    name = config.get("_class_name")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"{name}: {key} is set; {what} cannot be followed, give a fewstep.json instead"
            )
    if isinstance(name, str) and name in FLOW_CLASSES:
        return _flow(name, config)
    if not isinstance(name, str) or name not in _CLASSES:
        known = ", ".join(sorted((*_CLASSES, *FLOW_CLASSES)))
        raise CheckpointError(f"scheduler {name!r:.60} cannot be read; only these can: {known}")
    own, spacing, betas = _CLASSES[name]
    fields: dict[str, Any] = {
        "solver": own,
        "prediction_type": _one_of(
            config, "prediction_type", ("epsilon", "v_prediction", "sample"), "epsilon"
        ),
        "schedule": ScheduleSpec(
            name=_BETA_SCHEDULES[
                _one_of(config, "beta_schedule", tuple(_BETA_SCHEDULES), betas["beta_schedule"])
            ],
            num_train_timesteps=_timesteps(config),
            beta_start=_number(config, "beta_start", betas["beta_start"]),
            beta_end=_number(config, "beta_end", betas["beta_end"]),
            rescale_zero_terminal_snr=_flag(config, "rescale_betas_zero_snr"),
        ),
        "spacing": _one_of(config, "timestep_spacing", _SPACINGS, spacing),
        "steps_offset": _whole(config, "steps_offset", 0, 0, _MAX_TIMESTEPS),
    }
    for kind in ("karras", "exponential"):
        if _flag(config, f"use_{kind}_sigmas"):
            fields["spacing"] = kind
    if own == "dpmpp_2m" and config.get("algorithm_type") == "sde-dpmsolver++":
        fields["solver"] = "dpmpp_2m_sde"
    if own == "plms" and not _flag(config, "skip_prk_steps"):
        fields["solver"] = None  # its Runge-Kutta warm-up is not ours
    if own in ("ddim", "plms"):
        fields["set_alpha_to_one"] = _flag(config, "set_alpha_to_one", default=own == "ddim")
    elif own in ("lcm", "tcd"):
        fields |= _consistency(own, config, fields["schedule"])
    else:
        fields["final_sigmas_type"] = _one_of(config, "final_sigmas_type", ("zero", "sigma_min"), "zero")
    return fields


def _consistency(own: str, config: Mapping[str, Any], schedule: ScheduleSpec) -> dict[str, Any]:
    """LCM and TCD pick from a trailing grid of ``original_inference_steps``, whatever spacing is named."""
    total = schedule.num_train_timesteps
    origin = _whole(config, "original_inference_steps", 50, 1, total)
    if origin not in (50, total):
        raise CheckpointError(
            f"scheduler picks its times from {origin} (original_inference_steps); only 50 or {total} can be "
            "followed, give a fewstep.json with its timesteps instead"
        )
    fields: dict[str, Any] = {"spacing": "lcm" if origin == 50 else "trailing"}
    if own == "lcm":
        # diffusers has no word for no boundary; a large factor is what `scheduler_config` writes for it.
        scaling = _number(config, "timestep_scaling", 10.0)
        fields["boundary_scaling"] = 0.0 if scaling >= 1e6 else scaling
    return fields


def _flow(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    spacing = next(
        (kind for kind in ("karras", "exponential") if _flag(config, f"use_{kind}_sigmas")), "linspace"
    )
    if _flag(config, "stochastic_sampling"):
        raise CheckpointError(
            f"{name}: stochastic_sampling is set, which cannot be followed; give a fewstep.json"
        )
    return {
        "solver": FLOW_CLASSES[name],
        "prediction_type": "flow_prediction",
        "schedule": ScheduleSpec(
            name="rectified_flow",
            num_train_timesteps=_timesteps(config),
            shift=_number(config, "shift", 1.0),
        ),
        "spacing": spacing,
    }


def _timesteps(config: Mapping[str, Any]) -> int:
    return _whole(config, "num_train_timesteps", 1000, 2, _MAX_TIMESTEPS)


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"scheduler has {key} = {value!r:.60}: give a number")
    return float(value)


def _whole(config: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CheckpointError(
            f"scheduler has {key} = {value!r:.60}: give a whole number from {low} to {high}"
        )
    return value


def _flag(config: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    value = config.get(key, default)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"scheduler has {key} = {value!r:.60}: give true or false")
    return value


def _one_of(config: Mapping[str, Any], key: str, allowed: tuple[str, ...], default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in allowed:
        raise CheckpointError(
            f"scheduler has {key} = {value!r:.60}: only {', '.join(allowed)} can be followed"
        )
    return value
