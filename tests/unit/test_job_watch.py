"""The watch of running jobs by itself: a thousand of them, a feed that fails, and an end at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tests.fakes.ledger import MemoryLedger
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import WORKER, record
from worker.errors import Throttled
from worker.job_watch import JobWatch
from worker.launch.record import JobFacts
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.persistence import GIVE_UP_AFTER, Persistence
from worker.training.status_feed import StatusFeed
from worker.training.status_news import Summary

pytestmark = pytest.mark.looptime

TRAINING = JobFacts("InProgress", "Training")
UPLOADING = JobFacts("InProgress", "Uploading")


class SlowSageMaker(FakeSageMaker):
    """A DescribeTrainingJob takes a minute."""

    async def describe(self, name: str) -> JobFacts:
        self.described.append(name)
        await asyncio.sleep(60)
        return self.jobs[name]


class FakeStatusFeed(StatusFeed):
    """Tells all that changed, each time, unless `error` is set."""

    def __init__(self) -> None:
        self.news: dict[str, Summary] = {}
        self.error: Exception | None = None
        self.answering = asyncio.Event()
        """Cleared: a look takes its time."""
        self.answering.set()

    async def changes(self) -> Mapping[str, Summary]:
        await asyncio.sleep(0)
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return dict(self.news)


class Bench:
    """The watch of some jobs."""

    def __init__(self, sagemaker: FakeSageMaker, feed: FakeStatusFeed, jobs: int) -> None:
        metrics = Metrics()
        held = HeldLaunches(MemoryLedger(), WORKER, metrics)
        self.launches = [HeldLaunch(record(f"launch-{n}", facts=TRAINING)) for n in range(jobs)]
        for launch in self.launches:
            held.add(launch)
            sagemaker.jobs[launch.record.job_name] = TRAINING
        self.watch = JobWatch(
            held=held,
            sagemaker=sagemaker,
            status_feed=feed,
            interval=5.0,
            persistence=Persistence(metrics, GIVE_UP_AFTER),
            metrics=metrics,
            now=lambda: 0.0,
        )

    async def run(self, seconds: float) -> float:
        """Watch for so long; the seconds that the end took then."""
        task = asyncio.ensure_future(self.watch.run(lambda _: None, self._tell))
        await asyncio.sleep(seconds)
        task.cancel()
        began = asyncio.get_running_loop().time()
        await asyncio.wait([task])
        assert task.cancelled()
        return asyncio.get_running_loop().time() - began

    @staticmethod
    async def _tell(held: HeldLaunch) -> None:
        del held


async def test_a_watch_that_ends_begins_no_further_look() -> None:
    """A worker that stops just after it has taken many jobs over gives them back when this has ended."""
    sagemaker, feed = SlowSageMaker(), FakeStatusFeed()
    bench = Bench(sagemaker, feed, jobs=60)
    for launch in bench.launches:
        name = launch.record.job_name
        feed.news[name] = Summary(name, UPLOADING.status, UPLOADING.secondary_status, 0.0)
    assert await bench.run(1.0) == 0
    assert len(sagemaker.described) == 20


async def test_overdue_looks_are_made_one_at_a_time() -> None:
    sagemaker = FakeSageMaker()
    bench = Bench(sagemaker, FakeStatusFeed(), jobs=12)
    for launch in bench.launches:
        launch.looked_at -= 601
    await bench.run(45.0)
    assert len(sagemaker.described) == 5, "one every 10 s"
    await bench.run(125.0)
    assert sorted(sagemaker.described) == sorted(launch.record.job_name for launch in bench.launches)


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "looks for long"])
async def test_overdue_looks_are_made_also_while_the_feed_tells_nothing(fails: bool) -> None:
    sagemaker, feed = FakeSageMaker(), FakeStatusFeed()
    if fails:
        feed.error = Throttled("slow down")
    else:
        feed.answering.clear()
    bench = Bench(sagemaker, feed, jobs=1)
    bench.launches[0].looked_at -= 601
    await bench.run(30.0)
    assert sagemaker.described == ["job-0"]


async def test_a_job_that_has_ended_long_ago_holds_up_no_overdue_look() -> None:
    """It is held until its log is delivered, and nobody looks at it again."""
    sagemaker = FakeSageMaker()
    bench = Bench(sagemaker, FakeStatusFeed(), jobs=2)
    ended, overdue = bench.launches
    ended.update(facts=JobFacts("Completed", "Completed"))
    ended.looked_at -= 7200
    overdue.looked_at -= 601
    await bench.run(30.0)
    assert sagemaker.described == [overdue.record.job_name]
