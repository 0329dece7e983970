"""The drawings behind the bundled model: openly licensed emoji sets, rasterised with their labels.

The sets are npm packages in Iconify's JSON form: a name and an SVG body for each icon. Labels, groups and
keywords come from emojibase-data (MIT, built on Unicode CLDR). A set's icon is joined to a label by its name
with everything but letters and digits removed, because fxemoji glues its names (`redapple`); what matches
nothing is dropped. Left out: flags, skin tones, clock faces, keycaps, letters, and entries that a set marks
as hidden or makes by turning another one.

The result is a folder: `drawings.npy` (N, 128, 128, 4) uint8, sRGB with straight alpha, a 112 px drawing
centred on a transparent canvas; `drawings.jsonl`, one `Drawing` a line; `set.json`, where it all came from.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.checkpoint import atomic
from fewstep.data.emoji_sets import (
    GROUPS,
    LABELS_PACKAGE,
    LABELS_VERSION,
    SOURCES,
    STYLES,
    check_known,
    terms,
)
from fewstep.data.quality import BadSamples
from fewstep.data.sources import npm
from fewstep.data.split import object_held_out
from fewstep.errors import DataError, DependencyError

logger = logging.getLogger(__name__)

CANVAS: Final = 128
DRAWING: Final = 112
_FORMAT: Final = 1


_CLOCKS = re.compile(r"o.clock$|-thirty$")
_WORD_ARROWS = re.compile(r"^[A-Z!]{2,} arrow$")  # BACK, END, ON!, SOON, TOP: letters over an arrow
_WRITTEN = frozenset({"ATM sign"})


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing of the set; its pixels stand at the same position of `drawings.npy`.

    Attributes:
        style: style word, one of `STYLES`.
        group: Unicode group, one of `GROUPS`.
        label: Unicode (CLDR) short name, such as "red apple".
        tags: keywords of the object.
        icon: name of the icon in its package.
        package: npm package.
        version: version of the package.
        licence: SPDX name of the drawing's licence.
        split: "train", or "object" when the whole object is held out.
    """

    style: str
    group: str
    label: str
    tags: tuple[str, ...]
    icon: str
    package: str
    version: str
    licence: str
    split: str


@dataclass(frozen=True, slots=True)
class Drawings:
    """A drawing set on disk.

    Attributes:
        folder: where it is.
        rgba: uint8 (N, 128, 128, 4), memory-mapped, straight alpha.
        items: the N drawings.
        fingerprint: SHA-256 of the pixels and the list, hex digits.
        sources: set.json's list of packages with version, holder, licence and links.
    """

    folder: Path
    rgba: NDArray[np.uint8]
    items: tuple[Drawing, ...]
    fingerprint: str
    sources: tuple[dict[str, str], ...]


