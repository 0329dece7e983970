"""Steps, guidance and samplers of clients against what the model was made for.

A client of the WebUI sends numbers with every request that nobody chose: 20 steps, guidance 7, "Euler a", eta
1. A model of few steps and a student draw with what fits them in place of those. A base model takes what it
is given, but for guidance 7 where its own is far lower. `Fitted.comments` says in words what was replaced,
and `Fitted.asked` what had been asked for. Whoever means it sets the option ``fewstep_insist``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fewstep.diffusion.schedule import FlowSchedule
from fewstep.diffusion.unfit import Unfit, unfit
from fewstep.server.a1111 import names

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo

GUIDANCE = 7.0
"""What clients send when nobody chose: the WebUI's own default."""
_LOW = 5.0
"""A base model whose own guidance is below was not made for `GUIDANCE`."""
_ETA = 1.0
"""As `GUIDANCE`: of webuiapi."""
_WORDS = {
    "num_inference_steps": "Steps", "guidance_scale": "CFG scale", "solver": "Sampler",
    "spacing": "Schedule type",
}  # fmt: skip
"""Keys of infotexts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a client sent; None is what it did not."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    spacing: str | None = None
    eta: float | None = None
    negative: bool = False
    """Whether there is a negative prompt, which works through guidance alone."""
    student: str | None = None
    """A student's name, or ``none`` for the model itself."""
    insist: bool = False
    few_step_adapter: bool = False
    """Whether an adapter says how to draw in few steps: then it is fitted to that by the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What is drawn with."""

    settings: dict[str, Any]
    """Of `fewstep.engine.request.resolve`."""
    asked: dict[str, Any] = field(default_factory=dict)
    """What was replaced, by the keys of infotexts."""
    comments: list[str] = field(default_factory=list)


def fitted(info: ModelInfo, asked: Asked) -> Fitted:
    """Decide what is drawn with.

    Args:
        info: the model.
        asked: by the client.

    Raises:
        NotFoundError: the model has no student of that name.
        UsageError: an unknown solver.
    """
    given: dict[str, Any] = {
        "num_inference_steps": asked.num_inference_steps, "guidance_scale": asked.guidance_scale,
        "solver": _of_schedule(info, asked.solver), "spacing": asked.spacing,
    }  # fmt: skip
    student = _student(info, asked)
    if asked.insist:
        eta = asked.eta if _takes_eta(info.sampling(student), given["solver"]) else None
        extra = {"insist": True, "student": student or asked.student, "eta": eta}
        return Fitted(settings=_said(given | extra))
    if asked.few_step_adapter and asked.student is None:
        return Fitted(settings=_said(given))
    contract = info.sampling(student)
    found = unfit(contract, **_said(given))
    kept = dict(given)
    replaced: dict[str, Any] = {}
    comments: list[str] = []
    for one in found:
        kept[one.setting] = None if one.setting == "spacing" else one.wanted
        replaced[_WORDS[one.setting]] = _shown(one)
        comments.append(f"{one.sentence} (done; the option fewstep_insist keeps {_shown(one)})")
    if student is not None:
        # A student refuses what it was not made for, so nothing else is said to it.
        kept = {"num_inference_steps": kept["num_inference_steps"]}
        return Fitted(settings=_said({**kept, "student": student}), asked=replaced, comments=comments)
    if contract.method == "base":
        _default_guidance(contract, kept, replaced, comments)
    if _takes_eta(contract, kept["solver"]) and asked.eta != _ETA:
        kept["eta"] = asked.eta
    return Fitted(settings=_said({**kept, "student": asked.student}), asked=replaced, comments=comments)


def _student(info: ModelInfo, asked: Asked) -> str | None:
    """Who draws, where that is no matter of the engine: the guidance of clients is no wish for guidance."""
    if asked.student is not None:
        return None if asked.student == "none" else info.student(asked.student).name
    if asked.negative or asked.insist or asked.few_step_adapter:
        return None
    return next((one.name for one in info.students if asked.num_inference_steps in one.steps), None)


def _default_guidance(
    contract: SamplingContract, kept: dict[str, Any], replaced: dict[str, Any], comments: list[str]
) -> None:
    if kept["guidance_scale"] != GUIDANCE or contract.guidance_scale >= _LOW:
        return
    kept["guidance_scale"] = None
    replaced[_WORDS["guidance_scale"]] = f"{GUIDANCE:g}"
    comments.append(
        f"guidance {GUIDANCE:g} is what clients send when nobody chose: the model's own is used, "
        f"{contract.guidance_scale:g} (the option fewstep_insist keeps {GUIDANCE:g})"
    )


def _of_schedule(info: ModelInfo, solver: str | None) -> str | None:
    """Plain Euler is another solver on flow models."""
    if solver == "euler" and isinstance(info.contract.make_schedule(), FlowSchedule):
        return "flow_euler"
    return solver


def _takes_eta(contract: SamplingContract, solver: str | None) -> bool:
    return contract.method == "base" and (solver or contract.solver) == "ddim"


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _shown(one: Unfit) -> str:
    if one.setting == "solver":
        return names.shown_sampler(one.asked)
    if one.setting == "spacing":
        return names.schedule_type(one.asked) or str(one.asked)
    return f"{one.asked:g}"
