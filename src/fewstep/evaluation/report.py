"""What an evaluation found, as frozen values that JSON holds.

A figure never stands alone: beside it stand the same figure of real drawings of the same prompts and the
level of chance, and under every table the evaluator's name, hash, own accuracy on real held-out drawings
and near-twins.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fewstep.errors import DataError, UsageError

VERSION: Final = 1
_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number.

    Attributes:
        name: key in files, such as "top1".
        text: what it is, for people.
        value: the number.
        low: lower end of its 95% interval; None where there is none.
        high: upper end.
        n: observations.
        real: the same of real drawings of the same prompts.
        chance: what guessing would give.
        better: "higher", "lower" or "", where neither is.
        unit: "%" for shares from 0 to 1, else as printed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    text: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    real: float | None = None
    chance: float | None = None
    better: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse what is not a number.

        Raises:
            UsageError: a value that is not finite.
        """
        for name in ("value", "low", "high", "real", "chance"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise UsageError(
                    f"figure {self.name}: {name} is {number}, which no report may hold; leave it out"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """What was measured of one prompt set."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    prompts: int
    images: int
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure | None:
        """Return the figure of that name, None where it was not measured."""
        return next((figure for figure in self.figures if figure.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Two concepts that the evaluator takes for each other on real drawings, and on which share of them."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    first: str
    second: str
    errors: int
    drawings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorCard:
    """The yardstick: which evaluator, and how good it is on real drawings that it never saw."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    hash: str
    concepts: int
    images_seen: int | None
    figures: tuple[Figure, ...]
    confusions: tuple[Confusion, ...]
    feature_net: str
    feature_hash: str
    feature_dims: int

    def _own(self) -> list[str]:
        """Its accuracy on real drawings, a line for each part of the split."""
        parts: dict[str, list[Figure]] = {}
        for figure in self.figures:
            parts.setdefault(figure.name.partition("_")[0], []).append(figure)
        lines = [
            f"on real drawings, {part} held out, {group[0].n}: "
            + ", ".join(f"{figure.text} {shown(figure)}" for figure in group)
            for part, group in parts.items()
        ]
        return lines or ["on real held-out drawings: not measured"]

    def lines(self) -> list[str]:
        """Say in a few lines what must stand beside every figure."""
        seen = "" if self.images_seen is None else f", trained on {self.images_seen:,} images"
        first, five = 1 / self.concepts, min(1.0, 5 / self.concepts)
        twins = ", ".join(f"{c.first} / {c.second} ({c.errors} of {c.drawings})" for c in self.confusions[:6])
        return [
            f"evaluator: {self.name} {self.hash[:10]}{seen}; {self.concepts} concepts",
            *self._own(),
            f"chance: concept first {first:.2%}, in the first five {five:.2%}",
            f"near-twins it confuses on real drawings: {twins or 'none found'}",
            f"features: {self.feature_net} {self.feature_hash[:10]}, {self.feature_dims} dimensions",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Which model, and how it was run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    hash: str
    engine: Mapping[str, str]
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    solver: str
    seed: int
    images_seen: int | None = None

    def line(self) -> str:
        """Say all of it in one line."""
        seen = "" if self.images_seen is None else f", trained on {self.images_seen:,} images"
        engine = " ".join(f"{key} {value}" for key, value in self.engine.items())
        return (
            f"{self.name} {self.hash[:10]}{seen}; {self.num_inference_steps} steps {self.solver}, guidance "
            f"{self.guidance_scale:g} rescaled {self.guidance_rescale:g}, seed {self.seed}; {engine}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One evaluation of one model."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    fewstep: str
    model: ModelCard
    evaluator: EvaluatorCard
    drawings: str
    """Fingerprint of the drawing set."""
    selection: Mapping[str, Any]
    """What the model is taken to be trained on: styles, groups, backgrounds a drawing."""
    sets: tuple[SetReport, ...]
    autoencoder: tuple[Figure, ...] = ()
    autoencoder_hash: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """JSON text that ends in a newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read JSON text.

        Raises:
            DataError: not JSON, an unknown or missing key, a value of the wrong type, another version.
        """
        found: Report = _read(cls, text, "report")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much higher a figure of one model is than that of another, on the same prompts and seeds.

    Attributes:
        set: prompt set.
        figure: name of the figure.
        text: what it is, for people.
        model: the one.
        over: the other.
        value: mean of the paired differences.
        low: lower end of its 95% interval.
        high: upper end.
        n: pairs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    set: str
    figure: str
    text: str
    model: str
    over: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several models on the same prompts and seeds."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    reports: tuple[Report, ...]
    differences: tuple[Difference, ...]
    version: int = VERSION

    def to_json(self) -> str:
        """JSON text that ends in a newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Read JSON text; raises as `Report.from_json`."""
        found: Comparison = _read(cls, text, "comparison")
        return found


def _read(kind: Any, text: str, what: str) -> Any:
    try:
        version = json.loads(text)["version"]
        if version != VERSION:
            raise DataError(
                f"{what} has version {version!r}, this fewstep reads {VERSION}: use the one that wrote it"
            )
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{what}: {where}: {first['msg']}; evaluate again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{what} is not one that fewstep wrote ({error}); evaluate again") from None


def shown(figure: Figure, value: float | None = None) -> str:
    """Write a value of a figure's kind; the figure's own, with its interval, when none is given."""
    text = _plain(figure.value if value is None else value, figure.unit)
    if value is None and figure.low is not None and figure.high is not None:
        text += f" [{_plain(figure.low, figure.unit)}, {_plain(figure.high, figure.unit)}]"
    return text


def _plain(value: float, unit: str) -> str:
    if unit == "%":
        if 0 < abs(value) < 5e-5:
            return "<0.01%"
        return f"{100 * value:.2f}%" if 0 < abs(value) < 0.01 else f"{100 * value:.1f}%"
    text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"
    return f"{text} {unit}" if unit else text
