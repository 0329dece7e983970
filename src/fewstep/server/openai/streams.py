"""Pictures on the way: from steps in the worker's thread to events in the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fewstep.engine import pictures
from fewstep.server.openai import results
from fewstep.server.openai.wishes import Wish, partial_steps
from fewstep.server.orders import Image, Progress


@dataclass(frozen=True, slots=True)
class Partial:
    """A picture after some of the steps."""

    index: int
    """From 0."""
    file: bytes
    width: int
    height: int
    created: int
    """Seconds since 1970."""


class Partials:
    """Listens to an order, and gives its pictures on the way to an async loop.

    Args:
        wish: how many, and as what kind of file.
        size: (width, height) of the finished picture, to which these are brought; None leaves them.
    """

    def __init__(self, wish: Wish, size: tuple[int, int] | None) -> None:
        self._wish, self._size = wish, size
        self._loop = asyncio.get_running_loop()
        # At most as many as are wanted, so that a slow reader fills no memory.
        self._waiting: asyncio.Queue[Image | None] = asyncio.Queue()

    def listen(self, progress: Progress) -> None:
        """Take a picture where one is wanted; called after every step in the worker's thread."""
        if progress.preview is None or progress.step not in partial_steps(progress.total, self._wish.partial):
            return
        image = progress.preview()
        self._loop.call_soon_threadsafe(self._waiting.put_nowait, image)

    def end(self) -> None:
        """There are no more; called in the loop."""
        self._waiting.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Partial]:
        index = 0
        while (image := await self._waiting.get()) is not None:
            yield await asyncio.to_thread(self._made, image, index)
            index += 1

    def _made(self, image: Image, index: int) -> Partial:
        if self._size is not None:
            image = pictures.resized(image, *self._size)
        file = results.encode(self._wish, image)
        return Partial(index, file, image.shape[1], image.shape[0], int(time.time()))
