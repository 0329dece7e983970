"""Models as the WebUI names them: ``name [ten digits of the hash]``, never a path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.checkpoint import bundle
from fewstep.errors import FewstepError, NotFoundError

if TYPE_CHECKING:
    from fewstep.server.generation import Generator

_HASH = re.compile(r"\s*\[([0-9a-f]{6,64})\]$")
_SUFFIX = re.compile(r"\.(safetensors|ckpt)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """A model and its hash, where that is known without reading all weights."""

    name: str
    sha256: str | None = None

    @property
    def title(self) -> str:
        """As clients are shown it and send it back."""
        return f"{self.name} [{self.sha256[:10]}]" if self.sha256 else self.name


def listed(generator: Generator) -> list[Named]:
    """Every model, the server's default first; reads a few small files."""
    pool = generator.pool
    hashes: dict[str, str | None] = {}
    for name in (pool.default, pool.loaded()):
        if name is not None:
            hashes[name] = pool.info(name).hash
    for entry in pool.models():
        if hashes.get(entry.name) is None:
            hashes[entry.name] = _bundle_hash(entry.folder) if entry.kind == "bundle" else None
    return [Named(name, sha256) for name, sha256 in hashes.items()]


def find(given: str, there: Sequence[Named]) -> str:
    """The name of a model from a title, a name, a file name, ten digits of its hash or the whole hash.

    Raises:
        NotFoundError: there is none; the message lists what there is.
    """
    wanted = given.strip()
    bare = _SUFFIX.sub("", _HASH.sub("", wanted)).strip()
    for names in ((wanted,), (bare,)):
        if (found := next((one.name for one in there if one.name in names), None)) is not None:
            return found
    for one in there:
        if one.sha256 is not None and wanted.lower() in (one.sha256, one.sha256[:10]):
            return one.name
    alike = [one.name for one in there if one.name.lower() == bare.lower()]
    if len(alike) == 1:
        return alike[0]
    raise NotFoundError(
        f"model {given[:100]!r}: not found; there are: {', '.join(one.name for one in there) or 'none'}"
    )


def title(name: str, there: Sequence[Named]) -> str:
    """The title of a model."""
    return next((one.title for one in there if one.name == name), name)


def _bundle_hash(folder: Path) -> str | None:
    try:
        return bundle.open_bundle(folder).hash
    except FewstepError:  # it is listed all the same: what is wrong is said when it is asked for
        return None
