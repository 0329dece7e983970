"""Taking paths and secrets out of texts that leave the server, secrets also out of its log."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from fewstep.server.settings import ServerSettings

HIDDEN: Final = "***"
_MAX: Final = 2_000

_SCHEMES: Final = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9+/=._~-]{6,}", re.IGNORECASE)
_USER: Final = re.compile(r"://[^/\s@'\"]+@")
_TOKENS: Final = re.compile(r"\b(?:sk|hf|ghp|gho|github_pat)[-_][A-Za-z0-9_-]{12,}")
_PATHS: Final = re.compile(
    r"(?P<url>\b(?!file:)[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+)"
    r"|(?<![\w/.<\\])(?P<path>(?:file://|~|[A-Za-z]:)?(?:[/\\]{1,2}[^\s/\\:'\"(),;<>|]+)+[/\\]?)"
)
_ROUTES: Final = re.compile(r"/(?:sdapi|v1|api)/|/(?:login|logout|healthz|readyz|metrics)\b")


class Redactor:
    """Knows the secrets and folders of a server's settings.

    A path is cut to its last part. Names of folders with spaces are known only below the folders of the
    settings, the home folder and Python's own; elsewhere what follows the space stays.
    """

    def __init__(self, settings: ServerSettings | None = None) -> None:
        secrets: list[str] = []
        folders = [Path(sys.prefix), Path(sys.base_prefix)]
        for find in (Path.home, Path.cwd, tempfile.gettempdir):
            # A container's user may have no home, and a folder may be gone.
            with contextlib.suppress(OSError, RuntimeError):
                folders.append(Path(find()))
        if settings is not None:
            secrets += [key.secret.get_secret_value() for key in settings.keys]
            folders += [settings.data, *settings.models_dirs, *settings.loras_dirs]
        quoted = {quote(secret, safe="") for secret in secrets}
        self._secrets = sorted({*secrets, *quoted}, key=len, reverse=True)
        names = {name for folder in folders for name in _spellings(folder)}
        self._folders = sorted(names, key=len, reverse=True)

    def secrets(self, text: str) -> str:
        """The text without keys, passwords and tokens; paths stay."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = _SCHEMES.sub(rf"\1\2{HIDDEN}", text)
        return _TOKENS.sub(HIDDEN, _USER.sub(f"://{HIDDEN}@", text))

    def __call__(self, text: str) -> str:
        """One line of at most 2,000 characters without secrets, and with names in place of paths."""
        text = " ".join(self.secrets(text[: 4 * _MAX]).split())
        for folder in self._folders:
            text = text.replace(folder, "/" + re.sub(r"\s", "_", Path(folder).name))
        text = _PATHS.sub(_name, text)
        return text if len(text) <= _MAX else text[: _MAX - 1] + "…"


def _spellings(folder: Path) -> Iterable[str]:
    for spelling in (folder, folder.absolute(), folder.resolve()):
        # Not "/" or "/tmp"-like stumps of one letter: they would be found in everything.
        if len(str(spelling)) > 3:
            yield str(spelling)


def _name(match: re.Match[str]) -> str:
    path = match["path"]
    if path is None or _ROUTES.match(path):
        return match[0]
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


@functools.cache
def plain() -> Redactor:
    """A redactor that knows no settings."""
    return Redactor()
