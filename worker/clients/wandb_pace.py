"""How often W&B's file streams are posted to: two posts a second a run and one at a time, fewer of all after a 429.

One at a time, as W&B's own clients do: a heartbeat that overtakes the end of its run would make it running again.

W&B's documented limits are per run and per project, and its 429 does not say which was met: the run waits as long as
it was asked to, and all posts together come slower for a while, halved with each further 429.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from worker.errors import Throttled, Unreachable

T = TypeVar("T")

RUN_INTERVAL = 0.5
"""Seconds between two posts of one run: 2/s is W&B's limit (Dedicated Cloud)."""
_FIRST_GAP = 0.004
_LONGEST_GAP = 1.0
_RECOVERY = 0.98
_FORGET_EVERY = 1000

_MAX_PAUSE = 300.0
_STOOD_STILL = 2.0
"""Seconds by which a turn came too late to be sure that this process was not frozen; a peer waits longer than that
before it takes launches over."""


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
        """Wait for the run's turn, post inside. Raises `Throttled`, without a post, while W&B's Retry-After lasts, and
        as `sleep_until`, also behind a post of the run that takes as long."""
        flight = self._flights.setdefault(run, _Flight())
        flight.users += 1
        joined_at = self._now()
        try:
            async with flight.lock:
                self.still_in_time(joined_at)
                async with self._paced(run):
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
        await self.sleep_until(at)
        try:
            yield
        except Throttled as error:
            self._gap = min(_LONGEST_GAP, max(_FIRST_GAP, 2 * self._gap))
            pause = min(error.retry_after or RUN_INTERVAL, _MAX_PAUSE)
            self._next[run] = max(self._next.get(run, 0.0), self._now() + pause)
            raise
        else:
            self._gap = self._gap * _RECOVERY if self._gap > _FIRST_GAP / 2 else 0.0

    async def sleep_until(self, at: float) -> None:
        """Raises `Unreachable` where the process stood still meanwhile: whoever posts has looked before whether the run
        is its own to write, and has to look again."""
        await asyncio.sleep(at - self._now())
        self.still_in_time(at)

    def still_in_time(self, at: float) -> None:
        """For a post that might have been made `at`; raises as `sleep_until`."""
        if (late := self._now() - at) > _STOOD_STILL:
            raise Unreachable(f"file_stream: not posted, this process stood still for {late:.0f} s")

    def _forget(self, now: float) -> None:
        if len(self._next) >= _FORGET_EVERY:
            self._next = {run: at for run, at in self._next.items() if at > now}


_LONGEST_QUIET = 60.0
"""Seconds that a Retry-After of GraphQL, which is about the key and not about one launch, holds everything up."""
_PATIENCE = 10.0
"""Seconds that a query waits for W&B by itself, from when it joins the line; whoever has to wait longer is told so."""
_ORDERLY = 30.0
"""Seconds behind a 429 in which queries are sent one at a time."""
_LONGEST_LINE = 50


class QueryLine:
    """GraphQL after a 429: one query at a time, in the order in which they came, each as soon as W&B allows it.

    Else all who wait would ask again at the same moment and one of them pass: a step of two queries, of which the
    first is repeated with it, might never come to its second. Times are monotonic seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._from = 0.0
        """Until then W&B asked not to be asked."""
        self._orderly_until = 0.0
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def ask(self, what: str, query: Callable[[], Awaitable[T]]) -> T:
        """Send a query, named `what`, when its turn has come. Raises `Throttled` where that would take long."""
        if self._now() >= self._orderly_until:
            try:
                return await query()
            except Throttled as error:
                self._limited(error)
        if self._waiting >= _LONGEST_LINE:
            raise Throttled(f"{what}: many wait for W&B already", retry_after=_PATIENCE)
        self._waiting += 1
        deadline = self._now() + _PATIENCE
        try:
            async with self._lock:
                return await self._ask_in_turn(what, query, deadline)
        finally:
            self._waiting -= 1

    async def _ask_in_turn(self, what: str, query: Callable[[], Awaitable[T]], deadline: float) -> T:
        while True:
            left = self._from - self._now()
            if left > 0 and self._from > deadline:
                raise Throttled(f"{what}: W&B asked to wait", retry_after=left)
            await asyncio.sleep(max(0.0, left))
            try:
                return await query()
            except Throttled as error:
                self._limited(error)

    def _limited(self, error: Throttled) -> None:
        if not error.retry_after:  # nobody knows when: whoever asked has pauses of his own
            raise error
        self._from = max(self._from, self._now() + min(error.retry_after, _LONGEST_QUIET))
        self._orderly_until = self._from + _ORDERLY
