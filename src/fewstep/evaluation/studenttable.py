"""The table of students beside their teacher, as frozen values that JSON holds.

A row keeps what paired comparisons need: of every picture whether it shows its object, and the FID of fixed
random halves of the prompts. So rows that were measured in different sessions can still be compared in pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fewstep.errors import DataError
from fewstep.evaluation.report import EvaluatorCard, Figure
from fewstep.evaluation.trained import Training

VERSION: Final = 1
TEACHER: Final = "teacher"
STEPS: Final = (1, 2, 4, 8)
TEACHER_STEPS: Final = 32
BASE_ROW: Final = f"{TEACHER}-{TEACHER_STEPS}"
"""What every other row is compared with."""
_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What all rows of a table share; rows of another subject cannot be compared with them.

    Attributes:
        prompts: P different held-out combinations; picture i has prompt i modulo P and seed ``seed`` + i.
        available: how many such combinations there are for this selection.
        pictures: of every row.
        seed: of the first picture.
        prompts_hash: SHA-256 of the prompts in their order.
        reference: real training compositions that distances are computed against.
        evaluator: the yardstick.
        drawings: fingerprint of the drawing set.
        selection: what the models are taken to be trained on.
        real: the figures of the real drawings of the P prompts.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    prompts: int
    available: int
    pictures: int
    seed: int
    prompts_hash: str
    reference: int
    evaluator: EvaluatorCard
    drawings: str
    selection: Mapping[str, Any]
    real: tuple[Figure, ...]

    @property
    def key(self) -> str:
        """SHA-256 of all that decides whether figures can be compared."""
        return digest(
            {
                "prompts": self.prompts_hash,
                "pictures": self.pictures,
                "seed": self.seed,
                "reference": self.reference,
                "evaluator": [self.evaluator.hash, self.evaluator.feature_hash],
                "drawings": self.drawings,
                "selection": dict(self.selection),
            }
        )

    def groups(self) -> NDArray[np.int64]:
        """Prompt of every picture, (N,)."""
        return np.arange(self.pictures, dtype=np.int64) % self.prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model, drawn in one way.

    Attributes:
        name: such as "teacher-32", "teacher-4-ddim" or "flash-4".
        entrant: `TEACHER`, or the name of a student.
        method: of its sampling contract.
        steps: denoising steps.
        solver: name.
        guidance_scale: 1 is none.
        guidance_rescale: as drawn.
        weights: hash of whatever drew.
        teacher: hash of the teacher that it was measured beside.
        engine: what ran it, threads left out.
        evaluations: of the network, for one picture: counted, not computed.
        figures: shares, FID, KID, precision and recall.
        right: "1" for every picture that shows its object first, else "0".
        fid_halves: FID of fixed halves of the prompts; empty where there are too few pictures.
        key: hash of all that decides the figures.
        training: of a student, where its run folder is known.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    entrant: str
    method: str
    steps: int
    solver: str
    guidance_scale: float
    guidance_rescale: float
    weights: str
    teacher: str
    engine: Mapping[str, str]
    evaluations: int
    figures: tuple[Figure, ...]
    right: str
    fid_halves: tuple[float, ...]
    key: str
    training: Training | None = None

    def figure(self, name: str) -> Figure | None:
        """Return the figure of that name, None where it was not measured."""
        return next((figure for figure in self.figures if figure.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of whole calls that draw one picture: median, least and most, over the rounds.

    ``speedup`` is the median over rounds of the teacher's time over this one's; None without a teacher.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    row: str
    weights: str
    median: float
    least: float
    most: float
    speedup: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """One session of timing, all rows in turn; times of other sessions are not mixed with it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rounds: int
    machine: Mapping[str, str]
    rows: tuple[Timing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Everything that was measured of one subject."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    subject: Subject
    rows: tuple[Row, ...] = ()
    times: Times | None = None
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    version: int = VERSION

    def row(self, name: str) -> Row | None:
        """Return the row of that name, None where it was not measured."""
        return next((row for row in self.rows if row.name == name), None)

    def timing(self, row: Row) -> Timing | None:
        """Return the timing of a row; None where it was not timed, or with other weights."""
        found = () if self.times is None else self.times.rows
        return next((t for t in found if (t.row, t.weights) == (row.name, row.weights)), None)

    def entrants(self) -> list[str]:
        """Names of the students, in the order in which they came."""
        return list(dict.fromkeys(row.entrant for row in self.rows if row.entrant != TEACHER))

    def ordered(self) -> list[Row]:
        """Rows as they are printed: the teacher, its baselines, then student by student, most steps first."""
        place = {name: i for i, name in enumerate([TEACHER, *self.entrants()])}
        return sorted(
            self.rows, key=lambda row: (place[row.entrant], row.name != BASE_ROW, -row.steps, row.solver)
        )

    def with_row(self, row: Row) -> Table:
        """Return the table with a row put in the place of the one of its name, or at the end."""
        if self.row(row.name) is None:
            return dataclasses.replace(self, rows=(*self.rows, row))
        rows = tuple(row if other.name == row.name else other for other in self.rows)
        return dataclasses.replace(self, rows=rows)

    def to_json(self) -> str:
        """JSON text that ends in a newline."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Read JSON text.

        Raises:
            DataError: not such a table, or of another version.
        """
        try:
            version = json.loads(text)["version"]
            if version != VERSION:
                raise DataError(f"table has version {version!r}, this fewstep reads {VERSION}: measure anew")
            found: Table = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"table: {where}: {first['msg']}; measure anew") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"table is not one that fewstep wrote ({error}); measure anew") from None
        return found


def digest(value: object) -> str:
    """SHA-256 of a value that JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seeds(table: Table) -> list[tuple[str, list[Row]]]:
    """Find rows that differ in nothing but the seed of their training.

    Returns:
        What they share, and two rows or more of different training seeds.
    """
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in table.ordered():
        if row.training is not None:
            alike.setdefault((row.method, row.training.stages, row.steps), []).append(row)
    return [
        (f"{rows[0].method}, {rows[0].steps} step{'' if rows[0].steps == 1 else 's'}", rows)
        for rows in alike.values()
        if len({row.training.seed for row in rows if row.training is not None}) > 1
    ]