def build_drawings(
    folder: Path,
    packages: Path,
    *,
    styles: Sequence[str] = STYLES,
    groups: Sequence[str] = GROUPS,
    letters: bool = False,
    workers: int | None = None,
    replace: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Drawings:
    """Render the drawing set into `folder`, or open it when the same set is there already.

    Drawings that cannot be rendered or come out empty are skipped and listed in `bad.json`; more than 1% of
    them is an error. The folder appears complete or not at all.

    Args:
        folder: where the set goes.
        packages: folder of npm packages, laid out as node_modules (see `emoji_sets.fetch_packages`).
        styles: style words to take, in the order of the result.
        groups: Unicode groups to take.
        letters: take signs that consist of letters or numbers as well ("OK button", "input numbers").
        workers: processes that render; default the number of cores, 1 renders in this process.
        replace: replace a set of other content instead of refusing.
        on_progress: called with (done, total).

    Raises:
        UsageError: an unknown style or group.
        DataError: a package is missing or broken, `folder` holds something else, or too many bad drawings.
        DependencyError: resvg-py is missing.
        OutputError: the folder cannot be written.
    """
    check_known("style", styles, STYLES)
    check_known("group", groups, GROUPS)
    versions = {style: npm.package_version(packages, SOURCES[style].package) for style in styles}
    labels_version = npm.package_version(packages, LABELS_PACKAGE)
    key = {
        "format": _FORMAT,
        "styles": list(styles),
        "groups": sorted(groups),
        "letters": letters,
        "versions": versions,
        "labels": labels_version,
    }
    if folder.exists() and not replace:
        return _open_same(folder, key)
    for style in styles:
        if versions[style] != SOURCES[style].version:
            logger.warning(
                "%s is version %s, the recipe was made with %s",
                SOURCES[style].package,
                versions[style],
                SOURCES[style].version,
            )
    found = list(collect(packages, styles=styles, groups=groups, letters=letters))
    if not found:
        raise DataError(f"{packages}: no drawing matches styles {list(styles)} and groups {list(groups)}")
    bad = BadSamples(total=len(found))
    items: list[Drawing] = []
    pixels: list[NDArray[np.uint8]] = []
    with _renderer(workers) as render:
        for done, ((item, _), outcome) in enumerate(
            zip(found, render([svg for _, svg in found]), strict=True), start=1
        ):
            if isinstance(outcome, str):
                bad.add(f"{item.style}/{item.icon}", outcome)
            else:
                items.append(item)
                pixels.append(np.frombuffer(outcome, np.uint8).reshape(CANVAS, CANVAS, 4))
            if on_progress is not None:
                on_progress(done, len(found))
    with atomic.folder(folder, replace=replace) as temporary:
        np.save(temporary / "drawings.npy", np.stack(pixels))
        lines = "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
        (temporary / "drawings.jsonl").write_text(lines, "utf-8", newline="\n")
        description = {
            "key": key,
            "drawings": len(items),
            "fingerprint": _fingerprint(temporary),
            "sources": [terms(style, versions[style]) for style in styles],
            "labels": {"package": LABELS_PACKAGE, "version": labels_version, "licence": "MIT"},
        }
        (temporary / "set.json").write_text(json.dumps(description, indent=1) + "\n", "utf-8")
        if bad.reasons:
            bad.report = temporary / "bad.json"
            bad.write()
    return open_drawings(folder)


def open_drawings(folder: Path, *, verify: bool = False) -> Drawings:
    """Open a drawing set that `build_drawings` made; pixels are memory-mapped.

    Args:
        folder: the set.
        verify: compare the content with the fingerprint (reads everything).

    Raises:
        DataError: not a drawing set, or a broken one.
    """
    try:
        description = json.loads((folder / "set.json").read_text("utf-8"))
        rgba = np.load(folder / "drawings.npy", mmap_mode="r", allow_pickle=False)
        lines = (folder / "drawings.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        items = tuple(Drawing(**{**row, "tags": tuple(row["tags"])}) for row in rows)
        fingerprint, sources = str(description["fingerprint"]), tuple(description["sources"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: not a readable drawing set ({error}); build it with 'fewstep data emoji-128'"
        ) from error
    if rgba.shape != (len(items), CANVAS, CANVAS, 4) or rgba.dtype != np.uint8:
        raise DataError(
            f"{folder}: {len(items)} drawings are listed but the pixels are {rgba.dtype} {rgba.shape}; "
            f"delete the folder and build it again"
        )
    if verify and _fingerprint(folder) != fingerprint:
        raise DataError(f"{folder}: content differs from its fingerprint; delete the folder, build it again")
    return Drawings(folder, rgba, items, fingerprint, sources)


def collect(
    packages: Path,
    *,
    styles: Sequence[str] = STYLES,
    groups: Sequence[str] = GROUPS,
    letters: bool = False,
) -> Iterator[tuple[Drawing, str]]:
    """Yield every drawing that is wanted with its SVG text, by style, then in Unicode order.

    Raises:
        DataError: a package is missing or broken.
    """
    data = _read_json(packages / LABELS_PACKAGE / "en" / "data.json")
    meta = _read_json(packages / LABELS_PACKAGE / "meta" / "groups.json")
    for style in styles:
        source = SOURCES[style]
        version = npm.package_version(packages, source.package)
        icons = _read_json(packages / source.package / "icons.json")
        try:
            by_name = _joinable(icons)
            for entry in data:
                group = meta["groups"].get(str(entry.get("group")))
                label = entry["label"]
                kind = meta["subgroups"].get(str(entry.get("subgroup")))
                if group not in groups or not _wanted(label, kind, letters=letters):
                    continue
                name = by_name.get(_glued(label))
                if name is None:
                    continue
                item = Drawing(
                    style=style,
                    group=group,
                    label=label,
                    tags=tuple(entry.get("tags", ())),
                    icon=name,
                    package=source.package,
                    version=version,
                    licence=source.licence,
                    split="object" if object_held_out(label) else "train",
                )
                yield item, _svg(icons, name)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{packages}: {source.package} or {LABELS_PACKAGE} has an unexpected form ({error!r}); "
                f"install version {source.version} and {LABELS_VERSION}"
            ) from error


def _wanted(label: str, kind: str | None, *, letters: bool) -> bool:
    if _CLOCKS.search(label) or kind in ("keycap", "skin-tone", "hair-style"):
        return False
    written = kind == "alphanum" or label in _WRITTEN or _WORD_ARROWS.match(label) is not None
    return letters or not written


def _glued(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _joinable(icons: dict[str, Any]) -> dict[str, str]:
    """Glued name -> name of the icon, hidden entries and turned or mirrored aliases left out."""
    by_name = {_glued(name): name for name, icon in icons["icons"].items() if not icon.get("hidden")}
    for alias, value in icons.get("aliases", {}).items():
        turned = any(change in value for change in ("rotate", "hFlip", "vFlip"))
        if value["parent"] in icons["icons"] and not turned and not value.get("hidden"):
            by_name.setdefault(_glued(alias), value["parent"])
    return by_name


def _svg(icons: dict[str, Any], name: str) -> str:
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{DRAWING}" height="{DRAWING}">{icon["body"]}</svg>'
    )


def render(svg: str) -> bytes | str:
    """Render an SVG; return the bytes of (128, 128, 4) uint8, or the reason why it cannot be used.

    A string instead of an exception, because it travels back from a worker process.
    """
    import resvg_py

    try:
        # No system fonts: the same pixels on every machine, and the sets draw their letters as paths.
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
        with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as opened:
            image = opened.convert("RGBA")
    except (ValueError, OSError) as error:
        return f"not rendered: {error}"
    if image.size != (DRAWING, DRAWING):
        image = image.resize((DRAWING, DRAWING), Image.Resampling.LANCZOS)
    canvas = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    margin = (CANVAS - DRAWING) // 2
    canvas[margin : margin + DRAWING, margin : margin + DRAWING] = np.asarray(image)
    if not canvas[..., 3].any():
        return "empty: nothing is drawn"
    return canvas.tobytes()


@contextmanager
def _renderer(workers: int | None) -> Iterator[Callable[[Sequence[str]], Iterable[bytes | str]]]:
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "rendering the drawings needs resvg-py: pip install 'fewstep[train]'"
        ) from error
    count = workers or os.cpu_count() or 1
    if count == 1:
        yield lambda svgs: map(render, svgs)
        return
    # Rendering holds the interpreter lock, so threads do not help; spawned, not forked, because the caller
    # may run threads of torch or OpenVINO.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield partial(pool.map, render, chunksize=16)


def _open_same(folder: Path, key: dict[str, object]) -> Drawings:
    drawings = open_drawings(folder)
    found = json.loads((folder / "set.json").read_text("utf-8")).get("key")
    if found != key:
        differing = [name for name in key if not isinstance(found, dict) or found.get(name) != key[name]]
        raise DataError(
            f"{folder}: holds a drawing set with other {', '.join(differing)}; choose another folder or "
            f"replace it"
        )
    return drawings


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("drawings.npy", "drawings.jsonl"):
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install the package again") from error
