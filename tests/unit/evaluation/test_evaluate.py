"""A whole evaluation in the small world, by a model that draws the real drawings and one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.data import split
from fewstep.data.emoji import Drawings
from fewstep.data.preparation import Selection
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import Cancelled, UsageError
from fewstep.evaluation import evaluate as module
from fewstep.evaluation import judging, pages
from fewstep.evaluation.drawing import Job
from fewstep.evaluation.evaluate import SEEDS, STRIDE, Evaluation, compare, evaluate, measure
from fewstep.evaluation.featurenets import from_evaluator
from fewstep.evaluation.promptsets import EvalPrompt, build
from fewstep.evaluation.reference import Limits, Reference, prepare
from fewstep.evaluation.report import Comparison, Report

LIMITS = Limits(combinations=20, objects=20, reference=40, trained=60)


@pytest.fixture
def reference(judge: Any, drawings: Drawings, selection: Selection) -> Reference:
    return prepare(judge, from_evaluator(judge), drawings, selection, name="perfect", limits=LIMITS)


def prompts_of(reference: Reference, name: str, n: int) -> list[EvalPrompt]:
    items, backgrounds = reference.drawings.items, reference.backgrounds
    return build(name, n, items=items, backgrounds=backgrounds, selection=reference.selection)


def figures_of(report: Any) -> dict[str, Any]:
    return {figure.name: figure for figure in report.figures}


def test_the_card_says_how_good_the_evaluator_is_on_what_it_never_saw(reference: Reference) -> None:
    card = reference.card
    found = figures_of(card)
    assert found["combination_top1"].value == found["object_top1"].value == 1.0
    # held-out objects: goose and bell, in two styles, on sixteen backgrounds, whatever models are trained on
    assert found["object_top1"].n == 20
    assert card.confusions == ()
    assert (card.concepts, card.images_seen, card.feature_hash) == (8, 5000, "e" * 64)
    assert {item.label for item in reference.trained} == {"red apple", "pizza", "fox", "owl", "dog", "frog"}
    assert all(split.part(i.label, i.style, i.background) == "train" for i in reference.trained)
    assert len(reference.trained) == 6 * 2 * 4  # objects, styles, backgrounds a drawing
    assert len(reference.set_features) == min(40, len(reference.trained))
    np.testing.assert_array_equal(
        reference.set_features, reference.trained_features[: len(reference.set_features)]
    )


def test_confusions_are_the_evaluators_own_errors(
    judge: Any, drawings: Drawings, selection: Selection
) -> None:
    plain = type(judge).run

    class Confused(type(judge)):  # type: ignore[misc]
        def run(self, pixels: Any) -> Any:
            found = plain(self, pixels)
            found.concept_logits[:, self.labels.index("fox")] = -1e9  # a fox is never seen
            return found

    other = Confused()
    card = prepare(other, from_evaluator(other), drawings, selection, limits=Limits(combinations=1000)).card
    assert card.figures[0].value < 1
    assert card.confusions
    assert all("fox" in (pair.first, pair.second) for pair in card.confusions)


def test_a_model_that_draws_the_real_drawings_reaches_everything(reference: Reference) -> None:
    prompts = prompts_of(reference, "seen", 30)
    _, pictures = judging.real_pictures(prompts, reference.drawings, reference.backgrounds, ())
    result, part = measure(reference, "seen", prompts, pictures)
    found = figures_of(part)
    for name in ("top1", "top5", "style", "background", "all", "precision", "nearest_own"):
        assert found[name].value == 1.0, name
    for name in ("fid", "kid", "precision", "recall", "top1"):
        assert found[name].value == pytest.approx(found[name].real, abs=1e-9), name
    assert found["nearest"].value == 0.0
    near = [reference.trained[row].captions[0] for row in result.neighbours.row[:, 0]]
    assert near == [prompt.text for prompt in prompts]


def test_held_out_objects_have_no_distances_and_no_own_training_drawing(reference: Reference) -> None:
    prompts = prompts_of(reference, "object", 20)
    assert {p.label for p in prompts} == {"goose"}  # the bell is in no group of this model
    _, pictures = judging.real_pictures(prompts, reference.drawings, reference.backgrounds, ())
    _, part = measure(reference, "object", prompts, pictures)
    assert set(figures_of(part)) == {"top1", "top5", "style", "background", "all", "nearest"}
    assert figures_of(part)["nearest"].value > 0


def run(reference: Reference, folder: Path | None = None, **settings: Any) -> Evaluation:
    engine = Engine(backend=FakeBackend())
    sets = {"seen": prompts_of(reference, "seen", 6), "object": prompts_of(reference, "object", 2)}
    return evaluate(engine, reference, sets, folder=folder, **({"diversity": 2} | settings))


def test_an_evaluation_reports_what_it_did(reference: Reference, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = run(reference, tmp_path, seed=5, images_seen=7, on_progress=lambda *what: told.append(what))
    report = found.report
    assert Report.from_json(report.to_json()) == report
    assert [part.name for part in report.sets] == ["seen", "object", "diversity"]
    assert [part.images for part in report.sets] == [6, 2, 2 * SEEDS]
    assert (report.model.seed, report.model.images_seen, report.model.num_inference_steps) == (5, 7, 5)
    assert report.selection["styles"] == ["noto", "twemoji"]
    assert figures_of(report.sets[2])["diversity_pixels"].n == 2
    assert figures_of(report.sets[2])["diversity"].real > 0  # the two styles of each concept
    assert ("seen", 6, 6) in told
    assert ("diversity", 8, 8) in told
    # the first seed of each prompt is the set's own picture: kept, not drawn again
    assert len(list(tmp_path.iterdir())) == 6 + 2 + 2 * (SEEDS - 1)


def test_seeds_follow_from_the_place_in_the_set(reference: Reference, monkeypatch: Any) -> None:
    asked: list[Job] = []
    plain = module.draw
    monkeypatch.setattr(
        module, "draw", lambda e, jobs, *a, **k: asked.extend(jobs) or plain(e, jobs, *a, **k)
    )
    run(reference, seed=5)
    assert [job.seed for job in asked[:8]] == [5, 6, 7, 8, 9, 10, 5, 6]
    assert [job.seed for job in asked[8:12]] == [5, 5 + STRIDE, 5 + 2 * STRIDE, 5 + 3 * STRIDE]
    assert len({job.prompt for job in asked[8:12]}) == 1


def test_an_evaluation_stops_when_asked_and_keeps_what_it_drew(reference: Reference, tmp_path: Path) -> None:
    backend = FakeBackend()
    sets = {"seen": prompts_of(reference, "seen", 40)}

    def go(**settings: Any) -> Evaluation:
        return evaluate(Engine(backend=backend), reference, sets, folder=tmp_path, diversity=0, **settings)

    with pytest.raises(Cancelled):
        go(cancelled=lambda: backend.calls >= 7)
    assert len(list(tmp_path.iterdir())) == 16  # the first batch
    whole = go()
    fresh = evaluate(Engine(backend=FakeBackend()), reference, sets, diversity=0)
    np.testing.assert_array_equal(whole.sets[0].pictures, fresh.sets[0].pictures)
    assert whole.report.sets == fresh.report.sets


def test_models_are_compared_in_pairs(reference: Reference) -> None:
    one = run(reference)
    prompts = one.sets[0].prompts
    _, pictures = judging.real_pictures(prompts, reference.drawings, reference.backgrounds, ())
    result, part = measure(reference, "seen", prompts, pictures)
    report = one.report
    better = Evaluation(
        report=type(report)(
            **{**{f: getattr(report, f) for f in report.__slots__}, "sets": (part, *report.sets[1:])}
        ),
        sets=(result, *one.sets[1:]),
    )
    found = compare([one, better, one])
    assert Comparison.from_json(found.to_json()) == found
    gain = next(d for d in found.differences if (d.set, d.figure, d.model) == ("seen", "top1", "B"))
    own = figures_of(one.report.sets[0])["top1"].value
    assert gain.value == pytest.approx(1 - own)
    assert gain.low <= gain.value <= gain.high
    assert all(d.value == d.low == d.high == 0 for d in found.differences if d.model == "C")
    with pytest.raises(UsageError, match="two models"):
        compare([one])
    other = run(reference, diversity=0)
    shorter = Evaluation(
        report=other.report,
        sets=tuple(
            type(s)(
                name=s.name,
                prompts=s.prompts[:1],
                pictures=s.pictures[:1],
                verdicts=s.verdicts,
                neighbours=s.neighbours,
            )
            for s in other.sets
        ),
    )
    with pytest.raises(UsageError, match="other prompts"):
        compare([one, shorter])


def test_pages_hold_the_report_a_line_a_picture_and_the_sheets(reference: Reference, tmp_path: Path) -> None:
    found = run(reference, seed=3)
    files = pages.write(tmp_path / "a", found, reference)
    names = {file.name for file in files}
    assert {"report.json", "report.md", "images.jsonl", "contact-seen.png", "nearest-object.png"} <= names
    assert all(file.is_file() for file in files)
    assert Report.from_json((tmp_path / "a" / "report.json").read_text()) == found.report
    rows = [json.loads(line) for line in (tmp_path / "a" / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    first, prompt = rows[1], found.sets[0].prompts[1]
    assert (first["prompt"], first["seed"], first["part"]) == (prompt.text, 4, "train")
    assert first["rank"] == int(found.sets[0].verdicts.rank[1])
    assert first["answers"][0] in reference.evaluator.labels
    comparison = compare([found, found])
    both = pages.write_comparison(tmp_path, {"a": found, "b": found}, comparison)
    assert {file.name for file in both} == {
        "compare.json", "compare.md", "compare-seen.png", "compare-object.png",
    }  # fmt: skip


def test_a_curve_is_drawn_where_cards_say_how_many_images(reference: Reference, tmp_path: Path) -> None:
    several = [run(reference, images_seen=images, diversity=0) for images in (100, 1000)]
    files = pages.write_comparison(tmp_path, dict(zip("ab", several, strict=True)), compare(several))
    assert "curve-seen.png" in {file.name for file in files}


def test_sets_without_prompts_are_refused(reference: Reference) -> None:
    with pytest.raises(UsageError, match="without prompts"):
        evaluate(Engine(backend=FakeBackend()), reference, {"seen": []})


def test_folder_names_are_plain_and_never_shared() -> None:
    assert pages.folder_name("emoji-128", []) == "emoji-128"
    assert pages.folder_name("emoji-128", ["emoji-128"]) == "emoji-128-2"
    assert pages.folder_name("../a b", []) == "a-b"
    with pytest.raises(UsageError, match="letters or digits"):
        pages.folder_name("..", [])


def test_the_autoencoder_is_measured_on_held_out_drawings(
    reference: Reference, tiny_components: Any, tmp_path: Path
) -> None:
    from fewstep.evaluation import reconstruction

    tiny_components.autoencoder.save_pretrained(tmp_path / "vae")
    found = run(reference, autoencoder=tmp_path / "vae", diversity=0).report
    psnr, ssim = found.autoencoder
    held_out = reconstruction.held_out(reference.drawings, reference.backgrounds)
    made = reconstruction.reconstruct(tiny_components.autoencoder, held_out.images)
    assert psnr.value == pytest.approx(made.psnr.mean(), abs=1e-3)
    assert ssim.value == pytest.approx(made.ssim.mean(), abs=1e-4)
    assert psnr.n == 4  # goose and bell in two styles
    assert found.autoencoder_hash
