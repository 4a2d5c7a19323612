"""Leg 2 as a whole, on fakes: what changes is looked at, what ended is told once, what is adopted is gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.cloudwatch import CloudWatch, FakeLogFeed
from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue
from tests.fakes.ledger import MemoryLedger
from tests.fakes.leg2 import stopping_of, story_of
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import OTHER, WORKER, record, waiting
from tests.unit.waiting import until
from worker.aio import Breather
from worker.clients.api_key import ApiKey
from worker.clients.aws import AwsRefused
from worker.delivery.closing import Closing
from worker.delivery.loop import LogDelivery
from worker.delivery.posting import Posting
from worker.errors import Throttled, Unreachable
from worker.intake.refusal import Refusals
from worker.intake.sweeps import Sweeps
from worker.job_watch import JobWatch
from worker.launch.record import JobFacts, LaunchRecord, LaunchState
from worker.ledger.adoption import Adoption
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.membership import Membership
from worker.ledger.port import WorkerBeat
from worker.ops.metrics import Metrics
from worker.persistence import GIVE_UP_AFTER, Persistence
from worker.retrying import Retrying
from worker.submission import Submission
from worker.supervisor import Supervisor
from worker.training.sagemaker import SageMaker
from worker.training.status_feed import StatusFeed
from worker.training.status_news import Summary

TICK = 0.005
STARTING = JobFacts("InProgress", "Starting")
TRAINING = JobFacts("InProgress", "Training")
COMPLETED = JobFacts("Completed", "Completed")
RESTING = 10 * TICK
"""Seconds in which what must not happen would have happened."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second for another try here."""
    for module in (
        "persistence",
        "supervisor",
        "job_watch",
        "submission",
        "telling",
        "retrying",
        "ledger.adoption",
    ):
        monkeypatch.setattr(f"worker.{module}.backoff", lambda *_, **__: 0.002)


