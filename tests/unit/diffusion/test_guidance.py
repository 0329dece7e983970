"""Guidance: what it costs, where it acts, what it refuses."""

import numpy as np
import pytest
import torch

from fewstep.diffusion.guidance import classifier_free, with_picture
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.diffusion.schedule import make_schedule
from fewstep.errors import UsageError

SCHEDULE = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
X = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)


class Counting:
    """A denoiser that scales its input and remembers its calls."""

    def __init__(self, factor):
        self.factor, self.calls = factor, []

    def __call__(self, x, t):
        self.calls.append((x.shape[0], t))
        return Prediction(self.factor * x, x)


def guide(cond, uncond, scale=4.0, **options):
    return classifier_free(
        cond, uncond, scale=scale, schedule=SCHEDULE, prediction_type="v_prediction", **options
    )


def test_scale_1_costs_no_unconditional_evaluation():
    cond, uncond = Counting(0.5), Counting(0.1)
    guided = guide(cond, uncond, scale=1.0, rescale=0.7)
    np.testing.assert_array_equal(guided(X, 500.0).x0, 0.5 * X)
    assert (len(cond.calls), len(uncond.calls)) == (1, 0)


def test_the_combination():
    guided = guide(Counting(0.5), Counting(0.25))
    result = guided(X, 500.0)
    np.testing.assert_allclose(result.x0, (0.25 + 4.0 * 0.25) * X, rtol=1e-6)
    assert result.x0.dtype == np.float32


@pytest.mark.parametrize("kind", [np.asarray, torch.asarray])
def test_one_call_of_both_halves(kind):
    class Halves(Counting):
        def __call__(self, x, t):
            self.calls.append((x.shape[0], t))
            if x.shape[0] == 3:
                return Prediction(0.5 * x, x)
            factor = kind(np.repeat(np.float32([0.25, 0.5]), 3).reshape(-1, 1, 1, 1))
            return Prediction(factor * x, x)

    both = Halves(None)
    guided = guide(both, None, batched=True, rescale=0.3, interval=(0.5, 100.0))
    separate = guide(Counting(0.5), Counting(0.25), rescale=0.3, interval=(0.5, 100.0))
    for t in (700.0, 10.0):  # sigma / alpha is 3.5 and 0.1: guided and not
        np.testing.assert_allclose(np.asarray(guided(kind(X), t).x0), separate(X, t).x0, rtol=1e-6)
    assert [rows for rows, _ in both.calls] == [6, 3]
    times = np.array([700.0, 600.0, 500.0])
    guided(kind(X), times)
    np.testing.assert_array_equal(both.calls[-1][1], np.tile(times, 2))


def test_outside_the_interval_only_the_condition_counts():
    cond, uncond = Counting(0.5), Counting(0.25)
    guided = guide(cond, uncond, interval=(0.3, 3.0))
    inside = [bool(0.3 < SCHEDULE.ratio(t) <= 3.0) for t in (999.0, 800.0, 500.0, 300.0, 50.0)]
    assert inside == [False, False, True, True, False]
    for t, acts in zip((999.0, 800.0, 500.0, 300.0, 50.0), inside, strict=True):
        before = len(uncond.calls)
        result = guided(X, t).x0
        assert len(uncond.calls) - before == acts
        np.testing.assert_allclose(result, (1.25 if acts else 0.5) * X, rtol=1e-6)
    mixed = guided(X, np.array([999.0, 500.0, 50.0])).x0
    np.testing.assert_allclose(mixed, X * np.float32([0.5, 1.25, 0.5]).reshape(-1, 1, 1, 1), rtol=1e-6)


