"""Webdataset shards: tar files whose members `0001.jpg`, `0001.txt`, `0001.json` make one sample.

The shards are read in place, by the offsets of their members: samples can be taken in any order, nothing is
unpacked to disk, and no member is ever unpickled (webdataset's own decoders do that for `.pyd` and `.pth`).
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.data.images import MAX_BYTES
from fewstep.data.sources.folder import SUFFIXES, read_object
from fewstep.data.sources.sample import Sample
from fewstep.data.sources.table import CAPTION_COLUMNS
from fewstep.errors import DataError


@dataclass(slots=True)
class _Entry:
    shard: Path
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    broken: str | None = None


class ShardSource:
    """Samples of local, uncompressed webdataset shards, in the order of the shards.

    A sample takes its caption from the member `.txt`, else from `text`, `caption` or `prompt` in its `.json`.
    A shard that is cut off gives the samples before the damage and one bad sample that names it.

    Raises:
        DataError: no shard, a missing one, or one that is not an uncompressed tar file.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        if not shards:
            raise DataError("no webdataset shard: give .tar files")
        self._entries: list[_Entry] = []
        for shard in shards:
            self._entries += _index(shard)
        if not self._entries:
            raise DataError(f"{shards[0]}: no sample in the shards; members are named 0001.jpg, 0001.txt")

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, index: int) -> str:
        """Return shard and key of the sample."""
        entry = self._entries[index]
        return f"{entry.shard.name}/{entry.key}"

    def read(self, index: int) -> Sample:
        """Return a sample, its image as bytes.

        Raises:
            DataError: damaged shard, no image, or no caption.
        """
        entry = self._entries[index]
        if entry.broken is not None:
            raise DataError(entry.broken)
        images = sorted(name for name in entry.members if f".{name}" in SUFFIXES)
        if not images:
            raise DataError("no image: the sample has none of the known image endings")
        metadata: dict[str, Any] = read_object(_text(entry, "json")) if "json" in entry.members else {}
        if "txt" in entry.members:
            caption = _text(entry, "txt")
        else:
            captions = [metadata[name] for name in CAPTION_COLUMNS if isinstance(metadata.get(name), str)]
            if not captions:
                raise DataError("no caption: the sample has neither .txt nor a caption in .json")
            caption = captions[0]
        return Sample(self.key(index), _bytes(entry, images[0]), caption, metadata)

    def fingerprint(self) -> str:
        """Return a hash of the shards' member names, offsets and sizes; contents are not read."""
        digest = hashlib.sha256()
        for entry in self._entries:
            digest.update(f"{entry.key}\0{sorted(entry.members.items())}\0{entry.broken}\n".encode())
        return digest.hexdigest()


def _index(shard: Path) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            size = shard.stat().st_size
            try:
                for member in archive:
                    if not member.isreg() or member.issparse():
                        continue
                    stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                    if not stem or not suffix:
                        continue
                    key = f"{member.name.rpartition('/')[0]}/{stem}".lstrip("/")
                    entry = entries.setdefault(key, _Entry(shard, key))
                    if member.offset_data + member.size > size:
                        entry.broken = "shard cut off: the file ends inside this sample"
                    entry.members[suffix.lower()] = (member.offset_data, member.size)
            except (tarfile.TarError, OSError, EOFError) as error:
                entries["(damaged)"] = _Entry(shard, "(damaged)", broken=f"shard damaged: {error}")
    except FileNotFoundError:
        raise DataError(f"{shard}: no such shard; check the name") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard}: not an uncompressed tar file ({error}); unpack .gz shards first"
        ) from error
    return list(entries.values())


def _bytes(entry: _Entry, suffix: str) -> bytes:
    offset, size = entry.members[suffix]
    if size > MAX_BYTES:
        raise DataError(f"too large: .{suffix} has {size} bytes")
    try:
        with open(entry.shard, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"shard not readable: {error.strerror}") from error
    if len(data) != size:
        raise DataError("shard cut off: the file ends inside this sample")
    return data


def _text(entry: _Entry, suffix: str) -> str:
    try:
        return _bytes(entry, suffix).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: .{suffix}, byte {error.start}") from error