class Watched(FakeSageMaker):
    """Answers a Describe, when it may, with what was true when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.described: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def describe(self, name: str) -> JobFacts:
        self.described.append(name)
        return await SageMaker.describe(self, name) if name not in self.jobs else await self._facts(name)

    async def _facts(self, name: str) -> JobFacts:
        facts = self.jobs[name]
        await self.may_answer.wait()
        await self._turn()
        return facts

    async def _describe(self, name: str) -> Mapping[str, Any]:
        raise AwsRefused("DescribeTrainingJob", "ValidationException", "Requested resource not found.")


class FakeStatusFeed(StatusFeed):
    """Tells what a test has put in; again each time, as the overlap of two looks does."""

    def __init__(self) -> None:
        self.news: dict[str, Summary] = {}
        self.looked_back: list[float] = []
        self.errors: list[Exception] = []
        self.looks = 0
        self.tells_once = False
        self.looking = asyncio.Event()
        """Cleared: a look takes its time."""
        self.looking.set()

    def look_back_to(self, moment: float) -> None:
        self.looked_back.append(moment)

    async def changes(self) -> Mapping[str, Summary]:
        self.looks += 1
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        await self.looking.wait()
        news, self.news = self.news, {} if self.tells_once else self.news
        return dict(news)

    def tell(self, name: str, facts: JobFacts) -> None:
        self.news[name] = Summary(name, facts.status, facts.secondary_status, time.time())


class Bench:
    """One worker's leg 2."""

    def __init__(self, ledger: MemoryLedger | None = None) -> None:
        metrics = self.metrics = Metrics()
        self.stop = asyncio.Event()
        self.ledger = ledger or MemoryLedger()
        self.sagemaker, self.feed, self.companion = Watched(), FakeStatusFeed(), FakeCompanion()
        held = self.held = HeldLaunches(self.ledger, WORKER, metrics)
        self.cloud = CloudWatch()
        logs = FakeLogFeed(self.cloud)
        posting = Posting(
            held=held, feed=logs, companion=self.companion, metrics=metrics, breather=Breather()
        )
        adoption = Adoption(
            ledger=self.ledger,
            membership=Membership(self.ledger, WorkerBeat(WORKER, 0, "default", "host", 0.0), 1.0),
            held=held,
            worker=WORKER,
            heartbeat=1.0,
            metrics=metrics,
        )
        persistence = Persistence(metrics, GIVE_UP_AFTER)
        submission = Submission(
            held=held,
            sagemaker=self.sagemaker,
            refusals=Refusals(None, FakeLaunchQueue()),
            sweeps=Sweeps(None),
            metrics=metrics,
            api_key=ApiKey(""),
            max_jobs=-1,
            max_wait=3600,
        )
        story = story_of(self.companion, self.sagemaker)
        self.stopping = stopping_of(held, submission, self.sagemaker, story, self.companion, interval=60.0)
        self.supervisor = Supervisor(
            persistence=persistence,
            held=held,
            adoption=adoption,
            submission=submission,
            watch=JobWatch(
                held=held,
                sagemaker=self.sagemaker,
                status_feed=self.feed,
                interval=TICK,
                persistence=persistence,
                metrics=metrics,
                now=time.time,
            ),
            delivery=LogDelivery(
                feed=logs,
                held=held,
                posting=posting,
                closing=Closing(feed=logs, posting=posting, companion=self.companion),
                breather=Breather(),
                interval=TICK,
                quiet=4 * TICK,
                drain_limit=5.0,
            ),
            companion=self.companion,
            retrying=Retrying(
                held=held,
                sagemaker=self.sagemaker,
                refusals=Refusals(None, FakeLaunchQueue()),
                metrics=metrics,
                deployment="default",
                pause=TICK,
            ),
            story=story,
            stopping=self.stopping,
            metrics=metrics,
        )

    async def hold(self, launch: LaunchRecord) -> HeldLaunch:
        """A launch whose job runs and is followed already."""
        await self.ledger.create(launch)
        held = HeldLaunch(launch)
        self.held.add(held)
        self.sagemaker.jobs.setdefault(launch.job_name, launch.facts)
        return held

    def now(self, name: str, facts: JobFacts) -> None:
        """The job changes, and the feed tells it."""
        self.sagemaker.jobs[name] = facts
        self.feed.tell(name, facts)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.supervisor.run(self.stop))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def finished(self, launch_id: str = "launch-1") -> LaunchRecord:
        """Wait for the end; the record as the ledger has it."""
        await until(lambda: launch_id not in self.held and self.companion.finished)
        stored = await self.ledger.read(launch_id)
        assert stored is not None
        assert stored.state is LaunchState.FINISHED
        return stored

    def ended(self, end: str) -> float:
        return self.metrics.registry.get_sample_value("launch_jobs_ended_total", {"status": end}) or 0


def unlogged(launch_id: str = "launch-1", **changes: Any) -> LaunchRecord:
    """A running launch that nobody wants the log of: it is finished as soon as it has ended."""
    return record(launch_id, log_target="off", **changes)


async def test_a_launch_goes_all_the_way() -> None:
    bench = Bench()
    launch = waiting(waiting_at=time.time())
    await bench.ledger.create(launch)
    async with bench.running():
        await bench.supervisor.submit(HeldLaunch(launch))
        assert bench.supervisor.is_held("launch-1")
        bench.cloud.put("job-1/algo-1-1700000000", "epoch 1", "epoch 2")
        bench.now("job-1", TRAINING)
        await until(lambda: len(bench.companion.console.get("launch-1", {})) == 2)
        bench.now("job-1", COMPLETED)
        stored = await bench.finished()
    assert stored.facts == COMPLETED
    assert stored.log.next_line == 2
    assert stored.expires_at > stored.finished_at + 14 * 24 * 3600
    assert bench.companion.lines("launch-1") == ["epoch 1", "epoch 2"]
    ((summary, exit_code),) = bench.companion.finished
    assert exit_code == 0
    assert "The training job completed." in summary.values()
    assert bench.ended("completed") == 1


