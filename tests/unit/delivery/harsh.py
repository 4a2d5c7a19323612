"""Workers that deliver logs from a CloudWatch as harsh as its documents, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.fakes.cloudwatch_logs import CloudWatchLogs, LogsClient
from tests.fakes.companion import FakeCompanion
from tests.fakes.ledger import MemoryLedger
from tests.unit.records import WORKER, record
from worker.aio import Breather
from worker.delivery.closing import Closing
from worker.delivery.loop import LogDelivery
from worker.delivery.posting import Posting
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.ops.rates import Rates
from worker.persistence import GIVE_UP_AFTER
from worker.training.log_feed import LogFeed

NOW = 1_800_000_000.0
"""AWS's time when a test begins, epoch seconds."""
HOUR = 3600.0
_MODULES = (
    "delivery.closing",
    "delivery.discovery",
    "delivery.job_log",
    "delivery.loop",
    "delivery.posting",
    "delivery.read_trouble",
    "persistence",
)


def numbered(count: int, what: str = "line") -> list[str]:
    return [f"{what} {number}" for number in range(count)]


class Clock:
    """`time`, as far as delivery uses it, in the loop's time. `ahead`: how wrong this host's clock is, seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return aws_now() + self.ahead


def aws_now() -> float:
    """Epoch seconds by AWS's clock."""
    return NOW + asyncio.get_running_loop().time()


def use_virtual_time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give delivery the loop's time; the clock that is returned can be put wrong."""
    clock = Clock()
    for module in _MODULES:
        monkeypatch.setattr(f"worker.{module}.time", clock)
    return clock


class Delivering:
    """One worker's log delivery with the real feed, at production's pace, on what others share with it."""

    def __init__(
        self,
        logs: CloudWatchLogs,
        companion: FakeCompanion | None = None,
        ledger: MemoryLedger | None = None,
        *,
        name: str = WORKER,
        now: Callable[[], float] = aws_now,
        give_up_after: float = GIVE_UP_AFTER,
    ) -> None:
        self.logs = logs
        self.companion = companion or FakeCompanion()
        self.ledger = ledger or MemoryLedger()
        self.name = name
        self.metrics = Metrics()
        self.client = LogsClient(logs)
        self.delivered: list[str] = []
        self.held = HeldLaunches(self.ledger, name, self.metrics)
        self.breather = Breather()
        self.feed = LogFeed(
            cast("Any", self.client),
            Rates(self.metrics, {}),
            self.metrics,
            breather=self.breather,
            now=now,
        )
        self.posting = Posting(
            held=self.held,
            feed=self.feed,
            companion=self.companion,
            metrics=self.metrics,
            breather=self.breather,
            give_up_after=give_up_after,
        )
        self.delivery = LogDelivery(
            feed=self.feed,
            held=self.held,
            posting=self.posting,
            closing=Closing(feed=self.feed, posting=self.posting, companion=self.companion),
            breather=self.breather,
            interval=2.0,
            quiet=15.0,
            drain_limit=300.0,
        )

    async def follow(self, launch_id: str = "launch-1", **changes: Any) -> HeldLaunch:
        """Hold a launch that is new to the ledger, and follow its log."""
        launch = record(launch_id, **changes)
        assert await self.ledger.create(launch) is None
        held = HeldLaunch(launch)
        self.held.add(held)
        self.delivery.follow(held)
        return held

    async def adopt(self, launch_id: str = "launch-1") -> HeldLaunch:
        """Claim what another worker holds, and go on with its log."""
        seen = await self.ledger.read(launch_id)
        assert seen is not None
        claimed = await self.ledger.claim(seen, self.name)
        assert claimed is not None
        held = HeldLaunch(claimed)
        self.held.add(held)
        self.delivery.follow(held)
        return held

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver; afterwards the worker is dead."""
        run = self.delivery.run(lambda held: self.delivered.append(held.launch_id))
        task = asyncio.ensure_future(run)
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def end(self, held: HeldLaunch, status: str = "Completed", *, limit: float = HOUR) -> None:
        """The job ends; wait until its log is delivered."""
        self.ended(held, status)
        async with asyncio.timeout(limit):
            while held.launch_id not in self.delivered:  # noqa: ASYNC110  # no event tells it
                await asyncio.sleep(0.5)

    def ended(self, held: HeldLaunch, status: str = "Completed") -> None:
        """The job ends."""
        facts = replace(held.record.facts, status=status, secondary_status=status, ended_at=aws_now())
        held.update(facts=facts)
        self.delivery.job_ended(held)

    def lines(self, launch_id: str = "launch-1") -> list[str]:
        """The console."""
        return self.companion.lines(launch_id)

    def lines_of(self, host: str, launch_id: str = "launch-1") -> list[str]:
        """The console lines of one container."""
        console = self.companion.console.get(launch_id, {})
        return [line.content for _, line in sorted(console.items()) if line.label == host]

    def calls_of(self, operation: str) -> int:
        """How many calls of an operation there were."""
        return len(self.logs.requests(operation))
