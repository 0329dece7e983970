"""The whole evaluation of one model: draw the prompt sets, judge the pictures, and report.

Image i of a set is drawn from seed + i, the same for every model, so that models can be compared picture by
picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fewstep import __version__
from fewstep.engine.engine import Engine
from fewstep.errors import UsageError
from fewstep.evaluation import judging, setfigures
from fewstep.evaluation.drawing import Job, Sampling, draw
from fewstep.evaluation.intervals import mean_interval
from fewstep.evaluation.judging import Pictures, Verdicts
from fewstep.evaluation.manifolds import Neighbours, nearest
from fewstep.evaluation.promptsets import EvalPrompt
from fewstep.evaluation.reference import Progress, Reference
from fewstep.evaluation.report import Comparison, Difference, Figure, ModelCard, Report, SetReport

SEEDS: Final = 4
"""Pictures of each prompt that diversity is measured of."""
STRIDE: Final = 1_000_000
"""Between the seeds of one prompt's pictures."""
_COMPARED: Final = ("top1", "top5", "style", "background", "all")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetResult:
    """One prompt set of one model, for plots and comparisons.

    Attributes:
        name: of the set.
        prompts: N prompts.
        pictures: (N, H, W, 3).
        verdicts: of the pictures.
        neighbours: nearest training compositions, rows of `Reference.trained`.
    """

    name: str
    prompts: tuple[EvalPrompt, ...]
    pictures: Pictures
    verdicts: Verdicts
    neighbours: Neighbours


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured of one model, and the pictures behind it."""

    report: Report
    sets: tuple[SetResult, ...]


def evaluate(
    engine: Engine,
    reference: Reference,
    sets: Mapping[str, Sequence[EvalPrompt]],
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    diversity: int = 16,
    autoencoder: Path | None = None,
    images_seen: int | None = None,
    folder: Path | None = None,
    on_progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """Draw and judge every set.

    Args:
        engine: an open model that nobody else uses meanwhile.
        reference: from `fewstep.evaluation.reference.prepare`.
        sets: name to prompts.
        sampling: how to draw; default the model's own way.
        seed: of the first picture of each set.
        diversity: prompts of the first set that are drawn with `SEEDS` seeds; 0 for none.
        autoencoder: folder of an ``AutoencoderKL`` to measure as well.
        images_seen: of the model's training, for the report.
        folder: where pictures are kept, so that an interrupted evaluation goes on.
        on_progress: told (what is done, done, total).
        cancelled: asked before every step of drawing.

    Raises:
        UsageError: no prompts, a setting out of range, or prompts that the evaluator does not know.
        Cancelled: ``cancelled`` said so; what was drawn is kept in ``folder``.
        EngineError, OutputError: as `fewstep.evaluation.drawing.draw`.
        CheckpointError, NotFoundError: the autoencoder cannot be loaded.
    """
    if not sets or not all(sets.values()):
        raise UsageError("there is a prompt set without prompts: give at least one prompt")
    chosen = sampling or Sampling()
    clock = {"draw": 0.0, "judge": 0.0}

    def drawn(what: str, jobs: Sequence[Job]) -> Pictures:
        started = time.perf_counter()
        report = None if on_progress is None else lambda done, total: on_progress(what, done, total)
        made = draw(engine, jobs, chosen, folder=folder, on_image=report, cancelled=cancelled)
        pictures = np.stack(list(made))
        clock["draw"] += time.perf_counter() - started
        return pictures

    results, parts = [], []
    for name, prompts in sets.items():
        pictures = drawn(name, [Job(prompt.text, seed + i) for i, prompt in enumerate(prompts)])
        started = time.perf_counter()
        result, part = measure(reference, name, prompts, pictures)
        clock["judge"] += time.perf_counter() - started
        results.append(result)
        parts.append(part)
    if diversity:
        first = next(iter(sets.values()))[:diversity]
        jobs = [Job(p.text, seed + i + j * STRIDE) for i, p in enumerate(first) for j in range(SEEDS)]
        parts.append(_diversity(reference, first, drawn("diversity", jobs)))
    card = _model_card(engine, chosen, next(iter(sets.values()))[0], seed, images_seen)
    copied, copied_hash = ((), None) if autoencoder is None else _autoencoder(reference, autoencoder)
    report = Report(
        fewstep=__version__,
        model=card,
        evaluator=reference.card,
        drawings=reference.drawings.fingerprint,
        selection=reference.selection.model_dump(mode="json"),
        sets=tuple(parts),
        autoencoder=copied,
        autoencoder_hash=copied_hash,
        seconds={name: round(seconds, 1) for name, seconds in clock.items()},
    )
    return Evaluation(report=report, sets=tuple(results))


def measure(
    reference: Reference, name: str, prompts: Sequence[EvalPrompt], pictures: Pictures
) -> tuple[SetResult, SetReport]:
    """Judge one picture of each prompt, whoever drew it.

    Raises:
        UsageError: the evaluator does not know a concept, style or background of the prompts.
    """
    evaluator = reference.evaluator
    verdicts = judging.judge(evaluator, prompts, pictures)
    places, real = judging.real_pictures(
        prompts, reference.drawings, reference.backgrounds, reference.selection.styles
    )
    real_verdicts = judging.judge(evaluator, [prompts[i] for i in places], real) if len(places) else None
    figures = judging.figures(verdicts, evaluator, real=real_verdicts)
    notes: list[str] = []
    if all(prompt.part in ("train", "combination", "free") for prompt in prompts):
        same = None if real_verdicts is None else reference.features_for_sets(real, real_verdicts)
        drawn = reference.features_for_sets(pictures, verdicts)
        more, notes = setfigures.set_distances(reference.set_features, drawn, same)
        figures += more
    neighbours = nearest(verdicts.features, reference.trained_features)
    wanted = [i for i, prompt in enumerate(prompts) if prompt.label is not None]
    found = neighbours.row[:, 0]
    own = np.array([reference.trained[found[i]].label == prompts[i].label for i in wanted], np.bool_)
    held_out = all(prompt.part == "object" for prompt in prompts)  # then no training drawing shows it
    figures += setfigures.nearest_figures(
        neighbours, own[:0] if held_out else own, real=reference.held_out_distance
    )
    result = SetResult(
        name=name, prompts=tuple(prompts), pictures=pictures, verdicts=verdicts, neighbours=neighbours
    )
    part = SetReport(
        name=name,
        prompts=len({prompt.text for prompt in prompts}),
        images=len(pictures),
        figures=tuple(figures),
        notes=tuple(notes),
    )
    return result, part


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """Put several models side by side, with paired differences of each to the first.

    Raises:
        UsageError: fewer than two models, or other prompts.
    """
    if len(evaluations) < 2:
        raise UsageError("a comparison needs two models or more")
    first = evaluations[0]
    differences = []
    for index, other in enumerate(evaluations[1:], start=1):
        for one, two in zip(first.sets, other.sets, strict=True):
            if one.prompts != two.prompts:
                raise UsageError(
                    f"{one.name}: the models have drawn other prompts; give them the same selection"
                )
            for name in _COMPARED:
                gain = judging.outcomes(two.verdicts, name) - judging.outcomes(one.verdicts, name)
                asked = gain[~np.isnan(gain)]
                figure = next(part for part in first.report.sets if part.name == one.name).figure(name)
                if figure is None:
                    continue
                interval = mean_interval(asked)
                differences.append(
                    Difference(
                        set=one.name,
                        figure=name,
                        text=figure.text,
                        model=chr(ord("A") + index),
                        over="A",
                        value=interval.value,
                        low=interval.low,
                        high=interval.high,
                        n=len(asked),
                    )
                )
    return Comparison(reports=tuple(e.report for e in evaluations), differences=tuple(differences))


def _diversity(reference: Reference, prompts: Sequence[EvalPrompt], pictures: Pictures) -> SetReport:
    owner = np.repeat(np.arange(len(prompts)), SEEDS)
    features = reference.evaluator.run(pictures).features
    real = _real_diversity(reference, prompts)
    figures = setfigures.diversity_figures(features, pictures, owner, real=real)
    return SetReport(
        name="diversity",
        prompts=len(prompts),
        images=len(pictures),
        figures=tuple(figures),
        notes=(f"{SEEDS} seeds of each prompt; beside it real drawings of the concept in different styles",),
    )


def _real_diversity(
    reference: Reference, prompts: Sequence[EvalPrompt]
) -> tuple[NDArray[np.float32], Pictures, NDArray[np.int64]] | None:
    """Every drawing of each prompt's concept, on its background, of concepts with two drawings or more."""
    asked, owner = [], []
    for i, prompt in enumerate(prompts):
        styles = [item.style for item in reference.drawings.items if item.label == prompt.label]
        if len(styles) > 1:
            asked += [EvalPrompt("", prompt.label, s, prompt.background, prompt.part) for s in styles]
            owner += [i] * len(styles)
    if not asked:
        return None
    _, pictures = judging.real_pictures(asked, reference.drawings, reference.backgrounds, ())
    return reference.evaluator.run(pictures).features, pictures, np.array(owner, np.int64)


