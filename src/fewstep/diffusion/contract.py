"""The sampling contract: how a checkpoint must be sampled. It travels with the weights as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.prediction import PREDICTION_TYPES
from fewstep.diffusion.schedule import BETA_SCHEDULES, FlowSchedule, Schedule, make_schedule
from fewstep.diffusion.solvers import Solver, get_solver
from fewstep.diffusion.timesteps import SPACINGS, make_grid
from fewstep.errors import CheckpointError, FewstepError, UsageError

VERSION = 1

GUIDANCE_KINDS = ("off", "classifier_free", "embedded")
FINAL_SIGMAS = ("zero", "sigma_min")

_ONE_MORE = ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""Solvers whose diffusers schedulers take one time more than asked for and leave out the least noise."""
_NOT_ROUNDED = ("euler", "euler_a", "heun")
"""Solvers whose diffusers schedulers do not round times with linspace spacing, and start from sigma eps."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """A noise schedule by name and numbers."""

    name: str = "scaled_linear"
    """``scaled_linear``, ``linear``, ``cosine`` or ``rectified_flow``."""
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_zero_terminal_snr: bool = False
    """Lin 2023 (2305.08891), Algorithm 1; for discrete schedules."""
    shift: float = 1.0
    """For ``rectified_flow``: Esser 2024 (2403.03206), eq. 23."""

    def build(self) -> Schedule:
        """The schedule.

        Raises:
            UsageError: unknown name or numbers out of range.
        """
        if self.name == "rectified_flow":
            return FlowSchedule(self.shift, self.num_train_timesteps)
        return make_schedule(
            self.name,
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            rescale_zero_terminal_snr=self.rescale_zero_terminal_snr,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingContract:
    """How a checkpoint must be sampled.

    Raises:
        CheckpointError: a field is out of range, or two fields contradict each other.
    """

    version: int = VERSION
    method: str = "base"
    """What made the weights: ``base``, or the name of a distillation method."""
    base_family: str
    """Family of the base weights, for example ``fewstep-emoji``, ``sd15``, ``sdxl``."""
    base_hash: str | None = None
    """SHA-256 of the base weights that an adapter belongs to."""
    prediction_type: str = "epsilon"
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    solver: str = "ddim"
    eta: float | None = None
    """For ``ddim``."""
    gamma: float | None = None
    """For ``tcd``."""
    boundary_scaling: float | None = None
    """For ``lcm``: factor on timesteps in c_skip and c_out; 0 for none; None is the solver's default (10)."""
    spacing: str = "trailing"
    steps_offset: int = 0
    """For ``leading`` spacing."""
    set_alpha_to_one: bool = True
    """Whether ``ddim`` and ``plms`` end at clean data; else at table entry 0 (Stable Diffusion 1 and 2)."""
    final_sigmas_type: str = "zero"
    """Where the solvers in sigma space end: ``zero`` at clean data, ``sigma_min`` at table entry 0."""
    start_timestep: float | None = None
    """First time of every grid, if it is not the schedule's terminal time."""
    timesteps: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Explicit times for some step counts; they go before ``spacing``."""
    num_inference_steps: int = 25
    """Default number of steps."""
    allowed_steps: tuple[int, ...] | None = None
    """Step counts that the weights were made for; None is any."""
    guidance: str = "classifier_free"
    """``off``, ``classifier_free``, or ``embedded`` (the network is given the scale)."""
    guidance_scale: float = 1.0
    """Default scale; 1 is no guidance."""
    guidance_range: tuple[float, float] | None = None
    """Scales that work; None is any from 1."""
    guidance_rescale: float = 0.0
    """Default rescale of Lin 2023 (2305.08891), section 3.4."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only for sigma / alpha in (low, high]."""
    negative_prompt_effective: bool = True
    """Whether a negative prompt changes anything."""
    native_sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels that the weights were trained on; the first is the default."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except UsageError as error:
            raise CheckpointError(f"sampling contract: {error}") from error

    def _check(self) -> None:
        if self.version != VERSION:
            raise UsageError(f"version {self.version} is not {VERSION}: it needs another version of fewstep")
        _one_of("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _one_of("schedule.name", self.schedule.name, (*BETA_SCHEDULES, "rectified_flow"))
        _one_of("spacing", self.spacing, tuple(name for name in SPACINGS if name != "explicit"))
        _one_of("final_sigmas_type", self.final_sigmas_type, FINAL_SIGMAS)
        _one_of("guidance", self.guidance, GUIDANCE_KINDS)
        for name in ("guidance_scale", "guidance_rescale"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)}: give a finite number")
        if self.guidance == "off" and self.guidance_scale != 1.0:
            raise UsageError(f"guidance is off and guidance_scale is {self.guidance_scale}: give 1")
        if self.allowed_steps is not None and self.num_inference_steps not in self.allowed_steps:
            raise UsageError(f"num_inference_steps {self.num_inference_steps} is not in allowed_steps")
        if not self.native_sizes or min(min(size) for size in self.native_sizes) < 1:
            raise UsageError(f"native_sizes is {self.native_sizes}: give at least one (width, height)")
        schedule = self.make_schedule()
        if self.prediction_type == "epsilon" and schedule.zero_terminal_snr:
            raise UsageError("epsilon prediction has no x0 at zero terminal SNR: use v_prediction or sample")
        self.make_solver().start(schedule)
        self.grid(self.num_inference_steps)
        for count in self.timesteps:
            self.grid(count)

    def make_schedule(self) -> Schedule:
        """The noise schedule."""
        return self.schedule.build()

    def make_solver(self) -> Solver:
        """The solver with the contract's parameters."""
        return get_solver(self.solver, eta=self.eta, gamma=self.gamma, boundary_scaling=self.boundary_scaling)

    def grid(self, num_inference_steps: int | None = None, solver: str | None = None) -> FloatArray:
        """The times to visit, N + 1 of them; see `timesteps.make_grid`.

        On discrete schedules they are those of the solver's scheduler in diffusers: DPM-Solver and UniPC
        leave out the least noise of a ``leading`` or ``linspace`` grid of N + 1, Euler and Heun do not round
        ``linspace``, and `set_alpha_to_one` and `final_sigmas_type` say where the last step goes.

        Args:
            num_inference_steps: N; None is the contract's default.
            solver: name of the solver that will visit them; None is the contract's own.

        Raises:
            UsageError: N is out of range, or not one that the weights were made for.
        """
        n = self.num_inference_steps if num_inference_steps is None else num_inference_steps
        name = self.solver if solver is None else solver
        if self.allowed_steps is not None and n not in self.allowed_steps:
            allowed = ", ".join(str(count) for count in self.allowed_steps)
            raise UsageError(f"steps is {n}: this model was made for {allowed}, give one of these")
        schedule = self.make_schedule()
        if isinstance(schedule, FlowSchedule):
            if n in self.timesteps:
                return make_grid(schedule, "explicit", n, explicit=self.timesteps[n])
            return make_grid(schedule, self.spacing, n, start=self.start_timestep)
        grid = self._table_times(schedule, n, name)
        if self._ends_above_zero(name):
            grid[-1] = 0.0
        return grid

    def _table_times(self, schedule: Schedule, n: int, solver: str) -> FloatArray:
        """The grid on a discrete schedule, with the clean end."""
        if n in self.timesteps:
            return make_grid(schedule, "explicit", n, explicit=self.timesteps[n])
        one_more = solver in _ONE_MORE and self.spacing in ("leading", "linspace")
        count = n + 1 if one_more and 1 <= n < self.schedule.num_train_timesteps else n
        grid = make_grid(
            schedule, self.spacing, count, start=self.start_timestep, steps_offset=self.steps_offset
        )
        if solver in _NOT_ROUNDED and self.spacing == "linspace":
            grid[:-1] = np.linspace(grid[0], 0.0, n)
        return np.delete(grid, n) if count > n else grid

    def _ends_above_zero(self, solver: str) -> bool:
        if solver in ("ddim", "plms"):
            return not self.set_alpha_to_one
        return self.final_sigmas_type == "sigma_min" and solver in (*_ONE_MORE, "euler", "heun")

    def first_noise(self, t: float, solver: str | None = None) -> float:
        """The factor on standard normal noise with which pure noise enters the first step.

        1, but sigma(t) for Euler, ancestral Euler and Heun unless the spacing is ``leading``: diffusers'
        ``init_noise_sigma`` (0.998 on Stable Diffusion's schedule).

        Args:
            t: the first time.
            solver: as of `grid`.
        """
        name = self.solver if solver is None else solver
        if name not in _NOT_ROUNDED or self.spacing == "leading":
            return 1.0
        return float(self.make_schedule().finite_terminal().sigma(t))

    def scheduler_config(self) -> dict[str, Any]:
        """The same as diffusers' ``scheduler_config.json``; see `scheduler_config.scheduler_config`."""
        from fewstep.diffusion.scheduler_config import scheduler_config

        return scheduler_config(self)

    def to_json(self) -> str:
        """JSON text, keys in the order of the fields, ending in a newline."""
        data = dataclasses.asdict(self)
        data["timesteps"] = {str(count): list(times) for count, times in self.timesteps.items()}
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SamplingContract:
        """Read JSON text.

        Raises:
            CheckpointError: not JSON, an unknown key (the message names the nearest), a missing key, a value
                of the wrong type or out of range.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"sampling contract is not JSON: {error}") from error
        data = _checked(data, cls, "sampling contract")
        if data.get("version", VERSION) != VERSION:
            raise CheckpointError(
                f"sampling contract has version {data['version']}, this fewstep reads {VERSION}: "
                "use the version that wrote it"
            )
        try:
            if "schedule" in data:
                spec = _checked(data["schedule"], ScheduleSpec, "sampling contract, schedule")
                data["schedule"] = ScheduleSpec(**spec)
            if "timesteps" in data:
                data["timesteps"] = {int(n): tuple(map(float, ts)) for n, ts in data["timesteps"].items()}
            for name in ("allowed_steps", "guidance_range", "guidance_interval"):
                if data.get(name) is not None:
                    data[name] = tuple(data[name])
            if "native_sizes" in data:
                data["native_sizes"] = tuple((int(w), int(h)) for w, h in data["native_sizes"])
            return cls(**data)
        except FewstepError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"sampling contract has a missing key or a value of the wrong type: {error}"
            ) from error


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(allowed)}"
        raise UsageError(f"{name} {value!r} is not known: {hint}")


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "ScheduleSpec": (dict,),
    "dict[int, tuple[float, ...]]": (dict,),
    "tuple[int, ...]": (list,),
    "tuple[float, float]": (list,),
    "tuple[tuple[int, int], ...]": (list,),
}


def _checked(data: Any, cls: type[SamplingContract] | type[ScheduleSpec], where: str) -> dict[str, Any]:
    """Check keys and JSON types against a dataclass."""
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} is not a JSON object: give one with the keys of the documentation")
    fields = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it, or use the version that wrote it"
            raise CheckpointError(f"{where} has the unknown key {key!r}: {hint}")
        kind = fields[key].removesuffix(" | None")
        if value is None and kind != fields[key]:
            continue
        # bool is an int in Python, not in JSON
        if not isinstance(value, _JSON_TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise CheckpointError(f"{where} has {key} = {value!r}: give a value of type {fields[key]}")
        items: Any = value
        if kind == "tuple[int, ...]" and not all(type(item) is int for item in items):
            raise CheckpointError(f"{where} has {key} = {value!r}: give whole numbers")
        if kind == "tuple[float, float]" and not (
            len(items) == 2 and all(type(item) in (int, float) for item in items)
        ):
            raise CheckpointError(f"{where} has {key} = {value!r}: give two numbers")
    return dict(data)
