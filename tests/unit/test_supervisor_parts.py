"""Stopping a job: the reason is durable before StopTrainingJob."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.fakes.ledger import MemoryLedger
from tests.fakes.sagemaker import FakeSageMaker
from worker.errors import Unreachable
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.supervisor import Supervisor


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
    supervisor: Supervisor


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
    supervisor = Supervisor.__new__(Supervisor)  # only what `stop` uses
    supervisor._held, supervisor._sagemaker = launches, sagemaker
    return Bench(ledger, held, sagemaker, supervisor)


async def test_the_reason_is_durable_before_the_stop() -> None:
    bench = await bench_of()
    assert await bench.supervisor.stop("a", "Stop was pressed.")
    assert (bench.sagemaker.stopped, bench.sagemaker.durable) == (["job-a"], ["Stop was pressed."])


async def test_no_stop_while_the_reason_cannot_be_written_also_on_the_second_try() -> None:
    bench = await bench_of()
    bench.ledger.failing = Unreachable("the ledger is away")
    for _ in range(2):
        with pytest.raises(Unreachable):
            await bench.supervisor.stop("a", "Stop was pressed.")
    assert bench.sagemaker.stopped == []
    bench.ledger.failing = None
    assert await bench.supervisor.stop("a", "It did not start.")
    assert bench.sagemaker.durable == ["Stop was pressed."]


async def test_a_launch_taken_over_is_not_stopped() -> None:
    bench = await bench_of()
    assert await bench.ledger.claim(bench.held.record, "w2")
    assert not await bench.supervisor.stop("a", "Stop was pressed.")
    assert bench.sagemaker.stopped == []
    assert bench.held.lost


@pytest.mark.parametrize(
    ("state", "status"), [(LaunchState.REFUSED, ""), (LaunchState.ACCEPTED, "Completed")]
)
async def test_there_is_nothing_to_stop_once_it_is_over(state: LaunchState, status: str) -> None:
    bench = await bench_of(state, status)
    assert not await bench.supervisor.stop("a", "Stop was pressed.")
    assert not await bench.supervisor.stop("other", "Stop was pressed.")
    assert bench.sagemaker.stopped == []
