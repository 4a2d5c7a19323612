"""How often W&B's file streams are posted to: two posts a second a run and one at a time, fewer of all after a 429.

One at a time, as W&B's own clients do: a heartbeat that overtakes the end of its run would make it running again.

W&B's documented limits are per run and per project, and its 429 does not say which was met: the run waits as long as
it was asked to, and all posts together come slower for a while, halved with each further 429.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from worker.errors import Throttled

RUN_INTERVAL = 0.5
"""Seconds between two posts of one run: 2/s is W&B's limit (Dedicated Cloud)."""
_FIRST_GAP = 0.004
_LONGEST_GAP = 1.0
_RECOVERY = 0.98
_FORGET_EVERY = 1000

_MAX_PAUSE = 300.0


@dataclass(slots=True)
class _Flight:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class StreamPace:
    """Times are monotonic seconds. What it knows of a run is forgotten once it no longer matters."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._next: dict[str, float] = {}
        """Run → when it may post again."""
        self._flights: dict[str, _Flight] = {}
        """Run → who posts, or waits for that."""
        self._next_of_all = 0.0
        self._gap = 0.0

    @asynccontextmanager
    async def turn(self, run: str) -> AsyncIterator[None]:
        """Wait for the run's turn, post inside. Raises `Throttled`, without a post, while W&B's Retry-After lasts."""
        flight = self._flights.setdefault(run, _Flight())
        flight.users += 1
        try:
            async with flight.lock, self._paced(run):
                yield
        finally:
            flight.users -= 1
            if not flight.users:
                del self._flights[run]

    @asynccontextmanager
    async def _paced(self, run: str) -> AsyncIterator[None]:
        now = self._now()
        at = max(now, self._next.get(run, 0.0), self._next_of_all)
        if at - now > 2 * _LONGEST_GAP:
            raise Throttled("file_stream: W&B asked to wait", retry_after=at - now)
        self._forget(now)
        self._next[run] = at + RUN_INTERVAL
        self._next_of_all = max(self._next_of_all, now) + self._gap if self._gap else 0.0
        await asyncio.sleep(at - now)
        try:
            yield
        except Throttled as error:
            self._gap = min(_LONGEST_GAP, max(_FIRST_GAP, 2 * self._gap))
            pause = min(error.retry_after or RUN_INTERVAL, _MAX_PAUSE)
            self._next[run] = max(self._next.get(run, 0.0), self._now() + pause)
            raise
        else:
            self._gap = self._gap * _RECOVERY if self._gap > _FIRST_GAP / 2 else 0.0

    def _forget(self, now: float) -> None:
        if len(self._next) >= _FORGET_EVERY:
            self._next = {run: at for run, at in self._next.items() if at > now}
