"""The networks whose features FID, KID, precision and recall compare: ours, or Inception when it is here.

A figure means nothing without its network, so a network carries its name and hash, and both are printed. At
most 512 features: a covariance of more needs more pictures than a small evaluation draws. Of Inception v3
that leaves the layer after the second pooling, 192 features, as torchmetrics offers it; its figures are not
those that papers report of 2048. Nothing is fetched: a weights file is used when it is there, and the name
says when it is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import CheckpointError, DependencyError, NotFoundError, UsageError

Pictures = NDArray[np.uint8]
"""(B, H, W, 3), sRGB."""

MOST_FEATURES: Final = 512
INCEPTION_FILE: Final = "pt_inception-2015-12-05-6726825d.pth"
"""The weights as torch-fidelity publishes them; the digits are the beginning of the file's SHA-256."""
INCEPTION_LAYER: Final = 192
NO_INCEPTION: Final = "no Inception weights here"


class FeatureNet(Protocol):
    """A frozen network from pictures to features.

    Attributes:
        name: what it is, for people; printed with every figure.
        hash: SHA-256 of its weights, hex digits.
        dims: number of features F, at most 512.
    """

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def hash(self) -> str:
        """SHA-256 of its weights, hex digits."""

    @property
    def dims(self) -> int:
        """Number of features."""

    def __call__(self, pictures: Pictures) -> NDArray[np.float32]:
        """Features (B, F) of pictures uint8 (B, H, W, 3)."""


class _Output(Protocol):
    @property
    def features(self) -> NDArray[np.float32]: ...


class RunsEvaluator(Protocol):
    """What is asked of a loaded evaluator: its hash, and features of pictures."""

    @property
    def hash(self) -> str:
        """SHA-256 of its weights, hex digits."""

    def run(self, pixels_uint8: Pictures, /) -> _Output:
        """Outputs with ``features`` (B, F)."""


@dataclass(frozen=True, slots=True)
class _Net:
    name: str
    hash: str
    dims: int
    compute: Callable[[Pictures], NDArray[np.float32]]

    def __call__(self, pictures: Pictures) -> NDArray[np.float32]:
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
            raise UsageError(f"pictures are {pictures.dtype} {pictures.shape}: give uint8 (B, H, W, 3)")
        if not len(pictures):
            return np.zeros((0, self.dims), np.float32)
        return self.compute(pictures)


def from_evaluator(evaluator: RunsEvaluator, *, name: str = "fewstep evaluator") -> FeatureNet:
    """Features of our own evaluator, after its global average pooling.

    Args:
        evaluator: a ``LoadedEvaluator`` of `fewstep.models.features`, or anything like it.
        name: what to print.

    Raises:
        UsageError: it has more than 512 features.
    """
    dims = int(evaluator.run(np.zeros((1, 128, 128, 3), np.uint8)).features.shape[1])
    _check_dims(name, dims)
    return _Net(
        name, evaluator.hash, dims, lambda pictures: np.asarray(evaluator.run(pictures).features, np.float32)
    )


def inception(weights: Path, *, batch_size: int = 16) -> FeatureNet:
    """Inception v3 as torchmetrics builds it for FID, from a weights file that is here.

    Args:
        weights: ``pt_inception-2015-12-05-6726825d.pth``. It is a pickle, which torch-fidelity opens, so only
            the one published file is let through: its SHA-256 must begin with the digits of the name.
        batch_size: pictures in memory at a time; each becomes 299 x 299.

    Raises:
        NotFoundError: no such file.
        CheckpointError: another file.
        DependencyError: torch-fidelity is missing.
    """
    if not weights.is_file():
        raise NotFoundError(f"{weights}: no such file; give {INCEPTION_FILE}, or leave Inception out")
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = Path(INCEPTION_FILE).stem.rpartition("-")[2]
    if not digest.startswith(expected):
        raise CheckpointError(
            f"{weights}: its SHA-256 begins with {digest[:8]}, not {expected}; fetch {INCEPTION_FILE} again"
        )
    network = _inception_network(weights)

    def compute(pictures: Pictures) -> NDArray[np.float32]:
        import torch

        parts = []
        with torch.no_grad():
            for start in range(0, len(pictures), batch_size):
                part = np.ascontiguousarray(pictures[start : start + batch_size].transpose(0, 3, 1, 2))
                parts.append(network(torch.from_numpy(part)).float().numpy())
        return np.concatenate(parts)

    name = f"Inception v3 (2015-12-05), {INCEPTION_LAYER} features after the second pooling"
    return _Net(name, digest, INCEPTION_LAYER, compute)


def choose(evaluator: RunsEvaluator, *, weights: Path | None = None) -> FeatureNet:
    """Inception when its weights are here and can be used, else our evaluator, with the reason in its name.

    Args:
        evaluator: ours.
        weights: Inception's weights; default where torch keeps its downloads.

    Raises:
        NotFoundError: ``weights`` was given and is not there.
        CheckpointError: a weights file of that name with another content.
        DependencyError: ``weights`` was given and torch-fidelity is missing.
    """
    if weights is not None:
        return inception(weights)
    found = inception_weights()
    if found is None:
        return from_evaluator(evaluator, name=f"fewstep evaluator ({NO_INCEPTION})")
    try:
        return inception(found)
    except DependencyError:
        return from_evaluator(evaluator, name="fewstep evaluator (Inception weights, but no torch-fidelity)")


def inception_weights() -> Path | None:
    """Inception's weights in torch's folder of downloads (``TORCH_HOME``), or None; nothing is fetched."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return path if path.is_file() else None


def _inception_network(weights: Path) -> Any:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_LAYER)], str(weights))
    except ModuleNotFoundError as error:
        raise DependencyError("Inception features need torch-fidelity: pip install torch-fidelity") from error


def _check_dims(name: str, dims: int) -> None:
    if not 1 <= dims <= MOST_FEATURES:
        raise UsageError(f"{name} has {dims} features: take a network with 1 to {MOST_FEATURES}")
