"""Styles of prompts on the server: `styles.csv` of its data folder, and what a key's holder has written.

Without keys whoever may draw may write, and what is written stands in that file. With keys the file belongs
to the operator and is read by all; a key's own styles stand in a file of its own, and are seen by it alone.
Names of styles are values in a file, and never a part of a path.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from fewstep.checkpoint import atomic, locking
from fewstep.errors import Forbidden, NotFoundError, OutputError, UsageError
from fewstep.prompt import styles
from fewstep.prompt.styles import Style

FILE: Final = "styles.csv"
"""In the folder of the server's data."""
FOLDER: Final = "styles"
"""Beside it, with the files of keys."""
_LOCK_SECONDS: Final = 10.0


class Styles:
    """See the module. Safe to use from several threads, and by several servers.

    Args:
        data: folder of the server.
        keyed: whether callers have keys.
    """

    def __init__(self, data: Path, *, keyed: bool) -> None:
        self._data = data
        self._keyed = keyed
        self._lock = threading.Lock()

    def known(self, owner: str) -> tuple[Style, ...]:
        """Those that an owner can name; of two with one name its own.

        Raises:
            DataError: a file is broken.
            OutputError: it cannot be read.
        """
        found = {style.name: style for style in _read(self._data / FILE)}
        return tuple((found | {style.name: style for style in self.own(owner)}).values())

    def own(self, owner: str) -> tuple[Style, ...]:
        """Those of them that the owner may change; raises as `known`."""
        return _read(self._path(owner))

    def keep(self, owner: str, style: Style) -> None:
        """Write a style; one of the same name is replaced.

        Raises:
            UsageError: a name that cannot be, or a style that says nothing.
            DataError: the file is broken, which stays as it is, or would be too large.
            OutputError: it cannot be written.
        """
        name = style.name.strip()
        if not name or not name.isprintable() or name.startswith("#"):
            raise UsageError(
                f"style {name!r:.80}: give a name that prints and does not begin with #", field="name"
            )
        if not (style.prompt.strip() or style.negative_prompt.strip()):
            raise UsageError(
                f"style {name!r:.80} says nothing: write a prompt or a negative one", field="prompt"
            )
        self._change(owner, name, style)

    def remove(self, owner: str, name: str) -> None:
        """Take a style out.

        Raises:
            NotFoundError: there is none of this name.
            Forbidden: it is the operator's.
            DataError, OutputError: as `keep`.
        """
        name = name.strip()
        if name not in {style.name for style in self.own(owner)}:
            if name in {style.name for style in self.known(owner)}:
                raise Forbidden(f"style {name!r:.80} is in {FILE} of the server, which its operator changes")
            raise NotFoundError(f"style {name!r:.80} is not known; list the styles to see which there are")
        self._change(owner, name, None)

    def _path(self, owner: str) -> Path:
        # In front, because the name of a key may be "..".
        return self._data / FOLDER / f"of-{owner}.csv" if self._keyed else self._data / FILE

    def _change(self, owner: str, name: str, style: Style | None) -> None:
        path = self._path(owner)
        with self._lock:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = locking.acquire(path.with_suffix(".lock"), timeout=_LOCK_SECONDS)
            except TimeoutError:
                raise OutputError(f"{path}: another server holds its lock; try again") from None
            except OSError as error:
                raise OutputError(f"{path}: cannot be locked ({error.strerror}); check its folder") from error
            try:
                atomic.write_text(path, styles.changed(_bytes(path), name, style))
            finally:
                lock.release()


def _read(path: Path) -> tuple[Style, ...]:
    data = _bytes(path)
    return styles.read(data) if data else ()


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(styles.MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OutputError(f"{path.name} cannot be read ({error.strerror}); check who may read it") from None
