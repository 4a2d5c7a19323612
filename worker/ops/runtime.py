"""The process as such: how late its event loop is, and how often Python looks for garbage."""

from __future__ import annotations

import asyncio
import gc

from worker.ops.metrics import Metrics

_LOOK_EVERY = 0.025
"""Seconds. Of a stall, no more than this is not seen: 75 ms count as 50 at the least. It costs half a percent of a
core."""
_ALLOCATIONS = 10_000
"""New containers after which Python looks for garbage among the newest: a page of log events is that many at once, and
none of them is garbage that only a search finds."""


async def watch_loop_lag(metrics: Metrics) -> None:
    """Tell, until cancelled, how much later than asked for the event loop comes back to a task: everything waits so."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LOOK_EVERY
        await asyncio.sleep(_LOOK_EVERY)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))


def settle_garbage_collector() -> None:
    """To be called once all is opened: what lives as long as the process (code, AWS's service models) is not searched
    again, and short-lived pages of events are no reason to search often."""
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 20, 20)
