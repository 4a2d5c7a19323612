"""Jobs that do not start: told after a while, stopped after LAUNCH_START_TIMEOUT, by SageMaker's clock, whoever
submitted the job and whatever clock that one had."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
from tests.fakes.ledger import MemoryLedger
from tests.fakes.leg2 import story_of
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import WORKER, record
from worker.errors import Unreachable
from worker.intake.refusal import Refusals
from worker.launch.record import JobFacts, LaunchRecord
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.pending import PendingJobs

pytestmark = pytest.mark.looptime

NOW = 1_800_000_000.0
HOUR = 3600.0
PENDING = JobFacts("InProgress", "Pending", created_at=NOW - HOUR)


class SlowItems(FakeQueueItems):
    """W&B takes a minute for each warning."""

    async def warn(self, item_id: str, message: str, stage: str, files: Sequence[str] = ()) -> None:
        await asyncio.sleep(60)
        await super().warn(item_id, message, stage, files)


class Overtaken(FakeSageMaker):
    """Something happens while a DescribeTrainingJob is under way."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    async def describe(self, name: str) -> JobFacts:
        facts = await super().describe(name)
        self._meanwhile()
        return facts


class Bench:
    """One launch, and a minute and a half of looking at it."""

    def __init__(self, launch: LaunchRecord, described: JobFacts | None = None) -> None:
        self.ledger, self.sagemaker, self.companion = MemoryLedger(), FakeSageMaker(), FakeCompanion()
        self.launch = launch
        self.sagemaker.jobs[launch.job_name] = described or launch.facts
        self.reasons: list[str] = []
        self.items = FakeQueueItems()

    async def look(
        self,
        *others: LaunchRecord,
        start_timeout: float = 0.0,
        alert_after: float = 1e9,
        now: Callable[[], float] = lambda: NOW,
        seconds: float = 95.0,
    ) -> None:
        self.held = HeldLaunches(self.ledger, WORKER, Metrics())
        for launch in (self.launch, *others):
            await self.ledger.create(launch)
            self.held.add(HeldLaunch(launch))
        refusals = Refusals(self.items, FakeLaunchQueue())
        pending = PendingJobs(
            held=self.held,
            sagemaker=self.sagemaker,
            story=story_of(self.companion, self.sagemaker),
            refusals=refusals,
            interval=30.0,
            start_timeout=start_timeout,
            alert_after=alert_after,
            is_current=lambda: True,
            now=now,
        )
        running = asyncio.gather(pending.run(self._stop), refusals.run())
        await asyncio.sleep(seconds)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def _stop(self, launch_id: str, reason: str) -> bool:
        self.reasons.append(reason)
        for held in self.held:
            if held.launch_id == launch_id:
                held.update(stop_reason=reason)
        return True


def ticking() -> float:
    """A clock that goes on with the loop's."""
    return NOW + asyncio.get_running_loop().time()


@pytest.mark.parametrize("noted", [NOW - HOUR, NOW + HOUR], ids=["an hour behind", "an hour ahead"])
async def test_a_wrong_clock_of_the_submitter_stops_no_job_and_saves_none(noted: float) -> None:
    fresh = Bench(record(accepted_at=noted, facts=replace(PENDING, created_at=NOW)))
    await fresh.look(start_timeout=1800, now=lambda: NOW + 60)
    assert fresh.reasons == []
    late = Bench(record(accepted_at=noted, facts=PENDING))
    await late.look(start_timeout=1800)
    (reason,) = late.reasons
    assert "LAUNCH_START_TIMEOUT" in reason


async def test_the_reason_says_what_the_job_waits_for_now() -> None:
    now = replace(PENDING, status_message="Insufficient capacity, trying again")
    bench = Bench(record(facts=PENDING, instance_type="ml.p5.48xlarge", instance_count=2), now)
    await bench.look(start_timeout=1800)
    assert bench.reasons == [
        "It did not start within 3600 s (LAUNCH_START_TIMEOUT): SageMaker says Pending (Insufficient capacity, "
        "trying again) for 2 x ml.p5.48xlarge."
    ]


@pytest.mark.parametrize(
    "described",
    [
        JobFacts("InProgress", "Training", created_at=NOW - HOUR, started_at=NOW),
        JobFacts("Completed", "Completed", created_at=NOW - HOUR),
    ],
    ids=["started", "ended"],
)
async def test_a_job_that_has_just_started_or_ended_is_left_alone(described: JobFacts) -> None:
    bench = Bench(record(facts=PENDING), described)
    await bench.look(start_timeout=1800)
    assert bench.reasons == []


async def test_a_job_that_has_started_is_not_even_asked_about() -> None:
    bench = Bench(record(facts=replace(PENDING, started_at=NOW)))
    bench.sagemaker.jobs.clear()
    await bench.look(start_timeout=1800, alert_after=60)
    assert (bench.reasons, bench.companion.alerts) == ([], [])


