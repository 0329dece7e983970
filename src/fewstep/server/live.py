"""Live mode: pictures while somebody types. The newest wish wins; docs/reference/live.md has the protocol.

A session holds one wish, the newest. Of each wish there is first a picture in the fewest steps that the model
can do, and when no newer one has come for a while the picture in full, from the same seed. A newer wish takes
the older one's order out of the queue, or stops it at its next step; but a first picture that has been begun
is finished if that takes a moment only, so that somebody who types steadily sees something. There is at most
one order per session, in the same queue as everyone's.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import EngineError, FewstepError, QueueFull, UsageError
from fewstep.server import faults, native, steps
from fewstep.server.orders import Drawn, Order
from fewstep.server.schemas.live import Draw, Id

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.server.orders import Image

FIRST_DEADLINE = 60.0
"""Seconds that a first picture may take: later it is of no use."""
RESUME = 60.0
"""Seconds that a session is kept after its connection is gone."""
MOST = 64
"""Sessions, those that are kept among them."""
FINISHING = 1.0
"""Seconds that a newer wish lets a first picture that was begun go on."""
_RETRIES = 30
"""How often a full queue is asked again for one wish."""

T = TypeVar("T")
Send = Callable[[dict[str, Any], bytes | None], Awaitable[None]]
"""Sends a message and what belongs to it, with nothing in between."""


@dataclass(frozen=True, slots=True)
class Studio:
    """What a session draws with."""

    info: Callable[[str | None], Awaitable[ModelInfo]]
    draw: Callable[[Order, Callable[[], None]], Coroutine[Any, Any, Drawn]]
    """Of an order, and what is called in any thread when it is begun. Cancelled, it takes the order back."""
    decode: Callable[[str, bool], Image]
    """From base64; True for a mask."""
    encode: Callable[[Image, Draw, str | None, dict[str, Any] | None], bytes]
    """Image, wish, infotext, record -> a file."""


@dataclass(eq=False, slots=True)
class _Want:
    draw: Draw
    id: Id | None
    arrived: float
    frame: int | None = None
    """Number of its last picture."""
    done: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture that was sent."""

    header: dict[str, Any]
    data: bytes


