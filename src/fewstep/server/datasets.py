"""Pictures with captions that callers send: folders as ``fewstep train lora FOLDER`` takes them.

A dataset belongs to the key that made it. Its pictures are decoded and written anew as PNG, each with its
caption in a text file beside it; nothing of a file that came from outside is kept but its pixels. Names are
of letters, digits, ``_`` and ``-``, so that they are never paths.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fewstep.checkpoint import atomic
from fewstep.errors import DataError, NotFoundError, TooLarge, UsageError
from fewstep.server import media
from fewstep.server.schemas.work import NAME
from fewstep.server.settings import Limits

MAX_DATASETS: Final = 64
"""Of one owner."""
MAX_PICTURES: Final = 1000
"""Of one dataset."""
MAX_BYTES: Final = 2 << 30
"""Of one dataset."""
MAX_CAPTION: Final = 2000
"""Characters."""
THUMB_SIDE: Final = 256

_NAME: Final = re.compile(NAME)
_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture of a dataset."""

    name: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A dataset without its pictures."""

    name: str
    pictures: int
    bytes: int
    changed: float
    """Seconds since 1970."""


class Datasets:
    """Datasets of all owners, below one folder. Safe to use from several threads; calls wait for the disk."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self._root = root
        self._limits = limits
        self._lock = threading.Lock()

    def folder(self, owner: str, name: str) -> Path:
        """The folder of a dataset.

        Raises:
            NotFoundError: this owner has none of this name.
        """
        folder = self._place(owner, name)
        if not folder.is_dir():
            there = ", ".join(one.name for one in self.listed(owner)) or "none"
            raise NotFoundError(f"dataset {name!r:.70}: not found; there are: {there}")
        return folder

    def listed(self, owner: str) -> list[Summary]:
        """All of an owner, by name."""
        home = self._home(owner)
        if not home.is_dir():
            return []
        return [_summary(one) for one in sorted(home.iterdir()) if one.is_dir() and _NAME.fullmatch(one.name)]

    def summary(self, owner: str, name: str) -> Summary:
        """One dataset; raises as `folder`."""
        return _summary(self.folder(owner, name))

    def pictures(self, owner: str, name: str) -> list[Picture]:
        """The pictures of a dataset, by name; raises as `folder`."""
        return [_picture(path) for path in _files(self.folder(owner, name))]

    def picture(self, owner: str, name: str, picture: str, *, small: bool = False) -> bytes:
        """A picture as a PNG file, or a small one as WebP.

        Raises:
            NotFoundError: there is none of this name.
        """
        path = self._picture(owner, name, picture)
        if not small:
            return path.read_bytes()
        from PIL import Image

        with Image.open(path, formats=["PNG"]) as image:
            thumb = image.convert("RGB")
            thumb.thumbnail((THUMB_SIDE, THUMB_SIDE))
        buffer = io.BytesIO()
        thumb.save(buffer, "WEBP", quality=80)
        return buffer.getvalue()

    def add(self, owner: str, name: str, files: Mapping[str, bytes], captions: Mapping[str, str]) -> None:
        """Put pictures into a dataset, which is made if it is new; one of the same name is replaced.

        All are decoded before the first is written.

        Args:
            owner: whose.
            name: of the dataset.
            files: names of pictures, see `slug`, and the files.
            captions: of these, by name; one that is missing is empty.

        Raises:
            UsageError: a name or caption that cannot be.
            DataError: a picture that cannot be read.
            TooLarge: too many pictures, pixels or bytes.
            OutputError: they cannot be written.
        """
        place = self._place(owner, name)
        for caption in captions.values():
            _check_caption(caption)
        made = {}
        for picture, data in files.items():
            _check_name(picture, "picture")
            pixels = media.decode_image(data, what=picture, limits=self._limits)
            made[picture] = media.encode(pixels, kind="png")
        with self._lock:
            self._check_room(owner, place, made)
            for picture, data in made.items():
                # The caption first: a picture without one would be a bad sample.
                atomic.write_text(place / f"{picture}.txt", captions.get(picture, ""))
                atomic.write_bytes(place / f"{picture}.png", data)

    def caption(self, owner: str, name: str, captions: Mapping[str, str]) -> None:
        """Give pictures other captions.

        Raises:
            NotFoundError: no such dataset or picture; nothing is changed then.
            UsageError: a caption that cannot be.
        """
        paths = {picture: self._picture(owner, name, picture) for picture in captions}
        for caption in captions.values():
            _check_caption(caption)
        with self._lock:
            for picture, path in paths.items():
                atomic.write_text(path.with_suffix(".txt"), captions[picture])

    def remove(self, owner: str, name: str, picture: str | None = None) -> None:
        """Delete a dataset, or one of its pictures; raises as `folder` and `picture`."""
        with self._lock:
            if picture is None:
                atomic.remove_folder(self.folder(owner, name))
                return
            path = self._picture(owner, name, picture)
            path.unlink(missing_ok=True)
            path.with_suffix(".txt").unlink(missing_ok=True)

    def _home(self, owner: str) -> Path:
        # In front, because the name of a key may be "..".
        return self._root / f"of-{owner}"

    def _place(self, owner: str, name: str) -> Path:
        _check_name(name, "dataset")
        return self._home(owner) / name

    def _picture(self, owner: str, name: str, picture: str) -> Path:
        folder = self.folder(owner, name)
        _check_name(picture, "picture")
        path = folder / f"{picture}.png"
        if not path.is_file():
            raise NotFoundError(f"dataset {name}: no picture {picture!r}; look at the list of them")
        return path

    def _check_room(self, owner: str, place: Path, made: Mapping[str, bytes]) -> None:
        there = {path.stem: path.stat().st_size for path in _files(place)} if place.is_dir() else {}
        if not place.is_dir() and len(self.listed(owner)) >= MAX_DATASETS:
            raise TooLarge(f"{MAX_DATASETS} datasets are there, as many as are kept; delete one")
        sizes = {**there, **{picture: len(data) for picture, data in made.items()}}
        if len(sizes) > MAX_PICTURES:
            raise TooLarge(f"{len(sizes)} pictures: a dataset has at most {MAX_PICTURES}; send fewer")
        if sum(sizes.values()) > MAX_BYTES:
            raise TooLarge(f"more than {MAX_BYTES >> 20} MiB of pictures in a dataset; send smaller ones")


