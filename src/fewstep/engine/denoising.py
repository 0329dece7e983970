"""A request's denoiser: the backend's network with its conditions, guidance around it. Numpy throughout."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.diffusion import guidance, prediction
from fewstep.engine.backends.base import Backend, Conditions, FloatArray, f32, stacked

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.diffusion.schedule import Schedule
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.request import GenerateRequest


def evaluations(info: ModelInfo, request: GenerateRequest) -> int:
    """Rows that the network is given per image and step: 1, 2 with guidance, 3 if a picture guides too."""
    contract = info.sampling(request.student)
    if contract.guidance != "classifier_free":
        return 1
    if info.inputs == "instruct":
        return 1 if request.guidance_scale == request.image_guidance_scale == 1.0 else 3
    return 1 if request.guidance_scale == 1.0 else 2


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
    info = backend.info
    contract = info.sampling(request.student)
    count = len(conditional)
    batches = {count: conditional}
    rows = evaluations(info, request)
    if rows == 2:
        batches[2 * count] = stacked([negative, conditional])
    elif rows == 3:
        batches[3 * count] = _for_picture(negative, conditional)
    elif contract.guidance == "embedded":
        batches[count] = _embedded(conditional, request.guidance_scale)

    def model(x: FloatArray, t: Any) -> FloatArray:
        times = np.broadcast_to(np.asarray(t, dtype=np.float32), (len(x),))
        return backend.denoise(f32(x), f32(times), batches[len(x)], request.student)

    plain = prediction.adapt(model, schedule, contract.prediction_type)
    return _guided(plain, request, contract, schedule, rows)


def _guided(
    plain: prediction.Denoiser,
    request: GenerateRequest,
    contract: SamplingContract,
    schedule: Schedule,
    rows: int,
) -> prediction.Denoiser:
    if rows == 1:
        return plain
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
