"""What a server clears away once a day, and what it looks for once when it starts.

The keeper's thread does it (`fewstep.server.keeper`): nobody waits for it. Several servers on one database do
the same twice, which changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fewstep.server import history_files, library, orderfiles
from fewstep.server.history_search import Search

if TYPE_CHECKING:
    from fewstep.server.history import History
    from fewstep.server.jobstore import JobStore
    from fewstep.server.settings import ServerSettings

_log = logging.getLogger("fewstep.server")

DAY = 86_400.0
TRASH = 30 * DAY
"""Seconds after which pictures that were thrown away are deleted for good; as ``fewstep history purge``."""
JOBS = 90 * DAY
"""After which a job that has ended is forgotten; its pictures stay."""
INPUTS = 7 * DAY
"""After which the pictures of an order that has ended are deleted: until then it can be done again."""
_PAGE = 200


def daily(settings: ServerSettings, jobs: JobStore, history: History) -> None:
    """Clear away what nobody needs any more. What fails is logged, and the rest is done all the same."""
    parts: dict[str, Callable[[], int]] = {
        "pictures were deleted from the trash": lambda: history.purge(TRASH),
        "old jobs were forgotten": lambda: jobs.forget(JOBS),
        "pictures of old orders were deleted": lambda: orderfiles.sweep(
            settings.data / "inputs", unfinished(jobs), older_than=INPUTS
        ),
        "merges that nobody kept were deleted": lambda: library.sweep_drafts(settings),
    }
    for what, do in parts.items():
        try:
            if count := do():
                _log.info("%d %s", count, what)
        except Exception:
            _log.warning("clearing away failed: %s", what, exc_info=True)


def unfinished(jobs: JobStore) -> Iterator[Mapping[str, Any]]:
    """Orders of pictures that have not ended."""
    from fewstep.server.jobstore import UNFINISHED

    before: str | None = None
    while page := jobs.list(None, kind="generate", states=tuple(UNFINISHED), limit=_PAGE, before=before):
        yield from (row.order for row in page)
        before = page[-1].id


def find_pictures(history: History) -> None:
    """Fill a database that knows no picture from a folder that has some: it is new, or was lost."""
    from fewstep.server.history_rebuild import rebuild

    if any(history.search(Search(limit=1, trashed=trashed)).images for trashed in (False, True)):
        return
    if next(iter(history_files.pictures(history.root)), None) is None:
        return
    found = rebuild(history, only_new=True)
    _log.info("the database was empty: %d pictures were found in the folder", found.added)
