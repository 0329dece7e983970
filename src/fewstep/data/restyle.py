"""Drawings in six styles that no emoji set has: what the style adapters of emoji-128 are trained on.

A style is a pure function of a drawing, a background colour and a generator; the same three give the same
picture. Drawings are vectors, so they are rendered at `SCALE` times the size of the picture, everything is
worked out there, and areas of ``SCALE x SCALE`` are averaged at the end: that gives lines smooth edges. Lines
are the vector shapes themselves with their fills taken off, which no edge detector on pixels equals.

The autoencoder of emoji-128 downsamples by 8 and has never seen thin lines: it closes hatching, blurs lines
under three pixels and drops small stars. So lines are wide here, cells of pixel art lie on its grid, and
there is no pencil style.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fewstep.data.backgrounds import RGB
from fewstep.data.emoji import CANVAS, DRAWING
from fewstep.errors import DataError, UsageError

SCALE: Final = 3
"""Rendered pixels to a pixel of the picture, across and down."""

LINE: Final = 3.2
"""Width of a line in pixels of the picture; half of it lies outside of the shape."""

_FILL: Final = re.compile(r'fill="(none|#[0-9a-fA-F]{6})"')
_DARK: Final = 0.035  # relative luminance under which a shape stays filled: eyes, noses, stripes
_PIXEL: Final = 8  # pixels to a cell of pixel art: the autoencoder downsamples by as much
_CELLS: Final = CANVAS // _PIXEL
_COLOURS: Final = 10

Floats = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Artwork:
    """A drawing rendered large, with H = W = `CANVAS` times `SCALE`.

    Attributes:
        rgba: uint8 (H, W, 4), sRGB, straight alpha.
        svg: what it was rendered from.
    """

    rgba: NDArray[np.uint8]
    svg: str

    @property
    def alpha(self) -> Floats:
        """Coverage (H, W), 0 to 1."""
        return _alpha(self.rgba)

    def lines(self, *, filled: bool) -> Floats:
        """Render the edges of its shapes as lines of width `LINE`, each shape hiding what is behind it.

        Args:
            filled: keep shapes filled that are nearly black, as eyes and noses are.

        Returns:
            float32 (H, W), 0 to 1.

        Raises:
            DataError: the SVG has no view box, or cannot be rendered.
        """
        box = re.search(r'viewBox="\S+ \S+ (\S+) \S+"', self.svg)
        if box is None:
            raise DataError("drawing: its SVG has no viewBox; take the packages that 'fewstep data' fetches")
        sheet = (
            "path,circle,ellipse,rect,polygon,polyline{fill:#fff;fill-opacity:1;stroke:#000;opacity:1;"
            f"stroke-width:{float(box[1]) / DRAWING * LINE:.4f};stroke-linejoin:round;stroke-linecap:round}}"
            ".none,.none *{fill:none}"
        )
        if filled:
            sheet += ".dark,.dark *{fill:#000}"
        drawn = _render(_FILL.sub(_marked, self.svg), sheet)
        return _alpha(drawn) * (1 - drawn[..., 0].astype(np.float32) / 255)


def artwork(svg: str) -> Artwork:
    """Render one drawing of `fewstep.data.emoji.collect`.

    Raises:
        DataError: the SVG cannot be rendered, or nothing is drawn.
    """
    rgba = _render(svg, None)
    if not rgba[..., 3].any():
        raise DataError("drawing: nothing is drawn; leave it out")
    return Artwork(rgba, svg)


def restyle(style: str, art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """Show a drawing in a style.

    Args:
        style: one of `STYLES`.
        art: the drawing.
        background: sRGB colour; styles with a ground of their own do not use it.
        rng: draws what is left to chance, such as where the stars are.

    Returns:
        uint8 (128, 128, 3), sRGB.

    Raises:
        UsageError: an unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"style {style!r:.100}: known are {', '.join(STYLES)}")
    return STYLES[style](art, background, rng)


