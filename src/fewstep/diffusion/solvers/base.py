"""What a solver is: a step function, and the state that it carries from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fewstep.diffusion.arrays import Array, Coefficient, Time, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser, Prediction
from fewstep.diffusion.schedule import FlowSchedule, Schedule
from fewstep.errors import UsageError


class State(NamedTuple):
    """All that a solver remembers; a step returns a new one and changes nothing."""

    schedule: Schedule
    """The schedule of the times, as the solver uses it (see `Solver.schedule`)."""
    evaluations: int = 0
    """How often the denoiser was called so far."""
    x0: Any = None
    """The newest denoised estimate, (B, ...): what a preview shows."""
    history: tuple[Any, ...] = ()
    """What a multistep solver keeps of earlier steps; each solver says what."""


Step = Callable[[Denoiser, Array, Time, Time, State, Any], tuple[Array, State]]
"""``step(denoise, x_t, t, s, state, noise) -> (x_s, state)``: from time t to the cleaner s, each scalar or of
shape (B,). ``noise`` is standard normal of x_t's shape for stochastic solvers, else ignored. Differentiable
in torch with respect to x_t and the denoiser's weights."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A sampling algorithm, by its step function."""

    name: str
    step: Step
    order: int = 1
    """Order of convergence on the probability-flow equation; 0 for algorithms that do not follow it."""
    stochastic: bool = False
    """Whether steps want noise."""
    sigma_space: bool = False
    """Whether it works with sigma / alpha, which must be finite: abar_T = 2**-24 on zero terminal SNR."""
    flow_only: bool = False
    """Whether it is defined for rectified flows only."""

    def schedule(self, schedule: Schedule) -> Schedule:
        """The schedule that this solver uses in place of the given one.

        Adapt the network with this one too: the two differ at the terminal time of a zero-terminal-SNR
        schedule.
        """
        return schedule.finite_terminal() if self.sigma_space else schedule

    def start(self, schedule: Schedule) -> State:
        """The state before the first step.

        Raises:
            UsageError: the solver is not defined for this schedule.
        """
        if self.flow_only and not isinstance(schedule, FlowSchedule):
            text = f"solver {self.name} is for rectified-flow models: give --solver euler or ddim"
            raise UsageError(text, field="solver")
        return State(self.schedule(schedule))


def evaluate(denoise: Denoiser, x: Array, t: Time, state: State) -> tuple[Prediction, State]:
    """Call the denoiser, count it, and remember its x0 for previews."""
    prediction = denoise(x, t)
    return prediction, state._replace(evaluations=state.evaluations + 1, x0=prediction.x0)


def eps_gain(schedule: Schedule, t: Time, s: Time) -> Coefficient:
    """How much x_s falls when eps rises by 1 along a first-order step with x_t fixed.

    A first-order step is ``alpha_s x0 + sigma_s eps``; holding x_t, x0 falls by sigma_t / alpha_t, so the
    gain is ``alpha_s sigma_t / alpha_t - sigma_s``. It is infinite where alpha_t is 0; 0 is returned there,
    which makes the methods that correct eps (PLMS, Heun) first-order in their step away from zero terminal
    SNR.
    """
    alpha_t, alpha_s = host_time(schedule.alpha(t)), host_time(schedule.alpha(s))
    sigma_t, sigma_s = host_time(schedule.sigma(t)), host_time(schedule.sigma(s))
    return safe_divide(alpha_s * sigma_t - alpha_t * sigma_s, alpha_t, otherwise=0.0)
