"""Students beside their teacher on the same held-out prompts and seeds: rows of a table, kept one by one.

The teacher is drawn guided, at its full number of steps and at few with two solvers: the baselines to beat.
A student is drawn as its sampling contract says, at each of these step counts that it was made for.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fewstep import __version__
from fewstep.engine.backends.base import ModelInfo
from fewstep.engine.choice import NONE
from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest
from fewstep.errors import UsageError
from fewstep.evaluation import judging
from fewstep.evaluation.distances import fid, kid
from fewstep.evaluation.drawing import Job, Sampling, draw
from fewstep.evaluation.intervals import Interval
from fewstep.evaluation.judging import Pictures
from fewstep.evaluation.manifolds import inside
from fewstep.evaluation.promptsets import EvalPrompt, build
from fewstep.evaluation.reference import Progress, Reference
from fewstep.evaluation.report import Figure
from fewstep.evaluation.setfigures import (
    FEWEST,
    Features,
    half_sample_interval,
    set_distances,
    share_interval,
)
from fewstep.evaluation.studentcosts import evaluations
from fewstep.evaluation.studenttable import (
    BASE_ROW,
    STEPS,
    TEACHER,
    TEACHER_STEPS,
    Row,
    Subject,
    Table,
    digest,
)
from fewstep.evaluation.trained import Training

logger = logging.getLogger(__name__)

SOLVERS: Final = ("ddim", "dpmpp_2m")
"""That the teacher's few-step baselines are drawn with."""
_ALL: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A model that gets rows; several of one name are one student of several networks.

    Attributes:
        name: `TEACHER`, or the student's.
        folder: its own pipeline or bundle folder, or one that holds a student of that name.
        steps: step counts that this network draws; None is all that its contract allows.
        training: where it is known.
    """

    name: str
    folder: Path
    steps: tuple[int, ...] | None = None
    training: Training | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """What every row is measured on.

    Attributes:
        reference: the yardstick.
        prompts: P different held-out combinations; picture i has prompt i modulo P.
        subject: the same for the table.
        pictures: folder where pictures are kept.
    """

    reference: Reference
    prompts: tuple[EvalPrompt, ...]
    subject: Subject
    pictures: Path

    def jobs(self) -> list[Job]:
        """Return the N pictures to draw, the same for every row."""
        return [Job(p.text, self.subject.seed + i) for i, p in enumerate(self.asked())]

    def asked(self) -> list[EvalPrompt]:
        """Return the prompt of every picture."""
        return [self.prompts[i] for i in self.subject.groups()]


@dataclass(frozen=True, slots=True)
class Planned:
    """A row that is to be measured: its name, and how it is drawn."""

    name: str
    sampling: Sampling


def make_world(reference: Reference, n: int, pictures: Path, *, seed: int = 0) -> World:
    """Choose the prompts: held-out combinations, each with several seeds where there are fewer than ``n``.

    Objects that are held out whole are left out: the evaluator has not seen them either.

    Args:
        reference: from `fewstep.evaluation.reference.prepare`.
        n: pictures of every row.
        pictures: folder where they are kept.
        seed: picture i is drawn from seed + i.

    Raises:
        UsageError: n under 1.
        DataError: the selection holds out no combination.
    """
    if n < 1:
        raise UsageError(f"number of pictures is {n}: give --n 1 or more")
    items, backgrounds, selection = reference.drawings.items, reference.backgrounds, reference.selection
    every = build("combination", _ALL, items=items, backgrounds=backgrounds, selection=selection)
    prompts = tuple(every[:n])
    subject = Subject(
        prompts=len(prompts),
        available=len(every),
        pictures=n,
        seed=seed,
        prompts_hash=digest([prompt.text for prompt in prompts]),
        reference=len(reference.set_features),
        evaluator=reference.card,
        drawings=reference.drawings.fingerprint,
        selection=selection.model_dump(mode="json"),
        real=tuple(_real_figures(reference, prompts)),
    )
    return World(reference=reference, prompts=prompts, subject=subject, pictures=pictures)


def plan(entrant: Entrant, info: ModelInfo) -> list[Planned]:
    """List the rows of an entrant, the teacher's full one first.

    Raises:
        UsageError: a name that no row can have.
    """
    if entrant.name == TEACHER:
        full = Planned(BASE_ROW, Sampling(num_inference_steps=TEACHER_STEPS, student=NONE))
        return [full] + [
            Planned(
                f"{TEACHER}-{steps}-{solver}",
                Sampling(num_inference_steps=steps, solver=solver, student=NONE),
            )
            for steps in STEPS
            for solver in SOLVERS
        ]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*", entrant.name):
        raise UsageError(f"student {entrant.name!r}: give it a name of letters, digits, _, . and -")
    inside_model = entrant.name in (student.name for student in info.students)
    student = entrant.name if inside_model else NONE
    allowed = info.sampling(entrant.name if inside_model else None).allowed_steps or STEPS
    wanted = STEPS if entrant.steps is None else entrant.steps
    return [
        Planned(f"{entrant.name}-{steps}", Sampling(num_inference_steps=steps, student=student))
        for steps in wanted
        if steps in allowed
    ]


def grow(
    table: Table,
    world: World,
    entrants: Sequence[Entrant],
    open_engine: Callable[[Path], Engine],
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    on_table: Callable[[Table], None] = lambda table: None,
    on_progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Table:
    """Measure every wanted row that the table does not hold yet.

    A row is kept where the weights, the contract, the engine and the settings are what they were; rows of
    these entrants that are not are left out in the end. Rows of other students stay.

    Args:
        table: of the world's subject.
        world: what is measured.
        entrants: the teacher first.
        open_engine: opens the model in a folder; closed again after its rows.
        wanted: asked for the name of each row.
        on_table: given the table after every new row.
        on_progress: told (what is done, done, total).
        cancelled: asked before every step of drawing.

    Raises:
        UsageError: the table is of another subject, the teacher is not first, or a name is taken.
        Cancelled, EngineError, OutputError: as `fewstep.evaluation.drawing.draw`.
    """
    if table.subject.key != world.subject.key:
        raise UsageError(
            "the table was measured on other prompts, with another evaluator or on other drawings"
        )
    if [place for place, entrant in enumerate(entrants) if entrant.name == TEACHER] != [0]:
        raise UsageError("the teacher comes first, and once")
    valid: dict[str, str] = {}
    teacher = ""
    for entrant in entrants:
        engine = open_engine(entrant.folder)
        try:
            if entrant.name == TEACHER:
                teacher = engine.info.hash
            for planned in plan(entrant, engine.info):
                if planned.name in valid:
                    raise UsageError(f"two students draw {planned.name}: give each a name of its own")
                request = planned.sampling.request(engine.info, Job("", world.subject.seed))
                valid[planned.name] = key = row_key(engine, request, world.subject)
                before = table.row(planned.name)
                if not wanted(planned.name) or (before is not None and before.key == key):
                    continue
                row = measure(
                    engine, entrant, planned, world, key=key, teacher=teacher, on_progress=on_progress,
                    cancelled=cancelled,
                )  # fmt: skip
                table = table.with_row(row)
                on_table(table)
        finally:
            engine.close()
    names = {entrant.name for entrant in entrants}
    stale = [r.name for r in table.rows if r.entrant in names and valid.get(r.name) != r.key]
    if stale:
        logger.warning("left out, because they are of other weights or settings: %s", ", ".join(stale))
        table = dataclasses.replace(table, rows=tuple(r for r in table.rows if r.name not in stale))
        on_table(table)
    return table


def row_key(engine: Engine, request: GenerateRequest, subject: Subject) -> str:
    """SHA-256 of all that decides the figures of a row."""
    info, student = engine.info, request.student
    said = engine.backend.describe(student)
    return digest(
        {
            "fewstep": __version__,
            "subject": subject.key,
            "weights": [info.hash, None if student is None else info.student(student).hash],
            "contract": info.sampling(student).to_json(),
            "engine": {key: value for key, value in said.items() if key != "threads"},
            "steps": request.num_inference_steps,
            "guidance": [request.guidance_scale, request.guidance_rescale],
            "solver": request.solver,
            "size": [request.width, request.height],
        }
    )


def measure(
    engine: Engine,
    entrant: Entrant,
    planned: Planned,
    world: World,
    *,
    key: str,
    teacher: str,
    on_progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Row:
    """Draw and judge one row; see `grow`."""
    request = planned.sampling.request(engine.info, Job(world.prompts[0].text, world.subject.seed))
    report = None if on_progress is None else lambda done, total: on_progress(planned.name, done, total)
    drawn = draw(
        engine, world.jobs(), planned.sampling, folder=world.pictures, on_image=report, cancelled=cancelled
    )
    pictures = np.stack(list(drawn))
    reference, groups = world.reference, world.subject.groups()
    verdicts = judging.judge(reference.evaluator, world.asked(), pictures)
    figures = judging.figures(verdicts, reference.evaluator, groups=groups)
    features = reference.features_for_sets(pictures, verdicts)
    more, halves = set_figures(reference.set_features, features, groups)
    info, student = engine.info, request.student
    said = engine.backend.describe(student)
    return Row(
        name=planned.name,
        entrant=entrant.name,
        method=info.sampling(student).method,
        steps=request.num_inference_steps,
        solver=request.solver,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        weights=info.hash if student is None else info.student(student).hash,
        teacher=teacher,
        engine={name: value for name, value in said.items() if name != "threads"},
        evaluations=evaluations(engine, request),
        figures=(*figures, *more),
        right="".join("1" if rank == 1 else "0" for rank in verdicts.rank),
        fid_halves=halves,
        key=key,
        training=entrant.training,
    )


def set_figures(
    reference: Features, drawn: Features, groups: NDArray[np.int64]
) -> tuple[list[Figure], tuple[float, ...]]:
    """FID, KID, precision and recall, with intervals that draw whole prompts.

    Args:
        reference: (R, F) of real pictures.
        drawn: (N, F) of drawn ones.
        groups: (N,), the prompt of each, 0 to P - 1.

    Returns:
        The figures, and the FID of the halves that its interval was made of; nothing of fewer than `FEWEST`
        pictures or four prompts.
    """
    count = int(groups.max()) + 1
    if min(len(drawn), len(reference)) < FEWEST or count < 4:
        return [], ()
    seen: list[float] = []

    def fid_of(chosen: NDArray[np.int64]) -> float:
        seen.append(fid(reference, drawn[np.isin(groups, chosen)]))
        return seen[-1]

    def kid_of(chosen: NDArray[np.int64]) -> float:
        return kid(reference, drawn[np.isin(groups, chosen)], subsets=20).mean

    distance = half_sample_interval(fid_of, count)
    distance = distance._replace(low=max(distance.low, 0.0))
    kernel = half_sample_interval(kid_of, count)
    precise = share_interval(inside(drawn, reference).astype(np.float64), groups=groups)
    recalled = share_interval(inside(reference, drawn).astype(np.float64))
    n = len(drawn)
    figures = [
        _figure("fid", "FID", distance, n, "lower", ""),
        _figure("kid", "KID", kernel, n, "lower", ""),
        _figure("precision", "precision (k 3)", precise, n, "higher", "%"),
        _figure("recall", "recall (k 3)", recalled, len(reference), "higher", "%"),
    ]
    return figures, tuple(seen[1:])


def _figure(name: str, text: str, found: Interval, n: int, better: str, unit: str) -> Figure:
    return Figure(
        name=name, text=text, value=found.value, low=found.low, high=found.high, n=n, better=better, unit=unit
    )


def _real_figures(reference: Reference, prompts: Sequence[EvalPrompt]) -> list[Figure]:
    """What a perfect model would have on these prompts: the same figures of their real drawings."""
    styles = reference.selection.styles
    places, pictures = judging.real_pictures(prompts, reference.drawings, reference.backgrounds, styles)
    verdicts = judging.judge(reference.evaluator, [prompts[i] for i in places], pictures)
    features = reference.features_for_sets(pictures, verdicts)
    return [
        *judging.figures(verdicts, reference.evaluator),
        *set_distances(reference.set_features, features)[0],
    ]


def sheet_pictures(
    engine: Engine, rows: Sequence[Planned], world: World, count: int
) -> dict[str, tuple[int, Pictures]]:
    """Return the first pictures of some rows, from the kept ones where they are there.

    Args:
        engine: of these rows.
        rows: which.
        world: what is drawn.
        count: pictures a row.

    Returns:
        Name of a row to its steps and (count, H, W, 3).
    """
    found = {}
    for planned in rows:
        drawn = draw(engine, world.jobs()[:count], planned.sampling, folder=world.pictures)
        found[planned.name] = (planned.sampling.num_inference_steps or 0, np.stack(list(drawn)))
    return found
