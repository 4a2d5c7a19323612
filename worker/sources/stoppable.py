"""Work in a thread that ends before its caller does: nobody may delete files that are still written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

StopCheck = Callable[[], None]
"""Called by the work between its steps; raises `Stopped` when nobody waits for it any more."""


class Stopped(Exception):
    """The work was given up by its caller; nobody sees this error."""


async def run_stoppable(work: Callable[[StopCheck], T]) -> T:
    """Run `work` in a thread. When cancelled, tell it to stop, wait until it has, then pass the cancellation on."""
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    future = asyncio.get_running_loop().run_in_executor(None, work, check)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # seen, so that asyncio does not complain that nobody looked
        raise


async def run_to_end(work: Callable[[], T]) -> T:
    """Run `work` in a thread; it is short, so a cancelled caller waits for its end."""
    return await run_stoppable(lambda _: work())
