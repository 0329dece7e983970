"""What changes during a run, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import CheckpointError
from fewstep.models.ema import Ema
from fewstep.training import checkpointing
from fewstep.training.checkpointing import Checkpoint
from fewstep.training.guards import NonFiniteGuard
from fewstep.training.muon import Muon
from fewstep.training.sections import Optimiser
from fewstep.training.task import Role


@dataclass(slots=True)
class RoleState:
    """One role in a run: the (possibly wrapped) module, its optimiser, average and guard."""

    name: str
    role: Role
    module: nn.Module
    optimiser: torch.optim.Optimizer | None
    ema: Ema | None
    guard: NonFiniteGuard

    @property
    def parameter_names(self) -> list[str]:
        """Names of the trained parameters, in the optimiser's order."""
        return [name for name, _ in self.role.weights.named_parameters()]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return list(self.role.weights.parameters())


@dataclass(slots=True)
class RunState:
    """All roles and the counters of a run."""

    roles: dict[str, RoleState]
    scaler: Any = None
    images_seen: int = 0
    steps: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """Everything a checkpoint stores as tensors, by file name; frozen roles are not stored."""
        files: dict[str, Mapping[str, torch.Tensor]] = {}
        for name, state in self.roles.items():
            if state.optimiser is None:
                continue
            files[name] = state.role.weights.state_dict()
            files[f"{name}.optimiser"] = checkpointing.optimiser_tensors(
                state.optimiser, state.parameter_names
            )
            if state.ema is not None:
                files[f"{name}.ema"] = state.ema.state_dict()
        return files

    def manifest(self) -> dict[str, Any]:
        """Everything else that a checkpoint stores."""
        return {
            "steps": self.steps,
            "roles": {
                name: {"guard": state.guard.counts(), "ema": state.ema is not None}
                for name, state in self.roles.items()
                if state.optimiser is not None
            },
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "environment": environment(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a verified checkpoint.

        Raises:
            CheckpointError: it belongs to another model or method.
        """
        manifest, source = checkpoint.manifest, checkpoint.folder
        trained = {name for name, state in self.roles.items() if state.optimiser is not None}
        saved = set(manifest["roles"])
        if saved != trained:
            there = ", ".join(sorted(saved))
            raise CheckpointError(f"{source}: holds the roles {there}; this recipe trains {sorted(trained)}")
        for name in sorted(trained):
            state = self.roles[name]
            checkpointing.copy_into(state.role.weights, checkpoint.tensors(name), source)
            assert state.optimiser is not None
            flat = checkpoint.tensors(f"{name}.optimiser")
            checkpointing.restore_optimiser(state.optimiser, state.parameter_names, flat, source)
            if state.ema is not None:
                if manifest["roles"][name]["ema"]:
                    state.ema.load_state_dict(checkpoint.tensors(f"{name}.ema"))
                else:  # the average was switched on with --override: it starts at the current weights
                    state.ema.load_state_dict(state.role.weights.state_dict())
            state.guard.restore(manifest["roles"][name]["guard"])
        if self.scaler is not None and manifest["scaler"] is not None:
            self.scaler.load_state_dict(manifest["scaler"])
        self.images_seen = checkpoint.images_seen
        self.steps = int(manifest["steps"])


def make_optimiser(section: Optimiser, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """What the recipe names; AdamW in its fused form where the device has one."""
    if section.kind == "muon":
        return Muon(
            parameters,
            lr=section.learning_rate,
            momentum=section.momentum,
            orthogonalise_in=getattr(torch, section.orthogonalise_in),
            betas=section.betas,
            eps=section.eps,
            weight_decay=section.weight_decay,
        )
    fused = bool(parameters) and parameters[0].device.type in {"cpu", "cuda"}
    return torch.optim.AdamW(
        parameters,
        lr=section.learning_rate,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=fused,
    )


def environment() -> dict[str, Any]:
    """What bit-equal resuming depends on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def cpu_model() -> str:
    """Name of the processor with family and model: clouds sell different processors under one name.

    Those differ in instruction sets, so the same run ends in other last bits.
    """
    wanted = ("model name", "cpu family", "model", "stepping")
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        name.strip(): value.strip() for name, _, value in (x.partition(":") for x in first.splitlines())
    }
    if "model name" not in fields:  # not an x86
        return platform.processor() or platform.machine()
    numbers = [f"{name} {fields[name]}" for name in wanted[1:] if name in fields]
    return ", ".join([fields["model name"], *numbers])


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over all names, values and types of a module, for tests of "these weights did not change"."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
