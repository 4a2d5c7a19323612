"""Stopping a job: the reason is durable before StopTrainingJob."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue
from tests.fakes.ledger import MemoryLedger
from tests.fakes.leg2 import stopping_of, story_of
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.waiting import until
from worker.clients.api_key import ApiKey
from worker.errors import Unreachable
from worker.intake.refusal import Refusals
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
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


async def bench_of(state: LaunchState = LaunchState.ACCEPTED, status: str = "InProgress") -> Bench:
    ledger, metrics = MemoryLedger(), Metrics()
    record = LaunchRecord(
        launch_id="a",
        state=state,
        run=RunRef("e", "p", "a"),
        owner="w1",
        job_name="job-a",
        facts=JobFacts(status=status),
    )
    await ledger.create(record)
    launches, held, sagemaker = HeldLaunches(ledger, "w1", metrics), HeldLaunch(record), Watched(ledger)
    launches.add(held)
    submission = Submission(
        held=launches,
        sagemaker=sagemaker,
        refusals=Refusals(None, FakeLaunchQueue()),
        metrics=metrics,
        api_key=ApiKey(""),
        max_jobs=-1,
        max_wait=3600,
    )
    companion = FakeCompanion()
    story = story_of(companion, sagemaker)
    stopping = stopping_of(launches, submission, sagemaker, story, companion, interval=60.0)
    return Bench(ledger, held, sagemaker, stopping)


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
