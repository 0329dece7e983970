"""What a user should know of a conversion, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fewstep.checkpoint.detect import Detected
from fewstep.checkpoint.half import Oddities
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.single_file import EMA

ARTICLES = {"lora": "a LoRA", "embedding": "an embedding", "taesd": "a tiny autoencoder (TAESD)"}


def about_prediction(detected: Detected) -> str:
    """By whose word the denoiser predicts what it is taken to predict."""
    words = {"epsilon": "noise", "v_prediction": "velocity"}
    said = {"name": "the file's name", "metadata": "the file's metadata"}[detected.prediction_source]
    predicted = words[str(detected.prediction_type)]
    return f"taken to predict {predicted}, by {said}; --prediction-type says otherwise"


def about_left_out(detected: Detected) -> list[str]:
    """How much of a file is no part of the model."""
    count = len(detected.left_out)
    if not count:
        return []
    averages = sum(name.startswith(EMA) for name in detected.left_out)
    besides = f", {averages} of them averaged weights (--ema takes these)" if averages else ""
    return [f"{count} tensors belong to no part of the model and are left out{besides}"]


def about_values(found: Iterable[Oddities]) -> list[str]:
    """Which values make a broken picture, or look as if something was not trained or not saved."""
    odds = list(found)
    broken = list(dict.fromkeys(name for odd in odds for name in odd.not_finite))
    zero = list(dict.fromkeys(name for odd in odds for name in odd.zero))
    notes = []
    if broken:
        notes.append(
            f"warning: {len(broken)} tensors hold values that are not finite, the first {shown(broken[0])}: "
            "pictures will be black"
        )
    if zero:
        notes.append(f"{len(zero)} matrices are all zero, the first {shown(zero[0])}")
    return notes


def about_tokenizers(lacking: Collection[str]) -> list[str]:
    """Which tokenizers a folder lacks, and how it gets them."""
    if not lacking:
        return []
    return [
        f"the folder has no {' and no '.join(lacking)} and draws nothing before it has: a single file holds "
        "none; convert again with --tokenizer FOLDER (a pipeline, or one with vocab.json and merges.txt)"
    ]
