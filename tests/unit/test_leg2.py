"""Leg 2 as a whole, on fakes at every port: from `waiting` to `finished`, whoever dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.cloudwatch import CloudWatch, FakeLogFeed
from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems
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
from worker.errors import Never, Throttled, Unreachable
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
from worker.training.status_feed import StatusFeed
from worker.training.status_news import Summary

STREAM = "job-1/algo-1-17"
COMPLETED = JobFacts("Completed", "Completed", billable_seconds=30)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second for another try here."""
    for module in (
        "persistence",
        "supervisor",
        "job_watch",
        "submission",
        "telling",
        "delivery.read_trouble",
        "delivery.posting",
        "ledger.adoption",
    ):
        monkeypatch.setattr(f"worker.{module}.backoff", lambda *_, **__: 0.002)
    monkeypatch.setattr("worker.retrying.backoff", lambda _, *, base, **__: base)  # `pause` of a `Worker`


class EveryJob(StatusFeed):
    """Tells of every job each time, as an overlap does."""

    def __init__(self, sagemaker: FakeSageMaker) -> None:
        self._jobs = sagemaker.jobs
        self.errors: list[Exception] = []

    def look_back_to(self, moment: float) -> None:
        """It always looks at everything."""

    async def changes(self) -> Mapping[str, Summary]:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return {n: Summary(n, f.status, f.secondary_status, 0.0) for n, f in self._jobs.items()}


@dataclass
class World:
    """What outlives a worker."""

    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    cloud: CloudWatch = field(default_factory=CloudWatch)
    companion: FakeCompanion = field(default_factory=FakeCompanion)
    sagemaker: FakeSageMaker = field(default_factory=FakeSageMaker)
    queue: FakeLaunchQueue = field(default_factory=FakeLaunchQueue)
    items: FakeQueueItems = field(default_factory=FakeQueueItems)

    async def stored(self, launch_id: str = "launch-1") -> LaunchRecord:
        found = await self.ledger.read(launch_id)
        assert found is not None
        return found

    async def finished(self, launch_id: str = "launch-1") -> LaunchRecord:
        """Wait for the end."""
        async with asyncio.timeout(8):
            while (stored := await self.stored(launch_id)).state is not LaunchState.FINISHED:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return stored

    def end(self) -> tuple[object, int]:
        """What the companion was told at the end, once."""
        ((summary, exit_code),) = self.companion.finished
        return summary["sagemaker/end"], exit_code


