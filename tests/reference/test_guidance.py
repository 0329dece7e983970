"""Guidance against diffusers' own rescale and the closed form of Gaussian mixtures."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.prediction import adapt, from_prediction
from fewstep.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)


def networks():
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, 4, 4, generator=generator)
    return [
        lambda x, t, w=w: torch.tanh(torch.einsum("ij,bjhw->bihw", w, x)) + float(t) / 4000 for w in weights
    ]


@pytest.mark.parametrize("rescale", [0.0, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("kind", [np.asarray, torch.asarray])
def test_guided_raw_output_equals_diffusers(rescale, prediction_type, kind):
    cond, uncond = networks()
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    for t in (999.0, 640.0, 39.0):
        c, u = cond(x, t), uncond(x, t)
        theirs = u + 5.0 * (c - u)
        if rescale:
            theirs = rescale_noise_cfg(theirs, c, guidance_rescale=rescale)

        def denoiser(network):
            return adapt(lambda y, time: kind(network(torch.asarray(y), time)), SCHEDULE, prediction_type)

        guided = classifier_free(
            denoiser(cond),
            denoiser(uncond),
            scale=5.0,
            rescale=rescale,
            schedule=SCHEDULE,
            prediction_type=prediction_type,
        )
        ours = from_prediction(guided(kind(x), t), t, SCHEDULE, prediction_type)
        np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=1e-4, atol=3e-5)
