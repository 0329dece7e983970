from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from torch.distributions import Normal, kl_divergence

from fewstep.checkpoint import safetensors
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.errors import DataError, RecipeError
from fewstep.models.discriminators import PatchGAN
from fewstep.training import checkpointing
from fewstep.training.autoencoder import AutoencoderTask
from fewstep.training.denoiser import DenoiserTask
from fewstep.training.objectives import adversarial, autoencoder
from fewstep.training.objectives.denoising import denoising
from fewstep.training.trainer import make_task


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def test_reconstruction_terms_are_per_sample_means() -> None:
    pixels = draws(3, 3, 8, 8)
    shifted = pixels + torch.tensor([0.0, 0.5, -1.0])[:, None, None, None]
    assert autoencoder.l1(shifted, pixels) == pytest.approx([0, 0.5, 1], abs=1e-6)
    assert autoencoder.mse(shifted, pixels) == pytest.approx([0, 0.25, 1], abs=1e-6)
    # A constant shift survives every averaging: three scales, three times the error.
    assert autoencoder.multiscale_l1(shifted, pixels) == pytest.approx([0, 1.5, 3], abs=1e-5)


def test_multiscale_error_forgives_what_averages_out() -> None:
    pixels = torch.zeros(1, 1, 8, 8)
    checker = pixels.clone()
    checker[..., ::2, ::2], checker[..., 1::2, 1::2] = 1, -1
    assert autoencoder.l1(checker, pixels).item() == pytest.approx(0.5)
    assert autoencoder.multiscale_l1(checker, pixels).item() == pytest.approx(0, abs=1e-6)


def test_dissimilarity_punishes_ripples_on_flat_areas() -> None:
    flat, ripple = torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    ripple[1, :, ::2, ::2], ripple[1, :, 1::2, 1::2] = 0.08, -0.08
    ripple.requires_grad_()
    same, rippled = autoencoder.dissimilarity(ripple, flat)
    # In [0, 1] C2 is 0.03**2 and the ripple half as high; the means are alike; it covers half the pixels.
    assert same.item() == pytest.approx(0, abs=1e-6)
    variance = 0.04**2 / 2
    assert rippled.item() == pytest.approx(1 - 0.03**2 / (variance + 0.03**2), rel=0.02)
    # The same error around another grey: the luminance term, made for intensities from 0, must not mind
    moved = autoencoder.dissimilarity(ripple - 0.5, flat - 0.5)[1].item()
    assert moved == pytest.approx(rippled.item(), rel=0.02)
    rippled.backward()
    assert ripple.grad is not None and ripple.grad[1].abs().sum() > 0 and torch.isfinite(ripple.grad).all()


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = draws(4, 2, 3, 3), draws(4, 2, 3, 3, seed=1)
    exact = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(autoencoder.kl(mean, log_variance), exact)
    assert autoencoder.kl(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item() == 0


def test_hinge_losses_by_hand() -> None:
    real = torch.tensor([2.0, 0.0, -1.0]).reshape(3, 1, 1, 1)
    fake = torch.tensor([-2.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    assert adversarial.discriminator_hinge(real, fake) == pytest.approx([0, 1, 2])
    assert adversarial.generator_hinge(fake) == pytest.approx([2, 0, -1])


def test_patch_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    critic, images = PatchGAN(channels=4, layers=2), draws(3, 3, 16, 16)
    scores = critic(images)
    assert scores.shape == (3, 1, 2, 2)
    torch.testing.assert_close(critic(images[1:2]), scores[1:2])


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("flow", [False, True])
def test_a_network_that_knows_the_answer_has_no_loss(prediction_type: str, flow: bool) -> None:
    schedule = FlowSchedule() if flow else make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
    t = np.array([0.2, 1.0]) if flow else np.array([10.0, 999.0])
    x0, eps = draws(2, 3, 4, 4), draws(2, 3, 4, 4, seed=1)
    alpha = torch.tensor(schedule.alpha(t), dtype=torch.float32)[:, None, None, None]
    sigma = torch.tensor(schedule.sigma(t), dtype=torch.float32)[:, None, None, None]
    answers = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha * eps - sigma * x0,
        "flow_prediction": eps - x0,
    }
    given: list[torch.Tensor] = []

    def network(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        given.extend([x_t, time])
        return answers[prediction_type]

    loss = denoising(network, x0, eps, t, schedule=schedule, prediction_type=prediction_type)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-10, rtol=0)
    torch.testing.assert_close(given[0], alpha * x0 + sigma * eps)
    assert given[1].tolist() == pytest.approx((t * 1000 if flow else t).tolist())


def test_the_weight_multiplies_each_sample() -> None:
    schedule = make_schedule("linear")
    x0, eps, t = draws(2, 1, 2, 2), draws(2, 1, 2, 2, seed=1), np.array([3.0, 700.0])
    plain = denoising(lambda x, _: x, x0, eps, t, schedule=schedule, prediction_type="epsilon")
    weighted = denoising(
        lambda x, _: x, x0, eps, t, schedule=schedule, prediction_type="epsilon", weight=np.array([2.0, 0.0])
    )
    torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 0.0]))


