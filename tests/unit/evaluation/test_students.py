"""The table of students: rows are kept and drawn once, compared in pairs, and judged in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.data import split
from fewstep.data.emoji import Drawings
from fewstep.data.preparation import Selection
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import DataError, UsageError
from fewstep.evaluation import studentpages, students
from fewstep.evaluation.distances import fid
from fewstep.evaluation.drawing import Job, Sampling
from fewstep.evaluation.featurenets import from_evaluator
from fewstep.evaluation.reference import Limits, Reference, prepare
from fewstep.evaluation.report import Figure
from fewstep.evaluation.studentcosts import Timed, evaluations, take_turns
from fewstep.evaluation.studentgoals import GOALS, against, verdict
from fewstep.evaluation.students import Entrant, World, grow, make_world, plan, sheet_pictures
from fewstep.evaluation.studenttable import BASE_ROW, TEACHER, Row, Table, Times, seeds
from fewstep.evaluation.trained import Training

LIMITS = Limits(combinations=20, objects=20, reference=40, trained=40)
FEW = ("teacher-1-ddim", "flash-4", "flash-1")


@pytest.fixture
def reference(judge: Any, drawings: Drawings, selection: Selection) -> Reference:
    return prepare(judge, from_evaluator(judge), drawings, selection, name="perfect", limits=LIMITS)


@pytest.fixture
def world(reference: Reference, tmp_path: Path) -> World:
    return make_world(reference, 20, tmp_path / "pictures", seed=3)


class Models:
    """Opens fake models by folder; each counts the rows that it was asked for."""

    def __init__(self) -> None:
        self.backends = {
            "teacher": FakeBackend(),
            "flash": FakeBackend(students={"flash": (4, 2, 1)}),
        }

    def __call__(self, folder: Path) -> Engine:
        return Engine(backend=self.backends[folder.name])

    def calls(self) -> list[int]:
        return [backend.calls for backend in self.backends.values()]

    def change(self, name: str) -> None:
        info = self.backends[name].info
        first = [dataclasses.replace(student, hash="f" * 64) for student in info.students]
        changed = {"students": tuple(first)} if first else {"hash": "f" * 64}
        self.backends[name].info = dataclasses.replace(info, **changed)


def entrants(training: Training | None = None) -> list[Entrant]:
    return [
        Entrant(name=TEACHER, folder=Path("teacher")),
        Entrant(name="flash", folder=Path("flash"), training=training),
    ]


def few(name: str) -> bool:
    return name in FEW


def test_prompts_are_held_out_combinations_with_several_seeds_where_there_are_too_few(
    reference: Reference, tmp_path: Path
) -> None:
    every = make_world(reference, 10_000, tmp_path)
    count = every.subject.prompts
    assert count == every.subject.available < 100
    assert all(
        split.part(p.label or "", p.style or "", p.background or "") == "combination" for p in every.prompts
    )
    world = make_world(reference, 2 * count + 3, tmp_path, seed=7)
    jobs = world.jobs()
    assert len(jobs) == 2 * count + 3 == len(set(jobs))
    assert jobs[count + 1] == Job(world.prompts[1].text, 7 + count + 1)
    assert world.subject.groups()[count + 1] == 1
    page = studentpages.markdown(Table(subject=world.subject))
    assert f"{count} held-out combinations" in page
    assert "2 or 3 seeds each" in page
    fewer = make_world(reference, 3, tmp_path)
    assert (fewer.subject.prompts, fewer.subject.available) == (3, count)
    assert fewer.prompts == every.prompts[:3]


def test_the_teacher_has_its_baselines_and_a_student_the_steps_that_it_was_made_for() -> None:
    models = Models()
    teacher, student = entrants()
    rows = plan(teacher, models(teacher.folder).info)
    assert [row.name for row in rows][:3] == ["teacher-32", "teacher-1-ddim", "teacher-1-dpmpp_2m"]
    assert len(rows) == 1 + 4 * 2
    assert all(row.sampling.guidance_scale is None for row in rows)  # the teacher's own guidance
    info = models(student.folder).info
    assert [row.name for row in plan(student, info)] == ["flash-1", "flash-2", "flash-4"]
    assert [row.name for row in plan(dataclasses.replace(student, steps=(2, 8)), info)] == ["flash-2"]
    with pytest.raises(UsageError, match="'a/b'"):
        plan(dataclasses.replace(student, name="a/b"), info)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(num_inference_steps=4, student="none"), 8),  # guided: two rows a step
        (Sampling(num_inference_steps=4, guidance_scale=1.0, student="none"), 4),
        (Sampling(num_inference_steps=3, solver="heun", guidance_scale=1.0, student="none"), 5),
        (Sampling(num_inference_steps=2, student="flash"), 2),
    ],
)
def test_network_evaluations_are_counted(sampling: Sampling, expected: int) -> None:
    engine = Models()(Path("flash"))
    contract = engine.info.contract
    if sampling.solver == "heun":  # it has no zero-SNR mode
        plain = dataclasses.replace(contract.schedule, rescale_zero_terminal_snr=False)
        contract = dataclasses.replace(contract, schedule=plain)
        engine.backend.info = dataclasses.replace(engine.info, contract=contract)
    assert evaluations(engine, sampling.request(engine.info, Job("a dog", 0))) == expected


def test_rows_are_measured_once_and_kept_in_json(world: World) -> None:
    models, kept = Models(), list[Table]()
    table = grow(Table(subject=world.subject), world, entrants(), models, wanted=few, on_table=kept.append)
    assert [row.name for row in table.rows] == ["teacher-1-ddim", "flash-1", "flash-4"]
    assert [len(state.rows) for state in kept] == [1, 2, 3]
    again = Table.from_json(table.to_json())
    assert again == table
    before, pictures = models.calls(), sorted(world.pictures.iterdir())
    assert len(pictures) == 3 * 20
    assert grow(again, world, entrants(), models, wanted=few) == table
    assert models.calls() == before
    more = grow(again, world, entrants(), models, wanted=lambda name: name in (*FEW, "flash-2"))
    assert [row.name for row in more.rows][-1] == "flash-2"
    assert more.rows[:3] == table.rows
    assert models.calls()[0] == before[0]


def test_a_row_says_how_it_was_drawn(world: World) -> None:
    training = Training(
        seed=5, stages=("flash",), minutes=60.0, images=9, batch_size=3, threads=2, data="d" * 64
    )
    models = Models()
    table = grow(Table(subject=world.subject), world, entrants(training), models, wanted=few)
    teacher, student = table.row("teacher-1-ddim"), table.row("flash-4")
    assert teacher is not None
    assert student is not None
    assert (teacher.guidance_scale, teacher.evaluations, teacher.training) == (2.0, 2, None)
    assert (student.guidance_scale, student.evaluations, student.solver) == (1.0, 4, "lcm")
    assert (student.method, student.training, student.steps) == ("fake", training, 4)
    assert student.weights == models.backends["flash"].info.students[0].hash
    assert student.teacher == models.backends["teacher"].info.hash
    assert len(student.right) == 20 and set(student.right) <= {"0", "1"}
    share = student.figure("top1")
    assert share is not None and share.value == student.right.count("1") / 20
    page = studentpages.markdown(table)
    assert "| flash | fake | flash | 5 | 60.0 | 2 | 9 | dddddddddd |" in page


def test_changed_weights_are_drawn_again_and_other_rows_are_not(world: World) -> None:
    models = Models()
    table = grow(Table(subject=world.subject), world, entrants(), models, wanted=few)
    models.change("flash")
    before = models.calls()
    changed = grow(table, world, entrants(), models, wanted=lambda name: name == "flash-4")
    assert models.calls()[0] == before[0]
    assert models.calls()[1] > before[1]
    row = changed.row("flash-4")
    assert row is not None and row.weights == "f" * 64
    # what is of the old weights and was not asked for again does not stay beside the new
    assert [r.name for r in changed.rows] == ["teacher-1-ddim", "flash-4"]


def test_students_that_are_not_given_stay_in_the_table(world: World) -> None:
    models = Models()
    table = grow(Table(subject=world.subject), world, entrants(), models, wanted=few)
    models.change("teacher")
    alone = grow(table, world, entrants()[:1], models, wanted=few)
    assert {row.name for row in alone.rows} == set(FEW)
    full = alone.row("teacher-1-ddim")
    assert full is not None and full.weights == "f" * 64
    page = studentpages.markdown(alone.with_row(dataclasses.replace(full, name=BASE_ROW)))
    assert "Measured beside an earlier teacher, of which they may be students: flash-4, flash-1" in page


def test_a_table_of_other_prompts_is_refused(reference: Reference, world: World, tmp_path: Path) -> None:
    other = make_world(reference, 19, tmp_path)
    with pytest.raises(UsageError, match="other prompts"):
        grow(Table(subject=other.subject), world, entrants(), Models())
    with pytest.raises(UsageError, match="teacher comes first"):
        grow(Table(subject=world.subject), world, entrants()[1:], Models())
    twice = [*entrants(), entrants()[1]]
    with pytest.raises(UsageError, match="two students draw flash-1"):
        grow(Table(subject=world.subject), world, twice, Models(), wanted=lambda name: False)


def test_intervals_of_sets_draw_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    groups = np.arange(40) % 8
    asked = list[int]()
    plain = students.fid
    monkeypatch.setattr(students, "fid", lambda a, b: asked.append(len(b)) or plain(a, b))
    figures, halves = students.set_figures(real, drawn, groups)
    assert asked[0] == 40
    assert set(asked[1:]) == {20}  # four of eight prompts, five pictures each
    assert len(halves) == len(asked) - 1
    assert figures[0].value == pytest.approx(fid(real, drawn))
    assert students.set_figures(real, drawn[:10], groups[:10]) == ([], ())


# The goals, on rows whose figures are given


def row(
    world: World, name: str, right: Sequence[bool], value: float, *, spread: float = 0.01, **fields: Any
) -> Row:
    halves = tuple(value * (1 + spread * (-1) ** k) for k in range(20))
    entrant, _, steps = name.partition("-")
    figures = (
        Figure(name="fid", text="FID", value=value, n=20),
        Figure(name="top1", text="concept first", value=float(np.mean(right)), low=0.2, high=0.8, n=20),
    )
    values: dict[str, Any] = {
        "name": name, "entrant": entrant, "method": entrant, "steps": int(steps.partition("-")[0]),
        "solver": "ddim", "guidance_scale": 2.0 if entrant == TEACHER else 1.0, "guidance_rescale": 0.0,
        "weights": "w" * 64, "teacher": "w" * 64, "engine": {"backend": "fake"},
        "evaluations": 64 if entrant == TEACHER else int(steps), "figures": figures,
        "right": "".join("01"[bool(answer)] for answer in right), "fid_halves": halves, "key": name,
    }  # fmt: skip
    return Row(**(values | fields))


def table_of(world: World, *rows: Row) -> Table:
    return Table(subject=world.subject, rows=rows)


HALF = [True, False] * 10


def test_differences_and_ratios_are_taken_in_pairs(world: World) -> None:
    teacher = row(world, BASE_ROW, HALF, 2.0, spread=0.5)
    same = against(row(world, "flash-4", HALF, 3.0, spread=0.5), teacher, world.subject)
    # the halves of both move together, so the ratio does not move, however wide the two intervals are
    assert same.fid == pytest.approx((1.5, 1.5, 1.5))
    assert same.accuracy == (0.0, 0.0, 0.0)
    assert same.evaluations == 16
    worse = against(row(world, "flash-4", [False] * 20, 3.0, spread=-0.5), teacher, world.subject)
    # half of the prompts are wrong in every picture now: of four prompts that is hardly known at all
    assert (worse.accuracy.value, worse.accuracy.low) == (-0.5, -1.0)
    assert worse.fid is not None and worse.fid.low < 1.0 < 1.5 < worse.fid.high
    without = dataclasses.replace(teacher, fid_halves=())
    assert against(without, teacher, world.subject).fid is None
    with pytest.raises(UsageError, match="other numbers of pictures"):
        against(dataclasses.replace(teacher, right="01"), teacher, world.subject)


@pytest.mark.parametrize(
    ("right", "value", "fields", "met", "words"),
    [
        ([True] * 20, 2.1, {}, True, ("4 steps without guidance: met by flash-4", "1.05x", "16 times fewer")),
        (HALF, 2.1, {}, True, ("+0.0 points [+0.0, +0.0] of the teacher's",)),
        ([False] * 20, 2.1, {}, False, ("missed by flash-4: prompt accuracy -50.0 points",)),
        ([True] * 20, 2.4, {}, False, ("1.20x", "wanted 1.10x or less: missed")),
        ([True] * 20, 2.1, {"evaluations": 8}, False, ("8 times fewer network evaluations", "16: missed")),
        ([True] * 20, 2.1, {"spread": -0.2}, True, ("met, though the interval reaches over the limit",)),
    ],
)  # fmt: skip
def test_goals_are_met_or_missed_in_words(
    world: World, right: list[bool], value: float, fields: dict[str, Any], met: bool, words: tuple[str, ...]
) -> None:
    teacher = row(world, BASE_ROW, HALF, 2.0)
    found = verdict(GOALS[0], table_of(world, teacher, row(world, "flash-4", right, value, **fields)))
    assert found.met is met
    assert found.row == "flash-4"
    assert all(word in found.text for word in words), found.text
    assert found.text in studentpages.markdown(
        table_of(world, teacher, row(world, "flash-4", right, value, **fields))
    )


def test_the_best_student_counts_and_guided_rows_do_not(world: World) -> None:
    teacher = row(world, BASE_ROW, HALF, 2.0)
    inexact = row(world, "a-4", [False] * 20, 1.0)
    good, better = row(world, "b-4", HALF, 2.15), row(world, "c-4", HALF, 2.1)
    guided = row(world, "d-4", HALF, 1.0, guidance_scale=2.0)
    found = verdict(GOALS[0], table_of(world, teacher, inexact, good, better, guided))
    assert (found.row, found.met) == ("c-4", True)
    # the goal of one step asks nothing of the accuracy
    one = verdict(GOALS[1], table_of(world, teacher, row(world, "a-1", [False] * 20, 2.6)))
    assert (one.row, one.met) == ("a-1", True)
    assert "accuracy" not in one.text


def test_without_the_rows_nothing_is_decided(world: World) -> None:
    student = row(world, "flash-4", HALF, 2.0)
    for table, reason in (
        (table_of(world, student), "teacher-32 is not measured"),
        (table_of(world, row(world, BASE_ROW, HALF, 2.0)), "no student of that kind"),
        (
            table_of(world, row(world, BASE_ROW, HALF, 2.0), dataclasses.replace(student, figures=())),
            "FID is not",
        ),
    ):
        found = verdict(GOALS[0], table)
        assert found.met is None
        assert f"not decided, {reason}" in found.text
    card = dataclasses.replace(world.subject.evaluator, feature_dims=256)
    subject = dataclasses.replace(world.subject, evaluator=card)
    table = Table(subject=subject, rows=(row(world, BASE_ROW, HALF, 2.0), student))
    assert "not decided, FID of 20 pictures says too little" in verdict(GOALS[0], table).text


def test_trainings_of_two_seeds_stand_side_by_side(world: World) -> None:
    def trained(name: str, seed: int, stages: tuple[str, ...] = ("flash",)) -> Row:
        training = Training(
            seed=seed, stages=stages, minutes=60.0, images=1, batch_size=1, threads=2, data=None
        )
        return row(world, name, HALF, 2.0, method="flash", training=training)

    table = table_of(world, trained("flash-4", 0), trained("flash2-4", 1), trained("flash-1", 0))
    [(what, rows)] = seeds(table)
    assert what == "flash, 4 steps"
    assert [r.name for r in rows] == ["flash-4", "flash2-4"]
    assert "| flash, 4 steps | flash2-4 | 1 |" in studentpages.markdown(table)
    assert seeds(table_of(world, trained("a-4", 0), trained("b-4", 0))) == []


# Times, plot and sheet


def test_rows_are_timed_in_turns_after_a_first_call(world: World) -> None:
    backend = FakeBackend(students={"flash": (4,)})
    engine = Engine(backend=backend)
    base, student = (
        Sampling(num_inference_steps=8, student="none"),
        Sampling(num_inference_steps=4, student="flash"),
    )
    rows = [Timed(BASE_ROW, "w" * 64, engine, base), Timed("flash-4", "w" * 64, engine, student)]
    # a second for every call of the denoiser: eight guided ones in one call each, four others
    found = take_turns(rows, world.jobs(), 3, clock=lambda: float(backend.calls))
    assert [(t.row, t.median, t.least, t.most, t.speedup) for t in found] == [
        (BASE_ROW, 8000.0, 8000.0, 8000.0, 1.0),
        ("flash-4", 4000.0, 4000.0, 4000.0, 2.0),
    ]
    assert backend.calls == (3 + 1) * (8 + 4)
    table = table_of(
        world, row(world, BASE_ROW, HALF, 2.0), row(world, "flash-4", HALF, 2.0, weights="v" * 64)
    )
    page = studentpages.markdown(
        dataclasses.replace(table, times=Times(rounds=3, machine={"cores": "2"}, rows=tuple(found)))
    )
    assert "| 8000 |" in page
    assert "| 4000 |" not in page  # timed with other weights
    with pytest.raises(UsageError, match="0 rows"):
        take_turns([], world.jobs(), 3)


def test_pages_hold_every_row_and_the_plot_is_drawn(world: World, tmp_path: Path) -> None:
    rows = [
        row(world, BASE_ROW, HALF, 2.0),
        row(world, "teacher-4-ddim", HALF, 4.0),
        row(world, "flash-4", HALF, 2.1),
        row(world, "flash-1", HALF, 3.0),
    ]
    table = table_of(world, *reversed(rows))
    page = studentpages.markdown(table)
    places = [page.index(f"| {r.name} |") for r in rows]
    assert places == sorted(places)
    assert "| real drawings |" in page
    assert "| flash-4 | 4 | ddim | none | 4 |" in page
    assert "1.05x [" in page
    assert not studentpages.plot(table_of(world, rows[2]), tmp_path / "none.png")
    assert studentpages.plot(table, tmp_path / "steps.png")
    first = (tmp_path / "steps.png").read_bytes()
    studentpages.plot(table_of(world, *rows[:2]), tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes() != first


def test_sheets_show_the_pictures_that_were_judged(world: World) -> None:
    models = Models()
    grow(Table(subject=world.subject), world, entrants(), models, wanted=few)
    before = models.calls()
    student = entrants()[1]
    engine = models(student.folder)
    rows = [planned for planned in plan(student, engine.info) if planned.name in FEW]
    found = sheet_pictures(engine, rows, world, 5)
    assert {name: (steps, len(pictures)) for name, (steps, pictures) in found.items()} == {
        "flash-1": (1, 5),
        "flash-4": (4, 5),
    }
    assert models.calls() == before


def test_json_that_is_no_table_is_refused(world: World) -> None:
    text = Table(subject=world.subject).to_json()
    for broken, words in (
        ("[]", "not one that fewstep wrote"),
        (text.replace('"version": 1', '"version": 2'), "version 2"),
        (json.dumps(json.loads(text) | {"more": 1}), "more"),
    ):
        with pytest.raises(DataError, match=words):
            Table.from_json(broken)
