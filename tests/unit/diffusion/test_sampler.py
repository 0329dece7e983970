"""The one loop: callbacks, cancellation, dtype, cost; and the solver registry."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.noise import batch_noise, solver_noise
from fewstep.diffusion.prediction import Prediction, adapt
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.diffusion.solvers import SOLVERS, get_solver
from fewstep.diffusion.timesteps import make_grid
from fewstep.errors import Cancelled, UsageError

SCHEDULE = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
GRID = make_grid(SCHEDULE, "trailing", 5)


def halve(x, t):
    return Prediction(0.5 * x, x)


def test_the_callback_is_told_every_step():
    seen = []
    result = sample(
        halve, batch_noise(0, 2, (3, 4, 4)), GRID, SOLVERS["ddim"], schedule=SCHEDULE, on_step=seen.append
    )
    assert [info.index for info in seen] == [0, 1, 2, 3, 4]
    assert {info.total for info in seen} == {5}
    assert [info.t for info in seen] == GRID[1:].tolist()
    assert [info.evaluations for info in seen] == [1, 2, 3, 4, 5]
    assert seen[-1].x is result
    assert seen[0].x0.shape == result.shape


def test_cancellation_stops_between_steps():
    done = []
    with pytest.raises(Cancelled, match="after 2 of 5 steps"):
        sample(
            halve,
            batch_noise(0, 1, (3, 4, 4)),
            GRID,
            SOLVERS["ddim"],
            schedule=SCHEDULE,
            on_step=done.append,
            cancelled=lambda: len(done) == 2,
        )
    assert len(done) == 2


def test_adjust_is_applied_after_each_step():
    # Masked inpainting: the known half is put back at every level, so it comes out exactly.
    known, mask = np.full((1, 1, 4, 4), 0.25, np.float32), np.zeros((1, 1, 4, 4), np.float32)
    mask[..., :2] = 1.0
    eps = batch_noise(1, 1, (1, 4, 4))
    result = sample(
        halve,
        eps,
        GRID,
        SOLVERS["ddim"],
        schedule=SCHEDULE,
        adjust=lambda x, t: mask * x + (1 - mask) * SCHEDULE.forward(known, eps, t),
    )
    np.testing.assert_array_equal(result[..., 2:], known[..., 2:])
    assert not np.any(result[..., :2] == known[..., :2])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_dtype_is_kept(name, dtype):
    schedule = FlowSchedule() if name == "flow_euler" else SCHEDULE
    grid = make_grid(schedule, "trailing", 3)
    x = batch_noise(0, 2, (3, 4, 4)).astype(dtype)
    noise = solver_noise(0, 2, (3, 4, 4))
    ours = sample(halve, x, grid, SOLVERS[name], schedule=schedule, noise=noise)
    assert ours.dtype == np.dtype(dtype)
    theirs = sample(halve, torch.from_numpy(x), grid, SOLVERS[name], schedule=schedule, noise=noise)
    assert theirs.dtype == getattr(torch, dtype)


def test_per_sample_times_keep_float32():
    x = batch_noise(0, 2, (3, 4, 4))
    t, s = np.array([999.0, 500.0]), np.array([700.0, -1.0])
    for kind in (np.asarray, torch.asarray):
        for name, solver in SOLVERS.items():
            if name == "flow_euler":
                continue
            y, _ = solver.step(halve, kind(x), t, s, solver.start(SCHEDULE), kind(x))
            assert str(y.dtype).endswith("float32"), name


def test_a_stochastic_solver_without_noise_is_refused():
    with pytest.raises(UsageError, match="lcm adds noise"):
        sample(halve, batch_noise(0, 1, (2, 2, 2)), GRID, SOLVERS["lcm"], schedule=SCHEDULE)


def test_a_flow_solver_on_a_table_is_refused():
    with pytest.raises(UsageError, match="for rectified-flow models"):
        sample(halve, batch_noise(0, 1, (2, 2, 2)), GRID, SOLVERS["flow_euler"], schedule=SCHEDULE)


def test_registry_names_and_parameters():
    assert list(SOLVERS) == [solver.name for solver in SOLVERS.values()]
    assert not get_solver("ddim", eta=0.0).stochastic
    assert get_solver("ddim", eta=0.3).stochastic
    assert not get_solver("tcd", gamma=0.0).stochastic
    for name, arguments, message in [
        ("eular", {}, "did you mean euler"),
        ("zzz", {}, "give one of ddpm, ddim"),
        ("euler", {"eta": 0.5}, "euler has no eta"),
        ("ddim", {"eta": float("nan")}, "eta is nan"),
        ("tcd", {"gamma": 1.5}, "gamma is 1.5"),
        ("ddim", {"boundary_scaling": 10.0}, "ddim has no boundary_scaling"),
    ]:
        with pytest.raises(UsageError) as caught:
            get_solver(name, **arguments)
        assert message in str(caught.value)


def test_the_core_imports_no_torch():
    code = (
        "import sys, pkgutil, importlib, fewstep.diffusion as d\n"
        "for m in pkgutil.walk_packages(d.__path__, 'fewstep.diffusion.'): importlib.import_module(m.name)\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'scipy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_loop_costs_little():
    # 25 guided steps on a 16x16x8 latent: what is not the network must stay near 3 ms. The bound is loose for
    # busy machines; the figure in the docs is measured on an idle one.
    x = batch_noise(0, 1, (8, 16, 16))
    raw = (0.5 * x, 0.25 * x)
    cond, uncond = (adapt(lambda y, t, out=out: out, SCHEDULE, "v_prediction") for out in raw)
    denoise = classifier_free(
        cond, uncond, scale=3.0, rescale=0.7, schedule=SCHEDULE, prediction_type="v_prediction"
    )
    grid = make_grid(SCHEDULE, "trailing", 25)
    best = min(
        _timed(lambda: sample(denoise, x, grid, SOLVERS["ddim"], schedule=SCHEDULE)) for _ in range(20)
    )
    assert best < 0.015


def _timed(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def test_drawing_with_numpy_does_not_import_all_of_numpy() -> None:
    """array-api-compat's wrapper of numpy imports f2py and more: a tenth of a second at every start."""
    script = """
import sys, numpy as np
from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import make_schedule
from fewstep.diffusion.solvers import SOLVERS
from fewstep.diffusion.timesteps import make_grid
schedule = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
guided = classifier_free(
    lambda x, t: Prediction(0.5 * x, x), None, scale=2.0, rescale=0.5, schedule=schedule,
    prediction_type="v_prediction", batched=True,
)
x = np.ones((1, 2, 2, 2), np.float32) * np.arange(2, dtype=np.float32)
sample(guided, x, make_grid(schedule, "trailing", 2), SOLVERS["ddim"], schedule=schedule)
sys.exit("array_api_compat.numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
