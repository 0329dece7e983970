"""A sampling contract as diffusers' ``scheduler_config.json``, so that plain diffusers is right unaided.

`fewstep.diffusion.scheduler_reading` is the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract

_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"clip_sample": False}),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ),
    "unipc": (
        "UniPCMultistepScheduler",
        {"solver_order": 2, "solver_type": "bh2"},
    ),
    "lcm": ("LCMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "tcd": ("TCDScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
}
_FLOW_CLASSES = {"flow_euler": "FlowMatchEulerDiscreteScheduler", "lcm": "FlowMatchLCMScheduler"}

CLASS_NAMES = frozenset(name for name, _ in _CLASSES.values()) | frozenset(_FLOW_CLASSES.values())
"""Every class that `scheduler_config` names."""

_DIFFUSERS_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
_NO_BOUNDARY = 1e6
"""Makes c_skip 0 and c_out 1 in float32; a scaling of 0, which means that with us, is the opposite there."""
_WITH_SIGMA_SPACINGS = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
_WITH_FINAL_SIGMA = ("euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc")


def scheduler_config(contract: SamplingContract) -> dict[str, Any]:
    """The configuration of the diffusers scheduler that samples as the contract says.

    The images agree from the same noise where diffusers visits the same times: for ``ddim``, ``lcm`` and
    ``tcd`` with trailing spacing at step counts that divide T (``lcm`` and ``tcd`` at others are at most one
    time apart), and for ``lcm`` and ``tcd`` with their own. diffusers has no place for explicit timesteps, a
    start timestep, gamma or eta: these are arguments of its pipelines.

    Raises:
        UsageError: diffusers has no scheduler for this contract.
    """
    spec = contract.schedule
    if contract.solver in _FLOW_CLASSES and (
        contract.solver not in _CLASSES or spec.name == "rectified_flow"
    ):
        return {
            "_class_name": _FLOW_CLASSES[contract.solver],
            "num_train_timesteps": spec.num_train_timesteps,
            "shift": spec.shift,
        }
    class_name, extra = _CLASSES[contract.solver]
    if spec.name not in _DIFFUSERS_SCHEDULES:
        raise UsageError(
            f"diffusers has no {class_name} for {spec.name} schedules: use the solver flow_euler"
        )
    spacing: dict[str, Any] = {"timestep_spacing": contract.spacing}
    if contract.spacing in ("karras", "exponential") and contract.solver in _WITH_SIGMA_SPACINGS:
        spacing = {"timestep_spacing": "linspace", f"use_{contract.spacing}_sigmas": True}
    elif contract.spacing == "lcm" and contract.solver in ("lcm", "tcd"):
        spacing = {}  # these two schedulers know no other
    elif contract.spacing not in ("trailing", "leading", "linspace"):
        raise UsageError(f"diffusers' {class_name} has no {contract.spacing} spacing: use trailing")
    if contract.solver in ("lcm", "tcd"):
        # They pick every so-many-th of a grid of this many times, whatever the spacing is called: out of all
        # times that is trailing spacing, and out of 50 that of released LCMs.
        origin = 50 if contract.spacing == "lcm" else spec.num_train_timesteps
        extra = {**extra, "original_inference_steps": origin}
    if contract.solver == "lcm" and contract.boundary_scaling is not None:
        extra = {**extra, "timestep_scaling": contract.boundary_scaling or _NO_BOUNDARY}
    if spec.rescale_zero_terminal_snr:
        if contract.solver in ("plms", "heun"):
            raise UsageError(f"diffusers' {class_name} has no zero terminal SNR: use the solver ddim")
        extra = {**extra, "rescale_betas_zero_snr": True}
    if contract.solver in ("ddim", "plms"):
        extra = {**extra, "set_alpha_to_one": contract.set_alpha_to_one}
    if contract.solver in _WITH_FINAL_SIGMA:
        extra = {**extra, "final_sigmas_type": contract.final_sigmas_type}
    return {
        "_class_name": class_name,
        "num_train_timesteps": spec.num_train_timesteps,
        "beta_schedule": _DIFFUSERS_SCHEDULES[spec.name],
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "prediction_type": contract.prediction_type,
        "steps_offset": contract.steps_offset,
        **spacing,
        **extra,
    }
