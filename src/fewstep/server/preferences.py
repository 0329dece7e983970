"""What visitors of the studio prefer: kept on disk, by the name of their key."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fewstep.errors import UsageError
from fewstep.prompt import containers
from fewstep.server.owned import Owned
from fewstep.server.schemas.preferences import Preferences, PreferencesBody

if TYPE_CHECKING:
    from fewstep.server.settings import Limits

_log = logging.getLogger("fewstep.server")

FILE = "preferences.json"
"""In the folder of the server's data."""


class Keeps:
    """Preferences of everybody. Safe to use from several threads.

    Args:
        folder: of the server's data.
        limits: of the server.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._owned = Owned(folder / FILE)
        self._limits = limits

    def get(self, owner: str) -> Preferences:
        """Of an owner; what an older or newer fewstep wrote and this one does not take has its default."""
        values = self.own(owner)
        return Preferences(**values)

    def own(self, owner: str) -> dict[str, Any]:
        """What an owner has set."""
        found: dict[str, Any] = {}
        for name, value in self._owned.get(owner).items():
            try:
                Preferences(**{name: value})
            except ValidationError:
                _log.warning("preference %.40r of %r cannot be used; it has its default", name, owner)
            else:
                found[name] = value
        return found

    def kept_as(self, owner: str) -> tuple[containers.Format, int]:
        """Format and quality in which an owner's pictures are kept."""
        values = self.get(owner)
        return values.format, values.quality

    def change(self, owner: str, body: PreferencesBody) -> Preferences:
        """Set and reset preferences; all or none.

        Raises:
            UsageError: they do not fit each other or the server's limits.
            OutputError: the file cannot be written.
        """
        given = body.changes()

        def changed(before: dict[str, Any]) -> dict[str, Any]:
            after = {name: value for name, value in (before | given).items() if value is not None}
            if ("width" in after) != ("height" in after):
                raise UsageError("width and height belong together: set both, or reset both")
            if after.get("n", 1) > self._limits.max_images:
                raise UsageError(
                    f"n is {after['n']}: this server draws at most {self._limits.max_images} pictures at once"
                )
            if after.get("width", 1) * after.get("height", 1) > self._limits.max_output:
                raise UsageError(
                    f"a picture of {after['width']}x{after['height']} has more than the "
                    f"{self._limits.max_output} pixels that this server makes: give a smaller size"
                )
            return after

        self._owned.change(owner, changed)
        return self.get(owner)