def slug(file_name: str) -> str:
    """The name of a picture from the name of a file: its stem, with ``-`` for what a name may not have.

    Raises:
        UsageError: nothing is left of it.
    """
    last = re.split(r"[/\\]", file_name)[-1]
    name = _OTHER.sub("-", last.rpartition(".")[0] or last).strip("-_")[:64]
    if not name:
        raise UsageError(f"file name {file_name!r:.80}: give one with letters or digits")
    return name


def _check_name(name: str, what: str) -> None:
    if _NAME.fullmatch(name) is None or "\n" in name:
        raise UsageError(
            f"{what} {name!r:.80}: a name has 1 to 64 letters, digits, _ and -, a letter or digit first"
        )


def _check_caption(caption: str) -> None:
    if len(caption) > MAX_CAPTION:
        raise UsageError(f"a caption of {len(caption)} characters: at most {MAX_CAPTION} are taken")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise UsageError("a caption has half a character in it: send whole ones") from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if _NAME.fullmatch(path.stem))


def _summary(folder: Path) -> Summary:
    files = _files(folder)
    return Summary(
        name=folder.name, pictures=len(files), bytes=sum(path.stat().st_size for path in files),
        changed=folder.stat().st_mtime,
    )  # fmt: skip


def _picture(path: Path) -> Picture:
    from PIL import Image

    caption = path.with_suffix(".txt")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"picture {path.stem}: cannot be read; delete it and send it again") from error
    text = caption.read_text(encoding="utf-8") if caption.is_file() else ""
    return Picture(name=path.stem, caption=text, width=width, height=height)
