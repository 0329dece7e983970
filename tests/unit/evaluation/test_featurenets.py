from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import CheckpointError, DependencyError, NotFoundError, UsageError
from fewstep.evaluation import featurenets
from fewstep.evaluation.featurenets import (
    INCEPTION_FILE,
    choose,
    from_evaluator,
    inception,
    inception_weights,
)


@dataclass
class Outputs:
    features: np.ndarray


@dataclass
class MeanColours:
    """An evaluator whose features are the mean colour, repeated."""

    dims: int = 6
    hash: str = "abc123"

    def run(self, pixels: np.ndarray) -> Outputs:
        mean = pixels.mean(axis=(1, 2)) / 255
        return Outputs(np.tile(mean, self.dims // 3).astype(np.float32))


def pictures(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def no_downloads(monkeypatch, tmp_path: Path) -> Path:
    """Torch's folder of downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def weights(monkeypatch, no_downloads: Path) -> Path:
    """A file of Inception's name in torch's folder, with a hash that is let through."""
    content = b"stands for the weights"
    name = f"pt_inception-2015-12-05-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(featurenets, "INCEPTION_FILE", name)
    (no_downloads / name).write_bytes(content)
    return no_downloads / name


class FakeInception(torch.nn.Module):
    """Takes what torchmetrics' network takes, gives the mean colour of the left column."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return images[..., 0].double().mean(dim=2).repeat(1, 64)


def test_our_network_gives_the_evaluators_features_with_its_name_and_hash() -> None:
    net = from_evaluator(MeanColours())
    found = net(pictures(4))
    np.testing.assert_allclose(found[:, :3], pictures(4).mean(axis=(1, 2)) / 255, rtol=1e-6)
    assert found.dtype == np.float32
    assert (net.name, net.hash, net.dims) == ("fewstep evaluator", "abc123", 6)
    assert net(pictures(0)).shape == (0, 6)


def test_more_than_512_features_are_refused() -> None:
    assert from_evaluator(MeanColours(dims=510)).dims == 510
    with pytest.raises(UsageError, match="has 513 features: take a network with 1 to 512"):
        from_evaluator(MeanColours(dims=513))


def test_pictures_are_uint8() -> None:
    net = from_evaluator(MeanColours())
    with pytest.raises(UsageError, match="give uint8"):
        net(pictures(2).astype(np.float32))
    with pytest.raises(UsageError, match="give uint8"):
        net(pictures(2)[0])


def test_without_inception_the_name_says_so(no_downloads: Path) -> None:
    assert inception_weights() is None
    net = choose(MeanColours())
    assert net.name == "fewstep evaluator (no Inception weights here)"
    assert net.hash == "abc123"


def test_inception_is_taken_where_its_weights_are(monkeypatch, weights: Path) -> None:
    monkeypatch.setattr(featurenets, "_inception_network", lambda path: FakeInception())
    assert inception_weights() == weights
    net = choose(MeanColours())
    assert net.name == "Inception v3 (2015-12-05), 192 features after the second pooling"
    assert net.hash == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert net(pictures(0)).shape == (0, 192)
    found = net(pictures(35))  # three batches
    assert found.shape == (35, net.dims)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, :3], pictures(35)[:, :, 0].mean(axis=1), rtol=1e-6)


def test_another_file_is_never_opened(monkeypatch, no_downloads: Path) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(featurenets, "_inception_network", opened.append)
    (no_downloads / INCEPTION_FILE).write_bytes(b"cos\nsystem\n")
    for attempt in (lambda: choose(MeanColours()), lambda: inception(no_downloads / INCEPTION_FILE)):
        with pytest.raises(CheckpointError, match="not 6726825d"):
            attempt()
    assert opened == []


def test_weights_that_were_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        choose(MeanColours(), weights=tmp_path / "none.pth")


def test_weights_without_torch_fidelity(monkeypatch, weights: Path) -> None:
    from torchmetrics.image import fid

    monkeypatch.setattr(fid, "_TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(DependencyError, match="pip install torch-fidelity"):
        choose(MeanColours(), weights=weights)
    assert choose(MeanColours()).name == "fewstep evaluator (Inception weights, but no torch-fidelity)"
