"""What long work has made, brought to where it is found by name: models, adapters, pictures, reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic
from fewstep.errors import ConflictError, EngineError, FewstepError
from fewstep.server import childprocess, library, media, workplan

if TYPE_CHECKING:
    from fewstep.server.history import History
    from fewstep.server.redaction import Redactor
    from fewstep.server.settings import ServerSettings
    from fewstep.server.workplan import Plan, Run

MAX_REPORT = 4 << 20
"""Bytes of a report."""


def target(settings: ServerSettings, plan: Plan) -> Path | None:
    """Where a product goes; None for those that are no file of their own."""
    if plan.published is None:
        return None
    folders = {
        "lora": workplan.loras_folder, "embedding": workplan.embeddings_folder,
        "model": workplan.models_folder,
    }  # fmt: skip
    return folders[plan.product](settings) / plan.published


def targets(settings: ServerSettings, plan: Plan) -> set[Path]:
    """All places that a plan's products go to."""
    plans = (plan, *([] if plan.bundle is None else [_bundle(plan, None)]))
    return {place for one in plans if (place := target(settings, one)) is not None}


def check_free(settings: ServerSettings, plan: Plan) -> None:
    """Refuse a name that something has already, before any work is done for it.

    Models of all folders count: one that was made here would hide another of its name.

    Raises:
        ConflictError: says which.
    """
    from fewstep.engine import registry
    from fewstep.engine.adapters import Catalogue
    from fewstep.engine.embeddings import EmbeddingCatalogue

    if plan.bundle is not None:
        check_free(settings, _bundle(plan, None))
    if plan.product == "download":
        library.check_managed(settings)
        library.check_name_free(settings, plan.name or "")
    place = target(settings, plan)
    if place is None:
        return
    taken = place.exists()
    if plan.product == "model":
        folders = (*settings.models_dirs, workplan.models_folder(settings))
        taken = taken or any(entry.name == plan.name for entry in registry.models(folders))
    elif plan.product == "lora":
        taken = taken or any(entry.name == plan.name for entry in Catalogue().entries())
    else:
        taken = taken or any(entry.name == plan.name for entry in EmbeddingCatalogue().entries())
    if taken:
        raise ConflictError(f"name: there is a {plan.product} called {plan.name!r} already; give another")


def publish(
    settings: ServerSettings,
    plan: Plan,
    run: Run,
    *,
    history: History,
    owner: str,
    job_id: str,
    redact: Redactor,
) -> dict[str, Any]:
    """Bring what was made to its place, and return the result of the job, JSON-ready.

    Raises:
        ConflictError: the name was taken meanwhile; what was made stays in the folder of the job.
        EngineError: there is nothing.
        OutputError: it cannot be written.
    """
    if plan.product == "pictures":
        return {"images": pictures(settings, run, history=history, owner=owner, job_id=job_id)}
    if plan.product == "report":
        values = reports(plan.made or run.folder / childprocess.STDOUT)
        return {"reports": _without_paths(values, redact)}
    if plan.product == "download":
        return library.publish_download(settings, run.work)
    also: dict[str, Any] = {}
    if plan.bundle is not None:  # first: the student stays in the folder of the job when this fails
        what = _bundle(plan, run)
        publish(settings, what, run, history=history, owner=owner, job_id=job_id, redact=redact)
        also["bundle"] = plan.bundle
    assert plan.made is not None
    place = target(settings, plan)
    assert place is not None
    if not plan.made.exists():
        raise EngineError("the process ended well and left nothing, a bug of fewstep; see its log")
    if place.exists():
        raise ConflictError(
            f"name: a {plan.product} called {plan.name!r} was made meanwhile; what this job made is kept, "
            "delete the other one and do this job again"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    if plan.made.is_dir():
        atomic.rename_folder(plan.made, place)
    else:
        atomic.rename_file(plan.made, place)
    return {plan.product: plan.name, **also}


def _bundle(plan: Plan, run: Run | None) -> Plan:
    """The runtime bundle beside a student, as a product of its own."""
    made = None if run is None or plan.bundle is None else run.made / plan.bundle
    return dataclasses.replace(plan, name=plan.bundle, published=plan.bundle, made=made, bundle=None)


def pictures(
    settings: ServerSettings, run: Run, *, history: History, owner: str, job_id: str
) -> list[dict[str, Any]]:
    """Keep pictures that were made in the history; the file of each has the id of its parent as its name."""
    from PIL import Image

    from fewstep.prompt import containers

    limits = settings.limits.model_copy(
        update={"max_pixels": settings.limits.max_output, "max_body": 1 << 30, "min_side": 1}
    )
    kept: list[dict[str, Any]] = []
    for path in sorted(run.made.glob("*.png")):
        pixels = media.decode_image(path.read_bytes(), what="result", limits=limits)
        with Image.open(path, formats=["PNG"]) as image:
            metadata = containers.decode(image)
        parent = path.stem if _is_id(history, path.stem) else None
        extras = (metadata.record or {}).get("extras")
        if isinstance(extras, dict):
            extras.pop("source", None)
        made = history.add(
            pixels, metadata.record or {}, parameters=metadata.parameters or "", owner=owner, job_id=job_id,
            parent=parent,
        )  # fmt: skip
        size = {"width": pixels.shape[1], "height": pixels.shape[0]}
        kept.append({"id": made.id, "parent": parent, **size})
    if not kept:
        raise EngineError("no picture was made; see the job's log")
    return kept


def reports(path: Path) -> list[Any]:
    """The JSON values that a command printed or wrote."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_REPORT + 1).decode("utf-8", "replace")
        if len(text) > MAX_REPORT:
            raise ValueError("too long")
        return list(_values(text))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"the process ended well and its report cannot be read ({error})") from None


def _values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        value, place = decoder.raw_decode(text, place)
        yield value


def _is_id(history: History, name: str) -> bool:
    try:
        history.get(name, None)  # whether the caller may see it was asked before the work began
    except FewstepError:
        return False
    return True


def _without_paths(value: Any, redact: Redactor) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one, redact) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one, redact) for one in value]
    return redact(value) if isinstance(value, str) and "/" in value else value