async def test_only_what_changed_is_described() -> None:
    bench = Bench()
    await bench.hold(unlogged("launch-1"))
    await bench.hold(unlogged("launch-2"))
    bench.feed.tell("job-1", TRAINING)  # as known
    bench.feed.tell("somebody-elses", COMPLETED)
    async with bench.running():
        await until(lambda: bench.feed.looks > 5)
        assert bench.sagemaker.described == []
        bench.now("job-2", JobFacts("InProgress", "Uploading"))
        await until(lambda: bench.companion.summaries)
        await asyncio.sleep(RESTING)
    assert bench.sagemaker.described == ["job-2"]
    stored = await bench.ledger.read("launch-2")
    assert stored is not None
    assert stored.facts.secondary_status == "Uploading"


async def test_it_is_told_how_late_a_change_was_seen_once_a_change() -> None:
    bench = Bench()
    await bench.hold(unlogged(facts=STARTING))
    bench.sagemaker.jobs["job-1"] = TRAINING
    bench.feed.news["job-1"] = Summary("job-1", TRAINING.status, TRAINING.secondary_status, time.time() - 7)
    async with bench.running():
        await until(lambda: bench.feed.looks > 5)
    value = bench.metrics.registry.get_sample_value
    assert value("launch_status_lag_seconds_count") == 1
    assert 7 <= (value("launch_status_lag_seconds_sum") or 0) < 12


async def test_a_change_that_comes_while_a_describe_is_under_way_is_looked_at_again() -> None:
    bench = Bench()
    await bench.hold(unlogged(facts=STARTING))
    bench.sagemaker.may_answer.clear()
    async with bench.running():
        bench.now("job-1", TRAINING)
        await until(lambda: bench.sagemaker.described)
        bench.now("job-1", COMPLETED)
        looks = bench.feed.looks
        await until(lambda: bench.feed.looks >= looks + 2)
        assert len(bench.sagemaker.described) == 1, "one at a time"
        bench.feed.news.clear()  # it is told once
        bench.sagemaker.may_answer.set()
        stored = await bench.finished()
    assert stored.facts == COMPLETED
    assert bench.sagemaker.described == ["job-1", "job-1"]


async def test_a_job_that_is_accepted_while_the_feed_looks_is_seen_by_that_look() -> None:
    """The next look may begin behind its change, when this one took long."""
    bench = Bench()
    await bench.hold(unlogged("launch-2"))
    bench.feed.looking.clear()
    async with bench.running():
        await until(lambda: bench.feed.looks)
        await bench.hold(unlogged("launch-1", facts=STARTING))
        bench.now("job-1", COMPLETED)
        bench.feed.tells_once = True
        bench.feed.looking.set()
        await bench.finished("launch-1")


