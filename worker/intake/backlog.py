"""How many launches have left W&B's queue and are not submitted yet: what keeps the mirror from taking all of it.

W&B's priority, order and deletion hold for what is still in its queue, so the mirror takes no more than the workers
can use soon.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable

from worker.intake.sqs import LaunchQueue

SETTLE = 10.0
"""Seconds for which a sent message is counted by itself: SQS's numbers are approximate and come late."""
LEDGER_EVERY = 10.0
"""Seconds between two looks into the ledger, which cost more than SQS's numbers."""

CountWaiting = Callable[[], Awaitable[int]]


class Backlog:
    """Messages in SQS (visible, in work, delayed), launches that wait in the ledger, and what was just sent.

    The last is counted twice once SQS shows it: for some seconds the backlog looks larger than it is, never
    smaller. Each mirror counts only its own, so that several may exceed the limit together, by one launch each."""

    def __init__(
        self,
        queue: LaunchQueue,
        count_waiting: CountWaiting | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count_waiting`: launches `waiting` in the ledger; None: the mirror cannot see it."""
        self._queue = queue
        self._count_waiting = count_waiting
        self._clock = clock
        self._sent: deque[float] = deque()
        self._waiting = 0
        self._counted_at: float | None = None

    def sent(self) -> None:
        """A message has just been sent."""
        self._sent.append(self._clock())

    async def size(self, enough: int) -> int:
        """The backlog; the ledger is asked only where SQS alone does not make `enough`. Raises `Again` or `Never` when
        SQS or the ledger does not answer: then nobody knows, and nothing should be taken."""
        now = self._clock()
        while self._sent and now - self._sent[0] > SETTLE:
            self._sent.popleft()
        size = await self._queue.depth() + len(self._sent)
        if size < enough and self._count_waiting is not None:
            if self._counted_at is None or now - self._counted_at >= LEDGER_EVERY:
                self._waiting = await self._count_waiting()
                self._counted_at = now
            size += self._waiting
        return size
