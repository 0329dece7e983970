"""Students beside their base: what one must be to share its text encoder, tokenizer and autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract


def check_contract(name: str, contract: SamplingContract) -> SamplingContract:
    """Return the contract of a student.

    Raises:
        CheckpointError: it asks for guidance, which whoever draws with a student does not give.
    """
    if contract.guidance != "off":
        raise CheckpointError(
            f"student {name!r}: its contract has guidance {contract.guidance!r}, and students are drawn "
            "without; give one that has taken guidance in (guidance: off)"
        )
    return contract


def fingerprint(module: Any) -> str:
    """SHA-256 over a network's weights, as 64 hexadecimal digits.

    They are rounded to float16 first, so that float32 files of a base and the float16 files that a
    distillation leaves give the same. A text encoder's pooler does not count: nothing here uses it, and
    transformers draws one at random where the file has none.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith("pooler."):
            continue
        array = tensor.detach().cpu().float().numpy()
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(array.astype(np.float16))
        digest.update(f"{name} {half.shape}\n".encode())
        digest.update(half.tobytes())
    return digest.hexdigest()


def check_same(name: str, theirs: Mapping[str, object], ours: Mapping[str, object]) -> None:
    """Compare what a student has with what its base has.

    Args:
        name: of the student.
        theirs: what is compared, by its name in a message -> the student's.
        ours: the same of the base.

    Raises:
        CheckpointError: they differ; the message says in what.
    """
    for what, value in ours.items():
        if theirs[what] == value:
            continue
        plain = isinstance(value, int | float | tuple)
        numbers = f" ({theirs[what]} instead of {value})" if plain else ""
        raise CheckpointError(
            f"student {name!r}: its {what} differs from the base's{numbers}, so it cannot share it; "
            "export it as a model of its own, or give a student of this base"
        )
