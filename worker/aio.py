"""The few asyncio tools the standard library lacks, and the named effects a crash may split."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Literal

EffectName = Literal[
    "write_intent",
    "claim_run",
    "resolve_job",
    "fetch_source",
    "build_image",
    "push_image",
    "write_waiting",
    "delete_message",
    "release_message",
    "fail_queue_item",
    "copy_to_dlq",
    "create_training_job",
    "write_accepted",
    "stop_training_job",
    "open_companion",
    "assign_log_batch",
    "post_log_batch",
    "upload_log_file",
    "finish_companion",
    "write_finished",
    "write_refused",
    "write_retry",
    "write_given_up",
    "claim_launch",
    "register_agent",
    "pop_queue_item",
    "send_launch",
    "ack_queue_item",
    "upload_item_file",
]
"""Every effect of pipeline, supervisor and mirror that a crash may split; crash tests walk this list."""

EffectObserver = Callable[[Literal["before", "after"], EffectName], None]

_observer: EffectObserver | None = None


def observe_effects(observer: EffectObserver | None) -> None:
    """Call `observer` before and after each named effect (crash tests); None stops it."""
    global _observer  # noqa: PLW0603  # one process, one observer: a crash point is process-wide
    _observer = observer


@contextlib.contextmanager
def effect(name: EffectName) -> Iterator[None]:
    """Mark a change to the outside world, so that a test can kill the process before or after it."""
    if _observer is not None:
        _observer("before", name)
    yield
    if _observer is not None:
        _observer("after", name)


async def wait_for_event(event: asyncio.Event, timeout: float) -> bool:
    """Sleep until `event` is set, at most `timeout` seconds; True if it was set."""
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Breather:
    """Keeps long pieces of work of several tasks apart: each takes some milliseconds of the event loop, and those that
    become ready together would stall it for the sum. `await breather()` before a piece returns to one task at a time,
    and to the next one not before all others that are ready have had their turn."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def __call__(self) -> None:
        async with self._turn:
            await asyncio.sleep(0)


def backoff(tries: int, *, base: float = 1.0, cap: float = 60.0) -> float:
    """Seconds before try number `tries` + 1: exponential with full jitter, never below half of the step."""
    step = min(cap, base * float(2 ** min(tries, 20)))
    return step * random.uniform(0.5, 1.0)  # noqa: S311  # spreading load, not secrecy
