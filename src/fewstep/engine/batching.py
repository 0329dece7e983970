"""Several orders in the same calls of the network, each with the pictures that it has alone.

The single order is the batch of one: `Engine.generate` and `generate_batch` are the same code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.engine import prompts
from fewstep.engine.drawing import OnStep, Part
from fewstep.engine.hires import second_request
from fewstep.engine.tokens import Tokens
from fewstep.errors import EngineError, FewstepError, NotReady

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo, TextEncoderInfo
    from fewstep.engine.engine import Engine
    from fewstep.engine.request import GenerateRequest, GenerateResult

_OWN = frozenset({"prompt", "negative_prompt", "seed", "n", "variation", "warnings"})
"""What orders in one batch may differ in: their texts and their noise, and what was said of them."""


def compatible(info: ModelInfo, a: GenerateRequest, b: GenerateRequest) -> bool:
    """Whether two orders can be drawn together.

    They differ in prompt, negative prompt, seed, variation and number of images only, their texts take the
    same number of chunks, and as many prompts with the same weights are joined by AND. Orders with control
    networks, which see one picture at a time, and ``deterministic`` ones, which ask for batches of one, are
    drawn alone.

    Args:
        info: the model of both.
        a: an order.
        b: another one.
    """
    if a.control or b.control or a.deterministic or b.deterministic:
        return False
    names = [field.name for field in dataclasses.fields(a) if field.name not in _OWN]
    if not all(_same(getattr(a, name), getattr(b, name)) for name in names):
        return False
    if prompts.weights(info, a) != prompts.weights(info, b):
        return False
    return _chunks(info, a) == _chunks(info, b)


def generate_batch(
    engine: Engine,
    requests: Sequence[GenerateRequest],
    *,
    on_step: Sequence[OnStep | None] | None = None,
    cancelled: Sequence[Callable[[], bool] | None] | None = None,
    on_end: Callable[[int, GenerateResult | FewstepError], None] | None = None,
) -> list[GenerateResult | FewstepError]:
    """Draw orders that are `compatible` together.

    An order that is cancelled, or whose numbers are not finite, drops out at the next step, and the others go
    on without it. When a call that all share fails, those that have not ended are drawn again one by one, so
    that only the guilty one fails; their steps are then told from the first on.

    Args:
        engine: the model. Others wait meanwhile, as for `Engine.generate`.
        requests: at least one.
        on_step: of every order, told after every step.
        cancelled: of every order, asked before every step.
        on_end: told the number of an order and what came of it as soon as that is known: an order of one
            image need not wait for one of eight.

    Returns:
        What came of every order: its result, or the error that `Engine.generate` raises. Its ``timings`` are
        the batch's, up to its own end. An exception that is no FewstepError, a bug, is the cause of an
        EngineError; MemoryError is that of a NotReady.
    """
    count = len(requests)
    ends: list[GenerateResult | FewstepError | None] = [None] * count

    def ended(index: int) -> Callable[[Part], None]:
        def tell(part: Part) -> None:
            end = part.result if part.error is None else _deliberate(part.error)
            assert end is not None
            ends[index] = end
            if on_end is not None:
                on_end(index, end)

        return tell

    parts = [
        functools.partial(Part, request, told, asked, ended(index))
        for index, (request, told, asked) in enumerate(
            zip(requests, on_step or [None] * count, cancelled or [None] * count, strict=True)
        )
    ]
    try:
        engine.draw([part() for part in parts])
    except Exception as error:
        left = [index for index in range(count) if ends[index] is None]
        for index in left:
            alone = parts[index]()
            if count == 1:
                alone.end(error)
                continue
            with alone.own():
                engine.draw([alone])
    return [end for end in ends if end is not None]


def _deliberate(error: Exception) -> FewstepError:
    """An error with a status and a message that can be shown, in place of any other exception."""
    if isinstance(error, FewstepError):
        return error
    made: FewstepError
    if isinstance(error, MemoryError):
        made = NotReady("out of memory while drawing: ask for fewer or smaller pictures, or try again later")
    else:
        made = EngineError(f"drawing failed by a bug of fewstep ({type(error).__name__}); see the log")
    made.__cause__ = error
    return made


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a is b or np.array_equal(a, b)
    return bool(type(a) is type(b) and a == b)


def _chunks(info: ModelInfo, request: GenerateRequest) -> int:
    passes = [request] if request.hires is None else [request, second_request(request)]
    return prompts.chunks(info, passes, lambda: _tokenizers(info.encoders))


@functools.lru_cache(maxsize=4)
def _tokenizers(encoders: tuple[TextEncoderInfo, ...]) -> tuple[Tokens, ...]:
    return tuple(Tokens(encoder.tokenizer_json, encoder.length) for encoder in encoders)
