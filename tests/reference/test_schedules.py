"""Noise schedules against diffusers' tables."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from fewstep.diffusion.schedule import FlowSchedule, make_schedule

THEIR_NAMES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", THEIR_NAMES)
def test_tables_equal_diffusers(name, rescale):
    theirs = DDIMScheduler(
        beta_schedule=THEIR_NAMES[name], beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=rescale
    )
    ours = make_schedule(name, rescale_zero_terminal_snr=rescale)
    # Theirs is a float32 product of up to 1000 factors.
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=2e-7)
    assert ours.zero_terminal_snr == rescale
    assert (float(theirs.alphas_cumprod[-1]) == 0.0) == rescale


def test_published_values_of_the_stable_diffusion_schedule():
    schedule = make_schedule("scaled_linear")
    for t, alpha, sigma in [
        (749, 0.238, 0.971),
        (499, 0.527, 0.850),
        (249, 0.822, 0.570),
        (19, 0.991, 0.133),
    ]:
        assert schedule.alpha(t) == pytest.approx(alpha, abs=6e-4)
        assert schedule.sigma(t) == pytest.approx(sigma, abs=6e-4)
    assert schedule.alpha(999) == pytest.approx(0.0683, abs=5e-5)


def test_noising_equals_diffusers():
    theirs = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = make_schedule("scaled_linear")
    x0, eps = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    t = torch.tensor([0, 250, 600, 999])
    np.testing.assert_allclose(ours.forward(x0, eps, t), theirs.add_noise(x0, eps, t), atol=2e-6)


def test_times_between_entries_are_interpolated_as_diffusers_does():
    theirs = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = make_schedule("scaled_linear")
    log_sigmas = np.log(
        ((1 - theirs.alphas_cumprod.double()) / theirs.alphas_cumprod.double()).sqrt().numpy()
    )
    for sigma in (0.04, 0.5, 1.0, 7.3, 14.0):
        t = float(theirs._sigma_to_t(np.array(sigma), log_sigmas))
        assert ours.time_of_ratio(sigma) == pytest.approx(t, abs=2e-3)
        assert ours.ratio(ours.time_of_ratio(sigma)) == pytest.approx(sigma, rel=1e-9)


def test_finite_terminal_is_that_of_diffusers():
    theirs = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    finite = make_schedule("scaled_linear", rescale_zero_terminal_snr=True).finite_terminal()
    assert finite.ratio(999) == pytest.approx(float(theirs.sigmas[0]), rel=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_shift_equals_diffusers(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    u = np.linspace(1.0, 1000.0, 1000)[::-1] / 1000
    np.testing.assert_allclose(FlowSchedule(shift).shifted(u), theirs.sigmas.numpy(), atol=1e-6)
