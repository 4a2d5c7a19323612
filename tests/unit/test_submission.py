"""Submitting, in virtual time: room, quota, refusals, lost answers, and what is told to whom."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
from tests.fakes.ledger import MemoryLedger, SizedLedger
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import OTHER, WORKER, waiting
from worker.clients.api_key import ApiKey
from worker.clients.aws import AwsDenied, AwsRefused
from worker.errors import Again, Never, Stage, Throttled, Unreachable
from worker.intake.refusal import Refusals
from worker.intake.sweeps import FRESH, Sweeps
from worker.launch.record import Failure, JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.metrics import Metrics
from worker.submission import Submission
from worker.training.quota import Quota
from worker.training.sagemaker import QuotaExceeded, QuotaTooSmall, TrainingJob

pytestmark = pytest.mark.looptime

HOUR = 3600.0
NOW = 1_800_000_000.0
WANDB_KEY = "0123456789abcdef" * 2 + "01234567"


class VirtualClock:
    """`time`, as far as submission uses it, in the loop's time."""

    @staticmethod
    def time() -> float:
        return NOW + asyncio.get_running_loop().time()


class FakeSweeps(Sweeps):
    """W&B's word about the sweep s1."""

    def __init__(self) -> None:
        super().__init__(None)
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next checks of it."""
        self.over = False
        self.asked: list[float] = []
        """The `max_age` of each check of it."""

    async def check(self, run: RunRef, sweep_id: str, *, max_age: float = 0.0) -> None:
        await asyncio.sleep(0)
        if not sweep_id:
            return
        self.asked.append(max_age)
        if self.errors:
            raise self.errors.pop(0)
        if self.over:
            raise Never(f"Sweep {sweep_id} of {run.project} is over", code="LW-SWEEP-OVER")


class Bench:
    """One worker's submission on fakes."""

    def __init__(
        self,
        *,
        max_jobs: int = -1,
        max_wait: float = 24 * HOUR,
        ledger: MemoryLedger | None = None,
        worker: str = WORKER,
        api_key: ApiKey | None = None,
        hand_over_key: bool = True,
    ) -> None:
        self.is_current = True
        self.metrics = Metrics()
        self.ledger = ledger or MemoryLedger()
        self.held = HeldLaunches(self.ledger, worker, self.metrics)
        self.sagemaker = FakeSageMaker()
        self.queue = FakeLaunchQueue()
        self.sweeps = FakeSweeps()
        self.items = FakeQueueItems(self.queue.told)
        self.accepted: list[str] = []
        self.given_up: list[str] = []
        self.submission = Submission(
            held=self.held,
            sagemaker=self.sagemaker,
            refusals=Refusals(self.items, self.queue),
            sweeps=self.sweeps,
            metrics=self.metrics,
            api_key=api_key or ApiKey(WANDB_KEY),
            hand_over_key=hand_over_key,
            max_jobs=max_jobs,
            max_wait=max_wait,
            is_current=lambda: self.is_current,
        )

    async def add(
        self, record: LaunchRecord, key: str | None = None
    ) -> tuple[HeldLaunch, asyncio.Future[None]]:
        await self.ledger.create(record)
        held = HeldLaunch(record, SecretStr(key) if key else None)
        self.held.add(held)
        return held, self.submission.enqueue(held)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        run = self.submission.run(
            lambda held: self.accepted.append(held.launch_id),
            lambda held: self.given_up.append(held.launch_id),
        )
        task = asyncio.ensure_future(run)
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def stored(self, launch_id: str = "launch-1") -> LaunchRecord:
        found = await self.ledger.read(launch_id)
        assert found is not None
        return found

    def submits(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("launch_submits_total", {"result": result}) or 0


@pytest.fixture(autouse=True)
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.submission.time", VirtualClock())
    monkeypatch.setattr("worker.telling.time", VirtualClock())


def new(launch_id: str = "launch-1", **changes: Any) -> LaunchRecord:
    return waiting(launch_id, **({"waiting_at": NOW} | changes))


async def test_a_waiting_launch_becomes_a_job_at_once() -> None:
    bench = Bench()
    async with bench.running():
        _, settled = await bench.add(new())
        await settled
    assert asyncio.get_running_loop().time() < 1
    stored = await bench.stored()
    assert stored.state is LaunchState.ACCEPTED
    assert stored.job_arn.endswith("/job-1")
    assert stored.facts == JobFacts("InProgress", "Starting")
    assert stored.accepted_at >= NOW
    assert (stored.request, stored.message, stored.tries) == (None, "", 0)
    assert bench.accepted == ["launch-1"]
    assert bench.submits("created") == 1


async def test_the_key_is_put_in_at_the_last_moment_and_never_written() -> None:
    bench = Bench()
    async with bench.running():
        for name, key in (("launch-1", None), ("launch-2", "a-key-of-its-own")):
            await (await bench.add(new(name), key))[1]
    keys = [request["Environment"]["WANDB_API_KEY"] for request in bench.sagemaker.requests]
    assert keys == [WANDB_KEY, "a-key-of-its-own"]
    assert WANDB_KEY not in str(bench.ledger._records)


async def test_launches_are_submitted_oldest_first_and_not_before_their_time() -> None:
    bench = Bench()
    await bench.add(new("launch-1", waiting_at=NOW - 1))
    await bench.add(new("launch-2", waiting_at=NOW - 3))
    await bench.add(new("launch-3", waiting_at=NOW - 9, not_before=NOW + 100))
    async with bench.running():
        await asyncio.sleep(90)
        assert bench.accepted == ["launch-2", "launch-1"]
        await asyncio.sleep(12)
        assert bench.accepted == ["launch-2", "launch-1", "launch-3"]


async def test_a_full_worker_lets_launches_wait_until_a_job_has_ended() -> None:
    bench = Bench(max_jobs=2)
    jobs = [await bench.add(new(f"launch-{n}", waiting_at=NOW - 9 + n)) for n in range(4)]
    async with bench.running():
        await asyncio.sleep(60)
        assert bench.accepted == ["launch-0", "launch-1"]
        jobs[0][0].update(facts=JobFacts("Completed", "Completed"))
        await asyncio.sleep(5)
        assert bench.accepted == ["launch-0", "launch-1", "launch-2"], (
            "an ended job's last log lines need no room"
        )
        bench.held.drop(jobs[1][0])
        await asyncio.sleep(5)
        assert len(bench.accepted) == 4


async def test_submits_under_way_count_as_jobs() -> None:
    bench = Bench(max_jobs=2)
    bench.sagemaker.answering.clear()
    for number in range(4):
        await bench.add(new(f"launch-{number}"))
    async with bench.running():
        await asyncio.sleep(60)
        assert len(bench.sagemaker.requests) == 2


async def test_a_slow_answer_for_one_launch_holds_up_no_other() -> None:
    bench = Bench()
    bench.sagemaker.answering.clear()
    async with bench.running():
        for number in range(30):
            await bench.add(new(f"launch-{number}"))
        await asyncio.sleep(2)
        assert len(bench.sagemaker.requests) == 30


@pytest.mark.parametrize(
    "error",
    [
        QuotaExceeded("no room"),
        Unreachable("no answer"),
        AwsDenied("expired"),
        KeyError("defect"),
    ],
)
async def test_trouble_that_may_pass_is_waited_out(error: Exception) -> None:
    bench = Bench()
    bench.sagemaker.errors = [error] * 12
    async with bench.running():
        _, settled = await bench.add(new())
        await settled
    assert (await bench.stored()).state is LaunchState.ACCEPTED
    assert asyncio.get_running_loop().time() > 300, "with growing pauses"
    assert bench.submits("again") == 12
    assert bench.queue.copied == []


async def test_a_throttled_launch_is_tried_again_as_soon_as_the_rate_lets_it() -> None:
    bench = Bench()
    bench.sagemaker.errors = [Throttled("slow")] * 12
    async with bench.running():
        await bench.add(new("launch-1", waiting_at=NOW - 1, queue="a"))
        await (await bench.add(new("launch-2", queue="b")))[1]
        await asyncio.sleep(0.1)
    assert asyncio.get_running_loop().time() < 1
    assert bench.accepted == ["launch-1", "launch-2"]
    assert (bench.submits("again"), bench.items.warned) == (12, [])


class Slow(FakeSageMaker):
    """One job a second."""

    async def turn(self) -> None:
        await asyncio.sleep(1)


async def test_one_teams_burst_does_not_starve_another_team() -> None:
    bench = Bench()
    bench.submission._sagemaker = bench.sagemaker = Slow()
    for number in range(500):
        await bench.add(new(f"launch-{number}", waiting_at=NOW - 500 + number, queue="busy"))
    async with bench.running():
        await asyncio.sleep(10)
        single, settled = await bench.add(new("launch-single", waiting_at=NOW + 10, queue="quiet"))
        await settled
        assert asyncio.get_running_loop().time() < 13
        assert single.record.state is LaunchState.ACCEPTED
        assert len(bench.accepted) >= 10


async def test_an_urgent_launch_overtakes_those_of_its_queue_that_wait_already() -> None:
    bench = Bench(max_jobs=3)
    bench.submission._sagemaker = bench.sagemaker = Slow()
    for number in range(9):
        await bench.add(new(f"launch-{number}", waiting_at=NOW - 9 + number))
    async with bench.running():
        await asyncio.sleep(1.5)
        await bench.add(new("launch-critical", waiting_at=NOW + 1.5, priority=0))
        await asyncio.sleep(30)
    assert bench.accepted == ["launch-0", "launch-critical", "launch-1"], "with room for three"


async def test_waiting_is_shown_on_the_queue_item_but_throttling_is_not() -> None:
    bench = Bench()
    bench.sagemaker.errors = [Throttled("slow"), QuotaExceeded("no room for ml.p4d"), Throttled("slow")]
    async with bench.running():
        await (await bench.add(new()))[1]
    ((item, told, stage),) = bench.items.warned
    assert (item, stage) == ("item-launch-1", Stage.RUN)
    assert "no room for ml.p4d" in told


async def test_a_peer_that_says_when_is_obeyed() -> None:
    bench = Bench()
    bench.sagemaker.errors = [Throttled("slow", retry_after=500)]
    async with bench.running():
        await (await bench.add(new()))[1]
    assert 500 <= asyncio.get_running_loop().time() <= 503


async def test_a_launch_that_waited_too_long_is_refused_with_the_reason() -> None:
    bench = Bench(max_wait=1000)
    bench.sagemaker.errors = [QuotaExceeded("no room")] * 100_000
    async with bench.running():
        _, settled = await bench.add(new())
        await settled
    assert 1000 < asyncio.get_running_loop().time() < 1200
    stored = await bench.stored()
    assert stored.state is LaunchState.REFUSED
    assert stored.failure is not None
    assert stored.failure.code == "LW-WAITED-TOO-LONG"
    assert "no room" in stored.failure.reason
    assert bench.queue.told == ["wandb", "dlq"]
    assert "launch-1" not in bench.held


LOST_ANSWERS = [
    QuotaExceeded("the lost job itself has used it up", quota=Quota("training jobs", 1, 1, 1)),
    AwsRefused("CreateTrainingJob", "ValidationException", "the role was deleted meanwhile"),
    QuotaTooSmall(Quota("training jobs", 0, 1, 1)),
]


@pytest.mark.parametrize("error", LOST_ANSWERS)
async def test_a_job_whose_answer_was_lost_is_adopted_whatever_the_next_try_says(error: Exception) -> None:
    bench = Bench()
    bench.sagemaker.errors = [Unreachable("the answer was lost"), *[error] * 100_000]
    bench.sagemaker.jobs["job-1"] = JobFacts("InProgress", "Training")
    async with bench.running():
        await (await bench.add(new()))[1]
    assert asyncio.get_running_loop().time() < 10
    assert (await bench.stored()).state is LaunchState.ACCEPTED
    assert (bench.accepted, bench.queue.told) == (["launch-1"], [])


async def test_a_launch_that_waits_for_a_quota_is_looked_up_once_and_again_after_a_lost_answer() -> None:
    bench = Bench()
    full = QuotaExceeded("no room", quota=QUOTA)
    bench.sagemaker.errors = [*[full] * 4, Unreachable("lost"), *[full] * 4]
    async with bench.running():
        await (await bench.add(new(instance_type="ml.g5.xlarge")))[1]
    assert bench.sagemaker.looked_up == ["job-1"] * 2


@pytest.mark.parametrize(
    "record",
    [
        new(waiting_at=NOW - 2 * HOUR),
        waiting(waiting_at=NOW, previous_job="job-0", stop_reason="Stop was pressed in W&B."),
    ],
    ids=["waited too long", "stopped"],
)
async def test_nothing_is_given_up_while_nobody_can_say_whether_there_is_a_job(record: LaunchRecord) -> None:
    """One of the tries without an answer may have made it: then it runs, and nobody would look after it."""
    bench = Bench(max_wait=HOUR)
    bench.sagemaker.errors = [Unreachable("no answer")] * 100_000
    bench.sagemaker.existing_errors = [Unreachable("no answer")] * 5
    bench.sagemaker.jobs["job-1"] = JobFacts("InProgress", "Training")
    async with bench.running():
        await (await bench.add(record))[1]
    assert (await bench.stored()).state is LaunchState.ACCEPTED
    assert (bench.accepted, bench.given_up, bench.queue.told) == (["launch-1"], [], [])
    assert asyncio.get_running_loop().time() > 20, "with pauses"


async def test_a_worker_that_others_may_take_for_dead_submits_nothing() -> None:
    """Frozen with a launch in its hands: the worker that took it over may have refused it meanwhile."""
    bench = Bench()
    bench.is_current = False
    async with bench.running():
        _, settled = await bench.add(new())
        await asyncio.sleep(60)
        assert (bench.sagemaker.requests, bench.items.warned) == ([], [])
        bench.is_current = True
        await settled
    assert bench.accepted == ["launch-1"]


async def test_a_worker_frozen_while_it_waits_for_its_rate_submits_nothing() -> None:
    bench = Bench()
    account = bench.submission._sagemaker = bench.sagemaker = Account(room=1)
    async with bench.running():
        held, settled = await bench.add(new())
        await asyncio.sleep(0.5)
        bench.is_current = False
        await asyncio.sleep(60)
        assert account.asked == []
        bench.is_current, held.lost = True, True
        await asyncio.sleep(60)
        assert account.asked == []
        held.lost = False
        await settled
    assert (bench.accepted, bench.items.warned) == (["launch-1"], [])


@pytest.mark.parametrize(
    "error",
    [
        AwsRefused("CreateTrainingJob", "ValidationException", "no such role"),
        Never("taken", code="LW-JOB-NAME-TAKEN", stage=Stage.RUN),
    ],
)
async def test_a_refused_request_is_told_to_everybody_and_never_tried_again(error: Never) -> None:
    bench = Bench()
    bench.sagemaker.errors = [error]
    async with bench.running():
        held, settled = await bench.add(new())
        await settled
        await asyncio.sleep(200)
    assert len(bench.sagemaker.requests) == 1
    stored = await bench.stored()
    assert (stored.state, stored.failure) == (LaunchState.REFUSED, Failure(Stage.RUN, error.code, str(error)))
    assert stored.reported
    assert (stored.message, stored.request) == ("", None)
    assert stored.expires_at > stored.finished_at + 14 * 24 * HOUR
    assert bench.items.failed == [("item-launch-1", f"{error.code}: {error}", Stage.RUN)]
    ((body, launch_id, attributes),) = bench.queue.copied
    assert (body, launch_id, attributes["code"]) == ('{"runSpec": {}}', "launch-1", error.code)
    assert bench.accepted == []
    assert not held.lost


async def test_the_decision_to_refuse_is_durable_before_anybody_is_told() -> None:
    bench = Bench()
    bench.sagemaker.errors = [Never("bad", code="LW-X")]
    async with bench.running():
        _, settled = await bench.add(new())
        bench.ledger.failing = Unreachable("ledger")
        await asyncio.sleep(100)
        assert bench.queue.told == []
        bench.ledger.failing = None
        await settled
    assert bench.queue.told == ["wandb", "dlq"]


@pytest.mark.parametrize("where", ["wandb", "dlq"])
async def test_a_report_that_fails_is_repeated_until_it_arrives(where: str) -> None:
    bench = Bench()
    bench.sagemaker.errors = [Never("bad", code="LW-X")]
    errors: list[Exception] = [Unreachable("no answer")] * 5
    (bench.items.errors if where == "wandb" else bench.queue.dlq_errors).extend(errors)
    async with bench.running():
        _, settled = await bench.add(new())
        await asyncio.sleep(1)
        stored = await bench.stored()
        assert (stored.state, stored.reported, stored.message != "") == (LaunchState.REFUSED, False, True)
        await settled
    assert (await bench.stored()).reported
    assert len(bench.queue.copied) == 1


async def test_a_refusal_that_another_worker_could_not_tell_is_told() -> None:
    bench = Bench()
    refused = new(state=LaunchState.REFUSED, failure=Failure("run", "LW-X", "bad"))
    async with bench.running():
        await (await bench.add(refused))[1]
    assert bench.sagemaker.requests == []
    assert bench.items.failed == [("item-launch-1", "LW-X: bad", "run")]
    assert (await bench.stored()).reported


async def test_no_secret_that_aws_quotes_gets_out() -> None:
    bench = Bench()
    environment = {"LAUNCH_ID": "launch-1", "DB_PASSWORD": "correct horse battery"}
    quoted = (
        f"1 validation error in {{'WANDB_API_KEY': '{WANDB_KEY}', 'DB_PASSWORD': 'correct horse battery'}}"
    )
    bench.sagemaker.errors = [
        QuotaExceeded(quoted),
        AwsRefused("CreateTrainingJob", "ValidationException", quoted),
    ]
    record = new(request={"TrainingJobName": "job-1", "Environment": environment})
    async with bench.running():
        await (await bench.add(record))[1]
    told = f"{bench.items.failed} {bench.items.warned} {bench.queue.copied} {(await bench.stored()).failure}"
    assert "validation error" in told
    assert WANDB_KEY not in told
    assert "correct horse" not in told


async def test_the_job_is_not_followed_before_the_ledger_knows_of_it() -> None:
    bench = Bench()
    bench.sagemaker.answering.clear()
    async with bench.running():
        _, settled = await bench.add(new())
        await asyncio.sleep(0)
        bench.ledger.failing = Unreachable("ledger")
        bench.sagemaker.answering.set()
        await asyncio.sleep(60)
        assert (bench.accepted, settled.done()) == ([], False)
        assert len(bench.sagemaker.requests) == 1, "the job exists: only its record is late"
        bench.ledger.failing = None
        await settled
    assert bench.accepted == ["launch-1"]


async def test_a_launch_taken_over_while_it_was_submitted_is_let_go() -> None:
    bench = Bench()
    bench.sagemaker.answering.clear()
    async with bench.running():
        held, settled = await bench.add(new())
        await asyncio.sleep(1)
        assert await bench.ledger.claim(held.record, OTHER) is not None
        bench.sagemaker.answering.set()
        await settled
    assert held.lost
    assert (await bench.stored()).state is LaunchState.WAITING
    assert bench.queue.told == []


async def test_who_waits_for_a_settled_launch_waits_for_one_future() -> None:
    bench = Bench()
    held, first = await bench.add(new())
    assert bench.submission.enqueue(held) is first
    async with bench.running():
        await first
    assert first.done()


async def test_a_waiter_that_is_cancelled_ends_no_submission() -> None:
    bench = Bench()
    bench.sagemaker.answering.clear()

    async def leg1(settled: asyncio.Future[None]) -> None:
        await settled

    async with bench.running():
        _, settled = await bench.add(new())
        waiter = asyncio.ensure_future(leg1(settled))
        await asyncio.sleep(1)
        waiter.cancel()
        await asyncio.sleep(1)
        bench.sagemaker.answering.set()
        await asyncio.sleep(1)
    assert bench.accepted == ["launch-1"]


async def test_a_refusal_takes_no_room_and_needs_none() -> None:
    """W&B may be away for hours; launches that can run do not wait for that, nor a refusal for jobs to end."""
    bench = Bench(max_jobs=1)
    bench.items.errors = [Unreachable("W&B is away")] * 1000
    await bench.add(new("launch-1", state=LaunchState.REFUSED, failure=Failure("run", "LW-X", "bad")))
    running, settled = await bench.add(new("launch-2"))
    async with bench.running():
        await settled
        assert bench.accepted == ["launch-2"]
        bench.items.errors.clear()
        await asyncio.sleep(100)
        assert (await bench.stored("launch-1")).reported
        late = new("launch-3", state=LaunchState.REFUSED, failure=Failure("run", "LW-X", "bad"))
        await (await bench.add(late))[1]
        _, waits = await bench.add(new("launch-4"))
        await asyncio.sleep(100)
        assert not waits.done(), f"{running.record.job_name} still runs"


async def test_a_refusal_is_reported_after_it_was_told_and_then_only_once() -> None:
    bench = Bench()
    bench.sagemaker.errors = [Never("bad", code="LW-X")]
    bench.queue.dlq_errors = [Unreachable("SQS is away")]
    async with bench.running():
        _, settled = await bench.add(new())
        await asyncio.sleep(0.1)
        assert bench.items.failed
        stored = await bench.stored()
        assert (stored.is_open, stored.reported) == (True, False), "W&B knows, the DLQ does not"
        await settled
    assert not (await bench.stored()).is_open
    assert bench.queue.told == ["wandb", "wandb", "dlq"], (
        "repeating the report is harmless, leaving it out is not"
    )


async def test_a_refusal_that_could_not_be_told_is_told_by_the_worker_that_adopts_it() -> None:
    bench = Bench()
    bench.sagemaker.errors = [Never("bad", code="LW-X")]
    bench.queue.dlq_errors = [Unreachable("SQS is away")] * 1000
    async with bench.running():
        await bench.add(new())
        await asyncio.sleep(10)
    await bench.held.release()
    (left,) = await bench.ledger.open_records("")
    claimed = await bench.ledger.claim(left, OTHER)
    assert claimed is not None
    other = Bench(ledger=bench.ledger, worker=OTHER)
    async with other.running():
        await (await other.add(claimed))[1]
    assert [(launch_id, attributes["code"]) for _, launch_id, attributes in other.queue.copied] == [
        ("launch-1", "LW-X")
    ]
    assert other.sagemaker.requests == []
    assert (await other.stored()).reported


async def test_a_secret_in_an_error_nobody_foresaw_is_not_logged() -> None:
    bench = Bench()
    environment = {"LAUNCH_ID": "launch-1", "DB_PASSWORD": "correct horse battery"}
    quoted = f"bad Environment: correct horse battery, own-key-of-this-launch, {WANDB_KEY}"
    bench.sagemaker.errors = [TypeError(quoted), Never(quoted, code="LW-X")]
    bench.queue.dlq_errors = [TypeError(quoted)]
    record = new(request={"TrainingJobName": "job-1", "Environment": environment})
    with capture_logs() as logs:
        async with bench.running():
            await (await bench.add(record, "own-key-of-this-launch"))[1]
    told = f"{logs} {bench.items.failed} {bench.items.warned} {bench.queue.copied} {await bench.stored()}"
    assert {"submit_failed_unexpectedly", "launch_refused", "refusal_not_reported"} <= {
        entry["event"] for entry in logs
    }
    assert told.count("bad Environment") >= 4
    assert not any(entry.get("exc_info") for entry in logs), "a traceback is written with its text"
    for secret in ("correct horse", "own-key", WANDB_KEY):
        assert secret not in told


def large(size: int) -> LaunchRecord:
    """About so many bytes in the ledger."""
    request = {"TrainingJobName": "job-1", "Environment": {"LAUNCH_ID": "launch-1"}}
    values = {"h": "x" * (size - 100_000)}
    return new(request={**request, "HyperParameters": values}, message="y" * 100_000)


@pytest.mark.parametrize("size", [300_000, 406_000])
async def test_a_refusal_that_quotes_a_large_request_fits_into_the_ledger(size: int) -> None:
    bench = Bench(ledger=SizedLedger())
    quoted = f"Value {'x' * 200_000} failed to satisfy the constraint"
    bench.sagemaker.errors = [Never(quoted, code="LW-X")]
    async with bench.running():
        await (await bench.add(large(size)))[1]
    stored = await bench.stored()
    assert stored.reported
    assert stored.failure is not None
    assert stored.failure.reason.startswith("Value x")
    assert stored.failure.reason.endswith("failed to satisfy the constraint")


async def test_what_a_large_launch_waits_for_fits_into_the_ledger() -> None:
    bench = Bench(ledger=SizedLedger())
    bench.sagemaker.errors = [Unreachable(f"no answer but {'x' * 200_000}")]
    async with bench.running():
        await (await bench.add(large(380_000)))[1]
    assert bench.accepted == ["launch-1"]
    ((_, told, _),) = bench.items.warned
    assert len(told) < 11_000


async def test_trouble_of_an_unforeseen_kind_ends_neither_a_refusal_nor_the_loop() -> None:
    bench = Bench(max_wait=HOUR)
    bench.sagemaker.errors = [Unreachable("no answer")] * 2
    bench.sagemaker.existing_errors = [KeyError("TrainingJobArn")]
    bench.items.errors = [KeyError("data")] * 2
    async with bench.running():
        await (await bench.add(new("launch-1", waiting_at=NOW - 2 * HOUR)))[1]
        bench.sagemaker.errors, bench.items.errors = [Unreachable("no answer")], [KeyError("data")]
        await (await bench.add(new("launch-2")))[1]
    stored = await bench.stored("launch-1")
    assert stored.failure is not None
    assert (stored.failure.code, stored.reported) == ("LW-WAITED-TOO-LONG", True)
    assert bench.accepted == ["launch-2"]


async def test_no_trouble_with_the_ledger_undoes_a_job() -> None:
    """A running job is not refused because its record cannot be written, whatever the store says."""
    bench = Bench()
    async with bench.running():
        bench.sagemaker.answering.clear()
        _, settled = await bench.add(new())
        await asyncio.sleep(1)
        bench.ledger.failing = AwsRefused("TransactWriteItems", "ValidationException", "odd")
        bench.sagemaker.answering.set()
        await asyncio.sleep(100)
        bench.ledger.failing = None
        await settled
    assert (await bench.stored()).state is LaunchState.ACCEPTED
    assert (bench.accepted, bench.queue.told) == (["launch-1"], [])


async def test_containers_get_no_key_where_they_find_their_own() -> None:
    bench = Bench(hand_over_key=False)
    async with bench.running():
        await (await bench.add(new(), key="o" * 40))[1]
    (request,) = bench.sagemaker.requests
    assert "WANDB_API_KEY" not in request["Environment"]


async def test_a_new_key_goes_to_the_next_containers_and_both_are_hidden() -> None:
    new_key = "n" * 40

    async def read() -> str:
        return new_key

    key = ApiKey(WANDB_KEY, read=read)
    bench = Bench(api_key=key)
    assert await key.replaced(WANDB_KEY)
    bench.sagemaker.errors = [AwsRefused("Create", "ValidationException", f"{WANDB_KEY} {new_key}")]
    async with bench.running():
        await (await bench.add(new("launch-1")))[1]
        await (await bench.add(new("launch-2")))[1]
    assert bench.sagemaker.requests[-1]["Environment"]["WANDB_API_KEY"] == new_key
    failure = (await bench.stored("launch-1")).failure
    assert failure is not None
    assert failure.reason.endswith("*** ***")


FULL = "quota 'ml.g5.xlarge for training job usage' of 1 is used up"
QUOTA = Quota("ml.g5.xlarge for training job usage", 1, 1, 1)


class Account(FakeSageMaker):
    """It has room for so many jobs of a type."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.asked: list[tuple[float, str]] = []

    async def turn(self) -> None:
        if self.turns_given_back:
            self.turns_given_back -= 1
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(1)  # the account's rate: one call a second

    async def create_or_adopt(self, request: Mapping[str, Any]) -> TrainingJob:
        self.asked.append((asyncio.get_running_loop().time(), request["TrainingJobName"]))
        if len([facts for facts in self.jobs.values() if facts.status == "InProgress"]) >= self.room:
            raise QuotaExceeded("no room", quota=QUOTA)
        return await super().create_or_adopt(request)


async def test_launches_that_wait_for_one_machine_share_one_probe() -> None:
    bench = Bench()
    account = bench.submission._sagemaker = bench.sagemaker = Account(room=1)
    for number in range(20):
        await bench.add(new(f"launch-{number}", waiting_at=NOW + number / 100, instance_type="ml.g5.xlarge"))
    async with bench.running():
        await asyncio.sleep(1800)
        assert bench.accepted == ["launch-0"]
        later = [name for when, name in account.asked if when > 10]
        assert set(later) == {"job-1"}, "the oldest asks for all"
        assert len(later) < 30
        assert len(bench.items.warned) == 19, "each is told once what it waits for"
        assert (await bench.stored("launch-19")).waits_for == FULL
        assert bench.metrics.registry.get_sample_value("launch_waiting", {"reason": "quota"}) == 19
        asked = len(account.asked)
        account.room = 3
        account.jobs["job-0"] = JobFacts("Completed", "Completed")
        next(h for h in bench.held if h.launch_id == "launch-0").update(facts=account.jobs["job-0"])
        await asyncio.sleep(12)
        assert bench.accepted == ["launch-0", "launch-1", "launch-2", "launch-3"], "oldest first, at once"
        assert len(account.asked) - asked <= 5
    assert len(bench.items.warned) == 19


async def test_a_refusal_that_cannot_be_told_holds_up_nobody_in_its_line() -> None:
    """W&B may be away for hours; the machine that is free meanwhile is the next one's."""
    bench = Bench()
    full = QuotaExceeded("no room", quota=QUOTA)
    bench.sagemaker.errors = [
        full,
        full,
        AwsRefused("CreateTrainingJob", "ValidationException", "no such role"),
    ]
    bench.items.errors = [Unreachable("W&B is away")] * 100_000
    async with bench.running():
        await bench.add(new("launch-1", waiting_at=NOW - 9, instance_type="ml.g5.xlarge"))
        _, settled = await bench.add(new("launch-2", instance_type="ml.g5.xlarge"))
        await asyncio.wait_for(settled, 300)
        assert (await bench.stored("launch-1")).state is LaunchState.REFUSED
    assert bench.accepted == ["launch-2"]


async def test_another_machine_is_another_line() -> None:
    bench = Bench()
    bench.sagemaker.errors = [QuotaExceeded("no room", quota=QUOTA)] * 2
    async with bench.running():
        await bench.add(new("launch-1", instance_type="ml.g5.xlarge"))
        await asyncio.sleep(0.5)
        await bench.add(new("launch-2", instance_type="ml.g5.xlarge"))
        _, settled = await bench.add(new("launch-3", instance_type="ml.m5.large"))
        bench.sagemaker.errors = []
        await asyncio.wait_for(settled, 1)
        assert bench.accepted[0] == "launch-3"


async def test_a_launch_taken_over_is_not_told_again_what_it_waits_for() -> None:
    bench = Bench()
    bench.sagemaker.errors = [QuotaExceeded("no room", quota=QUOTA)] * 3
    async with bench.running():
        _, settled = await bench.add(new(instance_type="ml.g5.xlarge", waits_for=FULL))
        await settled
    assert bench.items.warned == []


async def test_a_quota_that_is_too_small_refuses_at_once() -> None:
    bench = Bench()
    bench.sagemaker.errors = [QuotaTooSmall(Quota("ml.g5.xlarge for training job usage", 1, 0, 2))]
    async with bench.running():
        await (await bench.add(new()))[1]
    stored = await bench.stored()
    assert stored.failure is not None
    assert stored.failure.code == "LW-QUOTA-TOO-SMALL"
    assert "Service Quotas" in stored.failure.reason


async def test_the_next_instance_type_takes_the_place_of_one_that_can_never_be_had() -> None:
    bench = Bench()
    too_small = QuotaTooSmall(Quota("ml.g5.xlarge for training job usage", 0, 0, 1))
    bench.sagemaker.errors = [too_small, too_small]
    types = ("ml.g5.xlarge", "ml.g5.2xlarge", "ml.g5.4xlarge")
    request = {
        "TrainingJobName": "job-1",
        "Environment": {"LAUNCH_ID": "launch-1"},
        "ResourceConfig": {"InstanceType": types[0], "InstanceCount": 1},
    }
    async with bench.running():
        await (await bench.add(new(instance_type=types[0], instance_types=types, request=request)))[1]
    assert [r["ResourceConfig"]["InstanceType"] for r in bench.sagemaker.requests] == list(types)
    assert (await bench.stored()).instance_type == types[2]
    bench = Bench()
    bench.sagemaker.errors = [too_small] * 3
    async with bench.running():
        await (await bench.add(new(instance_type=types[0], instance_types=types, request=request)))[1]
    assert (await bench.stored()).state is LaunchState.REFUSED


def between(**changes: Any) -> LaunchRecord:
    """A launch that waits for its second attempt."""
    request = {"TrainingJobName": "job-1-r2", "Environment": {"LAUNCH_ID": "launch-1"}}
    facts = JobFacts("Failed", "Failed", "CapacityError: none")
    return new(
        **{
            "attempt": 2,
            "previous_job": "job-1",
            "job_name": "job-1-r2",
            "request": request,
            "facts": facts,
            **changes,
        }
    )


async def test_a_launchs_own_key_comes_from_its_earlier_job() -> None:
    bench = Bench()
    bench.sagemaker.descriptions["job-1"] = {"Environment": {"WANDB_API_KEY": "own-key"}}
    async with bench.running():
        await (await bench.add(between(private_key=True)))[1]
    (request,) = bench.sagemaker.requests
    assert request["Environment"]["WANDB_API_KEY"] == "own-key"
    assert "own-key" not in str(bench.ledger._records)


async def test_without_its_key_the_launch_ends_as_its_last_job_did() -> None:
    bench = Bench()
    bench.sagemaker.descriptions["job-1"] = {"Environment": {}}
    async with bench.running():
        await (await bench.add(between(private_key=True)))[1]
    stored = await bench.stored()
    assert (bench.given_up, stored.state) == (["launch-1"], LaunchState.WAITING)
    assert "W&B key" in stored.given_up
    assert bench.queue.told == [], "a launch that has run is not refused"


async def test_a_key_that_containers_do_not_get_is_not_looked_for() -> None:
    bench = Bench(hand_over_key=False)
    bench.sagemaker.descriptions["job-1"] = {"Environment": {}}
    async with bench.running():
        await (await bench.add(between(private_key=True)))[1]
    assert (bench.accepted, bench.given_up) == (["launch-1"], [])


async def test_a_further_attempt_waits_no_longer_than_all_together_may() -> None:
    bench = Bench(max_wait=1000)
    bench.sagemaker.errors = [QuotaExceeded("no room", quota=QUOTA)] * 1000
    async with bench.running():
        await (await bench.add(between(waited=800.0)))[1]
    assert 200 < asyncio.get_running_loop().time() < 400
    assert "LAUNCH_MAX_WAIT" in (await bench.stored()).given_up


async def test_stop_cancels_an_attempt_that_waits() -> None:
    bench = Bench()
    async with bench.running():
        held, settled = await bench.add(between(not_before=NOW + 9999))
        assert await bench.submission.cancel(held, "Stop was pressed in W&B.")
        await asyncio.wait_for(settled, 2)
    stored = await bench.stored()
    assert (stored.stop_reason, stored.given_up) == ("Stop was pressed in W&B.", "Stop was pressed in W&B.")
    assert (bench.sagemaker.requests, bench.given_up) == ([], ["launch-1"])


async def test_an_attempt_that_was_made_already_is_not_given_up() -> None:
    """Its answer was lost, then Stop was pressed: the job runs, and is stopped as any other."""
    bench = Bench()
    bench.sagemaker.jobs["job-1-r2"] = JobFacts("InProgress", "Training")
    async with bench.running():
        await (await bench.add(between(stop_reason="Stop was pressed in W&B.")))[1]
    assert (await bench.stored()).state is LaunchState.ACCEPTED
    assert (bench.accepted, bench.given_up) == (["launch-1"], [])


async def test_giving_up_is_durable_before_it_is_told() -> None:
    bench = Bench()
    async with bench.running():
        _, settled = await bench.add(between(stop_reason="Stop was pressed in W&B."))
        bench.ledger.failing = Unreachable("ledger")
        await asyncio.sleep(60)
        assert bench.given_up == []
        bench.ledger.failing = None
        await settled
    assert bench.given_up == ["launch-1"]


async def test_who_waits_is_cancelled_when_the_worker_leaves() -> None:
    bench = Bench()
    bench.sagemaker.answering.clear()
    async with bench.running():
        _, settled = await bench.add(new())
        await asyncio.sleep(1)
        bench.submission.abandon()
    assert settled.cancelled()


async def test_a_launch_that_is_stopped_while_it_waits_is_refused_and_never_submitted() -> None:
    bench = Bench(max_jobs=0)
    async with bench.running():
        held, settled = await bench.add(new())
        assert await bench.submission.cancel(held, "Anna stopped it.")
        await settled
    stored = await bench.stored()
    assert stored.failure is not None
    assert (stored.state, stored.failure.code) == (LaunchState.REFUSED, "LW-STOPPED")
    assert "Anna stopped it." in stored.failure.reason
    assert bench.sagemaker.requests == []


async def test_a_launch_whose_job_was_made_unseen_is_not_refused_when_it_is_stopped() -> None:
    bench = Bench(max_jobs=0)
    bench.sagemaker.jobs["job-1"] = JobFacts("InProgress", "Training")
    bench.sagemaker.existing_errors = [Unreachable("no answer")]
    async with bench.running():
        held, settled = await bench.add(new())
        await bench.submission.cancel(held, "Anna stopped it.")
        await settled
    stored = await bench.stored()
    assert (stored.state, stored.stop_reason) == (LaunchState.ACCEPTED, "Anna stopped it.")
    assert bench.accepted == ["launch-1"]


async def test_a_run_whose_sweep_has_ended_while_it_waited_is_not_submitted() -> None:
    bench = Bench()
    bench.sagemaker.errors = [QuotaExceeded("no room", quota=QUOTA)]
    async with bench.running():
        _, settled = await bench.add(new(sweep_id="s1"))
        await asyncio.sleep(1)
        assert bench.sweeps.asked == [FRESH]
        bench.sweeps.over = True
        await settled
    assert len(bench.sagemaker.requests) == 1, "only the one that had no room"
    stored = await bench.stored()
    assert stored.failure is not None
    assert (stored.state, stored.failure.code, stored.reported) == (
        LaunchState.REFUSED,
        "LW-SWEEP-OVER",
        True,
    )
    assert bench.items.failed == [("item-launch-1", "LW-SWEEP-OVER: Sweep s1 of vision is over", "agent")]


async def test_no_further_attempt_follows_once_the_sweep_is_over() -> None:
    bench = Bench()
    bench.sweeps.over = True
    async with bench.running():
        _, settled = await bench.add(new(sweep_id="s1", previous_job="job-0", attempt=2))
        await settled
    assert (bench.sagemaker.requests, bench.given_up) == ([], ["launch-1"])
    assert (await bench.stored()).given_up == "Sweep s1 of vision is over"


async def test_a_job_that_was_made_before_its_sweep_ended_is_followed() -> None:
    bench = Bench()
    bench.sweeps.over = True
    bench.sagemaker.jobs["job-1"] = JobFacts("InProgress", "Training")
    async with bench.running():
        _, settled = await bench.add(new(sweep_id="s1"))
        await settled
    assert (await bench.stored()).state is LaunchState.ACCEPTED


async def test_a_run_waits_while_nobody_knows_of_its_sweep() -> None:
    bench = Bench()
    bench.sweeps.errors = [Again("the state of sweep s1 is not known")] * 3
    async with bench.running():
        _, settled = await bench.add(new(sweep_id="s1"))
        await bench.add(new("launch-2"))
        await settled
    assert (await bench.stored()).state is LaunchState.ACCEPTED
    assert [request["TrainingJobName"] for request in bench.sagemaker.requests] == ["job-2", "job-1"]
    assert bench.sagemaker.turns_given_back >= 3