class Worker:
    """Leg 2, wired as the composition root does it, with short times."""

    def __init__(self, world: World, name: str = WORKER, *, beat: float = 0.05, pause: float = 0.002) -> None:
        metrics = self.metrics = Metrics()
        self.world = world
        self.stop = asyncio.Event()
        self.held = HeldLaunches(world.ledger, name, metrics)
        self.status_feed = EveryJob(world.sagemaker)
        feed = FakeLogFeed(world.cloud)
        refusals = Refusals(world.items, world.queue)
        posting = Posting(
            held=self.held, feed=feed, companion=world.companion, metrics=metrics, breather=Breather()
        )
        beats = Membership(world.ledger, WorkerBeat(name, 0, "d", "h", 0.0), beat)
        adoption = Adoption(
            ledger=world.ledger,
            membership=beats,
            held=self.held,
            worker=name,
            heartbeat=beat,
            metrics=metrics,
        )
        persistence = Persistence(metrics, GIVE_UP_AFTER)
        submission = Submission(
            held=self.held,
            sagemaker=world.sagemaker,
            refusals=refusals,
            sweeps=Sweeps(None),
            metrics=metrics,
            api_key=ApiKey("k" * 40),
            max_jobs=-1,
            max_wait=3600,
            is_current=lambda: adoption.is_current,
        )
        story = story_of(world.companion, world.sagemaker)
        self.stopping = stopping_of(
            self.held,
            submission,
            world.sagemaker,
            story,
            world.companion,
            interval=0.01,
            is_current=lambda: adoption.is_current,
        )
        self.supervisor = Supervisor(
            persistence=persistence,
            held=self.held,
            adoption=adoption,
            submission=submission,
            watch=JobWatch(
                held=self.held,
                sagemaker=world.sagemaker,
                status_feed=self.status_feed,
                interval=0.005,
                persistence=persistence,
                metrics=metrics,
                now=time.time,
            ),
            delivery=LogDelivery(
                feed=feed,
                held=self.held,
                posting=posting,
                closing=Closing(feed=feed, posting=posting, companion=world.companion),
                breather=Breather(),
                interval=0.005,
                quiet=0.03,
                drain_limit=5,
            ),
            companion=world.companion,
            retrying=Retrying(
                held=self.held,
                sagemaker=world.sagemaker,
                refusals=refusals,
                metrics=metrics,
                deployment="default",
                pause=pause,
            ),
            story=story,
            stopping=self.stopping,
            metrics=metrics,
        )

    async def submit(self, launch: LaunchRecord) -> HeldLaunch:
        """Hand over a launch that leg 1 has made ready."""
        assert await self.world.ledger.create(launch) is None
        held = HeldLaunch(launch, SecretStr("own") if launch.private_key else None)
        await self.supervisor.submit(held)
        return held

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A task that is cancelled without ceremony is a process that is killed."""
        task = asyncio.ensure_future(self.supervisor.run(self.stop))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def worker(world: World) -> Worker:
    return Worker(world)


async def test_a_launch_goes_all_the_way(world: World, worker: Worker) -> None:
    async with worker.running():
        await worker.submit(waiting())
        await until(lambda: world.companion.opened)
        world.sagemaker.jobs["job-1"] = JobFacts("InProgress", "Training", started_at=1.0)
        world.cloud.put(STREAM, "epoch 1")
        await until(lambda: world.companion.summaries and world.companion.console)
        assert world.companion.summaries[-1]["sagemaker/secondary_status"] == "Training"
        world.cloud.put(STREAM, "epoch 2")
        world.sagemaker.jobs["job-1"] = COMPLETED
        stored = await world.finished()
    assert world.companion.lines("launch-1") == ["epoch 1", "epoch 2"]
    assert world.companion.opened[0]["sagemaker/job_name"] == "job-1"
    assert world.end() == ("completed", 0)
    assert world.companion.finished[0][0]["launch/log_lines"] == 2
    assert stored.expires_at > stored.finished_at > 0
    assert stored.facts.billable_seconds == 30
    assert "launch-1" not in worker.held


@pytest.mark.parametrize(
    ("facts", "end", "exit_code"),
    [
        (JobFacts("Failed", "Failed", "AlgorithmError: exit code: 3"), "failed", 3),
        (JobFacts("Stopped", "MaxRuntimeExceeded"), "stopped by its time limit", 1),
        (JobFacts("Stopped", "Stopped"), "stopped from outside", 1),
        (JobFacts("Stopped", "Deleted"), "stopped from outside", 1),
        (JobFacts("Completed", "SomethingNew"), "completed", 0),
    ],
)
async def test_every_end_is_told(
    world: World, worker: Worker, facts: JobFacts, end: str, exit_code: int
) -> None:
    async with worker.running():
        await worker.submit(waiting())
        world.sagemaker.jobs["job-1"] = facts
        await world.finished()
    assert world.end() == (end, exit_code)


async def test_the_reason_of_a_stop_outlives_the_worker(world: World, worker: Worker) -> None:
    async with worker.running():
        await worker.submit(waiting())
        world.companion.stop_pressed = True
        await until(lambda: world.sagemaker.stopped)
    world.companion.stop_pressed = False
    world.sagemaker.jobs["job-1"] = JobFacts("Stopped", "Stopped")
    async with Worker(world, OTHER).running():
        await world.finished()
    assert world.end() == ("stopped by this worker", 1)
    assert "Stop was pressed" in str(world.companion.finished[0][0]["sagemaker/reason"])


async def test_trouble_of_every_kind_is_ridden_out(world: World, worker: Worker) -> None:
    ours = [Unreachable("no answer"), Throttled("slow"), AwsRefused("Op", "X", "odd")]
    async with worker.running():
        world.companion.errors = [*ours, KeyError("a defect")]
        await worker.submit(waiting())
        await until(lambda: world.companion.opened)
        worker.status_feed.errors = [*ours]
        world.sagemaker.errors = [*ours, KeyError("a defect")]
        world.cloud.put(STREAM, "line")
        world.sagemaker.jobs["job-1"] = COMPLETED
        await until(lambda: not world.sagemaker.errors)
        world.companion.errors = [*ours]
        await world.finished()
    assert world.companion.lines("launch-1") == ["line"]
    assert world.end() == ("completed", 0)


async def test_a_ledger_outage_in_the_middle_changes_nothing(world: World, worker: Worker) -> None:
    async with worker.running():
        await worker.submit(waiting())
        await until(lambda: world.companion.opened)
        world.ledger.failing = Unreachable("ledger")
        world.cloud.put(STREAM, "line")
        world.sagemaker.jobs["job-1"] = JobFacts("Failed", "Failed", "oom")
        await asyncio.sleep(0.1)
        assert (world.companion.console, world.companion.finished) == ({}, [])
        world.ledger.failing = None
        await world.finished()
    assert world.companion.lines("launch-1") == ["line"]
    assert world.end() == ("failed", 1)


@pytest.mark.parametrize("target", ["off", "files", "companion", "run"])
async def test_the_log_goes_where_it_was_asked_for(world: World, worker: Worker, target: str) -> None:
    world.cloud.put(STREAM, "line")
    async with worker.running():
        await worker.submit(waiting(log_target=target))
        world.sagemaker.jobs["job-1"] = COMPLETED
        await world.finished()
    assert bool(world.companion.files) is (target != "off")
    assert bool(world.companion.console) is (target != "off"), (
        "for `files` the adapter keeps the console empty"
    )
    assert world.end() == ("completed", 0)


async def test_released_launches_are_gone_on_with_at_once(world: World, worker: Worker) -> None:
    world.cloud.put(STREAM, "first")
    async with worker.running():
        await worker.submit(waiting())
        await until(lambda: world.companion.posts)
        worker.stop.set()
        await until(lambda: len(worker.held) == 0)
    assert (await world.stored()).owner == ""
    world.cloud.put(STREAM, "second")
    world.sagemaker.jobs["job-1"] = COMPLETED
    async with Worker(world, OTHER).running():
        await world.finished()
    assert world.companion.lines("launch-1") == ["first", "second"]
    assert len(world.sagemaker.requests) == 1


async def test_a_job_that_ended_while_nobody_held_it_is_finished(world: World) -> None:
    world.cloud.put(STREAM, "all of it")
    world.sagemaker.jobs["job-1"] = JobFacts("Failed", "Failed", "oom")
    await world.ledger.create(record(owner=""))
    async with Worker(world).running():
        await world.finished()
    assert world.companion.lines("launch-1") == ["all of it"]
    assert world.end() == ("failed", 1)


async def test_a_worker_that_dies_behind_the_end_leaves_nothing_to_be_posted_again(
    world: World, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line or a sign of life behind the end would make the run running again, where W&B takes it at all."""
    told = asyncio.Event()

    async def never_answers(record: LaunchRecord, summary: Mapping[str, Any], exit_code: int) -> None:
        told.set()
        await asyncio.Event().wait()

    world.cloud.put(STREAM, "the last line")
    world.sagemaker.jobs["job-1"] = COMPLETED
    await world.ledger.create(record(owner=""))
    with monkeypatch.context() as patched:
        patched.setattr(world.companion, "finish", never_answers)
        async with worker.running(), asyncio.timeout(5):
            await told.wait()
    before = len(world.companion.posts), len(world.companion.heartbeats), len(world.companion.uploads)
    async with Worker(world, OTHER).running():
        await world.finished()
    companion = world.companion
    assert (len(companion.posts), len(companion.heartbeats), len(companion.uploads)) == before
    assert companion.lines("launch-1") == ["the last line"]
    assert world.end() == ("completed", 0)


