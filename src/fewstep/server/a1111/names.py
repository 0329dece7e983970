"""Samplers, schedulers and upscalers by the WebUI's names, and which of ours they are.

What the WebUI has and fewstep has not is refused with the nearest, and never replaced in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fewstep.diffusion.solvers import SOLVERS
from fewstep.engine.upscaling import catalogue
from fewstep.errors import NotFoundError, UsageError
from fewstep.prompt.infotext import SAMPLERS as _SHOWN
from fewstep.prompt.infotext import SCHEDULES

AUTOMATIC = "automatic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """A spacing by the WebUI's names."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()
    spacing: str | None
    """Of `fewstep.diffusion.timesteps.SPACINGS`; None is the model's own."""
    rho: float | None = None


SAMPLERS: Mapping[str, str] = {shown: solver for solver, shown in _SHOWN.items() if solver != "flow_euler"}
"""Name -> our solver. Flow models draw "Euler" by ``flow_euler``."""

SCHEDULERS: Mapping[str, Scheduler] = {
    one.name: one
    for one in (
        Scheduler(name=AUTOMATIC, label="Automatic", spacing=None),
        # Equal steps of t from the most noise down: k-diffusion's get_sigmas, and ComfyUI's "normal".
        Scheduler(name="uniform", label="Uniform", spacing="linspace"),
        Scheduler(name="normal", label="Normal", spacing="linspace"),
        Scheduler(name="karras", label="Karras", spacing="karras", rho=7.0),
        Scheduler(name="exponential", label="Exponential", spacing="exponential"),
        # The same curve as exponential at the rho that the WebUI gives it.
        Scheduler(name="polyexponential", label="Polyexponential", spacing="exponential", rho=1.0),
        Scheduler(name="sgm_uniform", label="SGM Uniform", aliases=("SGMUniform",), spacing="sgm_uniform"),
        Scheduler(name="simple", label="Simple", spacing="trailing"),
        Scheduler(name="ddim", label="DDIM", aliases=("ddim_uniform",), spacing="leading"),
    )
}

NEAREST: Mapping[str, str] = {
    "DPM++ SDE": "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun": "DPM++ 2M SDE",
    "DPM++ 3M SDE": "DPM++ 2M SDE",
    "DPM++ 2S a": "Euler a",
    "LMS": "PLMS",
    "DPM2": "Heun",
    "DPM2 a": "Euler a",
    "DPM fast": "DPM++ 2M",
    "DPM adaptive": "DPM++ 2M",
    "Restart": "Heun",
    "DDIM CFG++": "DDIM",
    "Euler a CFG++": "Euler a",
    "Euler CFG++": "Euler",
    "DDPM CFG++": "DDPM",
    "kl_optimal": "karras",
    "align_your_steps": "karras",
    "beta": "simple",
    "turbo": "simple",
}
"""What the WebUI has and fewstep has not -> the nearest that there is."""

_PLAIN = {"lanczos": "Lanczos", "nearest": "Nearest"}


def aliases(solver: str) -> list[str]:
    """Further names of a sampler."""
    return [f"k_{solver}", solver]


def sampler(name: str) -> tuple[str, str | None]:
    """Find a sampler by a name of the WebUI or of ours; a scheduler at its end is split off.

    Returns:
        Our solver, and the spacing that the name ends with ("DPM++ 2M Karras"); None where it has none.

    Raises:
        NotFoundError: unknown, or one that fewstep does not have; the message lists what there is.
    """
    wanted = " ".join(name.split())
    if (solver := _solver(wanted)) is not None:
        return solver, None
    for one in SCHEDULERS.values():
        for word in (one.label, one.name, *one.aliases):
            head = wanted[: -len(word) - 1]
            if wanted.lower().endswith(" " + word.lower()) and (solver := _solver(head)) is not None:
                return solver, one.spacing
    raise _unknown("sampler", wanted, SAMPLERS)


def scheduler(name: str) -> Scheduler:
    """Find a scheduler by its name, label or alias, or by a name of our spacings.

    Raises:
        NotFoundError: unknown, or one that fewstep does not have; the message lists what there is.
    """
    wanted = _folded(name)
    for one in SCHEDULERS.values():
        if wanted in map(_folded, (one.name, one.label, *one.aliases)):
            return one
    for one in SCHEDULERS.values():
        if one.spacing is not None and wanted == _folded(one.spacing):
            return one
    raise _unknown("scheduler", name, SCHEDULERS)


def schedule_type(spacing: str | None) -> str | None:
    """How the WebUI shows one of our spacings; None where it is the model's own."""
    return None if spacing is None else SCHEDULES.get(spacing, spacing)


def shown_sampler(solver: str) -> str:
    """How the WebUI shows one of our solvers."""
    return _SHOWN.get(solver, solver)


def upscalers() -> dict[str, str]:
    """Shown name -> our name of every upscaler that can be used here."""
    found = {shown: name for name, shown in _PLAIN.items()}
    for one in catalogue.UPSCALERS.values():
        if catalogue.installed(one):
            found[one.aliases[0] if one.aliases else one.name] = one.name
    return found


def upscaler(name: str) -> str:
    """Find an upscaler by a name of the WebUI or of ours; ``none`` for "None".

    Raises:
        NotFoundError: unknown; the message lists what can be used here.
        DependencyError: known, and not installed.
    """
    wanted = name.strip()
    if wanted.lower() in ("none", ""):
        return "none"
    try:
        return catalogue.resolve(wanted)
    except UsageError:
        raise _unknown("upscaler", wanted, ["None", *upscalers()]) from None


def latent_upscaler(name: str | None) -> str:
    """What enlarges between two passes: a name of `fewstep.engine.hires.UPSCALERS`.

    The WebUI resizes by Lanczos where "None" is asked for, and takes "Latent" where nothing is.

    Raises:
        NotFoundError, DependencyError: as `upscaler`; or one that is no second pass's.
    """
    from fewstep.engine.hires import UPSCALERS

    if name is None or _folded(name) in ("latent", ""):
        return "latent"
    if _folded(name).startswith("latent"):
        raise NotFoundError(
            f"upscaler {name[:60]!r}: fewstep enlarges latents by bilinear interpolation alone; give 'Latent'"
        )
    found = upscaler(name)
    if found == "none":
        return "lanczos"
    if found not in UPSCALERS:
        shown = [shown for shown, own in upscalers().items() if own in UPSCALERS]
        raise NotFoundError(
            f"upscaler {name[:60]!r}: not for a second pass; there are: Latent, {', '.join(shown)}"
        )
    return found


def _solver(name: str) -> str | None:
    wanted = name.lower()
    for shown, solver in SAMPLERS.items():
        if wanted in (shown.lower(), *aliases(solver)):
            return solver
    return wanted if wanted in SOLVERS else None


def _folded(name: str) -> str:
    return name.strip().lower().replace(" ", "").replace("_", "").replace("-", "")


def _unknown(what: str, name: str, there: Iterable[str]) -> NotFoundError:
    known = {_folded(one): near for one, near in NEAREST.items()}
    near = known.get(_folded(name))
    for words in ("Karras", "Exponential", "Polyexponential"):  # "DPM2 Karras"
        near = near or known.get(_folded(name).removesuffix(_folded(words)))
    there = list(there)
    if near is not None and near not in there:
        near = None
    if near is None:
        near = next(iter(difflib.get_close_matches(name[:60], there, n=1)), None)
    hint = f"the nearest is {near!r}; " if near else ""
    return NotFoundError(
        f"{what} {name[:60]!r}: not one that fewstep has; {hint}there are: {', '.join(there)}"
    )