def test_captions_are_dropped_in_the_recipes_share_of_images() -> None:
    task = make_task(tiny_runs.recipe("denoiser", "objective.caption_dropout=0.25"))
    sample = tiny_runs.Latents().batch(np.array([3]), np.random.default_rng(0))
    dropped = 0
    for seed in range(1000):
        drawn = task.draw(sample, np.random.default_rng(seed))
        empty = not drawn["text"].any()
        assert empty or np.array_equal(drawn["text"], sample["text"])
        dropped += empty
    assert 250 == pytest.approx(dropped, abs=60)  # four standard deviations


def test_dropping_captions_changes_neither_noise_nor_time() -> None:
    sample = tiny_runs.Latents().batch(np.array([3]), np.random.default_rng(0))
    never, always = (
        make_task(tiny_runs.recipe("denoiser", f"objective.caption_dropout={share}")).draw(
            sample, np.random.default_rng(5)
        )
        for share in (0.0, 1.0)
    )
    assert np.array_equal(never["noise"], always["noise"]) and np.array_equal(never["t"], always["t"])
    assert not np.array_equal(never["text"], always["text"])


def test_the_terminal_time_has_weight_with_zero_terminal_snr() -> None:
    task = make_task(tiny_runs.recipe("denoiser"))
    assert isinstance(task, DenoiserTask)
    weights = task._weights(np.array([0.0, 500.0, 999.0]))
    assert weights is not None and (weights > 0).all()


@pytest.mark.parametrize(
    "override",
    [
        "objective.noise_levels={kind: logit_normal, options: {sdt: 1.0}}",
        "objective.weighting={kind: min_snr, options: {gama: 5.0}}",
    ],
)
def test_wrong_options_are_refused_before_training(override: str) -> None:
    with pytest.raises(RecipeError, match=r"sdt|gama"):
        make_task(tiny_runs.recipe("denoiser", override))


def test_a_cache_of_another_model_is_refused() -> None:
    task = make_task(tiny_runs.recipe("denoiser"))
    sample = tiny_runs.Latents(shape=(3, 4, 4)).batch(np.array([0]), np.random.default_rng(0))
    with pytest.raises(DataError, match="latents have 3 channels"):
        task.draw(sample, np.random.default_rng(0))


def test_the_discriminator_joins_after_its_warm_up() -> None:
    task = make_task(tiny_runs.recipe("autoencoder"))
    assert isinstance(task, AutoencoderTask)
    assert list(task.active(15)) == ["autoencoder"]
    assert list(task.active(16)) == ["autoencoder", "discriminator"]


def test_shrinking_keeps_constants_and_gives_whole_cells() -> None:
    images = torch.full((1, 2, 12, 8), 0.3)
    assert autoencoder.shrunk(images, 1.0) is images
    smaller = autoencoder.shrunk(images, 0.5, 4)
    assert smaller.shape == (1, 2, 8, 4)  # 3 cells become round(1.5) = 2, 2 become 1
    torch.testing.assert_close(smaller, torch.full_like(smaller, 0.3))
    # As many cells as the latents of the same image: what the decoder returns has the target's size
    assert autoencoder.shrunk(torch.zeros(1, 1, 3, 2), 0.5).shape[2:] == (2, 1)


def test_a_frozen_encoder_stays_and_the_decoder_learns(tmp_path: Path) -> None:
    overrides = ("encoder=frozen", "stop.images=16", "optimiser.weight_decay=0.1")
    before = make_task(tiny_runs.recipe("autoencoder", *overrides)).roles["autoencoder"].weights.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    tiny_runs.run("autoencoder", tmp_path, *overrides)
    after = safetensors.load_torch(checkpointing.weights(tmp_path, "autoencoder", ema=False))
    same = {name.partition(".")[0] for name in before if torch.equal(before[name], after[name])}
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"encoder", "quant_conv"} <= same and moved == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_equivariance_decodes_shrunken_latents_to_the_shrunken_image(probability: float) -> None:
    chosen = [f"objective.equivariance={{probability: {probability}, scales: [0.5]}}"]
    task = make_task(tiny_runs.recipe("autoencoder", "objective.multiscale_l1=0", *chosen))
    sample = {"pixels": draws(1, 3, 8, 8).numpy()}
    drawn = [task.draw(sample, np.random.default_rng(seed)) for seed in range(4)]
    plain = make_task(tiny_runs.recipe("autoencoder")).draw(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[0]["noise"], plain["noise"])  # the option changes no other draw
    assert {float(d["scale"][0]) for d in drawn} == ({0.5} if probability else {1.0})

    batch = {key: value if key == "scale" else torch.from_numpy(value) for key, value in drawn[0].items()}
    shared: dict[str, torch.Tensor] = {}
    modules = {name: role.module for name, role in task.roles.items()}
    losses, _ = task.loss("autoencoder", batch, modules, shared, 0)
    side = 4 if probability else 8
    assert shared["reconstruction"].shape == shared["pixels"].shape == (1, 3, side, side)
    torch.testing.assert_close(
        shared["pixels"], autoencoder.shrunk(batch["pixels"], 0.5 if probability else 1.0, 2)
    )
    assert torch.isfinite(losses).all()
