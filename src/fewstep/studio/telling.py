"""Refusals of the server as sentences on the page."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import gradio as gr

from fewstep.studio.client import ApiError

_Event = TypeVar("_Event", bound=Callable[..., Any])


def told(event: _Event) -> _Event:
    """A function of an event, coroutine or asynchronous generator, whose ApiError is said to the visitor.

    Gradio gives the request and the data of an event to parameters by their types, and looks for them only
    before the first that takes many: write ``async def f(request: gr.Request, event: gr.EventData, *given)``.
    """
    function: Callable[..., Any] = event

    @functools.wraps(event)
    async def answer(*given: Any, **named: Any) -> Any:
        try:
            return await function(*given, **named)
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    @functools.wraps(event)
    async def answers(*given: Any, **named: Any) -> Any:
        try:
            async for one in function(*given, **named):
                yield one
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return cast(_Event, answers if inspect.isasyncgenfunction(event) else answer)