class Session:
    """One person at one screen.

    Args:
        studio: what it draws with.
        owner: name of the key that it belongs to.
        clock: seconds, monotonic.
    """

    def __init__(
        self, studio: Studio, owner: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.token = secrets.token_urlsafe(16)
        self.owner = owner
        self.left: float | None = None
        """When its connection went, in seconds; None while there is one."""
        self.kick: Callable[[], None] | None = None
        """Ends the connection that it has."""
        self._studio, self._clock = studio, clock
        self._want: _Want | None = None
        self._changed = asyncio.Event()
        self._one = asyncio.Lock()
        self._frames = 0
        self._last: Frame | None = None

    def want(self, draw: Draw) -> dict[str, Any] | None:
        """Take a wish in place of the one before; what to tell the client about it, if anything."""
        before = self._want
        if before is not None and not before.failed and before.draw.same(draw):
            before.id = draw.id
            return {"type": "same", "id": draw.id, "frame": before.frame, "final": before.done}
        self._want = _Want(draw, draw.id, self._clock())
        self._changed.set()
        if before is None or before.done or before.failed:
            return None
        return {"type": "replaced", "id": before.id, "by": draw.id}

    def stop(self) -> None:
        """Want nothing more."""
        self._want = None
        self._changed.set()

    async def resume(self, send: Send) -> None:
        """Tell a new connection where the session stands, and show it the last picture."""
        want = self._want
        state = {"id": None, "final": False} if want is None else {"id": want.id, "final": want.done}
        await send({"type": "resumed", "token": self.token, **state}, None)
        if self._last is not None:
            await send(self._last.header | {"again": True}, self._last.data)

    async def run(self, send: Send) -> None:
        """Draw whatever is wanted until cancelled; also goes on with what a connection before had wanted."""
        async with self._one:  # a connection before may still be ending
            while True:
                want = self._want
                self._changed.clear()
                if want is not None and not want.done and not want.failed:
                    try:
                        await self._serve(want, send)
                    except FewstepError as error:
                        want.failed = True
                        await send(problem(error, want.id), None)
                await self._changed.wait()

    async def _serve(self, want: _Want, send: Send) -> None:
        draw, owner = want.draw, self.owner
        pictures: dict[str, Image] = {}
        if draw.image is not None or draw.mask is not None:
            pictures = await asyncio.to_thread(self._pictures, draw)
        info = await self._studio.info(draw.model)
        made = orders(draw, info, pictures, owner=owner)
        for index, order in enumerate(made):
            final = draw.final and index == len(made) - 1
            if index and await self._replaced(want.arrived + draw.idle_ms / 1000 - self._clock()):
                return
            if want.frame is not None and not final:
                continue  # a connection before has shown it
            drawn = await self._drawn(order, want, send, FINISHING if not final else 0.0)
            if drawn is None:
                return
            frame = await asyncio.to_thread(self._frame, want, drawn, final)
            want.frame = frame.header["frame"]
            want.done = index == len(made) - 1
            self._last = frame
            await send(frame.header | {"id": want.id}, frame.data)

    async def _drawn(self, order: Order, want: _Want, send: Send, finishing: float) -> Drawn | None:
        """The pictures of an order, or None where something newer is wanted and the seconds were too few."""
        for attempt in range(_RETRIES):
            try:
                begun = threading.Event()
                drawing = self._studio.draw(order, begun.set)
                return await self._unless_replaced(drawing, begun, finishing)
            except QueueFull as error:
                if not attempt:
                    await send(problem(error, want.id), None)
                if await self._replaced(max(error.retry_after, 0.05)):
                    return None
            except FewstepError:
                raise
            except Exception as error:  # the generator has logged it
                raise EngineError("the picture could not be drawn; the server's log says why") from error
        raise QueueFull(f"the queue was full {_RETRIES} times: send the wish again later")

    async def _unless_replaced(
        self, work: Coroutine[Any, Any, T], begun: threading.Event, finishing: float
    ) -> T | None:
        task, changed = asyncio.ensure_future(work), asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
            if finishing and begun.is_set() and self._want is not None:
                await asyncio.wait({task}, timeout=finishing)
            return task.result() if task.done() else None
        finally:
            changed.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # nobody asks any more

    async def _replaced(self, seconds: float) -> bool:
        """Wait; whether something newer came."""
        if self._changed.is_set():  # `wait_for` does not look when there is no time
            return True
        try:
            await asyncio.wait_for(self._changed.wait(), max(seconds, 0.0))
        except TimeoutError:
            return False
        return True

    def _pictures(self, draw: Draw) -> dict[str, Image]:
        found = {}
        if draw.image is not None:
            found["init_image"] = self._studio.decode(draw.image, False)
        if draw.mask is not None:
            found["mask"] = self._studio.decode(draw.mask, True)
        return found

    def _frame(self, want: _Want, drawn: Drawn, final: bool) -> Frame:
        draw = want.draw
        record, infotext = (drawn.records[0], drawn.infotexts[0]) if final else (None, None)
        data = self._studio.encode(drawn.images[0], draw, infotext, record)
        self._frames += 1
        steps_done = drawn.records[0].get("num_inference_steps")
        header = {
            "type": "frame",
            "frame": self._frames,
            "id": want.id,
            "final": final,
            "seed": drawn.seeds[0],
            "num_inference_steps": steps_done,
            "width": drawn.width,
            "height": drawn.height,
            "format": draw.format,
            "bytes": len(data),
            "timings": {name: round(seconds, 4) for name, seconds in drawn.timings.items()},
            "warnings": drawn.warnings,
            "image_id": drawn.ids[0] if drawn.ids else None,
        }
        return Frame(header, data)


class Sessions:
    """All sessions of a process. Those whose connection is gone are kept a while, to be resumed."""

    def __init__(self, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._all: dict[str, Session] = {}

    def add(self, session: Session) -> None:
        """Take a new session in.

        Raises:
            QueueFull: there are as many connections as are taken.
        """
        self._sweep()
        if len(self._all) >= self._most:
            left = sorted((one for one in self._all.values() if one.left is not None), key=_left)
            if not left:
                raise QueueFull(f"{self._most} live sessions are open: come again later", retry_after=10.0)
            del self._all[left[0].token]
        self._all[session.token] = session

    def leave(self, session: Session) -> None:
        """The connection is gone."""
        session.left, session.kick = self._clock(), None

    def drop(self, session: Session) -> None:
        """Forget a session."""
        self._all.pop(session.token, None)

    def find(self, token: str, owner: str) -> Session:
        """The session of a token; its connection, if it has one, is ended.

        Raises:
            UsageError: there is none, or it is another owner's.
        """
        self._sweep()
        session = self._all.get(token)
        if session is None or session.owner != owner:
            raise UsageError("token is not known, or its session is over: send the wish anew")
        if session.kick is not None:
            session.kick()
        session.left = None
        return session

    def _sweep(self) -> None:
        now = self._clock()
        for token, one in [*self._all.items()]:
            if one.left is not None and now - one.left > RESUME:
                del self._all[token]


def orders(draw: Draw, info: ModelInfo, pictures: dict[str, Image], *, owner: str) -> list[Order]:
    """What is drawn for a wish: first in the fewest steps, then in full; one where both are the same.

    Raises:
        NotFoundError: there is no student of that name.
    """
    few = steps.fewest(info, draw.student)
    full: dict[str, Any] = {**draw.settings(), **native.translated(draw), **pictures}
    first = {**full, "num_inference_steps": few}
    first.pop("hires", None)
    quick = draw.student or next((one.name for one in info.students if few in one.steps), None)
    if quick not in (None, "none"):
        # A student draws without guidance, and with its own solver.
        for name in ("negative_prompt", "guidance_scale", "guidance_rescale", "solver", "eta"):
            first.pop(name, None)
        first["student"] = quick
    asked = full.get("num_inference_steps")
    found: list[tuple[dict[str, Any], bool]] = [(first, False), (full, True)]
    if draw.final and asked is not None and asked <= few:
        found = [(full, True)]
    elif not draw.final:
        found = [(first, False)]
    return [
        Order(
            settings=settings, model=draw.model, owner=owner, client="live", save=final and draw.save,
            recorded=final, upscale=native.upscaling(draw.upscale) if final else None,
            deadline=None if final else FIRST_DEADLINE,
        )
        for settings, final in found
    ]  # fmt: skip


def problem(error: FewstepError, id: Id | None, field: str | None = None) -> dict[str, Any]:
    """An error as a message."""
    fault = faults.fault_of(error)
    told: dict[str, Any] = {"code": fault.code, "message": str(error), "field": field or fault.field}
    if isinstance(error, QueueFull):
        told["retry_after"] = error.retry_after
    return {"type": "error", "id": id, "error": told}


def _left(session: Session) -> float:
    return session.left or 0.0