async def test_a_worker_that_lost_a_launch_does_not_tell_its_end(world: World, worker: Worker) -> None:
    """It was frozen where the end is to be told; the other one may make another attempt."""
    world.sagemaker.jobs["job-1"] = COMPLETED
    launch = record(log_target="off")
    await world.ledger.create(launch)
    stale = HeldLaunch(replace(launch, facts=COMPLETED))
    worker.held.add(stale)
    assert await world.ledger.claim(launch, OTHER) is not None
    async with worker.running():
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        worker.supervisor._delivered(stale)
        await until(lambda: stale.lost)
        await asyncio.sleep(0.02)
    assert world.companion.finished == []


class Containers:
    """Of three jobs; each prints a numbered line when told to, once SageMaker has the job."""

    def __init__(self, world: World) -> None:
        self.printed: dict[str, list[str]] = {f"launch-{number}": [] for number in range(3)}
        self._world = world

    def print(self) -> None:
        for name, lines in self.printed.items():
            job = name.replace("launch", "job")
            if job in self._world.sagemaker.jobs:
                lines.append(f"line {len(lines)}")
                self._world.cloud.put(f"{job}/algo-1-17", lines[-1])

    def end(self) -> None:
        for job in self._world.sagemaker.jobs:
            self._world.sagemaker.jobs[job] = COMPLETED


