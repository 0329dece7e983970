from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fewstep.data.emoji import Drawing, Drawings
from fewstep.errors import DataError, UsageError
from fewstep.evaluation.reconstruction import held_out, psnr, reconstruct, ssim
from fewstep.models import autoencoder as autoencoders


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).uniform(-1, 1, shape).astype(np.float32)


def test_psnr_of_a_known_error() -> None:
    originals = 0.5 * uniform(3, 3, 16, 16)
    copies = originals + np.array([0.02, -0.2, 0.0], np.float32)[:, None, None, None]
    # 10 log10(2^2 / 0.02^2) = 40 dB, a tenfold error 20 dB less
    assert psnr(originals, copies) == pytest.approx([40, 20, np.inf], abs=1e-4)
    assert psnr(-np.ones((1, 3, 8, 8)), np.ones((1, 3, 8, 8))) == pytest.approx([0])


def test_ssim_of_plain_images_is_the_luminance_term() -> None:
    # (2 a b + c) / (a^2 + b^2 + c) with c = 0.01^2, of intensities from 0 to 1
    first, second = np.array([0.0, 0.5, 1.0, 0.2]), np.array([1.0, 0.5, 0.9, 0.4])
    plain = [np.full((4, 3, 12, 12), 1.0) * (2 * v - 1)[:, None, None, None] for v in (first, second)]
    expected = (2 * first * second + 1e-4) / (first**2 + second**2 + 1e-4)
    assert ssim(*plain) == pytest.approx(expected, rel=1e-5)
    assert expected[0] < 1e-3 < 1 == expected[1]


def test_ssim_equals_the_formula_window_by_window() -> None:
    originals, copies = uniform(2, 3, 20, 24), uniform(2, 3, 20, 24, seed=1)
    copies[0] = 0.7 * originals[0] + 0.3 * copies[0]

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="mirror", truncate=3.5)

    expected = []
    for x, y in zip((originals.astype(float) + 1) / 2, (copies.astype(float) + 1) / 2, strict=True):
        values = []
        for a, b in zip(x, y, strict=True):
            ma, mb = smooth(a), smooth(b)
            va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
            values.append(
                (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
            )
        expected.append(np.mean(values))
    assert ssim(originals, copies) == pytest.approx(expected, rel=1e-6)
    assert ssim(originals, copies, batch_size=1) == pytest.approx(expected, rel=1e-6)
    assert expected[0] > 0.5 > expected[1]
    assert ssim(originals, originals) == pytest.approx([1, 1])


def test_reconstruction_is_what_encoding_and_decoding_give(tiny_components) -> None:
    images = uniform(5, 3, 16, 16)
    found = reconstruct(tiny_components.autoencoder, images, batch_size=2)
    vae = tiny_components.autoencoder
    copies = autoencoders.decode(vae, autoencoders.encode(vae, images))
    np.testing.assert_allclose(found.copies, copies, atol=1e-5)
    assert found.psnr == pytest.approx(
        10 * np.log10(4 / np.square(copies - images).mean(axis=(1, 2, 3))), rel=1e-4
    )
    assert found.ssim == pytest.approx(ssim(images, copies), abs=1e-4)
    assert (found.ssim < 0.9).all()  # untrained


def drawing(style: str, split: str) -> Drawing:
    return Drawing(style, "food-drink", "goose", (), "goose", "package", "1", "MIT", split)


def test_held_out_drawings_take_turns_in_backgrounds_within_a_style(tmp_path: Path) -> None:
    kinds = [
        ("noto", "object"),
        ("noto", "train"),
        ("noto", "object"),
        ("noto", "object"),
        ("firefox", "object"),
    ]
    rgba = np.zeros((5, 128, 128, 4), np.uint8)
    rgba[2, 64, 64] = (255, 0, 0, 255)
    drawings = Drawings(tmp_path, rgba, tuple(drawing(*kind) for kind in kinds), "", ())
    found = held_out(drawings, {"white": (255, 255, 255), "black": (0, 0, 0)})
    assert found.rows.tolist() == [0, 2, 3, 4]
    assert found.images.shape == (4, 3, 128, 128)
    assert found.images[:, :, 0, 0].tolist() == [[1] * 3, [-1] * 3, [1] * 3, [1] * 3]
    assert found.images[1, :, 64, 64].tolist() == [1, -1, -1]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, tiny_components) -> None:
    with pytest.raises(UsageError, match=r"give \(N, 3, H, W\) twice"):
        psnr(uniform(1, 3, 8, 8), uniform(2, 3, 8, 8))
    with pytest.raises(UsageError, match="6 pixels or more"):
        ssim(uniform(1, 3, 8, 5), uniform(1, 3, 8, 5))
    assert ssim(uniform(1, 3, 6, 6), uniform(1, 3, 6, 6)) == pytest.approx([1])
    with pytest.raises(UsageError, match="no images"):
        reconstruct(tiny_components.autoencoder, uniform(0, 3, 16, 16))
    trained = Drawings(tmp_path, np.zeros((1, 128, 128, 4), np.uint8), (drawing("noto", "train"),), "", ())
    with pytest.raises(DataError, match="no drawing of a held-out object"):
        held_out(trained, {"white": (255, 255, 255)})
    with pytest.raises(UsageError, match="no backgrounds"):
        held_out(trained, {})
