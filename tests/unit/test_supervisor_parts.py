"""Stopping a job: the reason is durable before StopTrainingJob."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
from tests.fakes.ledger import MemoryLedger
from tests.fakes.leg2 import stopping_of, story_of
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import record
from tests.unit.waiting import until
from worker.clients.api_key import ApiKey
from worker.clients.aws import AwsRefused, NotPermitted
from worker.errors import Unreachable
from worker.intake.refusal import Refusals
from worker.intake.sweeps import Sweeps
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.persistence import Persistence, Tried
from worker.stopping import Stopping
from worker.submission import Submission


class Watched(FakeSageMaker):
    """Notes what the ledger holds at each StopTrainingJob."""

    def __init__(self, ledger: MemoryLedger) -> None:
        super().__init__()
        self._ledger = ledger
        self.durable: list[str] = []

    async def stop(self, name: str) -> bool:
        record = await self._ledger.read("a")
        assert record is not None
        self.durable.append(record.stop_reason)
        return await super().stop(name)


@dataclass
class Bench:
    ledger: MemoryLedger
    held: HeldLaunch
    sagemaker: Watched
    stopping: Stopping
    items: FakeQueueItems
    launches: HeldLaunches


async def bench_of(state: LaunchState = LaunchState.ACCEPTED, status: str = "InProgress") -> Bench:
    ledger, metrics = MemoryLedger(), Metrics()
    launch = LaunchRecord(
        launch_id="a",
        state=state,
        run=RunRef("e", "p", "a"),
        owner="w1",
        job_name="job-a",
        facts=JobFacts(status=status),
    )
    await ledger.create(launch)
    launches, held, sagemaker = HeldLaunches(ledger, "w1", metrics), HeldLaunch(launch), Watched(ledger)
    launches.add(held)
    submission = Submission(
        held=launches,
        sagemaker=sagemaker,
        refusals=Refusals(None, FakeLaunchQueue()),
        sweeps=Sweeps(None),
        metrics=metrics,
        api_key=ApiKey(""),
        max_jobs=-1,
        max_wait=3600,
    )
    companion = FakeCompanion()
    story = story_of(companion, sagemaker)
    items = FakeQueueItems()
    stopping = stopping_of(launches, submission, sagemaker, story, companion, interval=60.0, items=items)
    return Bench(ledger, held, sagemaker, stopping, items, launches)


async def test_the_reason_is_durable_before_the_stop() -> None:
    bench = await bench_of()
    assert await bench.stopping.stop("a", "Stop was pressed.")
    assert (bench.sagemaker.stopped, bench.sagemaker.durable) == (["job-a"], ["Stop was pressed."])


async def test_no_stop_while_the_reason_cannot_be_written_also_on_the_second_try() -> None:
    bench = await bench_of()
    bench.ledger.failing = Unreachable("the ledger is away")
    for _ in range(2):
        with pytest.raises(Unreachable):
            await bench.stopping.stop("a", "Stop was pressed.")
    assert bench.sagemaker.stopped == []
    bench.ledger.failing = None
    assert await bench.stopping.stop("a", "It did not start.")
    assert bench.sagemaker.durable == ["Stop was pressed."]


async def test_a_job_is_stopped_once_however_many_ask() -> None:
    bench = await bench_of()
    assert await bench.stopping.stop("a", "Stop was pressed.")
    assert not await bench.stopping.stop("a", "It did not start.")
    assert (bench.sagemaker.stopped, bench.held.record.stop_reason) == (["job-a"], "Stop was pressed.")


async def test_a_stop_that_a_dead_worker_has_begun_is_brought_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.stopping._GO_ON_EVERY", 0.01)
    monkeypatch.setattr("worker.stopping.backoff", lambda *_, **__: 0.01)
    bench = await bench_of()
    bench.held.update(stop_reason="Stop was pressed.")
    bench.sagemaker.errors = [Unreachable("SageMaker is away")]
    task = asyncio.ensure_future(bench.stopping.run())
    await until(lambda: bench.sagemaker.stopped)
    await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert bench.sagemaker.stopped == ["job-a"]
    assert set(bench.sagemaker.durable) == {"Stop was pressed."}


async def test_a_stop_that_is_refused_for_ever_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.stopping._GO_ON_EVERY", 0.01)
    bench = await bench_of()
    bench.held.update(stop_reason="Stop was pressed.")
    other = record("b", owner="w1", job_name="job-b", stop_reason="Stop was pressed.")
    await bench.ledger.create(other)
    bench.launches.add(HeldLaunch(other))
    bench.sagemaker.errors = [AwsRefused("StopTrainingJob", "Unforeseen", "not this one")]
    task = asyncio.ensure_future(bench.stopping.run())
    try:
        await until(lambda: bench.sagemaker.stopped)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert bench.sagemaker.stopped == ["job-b"], "in the same round"


async def test_a_launch_taken_over_is_not_stopped() -> None:
    bench = await bench_of()
    assert await bench.ledger.claim(bench.held.record, "w2")
    assert not await bench.stopping.stop("a", "Stop was pressed.")
    assert bench.sagemaker.stopped == []
    assert bench.held.lost


@pytest.mark.parametrize(
    ("state", "status"), [(LaunchState.REFUSED, ""), (LaunchState.ACCEPTED, "Completed")]
)
async def test_there_is_nothing_to_stop_once_it_is_over(state: LaunchState, status: str) -> None:
    bench = await bench_of(state, status)
    assert not await bench.stopping.stop("a", "Stop was pressed.")
    assert not await bench.stopping.stop("other", "Stop was pressed.")
    assert bench.sagemaker.stopped == []


async def test_a_stop_that_comes_after_the_job_s_end_is_kept_for_its_story() -> None:
    bench = await bench_of(LaunchState.ACCEPTED, "Failed")
    assert not await bench.stopping.stop("a", "Stop was pressed.")
    assert not await bench.stopping.stop("a", "Too dear.")
    stored = await bench.ledger.read("a")
    assert stored is not None
    assert (stored.stop_asked, stored.stop_reason) == ("Stop was pressed.", "")


async def test_a_stop_that_is_not_permitted_stands_on_the_queue_item() -> None:
    bench = await bench_of()
    bench.held.update(item_id="item-1")
    bench.sagemaker.errors = [NotPermitted("StopTrainingJob: AccessDeniedException: no")]
    for _ in range(2):
        assert not await bench.stopping.stop("a", "Stop was pressed.")
    told = "LW-PERMISSION-MISSING: The job is not stopped, although that was asked for (Stop was pressed.): "
    ((item, message, stage),) = bench.items.warned
    assert (item, message.startswith(f"{told}StopTrainingJob: AccessDenied"), stage) == (
        "item-1",
        True,
        "run",
    )


async def test_a_step_that_is_not_permitted_stands_on_the_queue_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.persistence.backoff", lambda *_, **__: 0.001)
    items, held = FakeQueueItems(), HeldLaunch(record(item_id="item-1"))
    denied = [NotPermitted("DescribeTrainingJob: AccessDeniedException: no") for _ in range(2)]

    async def step() -> None:
        if denied:
            raise denied.pop(0)

    persistence = Persistence(Metrics(), 60.0, Refusals(items, FakeLaunchQueue()))
    assert await persistence.until_done(held, "describe_training_job", step) is Tried.DONE
    told = (
        "LW-PERMISSION-MISSING: The worker cannot go on (describe_training_job): "
        "DescribeTrainingJob: AccessDeniedException: no"
    )
    assert items.warned == [("item-1", told, "run")]