@pytest.mark.parametrize("seed", range(12))
async def test_workers_that_die_at_any_moment_lose_and_double_nothing(world: World, seed: int) -> None:
    """Each worker lives for some milliseconds; the last one long enough."""
    dice = random.Random(seed)
    containers = Containers(world)
    for name in containers.printed:
        await world.ledger.create(waiting(name, owner=""))
    for life in range(8):
        async with Worker(world, f"worker-{life}").running():
            for _ in range(dice.randint(1, 30)):
                await asyncio.sleep(dice.random() * 0.005)
                if dice.random() < 0.3:
                    containers.print()
    last = Worker(world, "last")
    async with last.running():
        await until(lambda: len(world.sagemaker.jobs) == 3)
        containers.print()
        containers.end()
        for name in containers.printed:
            await world.finished(name)
    assert {name: world.companion.lines(name) for name in containers.printed} == containers.printed
    assert all(containers.printed.values())
    assert last.metrics.registry.get_sample_value("launch_claims_total"), "it went on where others died"
    assert len(world.sagemaker.jobs) == 3


CAPACITY = JobFacts("Failed", "Failed", "CapacityError: Unable to provision requested ML compute capacity.")
INTERNAL = JobFacts("Failed", "Failed", "InternalServerError:  We encountered an internal error.")


def retried(launch_id: str = "launch-1", **changes: object) -> LaunchRecord:
    request = {
        "TrainingJobName": launch_id.replace("launch", "job"),
        "Environment": {"LAUNCH_ID": launch_id},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
    }
    values = {
        "request": request,
        "instance_type": "ml.g5.xlarge",
        "instance_types": ("ml.g5.xlarge", "ml.g5.2xlarge"),
        "retries": {"capacity": 1, "internal": 1},
        "waiting_at": time.time(),
    }
    return waiting(launch_id, **(values | changes))


