"""What the benchmarks of style adapters share: drawing held-out objects in one way, and judging the pictures.

Pictures are kept, so a broken run goes on where it was. A picture that is not square is made smaller and set
into a square of its own background's colour before it is judged, because both judges look at squares.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from style_loras import Judges, file_stem, fitted, pictures_of, stem_of

from fewstep import __version__
from fewstep.checkpoint import atomic
from fewstep.data.captions import caption
from fewstep.data.style_sets import StyleSets
from fewstep.engine import adapters, text
from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest, resolve
from fewstep.errors import DataError
from fewstep.evaluation import accuracy, stylejudge
from fewstep.evaluation.drawing import BATCH, draw_batch
from fewstep.evaluation.intervals import Interval, ratio_interval
from fewstep.evaluation.setfigures import share_interval
from fewstep.models.features import default_evaluator_folder, load_evaluator

ROOT = Path(__file__).resolve().parents[1]
SQUARE, RING = 128, 4
Pictures = NDArray[np.uint8]
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How pictures are made; None is the model's own choice."""

    engine: Engine
    student: str = "none"
    steps: int | None = None
    guidance: float | None = None
    adapter: Path | None = None
    """Put on with weight 1."""
    size: tuple[int, int] | None = None
    """Width and height."""
    strength: float | None = None
    """Of image-to-image, from a picture of each object."""

    def request(self, prompt: str, seed: int, start: Pictures | None) -> GenerateRequest:
        info = self.engine.info
        uses: tuple[adapters.AdapterUse, ...] = ()
        if self.adapter is not None:
            info = dataclasses.replace(info, adapters=adapters.Catalogue([self.adapter.parent]))
            uses = (adapters.AdapterUse(name=self.adapter.stem, weight=1.0),)
        width, height = self.size or (None, None)
        return resolve(
            info, prompt=prompt, seed=seed, num_inference_steps=self.steps, guidance_scale=self.guidance,
            student=self.student, adapters=uses, width=width, height=height, init_image=start,
            strength=self.strength,
        )  # fmt: skip

    def weights(self) -> str:
        """Hash of the network that draws."""
        info = self.engine.info
        return info.hash if self.student == "none" else info.student(self.student).hash


@dataclass(frozen=True, eq=False)
class Hits:
    """What the judges say of N pictures: 1 for right, 0 for wrong."""

    labels: tuple[str, ...]
    style: NDArray[np.float64]
    concept: NDArray[np.float64]

    def of(self, what: str) -> Interval:
        """The share of right ones; whole objects are drawn again for the interval."""
        return share_interval(getattr(self, what), groups=self.groups())

    def kept(self, what: str, of: Hits) -> Interval | None:
        """As a share of what others have on the same objects; None where that is 0 in a draw."""
        member = self.groups()
        over, under = (np.bincount(member, getattr(hits, what)) for hits in (self, of))
        try:
            return ratio_interval(over, under)
        except DataError:
            return None

    def groups(self) -> NDArray[np.int64]:
        known = sorted(set(self.labels))
        return np.array([known.index(label) for label in self.labels], np.int64)


def joined(several: Sequence[Hits]) -> Hits:
    """Those of several styles as one."""
    return Hits(
        tuple(label for hits in several for label in hits.labels),
        np.concatenate([hits.style for hits in several]),
        np.concatenate([hits.concept for hits in several]),
    )


def add_arguments(parser: argparse.ArgumentParser, pictures: str) -> None:
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "emoji-128", help="the teacher")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--objects", type=int, default=None, help="the first so many held-out objects")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of every prompt")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--sets", type=Path, default=ROOT / ".cache" / "styles")
    parser.add_argument("--held-out", type=Path, default=ROOT / ".cache" / "styles-held-out")
    parser.add_argument("--drawings", type=Path, default=ROOT / ".cache" / "emoji-128" / "drawings")
    parser.add_argument("--pictures", type=Path, default=ROOT / "runs" / pictures / "pictures")
    parser.add_argument("--show", default="red apple", help="object of the grid")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the page")


def open_judges(arguments: argparse.Namespace, sets: StyleSets) -> Judges:
    return Judges(fitted(arguments, sets), load_evaluator(default_evaluator_folder()))