def test_one_scale_per_sample():
    guided = guide(Counting(0.5), Counting(0.25), scale=np.array([1.0, 2.0, 3.0]))
    expected = X * np.float32([0.5, 0.75, 1.0]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(guided(X, 500.0).x0, expected, rtol=1e-6)


def test_full_rescale_gives_back_the_conditional_deviation():
    from fewstep.diffusion.prediction import from_prediction

    cond, uncond = Counting(0.5), Counting(-0.5)
    raw = from_prediction(guide(cond, uncond, rescale=1.0)(X, 400.0), 400.0, SCHEDULE, "v_prediction")
    reference = from_prediction(cond(X, 400.0), 400.0, SCHEDULE, "v_prediction")
    np.testing.assert_allclose(raw.std(axis=(1, 2, 3)), reference.std(axis=(1, 2, 3)), rtol=1e-5)


def test_gradients_flow_through_guidance():
    x = torch.from_numpy(X).double().requires_grad_(True)
    guided = guide(lambda y, t: Prediction(y.tanh(), y), lambda y, t: Prediction(y.sin(), y), rescale=0.7)
    guided(x, 300.0).x0.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "guidance scale is nan"),
        ({"scale": float("inf")}, "guidance scale is inf"),
        ({"scale": 3.0, "rescale": 1.5}, "guidance rescale is 1.5"),
        ({"scale": 3.0, "rescale": float("nan")}, "guidance rescale is nan"),
        ({"scale": 3.0, "interval": (2.0, 1.0)}, "guidance interval"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        guide(Counting(1.0), Counting(1.0), **options)


def test_guidance_without_an_unconditional_half_is_refused():
    with pytest.raises(UsageError, match="unconditional"):
        guide(Counting(1.0), None)


def three_rows(c, i, u):
    """A denoiser of 3B rows with fixed predictions."""

    def denoise(x, t):
        n = len(x) // 3
        assert np.array_equal(x[:n], x[n : 2 * n]) and np.array_equal(x[:n], x[2 * n :])
        rows = [np.broadcast_to(np.float32(value), (n, *x.shape[1:])) for value in (c, i, u)]
        return Prediction(np.concatenate(rows), -np.concatenate(rows))

    return denoise


def test_guidance_by_a_picture_is_the_formula():
    """u + image_scale (i - u) + scale (c - i), of x0 and of eps."""
    schedule = make_schedule("scaled_linear")
    given = {"schedule": schedule, "prediction_type": "epsilon"}
    guided = with_picture(three_rows(5.0, 3.0, 2.0), scale=7.0, image_scale=1.5, **given)
    found = guided(np.zeros((2, 1, 2, 2), np.float32), 500.0)
    assert np.allclose(found.x0, 2 + 1.5 * 1 + 7 * 2) and np.allclose(found.eps, -17.5)
    # Without guidance by either the prediction with text and picture is left.
    plain = with_picture(three_rows(5.0, 3.0, 2.0), scale=1.0, image_scale=1.0, **given)
    assert np.allclose(plain(np.zeros((1, 1, 2, 2), np.float32), 500.0).x0, 5.0)


def test_guidance_by_a_picture_can_be_rescaled():
    schedule = make_schedule("scaled_linear")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    raws = rng.standard_normal((6, 3, 4, 4)).astype(np.float32) * np.repeat([1, 2, 3], 2)[:, None, None, None]

    def denoise(x_t, t):
        return to_prediction(raws.astype(np.float32), x_t, t, schedule, "epsilon")

    given = {"scale": 7.0, "image_scale": 1.5, "schedule": schedule, "prediction_type": "epsilon"}
    found = with_picture(denoise, rescale=1.0, **given)(x, 400.0).eps
    for row in range(2):
        assert found[row].std() == pytest.approx(raws[row].std(), rel=1e-4)


@pytest.mark.parametrize("scales", [(float("nan"), 1.5), (7.0, float("inf"))])
def test_guidance_by_a_picture_wants_numbers(scales):
    given = {"schedule": make_schedule("scaled_linear"), "prediction_type": "epsilon"}
    with pytest.raises(UsageError, match="give a finite number"):
        with_picture(three_rows(1, 1, 1), scale=scales[0], image_scale=scales[1], **given)
