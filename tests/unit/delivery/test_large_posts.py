"""Large posts that are ready together do not hold up the event loop for the sum of their milliseconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from tests.fakes.cloudwatch import CloudWatch, FakeLogFeed
from tests.fakes.companion import FakeCompanion
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import WORKER, record
from worker.aio import Breather
from worker.delivery.job_log import AssignedBatch, JobLog
from worker.delivery.posting import Posting
from worker.launch.console import ConsoleLine
from worker.launch.record import LaunchRecord
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.training.cursor import NOTHING_TAKEN, LogEvent

LARGE = [f"step {number}" for number in range(500)]


class Watched(FakeCompanion):
    """Notes when a post begins, which in the real one is where its JSON is made."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    async def post_lines(
        self, record: LaunchRecord, first_line: int, lines: Sequence[ConsoleLine], **rows: Any
    ) -> bool:
        self.ran.append("post")
        return await super().post_lines(record, first_line, lines, **rows)


class Posts:
    """Batches on their way to W&B."""

    def __init__(self, breather: Breather | None = None) -> None:
        self.companion = Watched()
        self.cloud, metrics = CloudWatch(), Metrics()
        self.posting = Posting(
            held=HeldLaunches(MemoryLedger(), WORKER, metrics),
            feed=FakeLogFeed(self.cloud),
            companion=self.companion,
            metrics=metrics,
            breather=breather or Breather(),
        )

    def assigned(self, number: int, texts: Sequence[str]) -> AssignedBatch:
        """A batch of a job's log."""
        now = int(time.time() * 1000)
        stream = f"job-{number}/algo-1-1700000000"
        log = JobLog(HeldLaunch(record(f"launch-{number}")), {stream: NOTHING_TAKEN})
        log.ahead = [LogEvent(stream, now + index, now + index, text) for index, text in enumerate(texts)]
        self.cloud.streams[stream] = list(log.ahead)
        return log.take()

    async def others(self, posts: int) -> None:
        """What else the loop has to do: a turn whenever it comes round."""
        for _ in range(5000):
            if len(self.companion.posts) == posts:
                break
            self.companion.ran.append("other")
            await asyncio.sleep(0)


@pytest.mark.parametrize("again", [False, True], ids=["first", "replayed"])
async def test_large_posts_begin_one_at_a_time(again: bool) -> None:
    posts = Posts()
    batches = [posts.assigned(number, LARGE) for number in range(10)]
    async with asyncio.TaskGroup() as tasks:
        for batch in batches:
            tasks.create_task(posts.posting.replay(batch.log) if again else posts.posting.post(batch))
        tasks.create_task(posts.others(10))
    assert posts.companion.ran.count("post") == 10
    assert ("post", "post") not in pairwise(posts.companion.ran)


async def test_small_posts_wait_for_no_turn() -> None:
    posts = Posts()
    batches = [posts.assigned(number, ["a line"]) for number in range(100)]
    async with asyncio.TaskGroup() as tasks:
        for batch in batches:
            tasks.create_task(posts.posting.post(batch))
        tasks.create_task(posts.others(100))
    assert posts.companion.ran.count("other") < 10


async def test_a_process_that_was_frozen_while_a_large_post_waited_for_its_turn_posts_nothing() -> None:
    """Another worker may have ended the run meanwhile: whose it is, is asked after the wait."""

    class Frozen(Breather):
        async def __call__(self) -> None:
            await super().__call__()
            batch.log.held.lost = True

    posts = Posts(Frozen())
    batch = posts.assigned(1, LARGE)
    await posts.posting.post(batch)
    assert posts.companion.ran == []
