"""A plan carried out: a file, or a copy of the first model's folder, that appears when it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic, half, pipeline_folder, tensorfile
from fewstep.checkpoint.merging import folders, formulas
from fewstep.checkpoint.merging.plan import FORMULAS, Mode, Plan, Step
from fewstep.checkpoint.merging.sources import Key, Model, shown_key
from fewstep.checkpoint.merging.tree import merge_tree
from fewstep.checkpoint.naming import shown
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Report = Callable[[int, int], None]
"""Called with how many megabytes are done and how many there are: hashed, and written."""

CONTRACT_FILE = "fewstep.json"
_SCHEDULER = "scheduler"
_CARD = """# {name}

Merged by fewstep from other models, whose terms of use it keeps: what they ask for (names, licences) goes
with this folder too. Files that are no weights are those of A.

```
{tree}
```
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """How the result is to be sampled, as text that is carried and not read here.

    Attributes:
        text: the sampling contract as JSON.
        scheduler: the same as diffusers' ``scheduler_config.json``.
    """

    text: str
    scheduler: Mapping[str, Any]


class Ticks:
    """Counts bytes and tells how many megabytes are done.

    Args:
        report: who is told.
        total: bytes that there will be.
    """

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, count: int) -> None:
        """Say that further bytes are done."""
        self._done = min(self._done + count, self._total)
        if self._report is not None:
            self._report(_mega(self._done), _mega(self._total))

    def at_least(self, count: int) -> None:
        """Say that so many bytes are done, when it was not said yet."""
        self(max(0, count - self._done))


def write_file(path: Path, plan: Plan, mode: Mode, texts: Mapping[str, str], tick: Ticks) -> None:
    """Write the result as one file.

    Args:
        path: of it.
        plan: its tensors.
        mode: how they are mixed.
        texts: for its header.
        tick: told of the bytes that are written.

    Raises:
        CheckpointError: values that are not finite, or too large for the type; a model that was changed.
        OutputError: it cannot be written.
    """
    _write(path, {key: step for key, step in plan.steps.items() if key[0] == ""}, mode, texts, tick)


def write_folder(
    path: Path,
    first: Model,
    plan: Plan,
    mode: Mode,
    texts: Mapping[str, str],
    contract: Contract | None,
    tick: Ticks,
    *,
    replace: bool = False,
) -> list[str]:
    """Write the result as a copy of the first model's folder with other weights; otherwise as `write_file`.

    Args:
        path: of the folder.
        first: whose folder is copied.
        plan: the tensors of all networks.
        mode: how they are mixed.
        texts: for the header of every network.
        contract: how the result is sampled, where it is not as the first model is.
        tick: told of the bytes that are written.
        replace: put it in the place of an old folder.

    Returns:
        Remarks.
    """
    with atomic.folder(path, replace=replace) as root:
        left = folders.copy_rest(first.path, root, first.stores.keys())
        for group in first.stores:
            steps = {key: step for key, step in plan.steps.items() if key[0] == group}
            if steps:
                file = root / group / folders.weight_name(first.path, group)
                _write(file, steps, mode, texts, tick)
        if contract is not None:
            _write_contract(root, contract)
        tree = merge_tree(texts)
        assert tree is not None
        card = _CARD.format(name=path.name, tree="\n".join(tree.lines()).replace("```", "'''"))
        atomic.write_text(root / "README.md", card)
    if not left:
        return []
    return [f"{len(left)} files of weights in other formats are not copied, the first {shown(left[0])}"]


def _write(path: Path, steps: Mapping[Key, Step], mode: Mode, texts: Mapping[str, str], tick: Ticks) -> None:
    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for key, step in steps.items():
            yield key[1], _result(step, mode, shown_key(key))
            tick(step.entry.nbytes)

    tensorfile.write(path, {key[1]: step.entry for key, step in steps.items()}, tensors(), texts)


def _result(step: Step, mode: Mode, name: str) -> torch.Tensor:
    """One tensor of the result, in its own type."""
    import torch

    formula, code = FORMULAS[mode], step.entry.dtype
    try:
        if step.b is None or formula is None:
            return half.cast(step.a.raw(), code, name)
        out = torch.empty(step.a.shape, dtype=half.torch_type(code))
        for start, stop, values in formulas.merged(formula, step.m, step.a, step.b, step.c):
            if not bool(torch.isfinite(values).all()):
                raise CheckpointError(
                    f"{shown(name)}: the result has values too large for float32; give a smaller --ratio"
                )
            out[start:stop] = half.cast(values, code, name)
        return out.reshape(step.entry.shape)
    finally:
        for tensor in (step.a, step.b, step.c):
            if tensor is not None:
                tensor.forget()


def _write_contract(root: Path, contract: Contract) -> None:
    """How the result is sampled, for fewstep and, as its scheduler, for diffusers."""
    name = contract.scheduler["_class_name"]
    atomic.write_text(root / CONTRACT_FILE, contract.text)
    (root / _SCHEDULER).mkdir(exist_ok=True)
    _write_json(root / _SCHEDULER / "scheduler_config.json", contract.scheduler)
    if (root / folders.INDEX).is_file():
        index = pipeline_folder.read_json(root / folders.INDEX)
        _write_json(root / folders.INDEX, {**index, _SCHEDULER: ["diffusers", name]})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(value, indent=2) + "\n")


def _mega(count: int) -> int:
    return round(count / 1e6)
