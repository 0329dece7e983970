"""Image-text sets of any source as a `Dataset`: filtered, bad samples skipped, images brought to one size."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.data.dataset import Batch
from fewstep.data.images import MAX_PIXELS, image_size, open_image
from fewstep.data.quality import DEFAULT_LIMIT, BadSamples
from fewstep.data.sources.sample import Source
from fewstep.errors import DataError, UsageError

AESTHETIC: Final = ("aesthetic", "aesthetic_score", "AESTHETIC_SCORE", "aesthetics")
WATERMARK: Final = ("pwatermark", "watermark", "p_watermark", "watermark_probability")
_SIDED: Final = re.compile(r"\b(?:left|right|leftward|rightward|text|letters?|writing|sign)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """What a sample must have; None asks nothing. A sample without a score passes the filter of that score.

    Attributes:
        min_width: pixels, as displayed.
        min_height: pixels, as displayed.
        min_aesthetic: lowest aesthetic score that the set's metadata may give.
        max_watermark: highest watermark probability that the set's metadata may give.
    """

    min_width: int | None = None
    min_height: int | None = None
    min_aesthetic: float | None = None
    max_watermark: float | None = None

    def rejects(self, size: tuple[int, int], metadata: Mapping[str, Any]) -> str | None:
        """Return which filter leaves a sample out, or None."""
        if self.min_width is not None and size[0] < self.min_width:
            return "width"
        if self.min_height is not None and size[1] < self.min_height:
            return "height"
        aesthetic = _number(metadata, AESTHETIC)
        if self.min_aesthetic is not None and aesthetic is not None and aesthetic < self.min_aesthetic:
            return "aesthetic"
        watermark = _number(metadata, WATERMARK)
        if self.max_watermark is not None and watermark is not None and watermark > self.max_watermark:
            return "watermark"
        return None


class ImageText:
    """The `Dataset` and the `Encodable` over an image-text source.

    Every sample is looked at once when the set is opened; bad ones are skipped and counted, and more of them
    than the limit is an error. A sample that goes bad later is counted too, and the next good one stands in
    for it.

    Attributes:
        bad: the report.
    """

    def __init__(
        self,
        source: Source,
        *,
        width: int,
        height: int,
        filters: Filters | None = None,
        limit: float = DEFAULT_LIMIT,
        report: Path | None = None,
        check: Literal["decode", "header"] = "decode",
        random_crop: bool = False,
        mirror: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Look at every sample.

        Args:
            source: the set.
            width: width of the images that come out, pixels.
            height: their height.
            filters: what samples must have.
            limit: highest fraction of bad samples, 0 to 1.
            report: file for the report of bad and filtered samples.
            check: "decode" decodes every image once; "header" reads only its header, for very large sets.
            random_crop: crop at a random place instead of the centre.
            mirror: mirror half of the samples whose caption names no side.
            max_pixels: most pixels of an image that is decoded.

        Raises:
            UsageError: size or limit out of range.
            DataError: too many bad samples, or none left.
        """
        if width < 1 or height < 1 or not 0 <= limit <= 1:
            raise UsageError(
                f"size {width}x{height}, limit {limit}: give 1 pixel or more and a limit of 0 to 1"
            )
        self._source, self._size = source, (width, height)
        self._random_crop, self._mirror, self._max_pixels = random_crop, mirror, max_pixels
        self._filters = filters or Filters()
        self.bad = BadSamples(total=len(source), limit=limit, report=report)
        self._good: list[int] = []
        self._captions: list[str] = []
        for index in range(len(source)):
            self._look(index, check)
        self.bad.write()
        if not self._good:
            raise DataError(
                f"no usable sample of {len(source)}: {len(self.bad.reasons)} bad, {len(self.bad.filtered)} "
                f"filtered; loosen the filters or repair the set"
            )

    def _look(self, index: int, check: str) -> None:
        key = self._source.key(index)
        try:
            sample = self._source.read(index)
            caption = " ".join(sample.caption.split())
            if not caption:
                raise DataError("empty caption")
            size = image_size(sample.image, name="image", max_pixels=self._max_pixels)
            if check == "decode":
                open_image(sample.image, name="image", max_pixels=self._max_pixels)
        except DataError as error:
            self.bad.add(key, _reason(error))
            return
        filtered = self._filters.rejects(size, sample.metadata)
        if filtered is not None:
            self.bad.filtered[key] = filtered
            return
        self._good.append(index)
        self._captions.append(caption)

    def __len__(self) -> int:
        return len(self._good)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return `pixels` float32 (B, 3, height, width) in [-1, 1] and `captions`.

        Raises:
            DataError: more samples went bad since the set was opened than the limit allows.
        """
        draws = rng.random((len(indices), 3))
        images, captions = [], []
        for index, draw in zip(indices, draws, strict=True):
            place = (float(draw[0]), float(draw[1])) if self._random_crop else (0.5, 0.5)
            image, row = self._image(int(index), place)
            turned = self._mirror and draw[2] < 0.5 and self.mirrorable(row)
            images.append(image[:, ::-1] if turned else image)
            captions.append(self._captions[row])
        return {"pixels": _normalised(images), "captions": captions}

    def pixels(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return centre crops float32 (B, 3, height, width) in [-1, 1]."""
        return _normalised([self._image(index, (0.5, 0.5))[0] for index in indices])

    def view(self, index: int, place: tuple[float, float]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Return a sample cut at a place, and its own size.

        Args:
            index: of the sample.
            place: where the cut lies, as of `cover`.

        Returns:
            uint8 (height, width, 3), and (width, height) in pixels before it was scaled.

        Raises:
            DataError: it went bad since the set was opened.
        """
        number = self._good[index]
        try:
            sample = self._source.read(number)
            image = open_image(sample.image, name="image", max_pixels=self._max_pixels)
        except DataError as error:
            raise DataError(f"{self._source.key(number)}: {_reason(error)}; repair or remove it") from error
        return cover(image, *self._size, place=place), (image.shape[1], image.shape[0])

    def captions(self, index: int) -> tuple[str]:
        """Return the one caption of a sample."""
        return (self._captions[index],)

    def mirrorable(self, index: int) -> bool:
        """Say whether the caption names no side and nothing written."""
        return _SIDED.search(self._captions[index]) is None

    def fingerprint(self) -> str:
        """Return the hash of the source, of which samples are used, and of how images are cut."""
        how = [self._size, self._random_crop, self._mirror, asdict(self._filters), self._good]
        return hashlib.sha256((self._source.fingerprint() + json.dumps(how)).encode()).hexdigest()

    def _image(self, row: int, place: tuple[float, float]) -> tuple[NDArray[np.uint8], int]:
        """Return a sample's cut image, or that of the next good sample, and the row that it is."""
        for step in range(len(self._good)):
            current = (row + step) % len(self._good)
            number = self._good[current]
            try:
                sample = self._source.read(number)
                image = open_image(sample.image, name="image", max_pixels=self._max_pixels)
                return cover(image, *self._size, place=place), current
            except DataError as error:
                self.bad.add(self._source.key(number), _reason(error))
                self.bad.write()
        raise DataError("no sample of the set can be read any more; check the disk")


def cover(
    image: NDArray[np.uint8], width: int, height: int, *, place: tuple[float, float] = (0.5, 0.5)
) -> NDArray[np.uint8]:
    """Scale an image until it covers a size, keeping its proportions, and crop what is over.

    Args:
        image: uint8 (H, W, 3).
        width: pixels.
        height: pixels.
        place: where the crop lies, from (0, 0) left and top to (1, 1) right and bottom.

    Returns:
        uint8 (height, width, 3).
    """
    old_height, old_width = image.shape[:2]
    scale = max(width / old_width, height / old_height)
    # Cropped in source pixels by the resampling box: never off by a pixel, and no large intermediate image.
    wide, high = min(width / scale, old_width), min(height / scale, old_height)
    left, top = (old_width - wide) * place[0], (old_height - high) * place[1]
    box = (left, top, left + wide, top + high)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box))


def _normalised(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    stacked = np.stack(images).astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _reason(error: DataError) -> str:
    return str(error).removeprefix("image: ")


def _number(metadata: Mapping[str, Any], names: Sequence[str]) -> float | None:
    for name in names:
        value = metadata.get(name)
        if value is not None and value != "":
            try:
                return float(value)  # tables hold numbers as text
            except (TypeError, ValueError):
                return None
    return None