class SlowLedger(MemoryLedger):
    """A save takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.saving = asyncio.Event()

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        await self.saving.wait()
        return await super().save(records, owner=owner)


async def test_an_end_is_durable_before_anybody_acts_on_it() -> None:
    """Seen, and unseen again when its write fails, it would be told as another end."""
    bench = Bench(ledger := SlowLedger())
    held = await bench.hold(unlogged())
    async with bench.running():
        bench.now("job-1", COMPLETED)
        await until(lambda: bench.sagemaker.described)
        await asyncio.sleep(RESTING)
        assert held.record.facts == TRAINING
        ledger.saving.set()
        stored = await bench.finished()
    assert stored.facts == COMPLETED


async def test_a_job_that_the_feed_is_silent_about_for_ten_minutes_is_looked_at() -> None:
    bench = Bench()
    forgotten, seen = await bench.hold(unlogged("launch-1")), await bench.hold(unlogged("launch-2"))
    forgotten.looked_at = time.monotonic() - 601
    seen.looked_at = time.monotonic() - 500
    bench.sagemaker.jobs["job-1"] = COMPLETED
    async with bench.running():
        await bench.finished("launch-1")
        await asyncio.sleep(RESTING)
    assert bench.sagemaker.described == ["job-1"]


async def test_of_many_changes_at_once_the_ends_are_looked_at_first() -> None:
    bench = Bench()
    for number in range(60):
        await bench.hold(unlogged(f"launch-{number}", facts=STARTING))
        bench.now(f"job-{number}", COMPLETED if number >= 50 else TRAINING)
    bench.sagemaker.may_answer.clear()
    async with bench.running():
        await until(lambda: len(bench.sagemaker.described) == 20)
        await asyncio.sleep(RESTING)
        assert len(bench.sagemaker.described) == 20, "the others wait without a task of their own"
        bench.sagemaker.may_answer.set()
        await until(lambda: len(bench.sagemaker.described) == 60)
    assert {f"job-{number}" for number in range(50, 60)} <= set(bench.sagemaker.described[:30])


async def test_a_change_that_is_listed_again_while_it_is_looked_at_is_one_change() -> None:
    bench = Bench()
    await bench.hold(unlogged(facts=STARTING))
    bench.sagemaker.may_answer.clear()
    async with bench.running():
        bench.now("job-1", COMPLETED)
        await until(lambda: bench.sagemaker.described)
        looks = bench.feed.looks
        await until(lambda: bench.feed.looks >= looks + 3)
        bench.sagemaker.may_answer.set()
        await bench.finished()
        await asyncio.sleep(RESTING)
    assert bench.sagemaker.described == ["job-1"]


@pytest.mark.parametrize("known", [TRAINING, COMPLETED], ids=lambda facts: str(facts.status))
async def test_an_adopted_job_that_has_ended_is_finished(known: JobFacts) -> None:
    """Whether its last worker knew of the end or not."""
    bench = Bench()
    await bench.ledger.create(record(owner="", facts=known, accepted_at=10_000.0))
    bench.cloud.put("job-1/algo-1-1700000000", "the last line")
    bench.now("job-1", COMPLETED)
    async with bench.running():
        stored = await bench.finished()
    assert bench.feed.looked_back == [9_400.0], "it may have ended while nobody looked"
    assert (stored.facts, stored.epoch) == (COMPLETED, 2)
    assert bench.companion.lines("launch-1") == ["the last line"]
    assert bench.sagemaker.requests == []


async def test_an_adopted_launch_that_waits_is_submitted() -> None:
    bench = Bench()
    await bench.ledger.create(waiting(owner="", waiting_at=time.time()))
    async with bench.running():
        await until(lambda: bench.companion.opened)
    stored = await bench.ledger.read("launch-1")
    assert stored is not None
    assert (stored.state, stored.owner) == (LaunchState.ACCEPTED, WORKER)


async def test_a_job_that_is_gone_was_stopped_from_outside() -> None:
    bench = Bench()
    held = await bench.hold(unlogged())
    held.looked_at = time.monotonic() - 601
    del bench.sagemaker.jobs["job-1"]
    async with bench.running():
        stored = await bench.finished()
    assert stored.facts.status == "Stopped"
    ((_, exit_code),) = bench.companion.finished
    assert exit_code == 1
    assert bench.ended("stopped from outside") == 1


async def test_the_end_is_told_and_written_once_however_often_it_is_seen() -> None:
    bench = Bench()
    await bench.hold(unlogged(facts=STARTING))
    bench.sagemaker.may_answer.clear()
    async with bench.running():
        bench.now("job-1", COMPLETED)
        await until(lambda: bench.sagemaker.described)
        bench.now("job-1", COMPLETED)
        looks = bench.feed.looks
        await until(lambda: bench.feed.looks >= looks + 3)
        bench.sagemaker.may_answer.set()  # the change that was seen meanwhile is the same end
        await bench.finished()
        await asyncio.sleep(RESTING)
    assert bench.sagemaker.described == ["job-1"], "SageMaker changes nothing of it any more"
    assert len(bench.companion.finished) == 1
    assert bench.ended("completed") == 1
    assert bench.ledger.saves == [("launch-1",)] * 3, "the end of the job, of its log, of the launch"
    assert not bench.supervisor._finishing, "a worker that lives for months keeps no launch"


@pytest.mark.parametrize("what", ["wandb", "ledger"])
async def test_the_end_waits_for_a_service_that_is_away(what: str) -> None:
    bench = Bench()
    await bench.hold(unlogged())
    if what == "wandb":
        bench.companion.errors = [Unreachable("away"), Throttled("slow"), Unreachable("away")]
    async with bench.running():
        if what == "ledger":
            await until(lambda: bench.feed.looks)
            bench.ledger.failing = Unreachable("away")
        bench.now("job-1", COMPLETED)
        if what == "ledger":
            await until(lambda: len(bench.sagemaker.described) > 3)
            assert bench.companion.finished == [], "an end that is not durable is told to nobody"
            bench.ledger.failing = None
        await bench.finished()
    assert len(bench.companion.finished) == 1


async def test_a_companion_is_opened_before_it_is_finished() -> None:
    """Opening it after its end would revive it for good."""
    bench = Bench()
    await bench.ledger.create(unlogged(owner="", facts=TRAINING))
    bench.companion.answering.clear()
    async with bench.running():
        await until(lambda: bench.companion.waiting)
        bench.now("job-1", COMPLETED)
        await until(lambda: bench.sagemaker.described)
        await asyncio.sleep(RESTING)
        assert bench.companion.waiting == 1, "only the opening"
        bench.companion.answering.set()
        await bench.finished()
    assert (len(bench.companion.opened), len(bench.companion.finished)) == (1, 1)


async def test_a_launch_taken_over_is_neither_finished_nor_told() -> None:
    bench = Bench()
    held = await bench.hold(unlogged())
    assert await bench.ledger.claim(held.record, OTHER) is not None
    async with bench.running():
        bench.now("job-1", COMPLETED)
        await until(lambda: held.lost)
        await asyncio.sleep(RESTING)
    assert bench.companion.finished == []
    stored = await bench.ledger.read("launch-1")
    assert stored is not None
    assert (stored.state, stored.owner, stored.facts) == (LaunchState.ACCEPTED, OTHER, TRAINING)
    assert len(bench.held) == 0


async def test_a_failing_status_feed_is_asked_again() -> None:
    bench = Bench()
    await bench.hold(unlogged())
    bench.feed.errors = [Unreachable("away"), AwsRefused("ListTrainingJobs", "ValidationException", "odd")]
    async with bench.running():
        bench.now("job-1", COMPLETED)
        await bench.finished()
    assert bench.feed.errors == []


async def test_trouble_of_an_unforeseen_kind_with_one_job_ends_no_other() -> None:
    bench = Bench()
    await bench.hold(unlogged("launch-1"))
    await bench.hold(unlogged("launch-2"))
    bench.sagemaker.errors = [KeyError("TrainingJobStatus")] * 3
    async with bench.running():
        bench.now("job-1", COMPLETED)
        bench.now("job-2", COMPLETED)
        await until(lambda: len(bench.held) == 0)
    assert bench.ended("completed") == 2


async def test_at_shutdown_everything_is_given_back() -> None:
    bench = Bench()
    await bench.hold(replace(unlogged("launch-1"), log_target="companion"))
    await bench.hold(waiting("launch-2", not_before=time.time() + 3600))
    async with bench.running():
        await asyncio.sleep(TICK)
        bench.stop.set()
        await until(lambda: len(bench.held) == 0)
    assert len(bench.held) == 0
    assert {launch.launch_id for launch in await bench.ledger.open_records("")} == {"launch-1", "launch-2"}
