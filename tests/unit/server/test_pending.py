"""Waiting for an order: what is given up leaves nothing in the log."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled
from fewstep.server.orders import Order
from fewstep.server.pending import Pending, finish


def test_the_end_of_an_order_that_nobody_waits_for_any_more_is_no_fault() -> None:
    """Live mode gives up many: each would be a traceback, "exception was never retrieved"."""
    told: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        pending = Pending(
            Order(settings={"prompt": ""}), resolve(FakeBackend().info, prompt=""), "a" * 32, None
        )
        waiting = asyncio.ensure_future(finish(pending))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        pending.future.set_exception(Cancelled("stopped by request"))
        await asyncio.sleep(0.01)
        del waiting, pending
        gc.collect()
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert told == []
