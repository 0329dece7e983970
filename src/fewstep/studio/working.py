"""How far long work is, as a line of text with a bar; times and sizes for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.studio.markup import text
from fewstep.studio.words import Words


def line(job: Mapping[str, Any], words: Words) -> str:
    """HTML of a job that has not ended well: waiting, working, failed or stopped; its bar where it has one.

    Args:
        job: of ``/api/v1/jobs/ID``.
        words: texts; those of the part ``models`` are used.
    """
    state = job["state"]
    progress = job.get("progress") or {}
    bar = ""
    if state == "queued":
        place = job.get("position")
        said = words("models.waits", n=place) if place else words("models.starts")
    elif state == "running":
        said = words("models.starts")
        if progress:
            message = progress.get("message") or said
            said = words("models.working", text=message, seconds=round(progress.get("seconds", 0)))
        done, total = progress.get("step", 0), progress.get("total", 0)
        if total:
            bar = f"<progress max='{int(total)}' value='{int(done)}' aria-label='{text(said)}'></progress> "
    elif state == "done":
        return ""
    elif state in ("cancelled", "cut_off", "expired"):
        said = words("models.cancelled")
    else:
        said = words("models.failed", why=job.get("error") or state)
    return f"<p class='working {text(state)}' role='status'>{bar}<span>{text(said)}</span></p>"


def lasting(words: Words, seconds: float) -> str:
    """A time that something took or takes, for people."""
    if seconds < 90:
        return words("runs.seconds", n=round(seconds))
    return words("runs.minutes", n=round(seconds / 60))


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
