"""How full the queue is, and for how long it has not been empty."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.fakes.launch_queue import FakeLaunchQueue
from worker.errors import Unreachable
from worker.intake.queue_watch import QueueWatch
from worker.intake.sqs import QueueDepth
from worker.ops.metrics import Metrics

pytestmark = pytest.mark.looptime


class Filled(FakeLaunchQueue):
    """As full as a test says; `broken`: SQS does not answer."""

    waiting = 0
    broken = False

    async def counts(self) -> QueueDepth:
        await asyncio.sleep(0)
        if self.broken:
            raise Unreachable("no")
        return QueueDepth(self.waiting, 2, 1)


async def test_the_queue_is_counted_and_its_backlog_timed_also_after_sqs_was_away() -> None:
    queue, metrics, loop = Filled(), Metrics(), asyncio.get_running_loop()
    watch = asyncio.ensure_future(QueueWatch(queue, metrics, 60, loop.time).run())

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    await asyncio.sleep(1)
    assert value("launch_queue_messages", state="in_work") == 2
    assert value("launch_queue_backed_up_seconds") == 0
    queue.waiting = 7
    await asyncio.sleep(180)
    assert value("launch_queue_messages", state="waiting") == 7
    assert value("launch_queue_backed_up_seconds") == 120
    queue.broken = True
    await asyncio.sleep(60)
    queue.broken = False
    await asyncio.sleep(60)
    assert value("launch_queue_backed_up_seconds") == 240
    queue.waiting = 0
    await asyncio.sleep(60)
    assert value("launch_queue_backed_up_seconds") == 0
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
