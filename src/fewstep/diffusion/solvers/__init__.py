"""Solvers by name, one file per algorithm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

from fewstep.diffusion.solvers.base import Solver, State, Step
from fewstep.diffusion.solvers.ddim import ddim
from fewstep.diffusion.solvers.ddpm import DDPM
from fewstep.diffusion.solvers.dpmpp_2m import DPMPP_2M
from fewstep.diffusion.solvers.dpmpp_2m_sde import DPMPP_2M_SDE
from fewstep.diffusion.solvers.euler import EULER
from fewstep.diffusion.solvers.euler_a import EULER_A
from fewstep.diffusion.solvers.flow_euler import FLOW_EULER
from fewstep.diffusion.solvers.heun import HEUN
from fewstep.diffusion.solvers.lcm import lcm
from fewstep.diffusion.solvers.plms import PLMS
from fewstep.diffusion.solvers.tcd import tcd
from fewstep.diffusion.solvers.unipc import UNIPC
from fewstep.errors import UsageError

__all__ = ["SOLVERS", "Solver", "State", "Step", "get_solver"]

SOLVERS: dict[str, Solver] = {
    "ddpm": DDPM,
    "ddim": ddim(),
    "plms": PLMS,
    "euler": EULER,
    "euler_a": EULER_A,
    "heun": HEUN,
    "dpmpp_2m": DPMPP_2M,
    "dpmpp_2m_sde": DPMPP_2M_SDE,
    "unipc": UNIPC,
    "lcm": lcm(),
    "tcd": tcd(),
    "flow_euler": FLOW_EULER,
}
"""Every solver with its default parameters."""

_PARAMETERS: dict[str, tuple[str, float, Callable[[float], Solver]]] = {
    "eta": ("ddim", 1.0, ddim),
    "gamma": ("tcd", 1.0, tcd),
    "boundary_scaling": ("lcm", math.inf, lcm),
}
"""Parameter -> the one solver that has it, the parameter's largest value, and how to build that solver."""


def get_solver(
    name: str,
    *,
    eta: float | None = None,
    gamma: float | None = None,
    boundary_scaling: float | None = None,
) -> Solver:
    """Find a solver by its name.

    Args:
        name: a key of `SOLVERS`.
        eta: for ``ddim``: share of the posterior noise, 0 to 1. None is the solver's default, 0.
        gamma: for ``tcd``: stochasticity, 0 to 1. None is the solver's default, 0.3.
        boundary_scaling: for ``lcm``: factor on timesteps in c_skip and c_out, 0 for none. None is the
            default, 10.

    Raises:
        UsageError: unknown name (the message names the nearest), a parameter out of range, or one that the
            solver does not have.
    """
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(SOLVERS)}"
        raise UsageError(f"solver {name!r} is not known: {hint}", field="solver")
    solver = SOLVERS[name]
    given = {"eta": eta, "gamma": gamma, "boundary_scaling": boundary_scaling}
    for label, value in given.items():
        if value is None:
            continue
        owner, largest, build = _PARAMETERS[label]
        if not (math.isfinite(value) and 0.0 <= value <= largest):
            raise UsageError(f"{label} is {value}: give a number from 0 to {largest:g}", field=label)
        if name == owner:
            solver = build(value)
        elif value != 0.0:
            text = f"solver {name} has no {label}: leave it out, or use the solver {owner}"
            raise UsageError(text, field=label)
    return solver
