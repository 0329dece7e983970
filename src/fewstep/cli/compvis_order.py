"""An order in the options of CompVis' scripts: what was asked for, and the requests that it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fewstep.cli import choices, compvis_model, sources
from fewstep.errors import DataError, UsageError
from fewstep.prompt.attention import EMPHASIS_MODES

if TYPE_CHECKING:
    from fewstep.engine.adapters import AdapterUse
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.request import GenerateRequest

PRECISIONS = ("full", "autocast")
_LAST_SEED = 2**63 - 1
_MAX_PROMPTS = 10 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The options as they were given; None is what was not."""

    task: compvis_model.Task
    prompt: str
    from_file: Path | None
    outdir: Path
    skip_grid: bool
    skip_save: bool
    ddim_steps: int | None
    plms: bool
    dpm_solver: bool
    ddim_eta: float | None
    fixed_code: bool
    n_iter: int
    n_samples: int
    n_rows: int
    width: int | None = None
    height: int | None = None
    channels: int | None
    downscale: int | None
    scale: float | None
    init_img: Path | None = None
    strength: float | None = None
    config: Path | None
    ckpt: str | None
    seed: int
    precision: str
    student: str | None
    emphasis: str = "original"
    lora: tuple[str, ...] = ()
    """Each as ``NAME[:WEIGHT[:TEXTWEIGHT]]``."""
    loras_dir: tuple[Path, ...] = ()
    embeddings_dir: tuple[Path, ...] = ()
    quiet: bool

    @property
    def sampler(self) -> str | None:
        """The solver that was asked for; --dpm_solver goes before --plms."""
        return "dpmpp_2m" if self.dpm_solver else "plms" if self.plms else None


class Shot(NamedTuple):
    """One call of the engine in every iteration."""

    request: GenerateRequest
    place: int
    """Of its first image in the batch of prompts."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of ``--from-file``, one a line; blank lines are left out.

    Raises:
        DataError: the file cannot be read as UTF-8 text, or holds no prompt.
    """
    try:
        if path.stat().st_size > _MAX_PROMPTS:
            raise DataError(f"{path}: larger than {_MAX_PROMPTS // 2**20} MB; split it")
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give --from-file a text file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path}: no prompts; write one in each line")
    return prompts


def check(order: Order) -> None:
    """Refuse what is wrong whatever the model is.

    Raises:
        UsageError: a value out of range, or options that contradict each other.
    """
    for option, value, low in (
        ("--n_iter", order.n_iter, 1),
        ("--n_samples", order.n_samples, 1),
        ("--n_rows", order.n_rows, 0),
        ("--seed", order.seed, 0),
    ):
        if value < low:
            raise UsageError(f"{option} is {value}: give {low} or more")
    choices.one_of("--precision", order.precision, PRECISIONS)
    choices.one_of("--emphasis", order.emphasis, EMPHASIS_MODES)
    if order.strength is not None and not 0.0 <= order.strength <= 1.0:  # also refuses NaN
        raise UsageError(f"--strength is {order.strength:g}: give a number from 0 to 1")
    if order.skip_save and order.skip_grid:
        raise UsageError("--skip_save and --skip_grid: nothing would be written; leave one of them out")
    if order.ddim_eta and order.sampler is not None:
        flag = "--dpm_solver" if order.dpm_solver else "--plms"
        raise UsageError(
            f"--ddim_eta is {order.ddim_eta:g}: {flag} adds no noise, give 0 or leave one of them out"
        )


