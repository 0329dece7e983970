"""What every model of one selection is measured against: the evaluator on real drawings, computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fewstep.data import split
from fewstep.data.backgrounds import RGB
from fewstep.data.compositions import Composition
from fewstep.data.emoji import Drawings
from fewstep.data.preparation import Selection
from fewstep.errors import Cancelled, DataError
from fewstep.evaluation import accuracy, judging
from fewstep.evaluation.featurenets import FeatureNet
from fewstep.evaluation.judging import Judge, Pictures, Verdicts
from fewstep.evaluation.manifolds import nearest
from fewstep.evaluation.promptsets import chosen, prompt_of
from fewstep.evaluation.report import Confusion, EvaluatorCard, Figure

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told (what is done, done, total)."""
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many real pictures are looked at, at most; the first ones of a stratified order."""

    combinations: int = 1024
    """Held-out combinations that the evaluator is tested on."""
    objects: int = 512
    """Compositions of objects held out whole."""
    reference: int = 2048
    """Training compositions that distances between sets are computed against."""
    trained: int = 8192
    """Training compositions among which nearest ones are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Everything that does not depend on the model.

    Attributes:
        evaluator: judges pictures.
        net: features for distances between sets; the evaluator's own, or Inception's.
        drawings: the set.
        selection: what models are taken to be trained on.
        card: the evaluator's, for reports.
        trained: T training compositions.
        trained_features: float32 (T, F), the evaluator's.
        set_features: float32 (R, F'), the net's, of the first R training compositions.
        held_out_distance: median distance of real held-out combinations to the nearest training composition.
    """

    evaluator: Judge
    net: FeatureNet
    drawings: Drawings
    selection: Selection
    card: EvaluatorCard
    trained: tuple[Composition, ...]
    trained_features: NDArray[np.float32]
    set_features: NDArray[np.float32]
    held_out_distance: float | None

    @property
    def backgrounds(self) -> Mapping[str, RGB]:
        """Name to colour, the evaluator's."""
        return self.evaluator.backgrounds

    def features_for_sets(self, pictures: Pictures, verdicts: Verdicts) -> NDArray[np.float32]:
        """Features (N, F') of pictures for distances between sets; judged pictures are not computed twice."""
        return verdicts.features if self.net.hash == self.evaluator.hash else self.net(pictures)


def prepare(
    evaluator: Judge,
    net: FeatureNet,
    drawings: Drawings,
    selection: Selection,
    *,
    name: str = "emoji-evaluator",
    limits: Limits | None = None,
    on_progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Reference:
    """Run the evaluator on real drawings: its own accuracy, and the features that models are compared with.

    Args:
        evaluator: ours, frozen.
        net: see `fewstep.evaluation.featurenets.choose`.
        drawings: the set that the evaluator was trained on.
        selection: what the models are trained on.
        name: of the evaluator, for reports.
        limits: how many pictures.
        on_progress: told how far it is.
        cancelled: asked between batches.

    Raises:
        UsageError: the evaluator does not know a concept of the drawings.
        DataError: the selection holds no drawing.
        Cancelled: ``cancelled`` said so.
    """
    limits = limits or Limits()
    items, backgrounds = drawings.items, evaluator.backgrounds
    if evaluator.meta.get("drawings") not in (None, drawings.fingerprint):
        logger.warning("the evaluator was trained on another version of the drawing set")
    card = _card(evaluator, net, drawings, name, limits, on_progress, cancelled)
    trained = chosen(items, backgrounds, selection, "train", limits.trained)

    def evaluated(pictures: Pictures) -> NDArray[np.float32]:
        return evaluator.run(pictures).features

    features = in_chunks(evaluated, drawings, trained, "training drawings", on_progress, cancelled)
    first = trained[: limits.reference]
    shared = net.hash == evaluator.hash
    return Reference(
        evaluator=evaluator,
        net=net,
        drawings=drawings,
        selection=selection,
        card=card,
        trained=tuple(trained),
        trained_features=features,
        set_features=features[: len(first)]
        if shared
        else in_chunks(net, drawings, first, net.name, on_progress, cancelled),
        held_out_distance=_held_out_distance(evaluator, drawings, selection, features),
    )


def in_chunks(
    compute: Callable[[Pictures], NDArray[Any]],
    drawings: Drawings,
    items: Sequence[Composition],
    what: str,
    on_progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> NDArray[Any]:
    """Compute something of the pictures of compositions, a part at a time.

    Raises:
        Cancelled: ``cancelled`` said so.
    """
    parts = []
    for start in range(0, len(items), _CHUNK):
        _check(cancelled, start, len(items), what)
        parts.append(compute(judging.composed(drawings, items[start : start + _CHUNK])))
        if on_progress is not None:
            on_progress(what, min(start + _CHUNK, len(items)), len(items))
    return np.concatenate(parts)


def _card(
    evaluator: Judge,
    net: FeatureNet,
    drawings: Drawings,
    name: str,
    limits: Limits,
    on_progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> EvaluatorCard:
    """Test the evaluator on all that was held out of the drawing set, whatever a model was trained on."""
    figures: list[Figure] = []
    logits, wanted = [], []
    at = {label: index for index, label in enumerate(evaluator.labels)}
    parts: tuple[tuple[split.Part, int, str], ...] = (
        ("combination", limits.combinations, "unseen combinations"),
        ("object", limits.objects, "objects unseen as a whole"),
    )
    for part, limit, text in parts:
        try:
            items = chosen(drawings.items, evaluator.backgrounds, Selection(), part, limit)
        except DataError:
            continue  # a small set may hold none
        judged = []
        for start in range(0, len(items), _CHUNK):
            _check(cancelled, start, len(items), text)
            chunk = items[start : start + _CHUNK]
            pictures = judging.composed(drawings, chunk)
            output = evaluator.run(pictures)
            judged.append(
                judging.verdicts_of(evaluator, output, [prompt_of(item, part) for item in chunk], pictures)
            )
            logits.append(output.concept_logits)
            wanted += [at[item.label] for item in chunk]
            if on_progress is not None:
                on_progress(text, start + len(chunk), len(items))
        verdicts = judging.joined(judged)
        figures += [
            Figure(
                name=f"{part}_{figure.name}",
                text=figure.text,
                value=figure.value,
                low=figure.low,
                high=figure.high,
                n=figure.n,
                chance=figure.chance,
                better="higher",
                unit="%",
            )
            for figure in judging.figures(verdicts, evaluator)
            if figure.name != "all"
        ]
    pairs = accuracy.twins(np.concatenate(logits), np.array(wanted, np.int64)) if logits else ()
    # Most errors first: a pair of two drawings that are confused once is no news.
    confused = sorted(pairs, key=lambda pair: (-pair.errors, -pair.rate, pair.first, pair.second))[:20]
    seen = evaluator.meta.get("images_seen")
    return EvaluatorCard(
        name=name,
        hash=evaluator.hash,
        concepts=len(evaluator.labels),
        images_seen=seen if isinstance(seen, int) else None,
        figures=tuple(figures),
        confusions=tuple(
            Confusion(
                first=evaluator.labels[pair.first],
                second=evaluator.labels[pair.second],
                errors=pair.errors,
                drawings=pair.drawings,
            )
            for pair in confused
        ),
        feature_net=net.name,
        feature_hash=net.hash,
        feature_dims=net.dims,
    )


def _check(cancelled: Callable[[], bool] | None, done: int, total: int, what: str) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled(f"stopped by request after {done} of {total} {what}")


def _held_out_distance(
    evaluator: Judge, drawings: Drawings, selection: Selection, trained: NDArray[np.float32]
) -> float | None:
    try:
        items = chosen(drawings.items, evaluator.backgrounds, selection, "combination", _CHUNK)
    except DataError:
        return None
    features = evaluator.run(judging.composed(drawings, items)).features
    return float(np.median(nearest(features, trained).distance[:, 0]))
