"""The record of a drawing: everything that decided its pixels, JSON-ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.engine import adapters, embeddings, modes

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.request import GenerateRequest


def drawn(
    info: ModelInfo, described: Mapping[str, str], request: GenerateRequest, warnings: Sequence[str]
) -> dict[str, Any]:
    """`GenerateResult.record`.

    Args:
        info: the model.
        described: what runs it, from `Backend.describe`.
        request: what was drawn.
        warnings: what was found odd, before and while it was drawn.
    """
    image = request.init_image is not None
    task = modes.task(request)
    drawn_by: dict[str, Any] = {}
    if request.student is not None:
        student = info.student(request.student)
        facts = {"name": student.name, "method": student.contract.method, "hash": student.hash}
        drawn_by = {"student": facts}
    further: dict[str, Any] = {}
    if request.clip_skip:
        further["clip_skip"] = request.clip_skip
    if info.inputs == "instruct":
        further["image_guidance_scale"] = request.image_guidance_scale
    if request.emphasis != "original":
        further["emphasis"] = request.emphasis
    further |= modes.record(request)
    further |= adapters.record(request.adapters)
    further |= embeddings.record(request.embeddings)
    if request.insist and request.contract is not None:
        further["insist"] = True
    if request.spacing is not None:
        further["spacing"] = request.spacing
    if info.parts:
        further["parts"] = {part: dict(own) for part, own in info.parts.items()}
    return {
        "task": task,
        "model": info.name,
        "model_hash": info.hash,
        **drawn_by,
        "licence": info.licence,
        "engine": dict(described),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        **further,
        "solver": request.solver,
        "eta": request.eta,
        "seed": request.seed,
        "n": request.n,
        "width": request.width,
        "height": request.height,
        "strength": request.strength if image else None,
        "deterministic": request.deterministic,
        "warnings": list(warnings),
    }
