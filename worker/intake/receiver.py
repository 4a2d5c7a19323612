"""Takes launches from the queue: no receive without a free slot, every message under a lease, every outcome settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from worker.aio import backoff, wait_for_event
from worker.errors import MustRestart, WorkerError
from worker.intake.lease import Lease, Leases
from worker.intake.sqs import LaunchQueue, SqsMessage
from worker.launch.outcome import Outcome, Verdict
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics

Handler = Callable[[SqsMessage], Awaitable[Outcome]]

_log = get_logger()


class Receiver:
    """The intake loop. A launch failing never touches another, and no message can stop the loop."""

    def __init__(
        self,
        *,
        queue: LaunchQueue,
        leases: Leases,
        handle: Handler,
        slots: int,
        wait: float,
        grace: float,
        metrics: Metrics,
        may_receive: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_receive`: False while a launch could not be written down anyway; nothing is taken then."""
        self._may_receive = may_receive
        self._queue = queue
        self._leases = leases
        self._handle = handle
        self._free = slots
        self._slot_freed = asyncio.Event()
        self._in_work: set[asyncio.Task[None]] = set()
        self._stopped_at = 0.0
        self._poll_ends: float | None = None
        self._wait = wait
        self._grace = grace
        self._metrics = metrics
        self.receiving = False
        """Messages are taken, and the last receive did not fail: for /readyz."""

    async def run(self, stop: asyncio.Event) -> None:
        """Receive until `stop`; then finish what is in work within the grace, and give back the rest."""
        async with asyncio.TaskGroup() as supporting:
            clock = supporting.create_task(self._note_stop(stop), name="note the stop")
            # Leases are renewed until the last launch has ended, not only until the intake stops.
            renewing = supporting.create_task(self._leases.renew_forever(), name="renew leases")
            try:
                async with asyncio.TaskGroup() as work:
                    await self._receive_until(stop, work)
                    await self._finish_within_grace()
            finally:
                renewing.cancel()
                clock.cancel()

    async def _note_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopped_at = now = time.monotonic()
        if self._poll_ends is not None:
            _log.info("last_receive", seconds_left=round(max(0.0, self._poll_ends - now), 1))

    async def _receive_until(self, stop: asyncio.Event, work: asyncio.TaskGroup) -> None:
        failures = 0
        self.receiving = True
        while not stop.is_set():
            if not self._may_receive():
                await wait_for_event(stop, 0.2)
                continue
            wanted = await self._take_slots(stop)
            if stop.is_set():  # while it waited for a slot
                self._give_slots(wanted)
                break
            asked_at = time.monotonic()
            self._poll_ends = asked_at + self._wait
            try:
                # A long poll under way at a stop is left to end: cancelled, it could take a message along.
                messages = await self._queue.receive(wanted, wait=self._wait, visibility=self._leases.length)
                self.receiving, failures, self._poll_ends = True, 0, None
            except WorkerError as error:
                self.receiving, self._poll_ends = False, None
                messages = []
                _log.warning("receive_failed", error=str(error))
                await wait_for_event(stop, backoff(failures, cap=30))
                failures += 1
            self._give_slots(wanted - len(messages))
            self._metrics.messages.inc(len(messages))
            for message in messages:
                task = work.create_task(
                    self._work(message, asked_at, stop), name=f"launch {message.message_id}"
                )
                self._in_work.add(task)
                task.add_done_callback(self._in_work.discard)

    async def _finish_within_grace(self) -> None:
        if not self._in_work:
            return
        # The grace runs from the signal: a long poll that was under way has used up some of it.
        # A receive that ends with the signal gets here before its time is noted.
        now = time.monotonic()
        left = max(0.0, (self._stopped_at or now) + self._grace - now)
        _log.info("draining", in_work=len(self._in_work), seconds_left=round(left, 1))
        _, unfinished = await asyncio.wait(self._in_work, timeout=left)
        for task in unfinished:
            task.cancel()

    async def _take_slots(self, stop: asyncio.Event) -> int:
        """Wait for a free slot, then take all that are free; 0 when stopped."""
        while self._free == 0 and not stop.is_set():
            self._slot_freed.clear()
            await wait_for_event(self._slot_freed, 1.0)
        wanted = min(self._free, 10)
        self._free -= wanted
        return wanted

    def _give_slots(self, count: int) -> None:
        self._free += count
        self._slot_freed.set()

    async def _work(self, message: SqsMessage, received_at: float, stop: asyncio.Event) -> None:
        """One message from receive to settled. Cancelled by a lost lease, or when the grace is over."""
        task = asyncio.current_task()
        assert task is not None
        lease = self._leases.start(message, received_at, task.cancel)
        self._metrics.in_work.inc()
        started_at = time.monotonic()
        try:
            with structlog.contextvars.bound_contextvars(message_id=message.message_id):
                if stop.is_set():
                    await self._release(lease)
                    return
                outcome = await self._handle(message)
                self._metrics.outcomes.labels(outcome.verdict, outcome.stage).inc()
                took = time.monotonic() - started_at
                self._metrics.leg1_seconds.labels(outcome.verdict, outcome.stage).observe(took)
                await self._settle(lease, outcome)
        except asyncio.CancelledError:
            if not lease.lost:
                await self._release(lease)
            raise
        except WorkerError as error:
            # Settling failed; the message comes back and finds its launch where it stands.
            _log.warning("message_not_settled", error=str(error))
        except MustRestart:
            raise
        except Exception:
            _log.exception("message_failed")
        finally:
            self._leases.end(lease)
            self._metrics.in_work.dec()
            self._give_slots(1)

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        if outcome.verdict in (Verdict.DONE, Verdict.NEVER):
            await self._queue.delete(lease.message)
        else:
            await self._leases.stop(lease)
            await self._queue.hide(lease.message, outcome.delay)

    async def _release(self, lease: Lease) -> None:
        try:
            await self._leases.stop(lease)
            await self._queue.hide(lease.message, 0)
        except WorkerError as error:
            _log.warning("message_not_released", error=str(error))