def plan(
    order: Order, info: ModelInfo, prompts: Sequence[str], image: Any, say: Callable[[str], None]
) -> list[Shot]:
    """One iteration: the prompt n_samples times, or every line of the file once, in batches of n_samples.

    Args:
        order: checked by `check`.
        info: the model.
        prompts: all of them.
        image: (H, W, 3) uint8 to start from, or None.
        say: told what was changed.

    Raises:
        UsageError, NotFoundError: as `fewstep.engine.request.resolve`, in the words of `fewstep generate`.
    """
    from fewstep.engine.request import resolve

    used = sources.adapters(order.lora)
    count = order.n_samples if order.from_file is None else 1
    option = "--prompt" if order.from_file is None else "--from-file"

    def request(prompt: str, strength: float | None) -> GenerateRequest:
        return resolve(
            info, prompt=choices.text(option, prompt), n=count, seed=order.seed, init_image=image,
            strength=strength, adapters=used, emphasis=cast(Any, order.emphasis),
            **_settings(order, info, image, few_steps=_few_steps(info, used, prompt)),
        )  # fmt: skip

    strength = order.strength
    if strength is not None:
        steps = request(prompts[0], 1.0).num_inference_steps
        if int(steps * strength) < 1:
            strength = _one_step(steps)
            say(f"--strength {order.strength:g} of {steps} steps is less than one: 1 step is drawn")
    shots = [
        Shot(request(prompt, strength), index % order.n_samples if count == 1 else 0)
        for index, prompt in enumerate(prompts)
    ]
    if order.seed + order.n_iter * len(shots) * count - 1 > _LAST_SEED:
        raise UsageError(
            f"--seed is {order.seed}: too large for so many images, each has its own; give a smaller one"
        )
    return shots


def _one_step(steps: int) -> float:
    """The smallest strength that draws one of these steps: 49 * (1 / 49) is less than 1."""
    share = 1 / steps
    return share if int(steps * share) == 1 else math.nextafter(share, 1.0)


def _few_steps(info: ModelInfo, used: Sequence[AdapterUse], prompt: str) -> bool:
    """Whether an adapter, given or a tag of the prompt, says how to draw in few steps."""
    if not used and "<" not in prompt:
        return False
    from fewstep.engine import adapters, prompts

    return adapters.choose(info, [*used, *prompts.adapters(prompt)[0]])[1] is not None


def _settings(order: Order, info: ModelInfo, image: Any, *, few_steps: bool) -> dict[str, Any]:
    """Arguments for ``resolve``: what was given, then the script's for Stable Diffusion, else the model's.

    With an adapter for few steps what was not given is the adapter's.
    """
    given: dict[str, Any] = {
        "num_inference_steps": order.ddim_steps,
        "guidance_scale": order.scale,
        "solver": order.sampler,
        "eta": order.ddim_eta,
        "width": order.width,
        "height": order.height,
        "student": order.student,
    }
    if image is not None:
        given["width"], given["height"] = compvis_model.shrunk(info, image.shape[1], image.shape[0])
    script = {} if few_steps else _script_defaults(order, info)
    if script or order.sampler is not None or order.ddim_eta is not None:
        # A student has a sampler and a scale of its own: it would refuse these.
        given["student"] = order.student or "none"
    return given | {name: value for name, value in script.items() if given[name] is None}


def _script_defaults(order: Order, info: ModelInfo) -> dict[str, Any]:
    student = order.student not in (None, "none")
    if student or not compvis_model.follows_script(info.contract):
        return {}
    return dict(compvis_model.SCRIPT_DEFAULTS[order.task])


def say_defaults(order: Order, info: ModelInfo, request: GenerateRequest, say: Callable[[str], None]) -> None:
    """Tell what was not given, and whether it is the script's or the model's."""
    values = [
        ("--ddim_steps", order.ddim_steps, request.num_inference_steps),
        ("--scale", order.scale, request.guidance_scale),
    ]
    if order.init_img is None:  # else the size follows the image
        values[:0] = [("--W", order.width, request.width), ("--H", order.height, request.height)]
    taken = [f"{option} {value:g}" for option, given, value in values if given is None]
    if order.sampler is None:
        taken.append(f"sampler {request.solver}")
    whose = "CompVis' script" if _script_defaults(order, info) else info.name
    if request.adapters and request.contract is not None:  # an adapter's own
        whose = " and ".join(one.name for one in request.adapters)
    if request.student is not None:
        whose = f"student {request.student} of {info.name}"
    if taken:
        say(f"not given, so taken from {whose}: {', '.join(taken)}")
    if request.student is not None and order.student is None:
        say(f"drawn by student {request.student}; for the base model give --student none")