def drawn(
    way: Way,
    labels: Sequence[str],
    style: str,
    arguments: argparse.Namespace,
    *,
    starts: Sequence[Pictures] | None = None,
    title: str = "",
    report: Report | None = None,
) -> Pictures:
    """Draw every object in the style, by its caption alone: (objects x seeds, H, W, 3)."""
    each = range(arguments.seed, arguments.seed + arguments.seeds)
    requests = [
        way.request(caption(label, style=style), seed, None if starts is None else starts[place])
        for place, label in enumerate(labels)
        for seed in each
    ]
    files = [arguments.pictures / _name(way, request) for request in requests]
    missing = [n for n, file in enumerate(files) if not file.is_file()]
    if missing:
        backend, student = way.engine.backend, None if way.student == "none" else way.student
        tokens = text.tokenizers(way.engine.info)
        backend.adapt(adapters.applied(requests[0].adapters, lenient=False), student)
        try:
            for first in range(0, len(missing), BATCH):
                some = missing[first : first + BATCH]
                images = draw_batch(backend, tokens, [requests[n] for n in some])
                for n, image in zip(some, images, strict=True):
                    _keep(files[n], image)
                if report is not None:
                    report(title[:60], first + len(some), len(missing))
        finally:
            backend.adapt(())
    return np.stack([_opened(file) for file in files])


def judged(
    pictures: Pictures, labels: Sequence[str], style: str, judges: Judges, arguments: argparse.Namespace
) -> Hits:
    asked = tuple(label for label in labels for _ in range(arguments.seeds))
    return hits(np.stack([squared(picture) for picture in pictures]), asked, style, judges)


def hits(pictures: Pictures, asked: tuple[str, ...], style: str, judges: Judges) -> Hits:
    wanted = np.array([judges.concept.labels.index(label) for label in asked], np.int64)
    place = accuracy.ranks(judges.concept.run(pictures).concept_logits, wanted)
    return Hits(asked, stylejudge.right(judges.style, style, pictures), (place == 1).astype(np.float64))


def of_drawings(
    labels: Sequence[str], style: str, judges: Judges, arguments: argparse.Namespace
) -> tuple[Hits, Pictures]:
    """The most that can be reached: styled drawings of the objects."""
    real = pictures_of(arguments.held_out, style)
    there = tuple(label for label in labels if stem_of(label) in real)
    pictures = np.stack([real[stem_of(label)] for label in there])
    return hits(pictures, there, style, judges), pictures


def adapter_of(folder: Path, style: str) -> Path:
    return folder / f"{file_stem(style)}.safetensors"


def squared(picture: Pictures) -> Pictures:
    """A picture in a square of its own background's colour, the median of its border."""
    height, width = picture.shape[:2]
    if height == width == SQUARE:
        return picture
    scale = SQUARE / max(height, width)
    small = Image.fromarray(picture).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.LANCZOS
    )
    border = np.ones((height, width), np.bool_)
    border[RING:-RING, RING:-RING] = False
    page = np.empty((SQUARE, SQUARE, 3), np.uint8)
    page[:] = np.median(picture[border], axis=0).astype(np.uint8)
    top, left = (SQUARE - small.height) // 2, (SQUARE - small.width) // 2
    page[top : top + small.height, left : left + small.width] = np.asarray(small)
    return page


def percent(found: Interval | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found.value:.0f}% ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _name(way: Way, request: GenerateRequest) -> str:
    """A readable name, and the hash of everything that decides the pixels."""
    said = way.engine.backend.describe(None if way.student == "none" else way.student)
    start = request.init_image
    key = {
        "fewstep": __version__,
        "weights": way.weights(),
        "contract": request.sampling(way.engine.info).to_json(),
        "engine": {name: value for name, value in said.items() if name != "threads"},
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.num_inference_steps,
        "guidance": [request.guidance_scale, request.guidance_rescale],
        "solver": request.solver,
        "size": [request.width, request.height],
        "start": None if start is None else hashlib.sha256(start.tobytes()).hexdigest(),
        "strength": request.strength,
        **adapters.record(request.adapters),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    words = "".join(c if c.isalnum() else "-" for c in request.prompt.lower())[:60]
    return f"{words}-{request.seed}-{digest[:16]}.png"


def _opened(file: Path) -> Pictures:
    with Image.open(file, formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"), np.uint8)


def _keep(file: Path, image: Pictures) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    atomic.write_bytes(file, buffer.getvalue())