async def test_a_want_of_capacity_leads_to_another_attempt_in_the_same_run(
    world: World, worker: Worker
) -> None:
    world.cloud.put(STREAM, "first")
    async with worker.running():
        await worker.submit(retried())
        await until(lambda: world.companion.posts)
        world.cloud.put("job-1-r2/algo-1-18", "second")  # streams are looked for as soon as the job is there
        world.sagemaker.jobs["job-1"] = CAPACITY
        await until(lambda: "job-1-r2" in world.sagemaker.jobs)
        assert world.companion.finished == [], "the companion lives on between two attempts"
        await until(lambda: len(world.companion.console["launch-1"]) == 2)
        world.sagemaker.jobs["job-1-r2"] = COMPLETED
        stored = await world.finished()
    assert world.companion.lines("launch-1") == ["first", "second"]
    assert set(world.companion.files["launch-1"]) == {
        "logs/algo-1/00001.log",
        "logs/attempt-2/algo-1/00001.log",
    }
    _, second = world.sagemaker.requests
    assert second["ResourceConfig"]["InstanceType"] == "ml.g5.2xlarge"
    assert second["Environment"] == {
        "LAUNCH_ID": "launch-1",
        "WANDB_RESUME": "allow",
        "WANDB_API_KEY": "k" * 40,
    }
    assert second["Tags"] == [{"Key": "team", "Value": "vision"}]
    ((summary, exit_code),) = world.companion.finished
    assert exit_code == 0
    assert summary["launch/attempt"] == 2
    assert summary["launch/attempts"] == [["job-1", "ml.g5.xlarge", "capacity", CAPACITY.failure_reason]]
    ((item, told, _),) = world.items.warned
    assert item == "item-launch-1"
    assert "CapacityError" in told
    assert "job-1-r2 on ml.g5.2xlarge" in told
    assert (stored.attempt, stored.job_name, stored.log.next_line) == (2, "job-1-r2", 2)


async def test_when_its_attempts_are_used_up_a_launch_ends_as_its_last_job(
    world: World, worker: Worker
) -> None:
    async with worker.running():
        await worker.submit(retried(log_target="off"))
        world.sagemaker.jobs["job-1"] = CAPACITY
        await until(lambda: "job-1-r2" in world.sagemaker.jobs)
        world.sagemaker.jobs["job-1-r2"] = CAPACITY
        await world.finished()
    assert set(world.sagemaker.jobs) == {"job-1", "job-1-r2"}
    assert world.end() == ("failed", 1)


async def test_stop_pressed_between_two_attempts_is_the_end(world: World) -> None:
    worker = Worker(world, pause=3600)
    async with worker.running():
        await worker.submit(retried(log_target="off"))
        world.sagemaker.jobs["job-1"] = CAPACITY
        await until(lambda: world.items.warned)
        assert (await world.stored()).state is LaunchState.WAITING
        world.companion.stop_pressed = True
        stored = await world.finished()
    assert world.end() == ("stopped by this worker", 1)
    assert set(world.sagemaker.jobs) == {"job-1"}
    assert world.sagemaker.stopped == []
    assert stored.given_up == "Stop was pressed in W&B, in the companion run."


async def test_a_job_that_is_gone_has_no_further_attempt(world: World, worker: Worker) -> None:
    gone = Never("the training job job-1 was deleted", code="LW-JOB-GONE")
    async with worker.running():
        await worker.submit(retried(log_target="off"))
        world.sagemaker.description_errors = [gone]
        world.sagemaker.jobs["job-1"] = CAPACITY
        await world.finished()
    ((summary, exit_code),) = world.companion.finished
    assert exit_code == 1
    assert "CapacityError" in str(summary["sagemaker/reason"])
    assert "was deleted" in str(summary["sagemaker/reason"])


async def test_an_attempt_is_not_made_before_it_is_durable(world: World, worker: Worker) -> None:
    async with worker.running():
        await worker.submit(retried(log_target="off"))
        await until(lambda: world.companion.opened)
        world.ledger.failing = Unreachable("ledger")
        held = next(iter(worker.held))
        held.update(facts=CAPACITY)
        worker.supervisor._ended(held)
        await asyncio.sleep(0.1)
        assert set(world.sagemaker.jobs) == {"job-1"}
        world.ledger.failing = None
        await until(lambda: "job-1-r2" in world.sagemaker.jobs)


