"""The one loop: take a batch, step every active role, and between steps log, sample, save, or stop.

Everything random is derived from (seed, images seen), and everything that changes is in `RunState`: a run
that is killed and resumed goes on with the same numbers as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from fewstep.checkpoint import atomic
from fewstep.errors import OutputError, RunError
from fewstep.models.ema import ema_decay
from fewstep.training import checkpointing
from fewstep.training.feed import Fed
from fewstep.training.guards import out_of_memory
from fewstep.training.logs import Image, Loggers, Progress
from fewstep.training.schedules import rate_factor
from fewstep.training.sections import LoopRecipe
from fewstep.training.state import RoleState, RunState
from fewstep.training.task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("fewstep.training")


class Sampler(Protocol):
    """Draws a sample grid; injected, because the loop knows no pipeline."""

    def __call__(
        self, modules: Mapping[str, nn.Module], recipe: LoopRecipe, images_seen: int
    ) -> Image | None:
        """A picture (H, W, 3), uint8, or None; ``modules`` hold averaged weights and are in eval mode."""
        ...


class Metric(Protocol):
    """Measures the averaged weights; injected, because evaluation is a sibling of training."""

    def __call__(self, modules: Mapping[str, nn.Module], images_seen: int) -> Mapping[str, float]:
        """Values by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls and does not own."""

    loggers: Loggers
    on_progress: Callable[[Progress], None]
    sampler: Sampler | None = None
    metrics: Sequence[Metric] = ()
    received_signal: Callable[[], str | None] = lambda: None


class Loop:
    """Runs a task; see `run`."""

    def __init__(
        self,
        task: Task,
        recipe: LoopRecipe,
        state: RunState,
        folder: Path,
        accelerator: Accelerator,
        hooks: Hooks,
    ) -> None:
        self.task = task
        self.recipe = recipe
        self.state = state
        self.folder = folder
        self.accelerator = accelerator
        self.hooks = hooks
        self.save_error: OutputError | None = None
        self._trained = [role for role in state.roles.values() if role.optimiser is not None]
        self._plain = {name: role.role.module for name, role in state.roles.items()}
        self._sums: dict[str, torch.Tensor] = {}
        self._summed: dict[str, int] = {}

    def run(self, batches: Iterator[Fed], extra: Mapping[str, Any]) -> str:
        """Train until the recipe's stop, a signal, or an error; save at the end.

        Args:
            batches: what `fewstep.training.feed.feed` yields from ``state.images_seen`` on.
            extra: goes into every checkpoint's manifest.

        Returns:
            Why it stopped: "images", "hours" or the name of a signal.

        Raises:
            RunError: too many non-finite steps in a row, or out of memory.
            OutputError: the last checkpoint could not be written.
        """
        recipe, state = self.recipe, self.state
        size = recipe.data.batch_size
        began = saved = logged = time.monotonic()
        first = logged_images = state.images_seen
        saved_images = first
        values: dict[str, float] = {}
        reason = "images" if state.images_seen >= recipe.stop.images else ""
        while not reason:
            with out_of_memory(size, recipe.runtime.accumulation):
                fed = next(batches)
                assert fed.images_seen == state.images_seen
                self.step(fed)
            now, seen = time.monotonic(), state.images_seen
            hours = recipe.stop.hours
            signal, timed_out, save_due = self._agree(
                self.hooks.received_signal(),
                hours is not None and now - began >= 3600.0 * hours,
                now - saved >= 60.0 * recipe.runtime.checkpoint_minutes,
            )
            reason = signal or ("hours" if timed_out else "images" if seen >= recipe.stop.images else "")
            if reason or _crossed(seen, size, recipe.runtime.log_images):
                rate = (seen - logged_images) / max(now - logged, 1e-9)
                values = self._take_means() | {"images_per_second": rate, "seconds": now - began}
                state.values = values
                logged, logged_images = now, seen
                if self.accelerator.is_main_process:
                    self.hooks.loggers.scalars(seen, values)
            if self.accelerator.is_main_process:
                # The rate since the start is steadier than the last one, and ends the wait for the first log.
                rate = (seen - first) / max(now - began, 1e-9)
                left, goal = max(0, recipe.stop.images - seen) / max(rate, 1e-9), recipe.stop.images
                if hours is not None and (rest := 3600.0 * hours - (now - began)) < left:
                    left = max(0.0, rest)
                    goal = min(goal, seen + round(left * rate))
                self.hooks.on_progress(Progress(seen, goal, rate, left, values))
            every = recipe.runtime.checkpoint_images
            if reason or save_due or (every and _crossed(seen, size, every)):
                self._save(extra)
                saved, saved_images = time.monotonic(), seen
            # After saving: who is told to stop may not be given the time that a grid takes.
            every = recipe.samples.every_images
            if every and (_crossed(seen, size, every) or reason == "images"):
                self._observe()
        if saved_images != state.images_seen or not checkpointing.found(self.folder / "checkpoints"):
            self._save(extra)
        if self.save_error is not None:
            raise self.save_error
        return reason

    def step(self, fed: Fed) -> None:
        """One batch: gradients of all active roles over all parts, then one guarded step per role."""
        state, recipe = self.state, self.recipe
        seen = fed.images_seen
        active = [state.roles[name] for name in self.task.active(seen)]
        # Dropout inside a network draws from torch's global generator.
        torch.manual_seed(_derived_seed(recipe.seed, seen, self.accelerator.process_index))
        losses = {role.name: torch.zeros((), device=self.accelerator.device) for role in active}
        for number, part in enumerate(fed.parts):
            last = number == len(fed.parts) - 1
            self._part_gradients(self._on_device(part), active, losses, 1.0 / len(fed.parts), last, seen)
        state.images_seen = seen + recipe.data.batch_size
        state.steps += 1
        self._update(active, losses, fed)

    def _part_gradients(
        self,
        batch: dict[str, Any],
        active: Sequence[RoleState],
        losses: dict[str, torch.Tensor],
        share: float,
        last: bool,
        seen: int,
    ) -> None:
        shared: dict[str, Any] = {}
        for role in active:
            self._only_trainable(role)
            # Other roles are called unwrapped: a data-parallel wrapper must see one forward per backward.
            modules = self._plain | {role.name: role.module}
            waiting = contextlib.nullcontext() if last else self.accelerator.no_sync(role.module)
            with waiting:
                with self.accelerator.autocast():
                    per_sample, values = self.task.loss(role.name, batch, modules, shared, seen)
                loss = per_sample.mean() * share
                self.accelerator.backward(loss)
            losses[role.name] += loss.detach()
            for name, value in values.items():
                self._add(f"{role.name}/{name}", value.mean())

    def _update(self, active: Sequence[RoleState], losses: Mapping[str, torch.Tensor], fed: Fed) -> None:
        scaler, seen, size = self.state.scaler, self.state.images_seen, self.recipe.data.batch_size
        norms: dict[str, torch.Tensor] = {}
        for role in active:
            assert role.optimiser is not None and role.role.optimiser is not None
            if scaler is not None:
                scaler.unscale_(role.optimiser)
            norms[role.name] = _clip(role.parameters, role.role.optimiser.clip)
        finite = self._all_finite(active, losses, norms)
        for role in active:
            assert role.optimiser is not None and role.role.optimiser is not None
            rate = role.role.optimiser.learning_rate
            rate *= rate_factor(role.role.schedule, seen, self.recipe.stop.images)
            if role.guard.step_is_good(finite[role.name], scaler_will_skip=scaler is not None):
                for group in role.optimiser.param_groups:
                    group["lr"] = rate
                if scaler is None:
                    role.optimiser.step()
                else:
                    scaler.step(role.optimiser)
                if role.ema is not None and role.role.ema is not None:
                    section = role.role.ema
                    images = size * role.role.every
                    role.ema.update(ema_decay(images, seen, section.half_life_images, section.ramp))
                self._add(f"loss/{role.name}", losses[role.name])
                self._add(f"gradient_norm/{role.name}", norms[role.name])
            self._add(f"learning_rate/{role.name}", torch.tensor(rate))
            role.optimiser.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()
        for role in active:
            if role.guard.exhausted:
                self._give_up(role, losses, norms, fed)

    def _all_finite(
        self,
        active: Sequence[RoleState],
        losses: Mapping[str, torch.Tensor],
        norms: Mapping[str, torch.Tensor],
    ) -> dict[str, bool]:
        # One transfer for all roles, and one agreement: a loss may be infinite in one process only.
        device = self.accelerator.device
        bad = [~(losses[role.name].isfinite() & norms[role.name].to(device).isfinite()) for role in active]
        counts = torch.stack(bad).to(torch.float32)
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return {role.name: count == 0.0 for role, count in zip(active, counts.tolist(), strict=True)}

    def _give_up(
        self, role: RoleState, losses: Mapping[str, torch.Tensor], norms: Mapping[str, torch.Tensor], fed: Fed
    ) -> None:
        path = self.folder / "diagnostics" / f"{fed.images_seen:010d}.json"
        record = {
            "role": role.name,
            "skipped_in_a_row": role.guard.in_a_row,
            "images_seen": fed.images_seen,
            "seed": self.recipe.seed,
            "indices": fed.indices,
            "losses": {name: repr(float(value)) for name, value in losses.items()},
            "gradient_norms": {name: repr(float(value)) for name, value in norms.items()},
        }
        if self.accelerator.is_main_process:
            atomic.write_text(path, json.dumps(record, indent=1) + "\n")
        raise RunError(
            f"{role.name}: loss or gradient not finite in {role.guard.in_a_row} steps in a row (see {path}); "
            "lower the learning rate or look at these samples, then resume"
        )

    def _only_trainable(self, role: RoleState) -> None:
        if len(self.state.roles) == 1:
            return
        for other in self.state.roles.values():
            wanted = other is role
            for parameter in other.role.weights.parameters():
                parameter.requires_grad_(wanted)

    def _on_device(self, part: Mapping[str, Any]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for key, value in part.items():
            if isinstance(value, np.ndarray) and value.dtype != np.float64:
                tensor = torch.from_numpy(value).to(self.accelerator.device, non_blocking=True)
                if tensor.dim() == 4 and self.recipe.runtime.channels_last:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                batch[key] = tensor
            else:
                batch[key] = value  # times stay on the host, texts are lists
        return batch

    def _agree(self, signal: str | None, timed_out: bool, save_due: bool) -> tuple[str | None, bool, bool]:
        """Let all processes decide alike: a signal to any of them counts, clocks are the main process's."""
        if self.accelerator.num_processes == 1:
            return signal, timed_out, save_due
        main = float(self.accelerator.is_main_process)
        flags = [float(signal is not None), main * timed_out, main * save_due]
        votes = self.accelerator.reduce(torch.tensor(flags, device=self.accelerator.device), "sum").tolist()
        return signal or ("signal" if votes[0] else None), votes[1] > 0, votes[2] > 0

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed[name] = self._summed.get(name, 0) + 1

    def _take_means(self) -> dict[str, float]:
        means = {name: float(total) / self._summed[name] for name, total in self._sums.items()}
        for role in self._trained:
            means[f"skipped/{role.name}"] = float(role.guard.skipped)
        self._sums.clear()
        self._summed.clear()
        return means

    def _save(self, extra: Mapping[str, Any]) -> None:
        parent = self.folder / "checkpoints"
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            try:
                manifest = {**self.state.manifest(), **extra}
                checkpointing.save(parent, self.state.images_seen, self.state.tensors(), manifest)
                checkpointing.retain(parent, self.recipe.runtime.keep)
                self.save_error = None
            except OutputError as error:
                # Training is worth more than one checkpoint: go on, try again, fail at the end if need be
                self.save_error = error
                _log.warning("CHECKPOINT NOT WRITTEN, older ones kept, training goes on: %s", error)
        self.accelerator.wait_for_everyone()

    def _observe(self) -> None:
        if self.accelerator.is_main_process and (self.hooks.sampler is not None or self.hooks.metrics):
            with _undisturbed(self.state):
                self._draw_and_measure()
        self.accelerator.wait_for_everyone()

    def _draw_and_measure(self) -> None:
        seen = self.state.images_seen
        modules = {name: role.role.weights for name, role in self.state.roles.items()}
        try:
            if self.hooks.sampler is not None:
                image = self.hooks.sampler(modules, self.recipe, seen)
                if image is not None:
                    _write_png(self.folder / "samples" / f"{seen:010d}.png", image)
                    self.hooks.loggers.image(seen, "samples", image)
            for metric in self.hooks.metrics:
                self.hooks.loggers.scalars(seen, metric(modules, seen))
        except Exception as error:
            _log.warning("samples or metrics failed at %d images: %s: %s", seen, type(error).__name__, error)


@contextlib.contextmanager
def _undisturbed(state: RunState) -> Iterator[None]:
    """Averaged weights and eval mode inside; weights, modes and every generator as before after it."""
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    modes = [(module, module.training) for role in state.roles.values() for module in role.module.modules()]
    with contextlib.ExitStack() as stack:
        for role in state.roles.values():
            role.module.eval()
            if role.ema is not None:
                stack.enter_context(role.ema.applied())
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy_state)
            torch.set_rng_state(torch_state)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)


def _clip(parameters: Sequence[nn.Parameter], limit: float | None) -> torch.Tensor:
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.stride() != parameter.stride():
            # Fused AdamW on CPUs walks memory without looking at strides: other layouts would be mixed up.
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _crossed(seen: int, step: int, every: int) -> bool:
    return seen // every > (seen - step) // every


def _derived_seed(seed: int, images_seen: int, rank: int) -> int:
    return int(
        np.random.SeedSequence([seed, images_seen, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def _write_png(path: Path, image: Image) -> None:
    from PIL import Image as PillowImage

    with atomic.file(path) as temporary:
        PillowImage.fromarray(image).save(temporary, format="PNG")