def outline(art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """Black lines on white, heavier around the whole; only what is nearly black stays filled."""
    del background, rng
    ink = np.maximum(art.lines(filled=True), _within(_outside(art.alpha), 2.0) * (1 - art.alpha))
    return _picture(_mix(_plain((255, 255, 255)), (16, 16, 20), ink))


def blueprint(art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """White lines on a blue sheet with a faint grid, with the dimension lines of a technical drawing."""
    del background, rng
    sheet = _plain((24, 72, 150))
    sheet = _mix(sheet, (255, 255, 255), 0.3 * _grid(32))
    sheet = _mix(sheet, (255, 255, 255), 0.12 * art.alpha)
    ink = np.maximum(art.lines(filled=False), _within(_outside(art.alpha), 1.6) * (1 - art.alpha))
    return _picture(_mix(sheet, (244, 249, 255), ink))


def pixel_art(art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """A sprite of 16x16 cells with a dark edge and at most ten colours, on the background.

    A cell takes the colour that most of it has, not their mean, and dark colours count double: eyes stay.
    """
    del rng
    opaque = art.alpha > 0.5
    image = Image.fromarray(art.rgba[opaque][None, :, :3])
    indexed = image.quantize(_COLOURS, Image.Quantize.MEDIANCUT, kmeans=2)
    palette = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
    one_hot = np.zeros((*opaque.shape, len(palette)), np.float32)
    one_hot[opaque] = np.eye(len(palette), dtype=np.float32)[np.asarray(indexed)[0]]
    step = _PIXEL * SCALE
    shares = one_hot.reshape(_CELLS, step, _CELLS, step, -1).mean((1, 3))
    solid = shares.sum(-1) > 0.45
    dark = palette.max(-1) < 96
    cells = np.empty((_CELLS, _CELLS, 3), np.uint8)
    cells[:] = background
    cells[solid] = palette[(shares * np.where(dark, 2, 1)).argmax(-1)[solid]]
    cells[ndimage.binary_dilation(solid) & ~solid] = (34, 28, 52)
    return cells.repeat(_PIXEL, 0).repeat(_PIXEL, 1)


def sticker(art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """Cut out with a wide white border that throws a soft shadow, on the background."""
    del rng
    rgba = _scaled(art.rgba, 0.86)
    alpha = _alpha(rgba)
    paper = _within(ndimage.gaussian_filter(_outside(alpha), 1.5 * SCALE), 5.5)
    shadow = ndimage.gaussian_filter(np.roll(paper, (3 * SCALE, 2 * SCALE), (0, 1)), 2.2 * SCALE)
    picture = _mix(_plain(background), (20, 20, 40), 0.5 * shadow)
    picture = _mix(picture, (255, 255, 255), paper)
    return _picture(picture * (1 - alpha[..., None]) + rgba[..., :3] * alpha[..., None])


def gold(art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """A golden figure before dark red, lit from above on the left."""
    del background, rng
    alpha = art.alpha
    light = _luminance(art.rgba) * alpha + 0.5 * (1 - alpha)
    # A height of which the outline is the slope and the drawing's own tones the relief.
    height = ndimage.gaussian_filter(alpha, 4 * SCALE) + 0.35 * ndimage.gaussian_filter(light, SCALE)
    away = 2 * SCALE
    slope = np.roll(height, (away, away), (0, 1)) - np.roll(height, (-away, -away), (0, 1))
    shine = np.clip(0.25 + 0.5 * light - 1.1 * slope, 0, 1)
    ramp = np.array([(52, 24, 4), (148, 88, 12), (226, 164, 36), (255, 220, 96), (255, 252, 224)])
    body = np.stack([np.interp(shine, np.linspace(0, 1, len(ramp)), tones) for tones in ramp.T], -1)
    shadow = ndimage.gaussian_filter(np.roll(alpha, 4 * SCALE, 0), 4 * SCALE)
    ground = _mix(_plain((112, 12, 32)), (30, 0, 10), 0.55 * shadow)
    return _picture(ground + alpha[..., None] * (body.astype(np.float32) - ground))


def night(art: Artwork, background: RGB, rng: np.random.Generator) -> Picture:
    """Moonlit: a starry sky with a crescent moon, cold dark colours, a rim of light towards the moon."""
    del background
    rgba = _scaled(art.rgba, 0.86)
    alpha = _alpha(rgba)
    across, down = np.meshgrid(*[np.arange(CANVAS * SCALE, dtype=np.float32) / (CANVAS * SCALE)] * 2)
    sky: Floats = np.array((12, 16, 54), np.float32) + down[..., None] * np.array((30, 38, 80), np.float32)
    sky = _mix(sky, (255, 248, 220), _stars(rng))
    moon = np.hypot(across - 0.85, down - 0.15)
    bite = _within(np.hypot(across - 0.80, down - 0.125) * CANVAS, 10)
    sky = _mix(sky, (120, 140, 220), 0.5 * np.exp(-6 * moon))
    sky = _mix(sky, (255, 244, 200), _within(moon * CANVAS, 12.5) * (1 - bite))
    sky = _mix(sky, (96, 130, 230), 0.75 * ndimage.gaussian_filter(alpha, 5 * SCALE))
    grey = _luminance(rgba)[..., None] * 255
    body: Floats = (0.8 * rgba[..., :3] + 0.2 * grey) * np.array((0.58, 0.68, 1.0), np.float32) + (4, 8, 24)
    body = body * np.clip(0.9 + 0.5 * (across - down), 0.6, 1.1)[..., None]
    behind = ndimage.gaussian_filter(np.roll(alpha, (3 * SCALE, -3 * SCALE), (0, 1)), 1.2 * SCALE)
    body = _mix(body.astype(np.float32), (214, 230, 255), np.clip(1.3 * (alpha - behind), 0, 1))
    return _picture(sky + alpha[..., None] * (body - sky))


Style = Callable[[Artwork, RGB, np.random.Generator], Picture]

STYLES: Final[Mapping[str, Style]] = {
    "outline": outline,
    "pixel art": pixel_art,
    "blueprint": blueprint,
    "sticker": sticker,
    "gold": gold,
    "night": night,
}
"""The styles by the words that stand in captions before "style"."""


def _marked(match: re.Match[str]) -> str:
    """Give a fill attribute a class that the line style sheets know."""
    if match[1] == "none":
        return f'{match[0]} class="none"'
    linear = [((int(match[1][i : i + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for i in (1, 3, 5)]
    dark = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < _DARK
    return f'{match[0]} class="dark"' if dark else match[0]


def _render(svg: str, style_sheet: str | None) -> NDArray[np.uint8]:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, skip_system_fonts=True, zoom=float(SCALE), style_sheet=style_sheet
        )
        with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as opened:
            image = opened.convert("RGBA")
    except (ValueError, OSError) as error:
        raise DataError(f"drawing: not rendered ({error}); leave it out") from error
    if image.size != (DRAWING * SCALE,) * 2:
        image = image.resize((DRAWING * SCALE,) * 2, Image.Resampling.LANCZOS)
    margin = (CANVAS - DRAWING) // 2 * SCALE
    return np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)))


def _alpha(rgba: NDArray[np.uint8]) -> Floats:
    return rgba[..., 3].astype(np.float32) / 255


def _luminance(rgba: NDArray[np.uint8]) -> Floats:
    weights = np.array((0.299, 0.587, 0.114), np.float32) / 255
    found: Floats = rgba[..., :3].astype(np.float32) @ weights
    return found


def _plain(colour: RGB) -> Floats:
    return np.broadcast_to(np.array(colour, np.float32), (CANVAS * SCALE, CANVAS * SCALE, 3))


def _mix(picture: Floats, colour: RGB, share: Floats) -> Floats:
    return picture + share[..., None] * (np.array(colour, np.float32) - picture)


def _picture(large: Floats) -> Picture:
    """Average areas down to the size of the picture."""
    mean = large.reshape(CANVAS, SCALE, CANVAS, SCALE, 3).mean((1, 3))
    rounded: Picture = np.clip(np.rint(mean), 0, 255).astype(np.uint8)
    return rounded


def _outside(alpha: Floats) -> Floats:
    """Distance to the shape in pixels of the picture; 0 inside."""
    found: Floats = (ndimage.distance_transform_edt(alpha < 0.5) / SCALE).astype(np.float32)
    return found


def _within(distance: Floats | NDArray[Any], radius: float) -> Floats:
    """1 up to the radius, then 0, with an edge of one rendered pixel."""
    return np.clip((radius - distance) * SCALE + 0.5, 0, 1).astype(np.float32)


def _scaled(rgba: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Shrink a drawing about the centre of its canvas."""
    size = rgba.shape[0]
    inner = 2 * round(size * factor / 2)
    margin = (size - inner) // 2
    small = Image.fromarray(rgba).resize((inner, inner), Image.Resampling.BOX)
    return np.pad(np.asarray(small), ((margin, margin), (margin, margin), (0, 0)))


def _grid(period: int) -> Floats:
    """Lines one pixel wide, every ``period`` pixels."""
    on = np.zeros(CANVAS * SCALE, np.bool_)
    for start in range(period // 2, CANVAS, period):
        on[(start - 1) * SCALE : (start + 1) * SCALE] = True
    return (on[:, None] | on[None, :]).astype(np.float32)


def _stars(rng: np.random.Generator) -> Floats:
    """Sixteen stars, larger and smaller, brighter and fainter, (H, W), 0 to 1."""
    size, half = CANVAS * SCALE, 4 * SCALE
    light = np.zeros((size, size), np.float32)
    rows, columns = np.indices((2 * half, 2 * half), np.float32) - half
    for x, y, radius, bright in rng.random((16, 4)):
        left, top = (int(v * (size - 2 * half)) for v in (x, y))
        star = (0.6 + 0.4 * bright) * _within(np.hypot(columns, rows) / SCALE, 0.9 + 1.2 * radius**2)
        patch = light[top : top + 2 * half, left : left + 2 * half]
        np.maximum(patch, star, out=patch)
    return light