async def test_an_answer_about_the_job_before_changes_nothing(world: World, worker: Worker) -> None:
    async with worker.running():
        held = await worker.submit(retried(log_target="off"))
        watch = worker.supervisor._watch
        world.sagemaker.jobs["job-1"] = CAPACITY
        await until(lambda: held.record.job_name == "job-1-r2")
        await until(lambda: held.record.state is LaunchState.ACCEPTED)
        job_name = held.record.job_name
        describing = asyncio.ensure_future(watch._describe(held))
        await asyncio.sleep(0)
        held.update(job_name="job-1-r3")
        await describing
        assert held.record.facts.status == "InProgress"
        held.update(job_name=job_name)
    assert world.companion.finished == []


@pytest.mark.parametrize("seed", range(8))
async def test_workers_that_die_at_any_moment_make_each_attempt_once(world: World, seed: int) -> None:
    """The first jobs fail; whoever lives then makes the second ones, which succeed."""
    dice = random.Random(seed)
    names = [f"launch-{number}" for number in range(3)]
    for name in names:
        await world.ledger.create(retried(name, owner=""))

    def turn() -> None:
        for job, facts in list(world.sagemaker.jobs.items()):
            if facts.status == "InProgress" and dice.random() < 0.2:
                world.cloud.put(f"{job}/algo-1-17", f"of {job}")
                world.sagemaker.jobs[job] = COMPLETED if job.endswith("-r2") else INTERNAL

    for life in range(10):
        async with Worker(world, f"worker-{life}").running():
            for _ in range(dice.randint(1, 30)):
                await asyncio.sleep(dice.random() * 0.008)
                turn()
    async with Worker(world, "last").running():
        async with asyncio.timeout(20):
            while {(await world.stored(name)).state for name in names} != {LaunchState.FINISHED}:
                await asyncio.sleep(0.01)
                turn()
    jobs = [name.replace("launch", "job") for name in names]
    assert set(world.sagemaker.jobs) == {*jobs, *(f"{job}-r2" for job in jobs)}
    for name, job in zip(names, jobs, strict=True):
        assert world.companion.lines(name) == [f"of {job}", f"of {job}-r2"]


async def test_a_worker_that_leaves_submits_nothing_more_and_gives_everything_back(world: World) -> None:
    worker = Worker(world)
    world.sagemaker.answering.clear()
    async with worker.running():
        submitting = asyncio.ensure_future(worker.submit(retried("launch-1", private_key=True)))
        await until(lambda: world.sagemaker.requests)
        worker.stop.set()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await until(lambda: len(worker.held) == 0)
        world.sagemaker.answering.set()
        # Leg 1 has one more ready within its grace.
        late = HeldLaunch(retried("launch-2"))
        await world.ledger.create(late.record)
        settled = worker.supervisor.submit(late)
        with pytest.raises(asyncio.CancelledError):
            await settled
        assert len(world.sagemaker.requests) == 1
        assert [beat.worker for beat in await world.ledger.beats()] == [WORKER], (
            "its builds are not orphans yet"
        )
    for name in ("launch-1", "launch-2"):
        assert ((await world.stored(name)).owner, (await world.stored(name)).state) == (
            "",
            LaunchState.WAITING,
        )
    await worker.supervisor.leave()
    assert await world.ledger.beats() == []


async def test_a_worker_that_could_not_release_all_stays_known(world: World) -> None:
    """Without its heartbeat nobody would look for what it still owns."""
    worker = Worker(world)
    async with worker.running():
        await worker.submit(waiting())
        worker.stop.set()
        world.ledger.failing = Unreachable("ledger")
        await asyncio.sleep(0.05)
    await worker.supervisor.leave()
    world.ledger.failing = None
    assert [beat.worker for beat in await world.ledger.beats()] == [WORKER]
    async with Worker(world, OTHER).running():
        await until(lambda: world.companion.opened)
        world.sagemaker.jobs["job-1"] = COMPLETED
        await world.finished()
