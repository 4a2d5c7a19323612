"""Leases on received messages: they start at receive, are renewed together, and a lost one cancels the work."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.errors import WorkerError
from worker.intake.sqs import MAX_VISIBILITY, LaunchQueue, SqsMessage
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

_BATCH = 10
_RENEWAL = 5.0
"""Seconds for which a message that is given back waits for a renewal that is under way."""
_END_MARGIN = 120.0
"""Seconds before SQS's 12 h cap at which a lease is given up, while the message can still be released."""

_log = get_logger()


@dataclass(slots=True, eq=False)
class Lease:
    """One message in work. Times are monotonic seconds."""

    message: SqsMessage
    received_at: float
    expires_at: float
    on_lost: Callable[[], object]
    lost: bool = False


class Leases:
    """Renews every lease at about a third of its length; one task for all of them."""

    def __init__(self, queue: LaunchQueue, length: float, metrics: Metrics) -> None:
        self._queue = queue
        self._metrics = metrics
        self._length = length
        self._held: dict[str, Lease] = {}
        self._renewing = asyncio.Lock()

    @property
    def length(self) -> float:
        """Visibility to ask for at receive, seconds."""
        return self._length

    def start(self, message: SqsMessage, received_at: float, on_lost: Callable[[], object]) -> Lease:
        """Hold a message; `received_at` is the moment before the receive was sent, since SQS's clock runs from
        the receive, not from when work begins."""
        lease = Lease(message, received_at, received_at + self._length, on_lost)
        self._held[message.receipt_handle] = lease
        self._metrics.leases.set(len(self._held))
        return lease

    def end(self, lease: Lease) -> None:
        """Stop renewing; the message has been settled."""
        self._held.pop(lease.message.receipt_handle, None)
        self._metrics.leases.set(len(self._held))

    async def stop(self, lease: Lease) -> None:
        """Stop renewing, before the message's visibility is changed for good: a renewal that is under way would undo
        that. It is waited for, though not for ever."""
        self.end(lease)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RENEWAL), self._renewing:
                pass

    async def renew_forever(self) -> None:
        """Until cancelled. Jitter keeps many workers from renewing in step."""
        while True:
            await asyncio.sleep(self._length / 3 * random.uniform(0.7, 1.0))  # noqa: S311
            await self.renew()

    async def renew(self) -> None:
        """One round over all leases."""
        self._expire()
        leases = list(self._held.values())
        for start in range(0, len(leases), _BATCH):
            asked_at = time.monotonic()
            try:
                async with self._renewing:
                    batch = [lease for lease in leases[start : start + _BATCH] if self._is_held(lease)]
                    if not batch:
                        continue
                    lost = await self._queue.extend([lease.message for lease in batch], self._length)
            except WorkerError as error:
                # The next round tries again; a lease that nobody renewed in time is lost by `_expire`.
                _log.warning("lease_renewal_failed", error=str(error), leases=len(batch))
                continue
            for lease in batch:
                if lease.message.receipt_handle in lost:
                    self._lose(lease, "SQS says it is not ours any more")
                else:
                    lease.expires_at = asked_at + self._length
        self._expire()

    def _is_held(self, lease: Lease) -> bool:
        return lease.message.receipt_handle in self._held

    def _expire(self) -> None:
        now = time.monotonic()
        for lease in list(self._held.values()):
            if now >= lease.expires_at:
                self._lose(lease, "it could not be renewed in time")
            elif now - lease.received_at > MAX_VISIBILITY - self._length - _END_MARGIN:
                self._lose(lease, "SQS keeps no message in work for more than 12 h")

    def _lose(self, lease: Lease, why: str) -> None:
        if self._held.pop(lease.message.receipt_handle, None) is not None:
            _log.warning("lease_lost", message_id=lease.message.message_id, why=why)
            lease.lost = True
            self._metrics.leases.set(len(self._held))
            self._metrics.leases_lost.inc()
            lease.on_lost()