async def test_a_long_wait_is_told_once_and_by_no_other_worker_again() -> None:
    bench = Bench(record(facts=PENDING))
    bench.companion.errors = [Unreachable("W&B is away")]
    await bench.look(alert_after=1800)
    ((_, level, title, text),) = bench.companion.alerts
    assert (level, title) == ("WARN", "job-1 has not started")
    assert text == "LW-JOB-PENDING: Waiting for 60 min: SageMaker says Pending for its instances."
    stored = await bench.ledger.read("launch-1")
    assert stored is not None
    assert stored.alerted == ("waiting",)


async def test_a_long_wait_stands_on_the_queue_item_in_sagemaker_s_words() -> None:
    words = "Insufficient capacity. Retrying."
    bench = Bench(record(item_id="item-1", facts=PENDING), replace(PENDING, status_message=words))
    bench.items.errors = [Unreachable("W&B is away")]
    await bench.look(alert_after=1800)
    told = f"LW-JOB-PENDING: The job has not started yet: SageMaker says Pending ({words}) for its instances."
    assert bench.items.warned == [("item-1", told, "run")], "once, however often it is looked at"
    assert bench.sagemaker.described == ["job-1"]


async def test_a_job_that_has_ended_meanwhile_is_left_to_the_status_feed() -> None:
    bench = Bench(record(item_id="item-1", facts=PENDING), JobFacts("Completed", "Completed"))
    await bench.look(alert_after=1800)
    (held,) = bench.held
    assert (bench.items.warned, held.record.facts) == ([], PENDING)


async def test_however_many_wait_each_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the warnings that are remembered of all launches: else W&B would have them all again, each round."""
    monkeypatch.setattr("worker.intake.refusal._REMEMBERED", 2)
    bench = Bench(record("launch-0", item_id="item-0", facts=PENDING))
    others = [record(f"launch-{n}", item_id=f"item-{n}", facts=PENDING) for n in range(1, 4)]
    bench.sagemaker.jobs |= {launch.job_name: launch.facts for launch in others}
    await bench.look(*others, alert_after=1800)
    assert sorted(item for item, _, _ in bench.items.warned) == ["item-0", "item-1", "item-2", "item-3"]


async def test_of_many_pending_jobs_some_are_told_a_round_and_stops_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is a DescribeTrainingJob: a thousand would take minutes, and all that the status feed may use."""
    monkeypatch.setattr("worker.pending._TOLD_A_ROUND", 2)
    young = replace(PENDING, created_at=NOW - HOUR / 2)
    others = [record(f"launch-{n}", facts=young) for n in range(1, 10)]
    late = record("launch-late", facts=PENDING)
    bench = Bench(record("launch-0", facts=young))
    bench.sagemaker.jobs |= {launch.job_name: launch.facts for launch in (*others[1:], late)}
    await bench.look(*others, late, start_timeout=0.75 * HOUR, alert_after=60)
    first, *rest = bench.sagemaker.described
    assert first == "job-late"
    assert len(bench.reasons) == 1
    assert rest == [f"job-{n}" for n in range(6)], (
        "job-1, of which SageMaker knows nothing, holds up no other"
    )


async def test_no_stop_waits_for_wandb() -> None:
    long = replace(PENDING, created_at=NOW - HOUR / 2)
    late = replace(PENDING, created_at=NOW - HOUR + 35)
    launches = [record(f"launch-{n}", item_id=f"item-{n}", facts=long if n < 20 else late) for n in range(23)]
    bench = Bench(launches[0])
    bench.items = SlowItems()
    bench.sagemaker.jobs = {launch.job_name: launch.facts for launch in launches}
    await bench.look(*launches[1:], start_timeout=HOUR, alert_after=HOUR / 2, now=ticking)
    assert len(bench.reasons) == 3, "all in the first round after their time"


async def test_that_a_job_is_stopped_stands_on_its_queue_item_at_last() -> None:
    bench = Bench(record(item_id="item-1", facts=replace(PENDING, created_at=NOW - HOUR + 35)))
    bench.items = SlowItems()
    await bench.look(start_timeout=HOUR, alert_after=HOUR / 2, now=ticking, seconds=160)
    assert [message.partition(":")[0] for _, message, _ in bench.items.warned] == [
        "LW-JOB-PENDING",
        "LW-JOB-NOT-STARTED",
    ]
    assert bench.companion.alerts == [], "it was stopped before its wait could be told"


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": JobFacts("InProgress", "Training", created_at=NOW - HOUR, started_at=NOW)},
        {"job_name": "job-1-2", "attempt": 2, "facts": replace(PENDING, created_at=NOW)},
        {"stop_reason": "Stop was pressed."},
    ],
    ids=["started", "next attempt", "stopped"],
)
async def test_what_is_learned_while_sagemaker_is_asked_counts_more(changes: dict[str, Any]) -> None:
    bench = Bench(record(facts=PENDING))

    def meanwhile() -> None:
        (held,) = bench.held
        held.update(**changes)

    bench.sagemaker = Overtaken(meanwhile)
    bench.sagemaker.jobs["job-1"] = PENDING
    await bench.look(start_timeout=1800)
    (held,) = bench.held
    assert bench.reasons == []
    assert held.record == replace(bench.launch, **changes)
