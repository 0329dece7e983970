"""Sample grids of an adapter in training: a row a prompt, a column a strength, the same noise in a row.

The class pictures of DreamBooth are drawn by the same function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.checkpoint import atomic
from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.noise import image_noise
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.diffusion.sampler import sample
from fewstep.models import adapters
from fewstep.training.adapter_base import TaughtDenoiser, TaughtModel
from fewstep.training.adapter_data import size, told_rows
from fewstep.training.adapter_sections import AdapterRecipe, LoraRecipe, TextualInversionRecipe
from fewstep.training.adapter_task import ROLE, AdapterTask
from fewstep.training.loop import Sampler
from fewstep.training.previews import Image, grid
from fewstep.training.sections import LoopRecipe, Samples


def adapter_sampler(
    recipe: AdapterRecipe, model: TaughtModel, task: AdapterTask, tables: Mapping[str, Tensor]
) -> Sampler:
    """A sampler for the loop: ``recipe.samples.prompts`` at ``recipe.strengths``, as one grid.

    Args:
        recipe: of the run; an interrupted run may be resumed with other samples.
        model: decodes.
        task: whose denoiser is drawn with.
        tables: texts of ``["", *recipe.samples.prompts]`` and, for a learnt word, behind them the same
            prompts with the words that it starts from: see `prompts`.
    """
    own, count, wanted = recipe, len(recipe.samples.prompts), size(recipe.pictures, model)

    def draw(modules: Mapping[str, nn.Module], recipe: LoopRecipe, images_seen: int) -> Image | None:
        denoiser: Any = task.roles[ROLE].module
        columns = []
        for strength in own.strengths:
            without = strength == 0.0 and isinstance(own, TextualInversionRecipe)
            rows = torch.arange(1, count + 1) + (count if without else 0)
            with _strength(own, denoiser, strength):
                columns.append(draw_pictures(model, denoiser, tables, rows, own.samples, wanted))
        in_rows = np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:])
        return grid(in_rows, columns=len(columns))

    return draw


def prompts(recipe: AdapterRecipe) -> list[str]:
    """Texts that sample grids need, in the order that `adapter_sampler` wants."""
    wanted = list(recipe.samples.prompts)
    if isinstance(recipe, TextualInversionRecipe):
        assert recipe.pictures.trigger is not None
        wanted += [text.replace(recipe.pictures.trigger, recipe.start) for text in wanted]
    return ["", *wanted]


def draw_pictures(
    model: TaughtModel,
    denoiser: nn.Module,
    tables: Mapping[str, Tensor],
    rows: Tensor,
    samples: Samples,
    wanted: tuple[int, int],
) -> NDArray[np.float32]:
    """Draw one picture for each row as the model's contract says, picture i from seed ``samples.seed`` + i.

    Args:
        model: whose contract and autoencoder.
        denoiser: called as a `TaughtDenoiser`.
        tables: of texts; row 0 is the empty one.
        rows: (B,), int64.
        samples: steps, guidance and seed; a contract for few steps keeps its own.
        wanted: (width, height) in pixels.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    contract, schedule = model.contract, model.schedule
    width, height = wanted
    channels = int(model.opened.parts["vae"].config.get("latent_channels", 4))
    shape = (channels, height // model.downscale, width // model.downscale)
    weight = next(denoiser.parameters())
    allowed = contract.allowed_steps
    steps = samples.num_inference_steps
    if allowed is not None and steps not in allowed:
        steps = contract.num_inference_steps
    guided = contract.guidance == "classifier_free" and samples.guidance_scale != 1.0
    ids = torch.tensor([[height, width, 0.0, 0.0, height, width]], device=weight.device)

    def denoise_with(chosen: Tensor) -> Callable[[Any, Any], Prediction]:
        given = told_rows(tables, chosen.to(weight.device)) | {"time_ids": ids.expand(len(chosen), 6)}

        def denoise(x_t: Tensor, t: Any) -> Prediction:
            time = np.broadcast_to(np.asarray(schedule.model_time(t), np.float32), (len(x_t),)).copy()
            output = denoiser(x_t, torch.from_numpy(time).to(x_t.device), given)
            return to_prediction(output, x_t, t, schedule, contract.prediction_type)

        return denoise

    told = denoise_with(rows)
    if guided:
        told = classifier_free(
            told,
            denoise_with(torch.zeros_like(rows)),
            scale=samples.guidance_scale,
            rescale=samples.guidance_rescale,
            schedule=schedule,
            prediction_type=contract.prediction_type,
        )
    seeds = [samples.seed + i for i in range(len(rows))]
    with torch.no_grad():
        times = contract.grid(steps)
        x = torch.from_numpy(np.stack([image_noise(seed, shape) for seed in seeds])).to(weight.device)
        x = x * contract.first_noise(float(times[0]))
        latents = sample(
            told, x, times, contract.make_solver(), schedule=schedule,
            noise=lambda i: np.stack([image_noise(seed, shape, stream=1 + i) for seed in seeds]),
        )  # fmt: skip
    return model.decode(latents)


def draw_class(
    model: TaughtModel, prompt: str, count: int, samples: Samples, wanted: tuple[int, int], folder: Path,
    report: Callable[[str, int, int], None] | None = None,
) -> None:  # fmt: skip
    """Draw class pictures with the base into a folder, all or nothing: ``0000.png`` and on.

    Raises:
        OutputError: the folder cannot be written.
    """
    from PIL import Image as PillowImage

    tables = model.encode_text(["", prompt])
    denoiser = TaughtDenoiser(model, live=False).eval()
    with atomic.folder(folder, replace=True) as made:
        for index in range(count):
            seeded = samples.model_copy(update={"seed": samples.seed + index})
            picture = draw_pictures(model, denoiser, tables, torch.tensor([1]), seeded, wanted)[0]
            array = np.clip((picture + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            PillowImage.fromarray(array).save(made / f"{index:04d}.png", format="PNG")
            if report is not None:
                report("class pictures", index + 1, count)


def default_prompts(captions: Sequence[str], count: int = 4) -> tuple[str, ...]:
    """Some captions of the folder, spread over it."""
    different = list(dict.fromkeys(captions))
    step = max(1, len(different) // count)
    return tuple(different[::step][:count])


@contextlib.contextmanager
def _strength(recipe: AdapterRecipe, denoiser: Any, strength: float) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if isinstance(recipe, LoraRecipe):
            encoders = [] if denoiser.text is None else list(denoiser.text.encoders)
            for network in (denoiser.network, *encoders):
                stack.enter_context(adapters.at_strength(network, strength))
        yield
