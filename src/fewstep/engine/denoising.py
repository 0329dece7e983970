"""A request's denoiser: the backend's network with its conditions, guidance around it. Numpy throughout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.diffusion import guidance, prediction
from fewstep.engine import prompts
from fewstep.engine.backends.base import Backend, Conditions, FloatArray, f32, stacked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fewstep.diffusion.contract import SamplingContract
    from fewstep.diffusion.schedule import Schedule
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.request import GenerateRequest

BoolArray = npt.NDArray[np.bool_]


def evaluations(info: ModelInfo, request: GenerateRequest) -> int:
    """Rows that the network is given per image and step: 1, 2 with guidance, 3 if a picture guides too.

    Each further prompt that AND joins is a row more.
    """
    contract = request.sampling(info)
    if contract.guidance != "classifier_free":
        return 1
    if info.inputs == "instruct":
        return 1 if request.guidance_scale == request.image_guidance_scale == 1.0 else 3
    return 1 if request.guidance_scale == 1.0 else 1 + len(prompts.weights(info, request))


class Script:
    """The conditions of every step.

    A solver may evaluate the network several times in a step, and at other times than the step's own, so that
    the step cannot be told from the time: whoever draws moves it on.

    Args:
        texts: step, counted from 1 -> what stands for its texts: the negative prompt's, then the prompts'.
        conditions: one of these -> conditions of the B images that are drawn together.
    """

    def __init__(
        self, texts: Callable[[int], tuple[Any, ...]], conditions: Callable[[Any], Conditions]
    ) -> None:
        self._texts, self._conditions = texts, conditions
        self.step = 1
        """The step that is drawn now."""

    def key(self) -> tuple[Any, ...]:
        """Tells steps apart that have other texts."""
        return self._texts(self.step)

    def conditions(self) -> list[Conditions]:
        """The negative prompt's and each prompt's, B rows each."""
        return [self._conditions(text) for text in self.key()]


def denoiser(
    backend: Backend,
    request: GenerateRequest,
    negative: Conditions,
    conditional: Conditions,
    schedule: Schedule,
) -> prediction.Denoiser:
    """What draws a request.

    Args:
        backend: runs the network.
        request: guidance, student; B images of it are drawn together.
        negative: B rows.
        conditional: B rows.
        schedule: ``Solver.schedule`` of the contract's.
    """
    return scripted(
        backend, request, Script(lambda step: (0, 1), lambda row: (negative, conditional)[row]), schedule
    )


def scripted(
    backend: Backend,
    request: GenerateRequest,
    script: Script,
    schedule: Schedule,
    live: Callable[[], BoolArray | None] = lambda: None,
) -> prediction.Denoiser:
    """What draws a request whose texts change on the way, or are joined by AND; otherwise as `denoiser`.

    ``live`` says which of the B images are still wanted (B,), None for all: the network is not given the
    others, whose estimate is 0.
    """
    info = backend.info
    contract = request.sampling(info)
    weights = prompts.weights(info, request)
    rows = evaluations(info, request)
    # The last step's only: to build them again costs less than keeping those of every step.
    made: list[Any] = [None, {}]

    def model(x: FloatArray, t: Any) -> FloatArray:
        times = np.broadcast_to(np.asarray(t, dtype=np.float32), (len(x),))
        if made[0] != script.key():
            made[:] = script.key(), _batches(info, request, script.conditions())
        conditions: Conditions = made[1][len(x)]
        wanted = live()
        if wanted is None:
            return backend.denoise(f32(x), f32(times), conditions, request.student)
        kept = np.flatnonzero(np.tile(wanted, len(x) // len(wanted)))
        output = np.zeros_like(x)
        output[kept] = backend.denoise(f32(x[kept]), f32(times[kept]), conditions.rows(kept), request.student)
        return output

    plain = prediction.adapt(model, schedule, contract.prediction_type)
    return _guided(plain, request, contract, schedule, rows, weights)


def _batches(
    info: ModelInfo, request: GenerateRequest, texts: Sequence[Conditions]
) -> Mapping[int, Conditions]:
    """Number of rows that the network may be given -> their conditions.

    Args:
        info: the model.
        request: what is drawn.
        texts: the negative prompt's, then each prompt's; B rows each.
    """
    negative, conditional = texts[0], texts[1]
    count = len(conditional)
    batches = {count: conditional}
    rows = evaluations(info, request)
    if info.inputs == "instruct" and rows == 3:
        batches[3 * count] = _for_picture(negative, conditional)
    elif rows > 1:
        batches[rows * count] = stacked(texts)
    elif request.sampling(info).guidance == "embedded":
        batches[count] = _embedded(conditional, request.guidance_scale)
    return batches


def _guided(
    plain: prediction.Denoiser,
    request: GenerateRequest,
    contract: SamplingContract,
    schedule: Schedule,
    rows: int,
    weights: Sequence[float],
) -> prediction.Denoiser:
    if rows == 1:
        return plain
    if len(weights) > 1:
        return guidance.composed(
            plain,
            weights=weights,
            scale=request.guidance_scale,
            rescale=request.guidance_rescale,
            interval=contract.guidance_interval,
            schedule=schedule,
            prediction_type=contract.prediction_type,
        )
    if rows == 3:
        return guidance.with_picture(
            plain,
            scale=request.guidance_scale,
            image_scale=request.image_guidance_scale,
            rescale=request.guidance_rescale,
            schedule=schedule,
            prediction_type=contract.prediction_type,
        )
    return guidance.classifier_free(
        plain,
        None,
        scale=request.guidance_scale,
        rescale=request.guidance_rescale,
        interval=contract.guidance_interval,
        schedule=schedule,
        prediction_type=contract.prediction_type,
        batched=True,
    )


def _for_picture(negative: Conditions, conditional: Conditions) -> Conditions:
    """Text and picture, picture only, neither: in the order of `guidance.with_picture`."""
    assert negative.concat is not None
    neither = negative.with_concat(np.zeros_like(negative.concat))
    return stacked([conditional, negative, neither])


def _embedded(conditional: Conditions, scale: float) -> Conditions:
    return dataclasses.replace(conditional, guidance=np.full(len(conditional), scale, dtype=np.float32))