def _model_card(
    engine: Engine, sampling: Sampling, prompt: EvalPrompt, seed: int, images_seen: int | None
) -> ModelCard:
    request = sampling.request(engine.info, Job(prompt.text, seed))
    name, weights = engine.info.name, engine.info.hash
    if request.student is not None:
        name, weights = f"{name}/{request.student}", engine.info.student(request.student).hash
    return ModelCard(
        name=name,
        hash=weights,
        engine=dict(engine.backend.describe(request.student)),
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        solver=request.solver,
        seed=seed,
        images_seen=images_seen,
    )


def _autoencoder(reference: Reference, folder: Path) -> tuple[tuple[Figure, ...], str]:
    from fewstep.checkpoint.safetensors import folder_hash
    from fewstep.evaluation import reconstruction
    from fewstep.models import load

    held_out = reconstruction.held_out(reference.drawings, reference.backgrounds)
    made = reconstruction.reconstruct(load.autoencoder(folder), held_out.images)
    figures = []
    for name, text, values, unit in (("psnr", "PSNR", made.psnr, "dB"), ("ssim", "SSIM", made.ssim, "")):
        finite = values[np.isfinite(values)]  # a perfect copy has an infinite PSNR
        interval = mean_interval(finite)
        figures.append(
            Figure(
                name=name,
                text=f"{text}, held-out objects",
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=len(finite),
                better="higher",
                unit=unit,
            )
        )
    return tuple(figures), folder_hash(folder)
