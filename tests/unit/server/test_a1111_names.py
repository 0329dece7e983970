"""The WebUI's names of samplers, schedulers and upscalers, and which of ours they are."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.solvers import SOLVERS
from fewstep.diffusion.timesteps import SPACINGS
from fewstep.engine.upscaling import catalogue
from fewstep.errors import NotFoundError
from fewstep.server.a1111 import names


@pytest.mark.parametrize(
    ("given", "solver", "spacing"),
    [
        ("Euler a", "euler_a", None),
        ("euler A", "euler_a", None),
        ("k_euler_a", "euler_a", None),
        ("Euler", "euler", None),
        ("DPM++ 2M", "dpmpp_2m", None),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("Euler SGM Uniform", "euler", "sgm_uniform"),
        ("DDIM", "ddim", None),
        ("UniPC", "unipc", None),
        ("LCM", "lcm", None),
        ("tcd", "tcd", None),
    ],
)
def test_samplers_by_the_names_of_clients(given, solver, spacing):
    assert names.sampler(given) == (solver, spacing)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("DPM++ SDE", "DPM++ 2M SDE"),
        ("DPM++ SDE Karras", "DPM++ 2M SDE"),
        ("LMS", "PLMS"),
        ("DPM2 a Karras", "Euler a"),
        ("Restart", "Heun"),
        ("Eular a", "Euler a"),
    ],
)
def test_samplers_that_there_are_not_are_refused_with_the_nearest(given, near):
    with pytest.raises(NotFoundError, match="there are: ") as refused:
        names.sampler(given)
    assert f"the nearest is {near!r}" in str(refused.value) and "UniPC" in str(refused.value)


def test_every_sampler_that_is_listed_can_be_asked_for():
    assert set(names.SAMPLERS.values()) == set(SOLVERS) - {"flow_euler"}
    assert all(names.sampler(shown)[0] == solver for shown, solver in names.SAMPLERS.items())


@pytest.mark.parametrize(
    ("given", "spacing"),
    [
        ("Automatic", None), ("automatic", None), ("Karras", "karras"), ("karras", "karras"),
        ("SGM Uniform", "sgm_uniform"), ("SGMUniform", "sgm_uniform"), ("sgm_uniform", "sgm_uniform"),
        ("Simple", "trailing"), ("trailing", "trailing"), ("DDIM", "leading"), ("normal", "linspace"),
        ("Polyexponential", "exponential"),
    ],
)  # fmt: skip
def test_schedulers_by_name_label_and_alias(given, spacing):
    found = names.scheduler(given)
    assert found.spacing == spacing and (spacing is None or spacing in SPACINGS)


@pytest.mark.parametrize(
    "given", ["beta", "align_your_steps", "KL Optimal", "cosine", "../../etc/passwd", ""]
)
def test_schedulers_that_there_are_not_are_refused(given):
    with pytest.raises(NotFoundError, match="there are: automatic"):
        names.scheduler(given)


def test_simple_visits_the_times_of_the_webui():
    contract = SamplingContract(
        base_family="sd15", spacing=names.scheduler("simple").spacing, native_sizes=((512, 512),)
    )
    # ComfyUI's simple_scheduler takes every (T / n)-th entry of the table, from the end.
    for count in (4, 8, 20, 25):
        assert np.array_equal(contract.grid(count)[:-1], [999 - i * 1000 // count for i in range(count)])


def test_upscalers_that_are_installed(monkeypatch):
    monkeypatch.setattr(catalogue, "installed", lambda one: one.name != "photo")
    shown = names.upscalers()
    assert shown["R-ESRGAN 4x+ Anime6B"] == "anime" and shown["Lanczos"] == "lanczos"
    assert "R-ESRGAN 4x+" not in shown
    monkeypatch.setattr(catalogue, "check_installed", lambda one: None)
    assert all(names.upscaler(name) == own for name, own in shown.items())
    assert names.upscaler("None") == "none"
    with pytest.raises(NotFoundError, match="there are: None, Lanczos"):
        names.upscaler("SwinIR 4x")


def test_upscalers_between_two_passes(monkeypatch):
    monkeypatch.setattr(catalogue, "installed", lambda one: True)
    monkeypatch.setattr(catalogue, "check_installed", lambda one: None)
    assert names.latent_upscaler(None) == names.latent_upscaler("Latent") == "latent"
    assert names.latent_upscaler("None") == "lanczos"
    assert names.latent_upscaler("R-ESRGAN 4x+") == "photo"
    with pytest.raises(NotFoundError, match="give 'Latent'"):
        names.latent_upscaler("Latent (bicubic)")
    with pytest.raises(NotFoundError, match="not for a second pass"):
        names.latent_upscaler("waifu2x-cunet")


def test_what_an_infotext_says_of_a_spacing_is_read_back():
    from fewstep.prompt.infotext import SCHEDULES

    assert all(names.scheduler(label).spacing == spacing for spacing, label in SCHEDULES.items())
