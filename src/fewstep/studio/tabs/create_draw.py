"""What becomes of an order: its state in words, its pictures in the gallery."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from fewstep.checkpoint.atomic import write_bytes
from fewstep.studio.client import Api, ApiError
from fewstep.studio.words import Words

_SUFFIXES: Final = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


async def pictures(api: Api, ids: list[str]) -> list[str]:
    """Files with the bytes of pictures of the history, which Gradio may show.

    Args:
        api: of the visitor.
        ids: in the history; one that was deleted meanwhile is left out.
    """
    found = []
    for image_id in ids:
        try:
            data = await api.data(f"/api/v1/images/{image_id}/file")
        except ApiError as error:
            if error.status == 404:
                continue
            raise
        suffix = next((end for begin, end in _SUFFIXES.items() if data.startswith(begin)), ".png")
        folder = Path(os.environ.get("GRADIO_TEMP_DIR", tempfile.gettempdir())) / "create"
        path = folder / f"{image_id}{suffix}"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        found.append(str(path))
    return found


def state(words: Words, job: dict[str, Any]) -> str:
    """HTML that says how far a job is."""
    text, share = _said(words, job)
    bar = (
        ""
        if share is None
        else f'<progress max="1" value="{share:.3f}" aria-label="{html.escape(text)}"></progress>'
    )
    kind = html.escape(job["state"])
    said = f"<span>{html.escape(text)}</span>"
    return f'<div class="create-state" data-state="{kind}" role="status">{bar}{said}</div>'


def warnings(job: dict[str, Any]) -> str:
    """HTML of what the server found odd about an order; nothing where it found nothing."""
    found = (job.get("result") or {}).get("warnings") or []
    return "".join(f'<p class="create-warning">{html.escape(str(one))}</p>' for one in found)


async def follow(api: Api, job_id: str) -> AsyncIterator[tuple[dict[str, Any], list[str], list[str]]]:
    """Watch a job of pictures.

    Yields:
        The job; ids and files of its pictures once it is done, before that none.
    """
    async for job in api.watch(job_id):
        ids = made(job)
        yield job, ids, await pictures(api, ids)


def made(job: dict[str, Any]) -> list[str]:
    """Ids of the pictures of a job, none before it is done; enlarged ones are described, drawn ones not."""
    found = (job.get("result") or {}).get("images") or [] if job["state"] == "done" else []
    return [one["id"] if isinstance(one, dict) else one for one in found]


def _said(words: Words, job: dict[str, Any]) -> tuple[str, float | None]:
    kind, progress = job["state"], job.get("progress")
    if kind == "queued":
        position = job.get("position")
        return words("create.waiting", position=position) if position else words("create.starting"), 0.0
    if kind == "running":
        if not progress or not progress["step"]:
            return words("create.starting"), 0.0
        step, total, seconds = progress["step"], max(progress["total"], 1), progress["seconds"]
        left = seconds / step * (total - step)
        fields = {"step": step, "total": total, "seconds": f"{seconds:.1f}", "left": f"{left:.1f}"}
        return words("create.running", **fields), min(step / total, 1.0)
    if kind == "done":
        result = job.get("result") or {}
        taken = (result.get("timings") or {}).get("total")
        if taken is None:  # long work
            taken = (job.get("finished") or 0.0) - (job.get("started") or 0.0)
        seconds = f"{taken:.2f}"
        if not result.get("images"):
            return words("create.unsaved"), None
        n = len(result["images"])
        return words("create.done" if n == 1 else "create.done_many", n=n, seconds=seconds), None
    if kind == "failed":
        return words("create.failed", why=job.get("error") or ""), None
    return words(
        {"cancelled": "create.stopped", "expired": "create.expired"}.get(kind, "create.cut_off")
    ), None
