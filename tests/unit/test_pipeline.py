"""Leg 1, decision by decision: an in-memory ledger, real heartbeats, and a queue that remembers what it was told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import QUEUE_ARN, FakeLaunchQueue, FakeQueueItems, a_message
from tests.fakes.ledger import MemoryLedger, SizedLedger
from tests.unit.launches import ACCOUNT, BASE_URL, BUILT, IMAGE, message, sagemaker_args
from tests.unit.waiting import until
from worker.building import Building, LaunchImage
from worker.errors import Again, Never, Stage, Throttled, Unreachable
from worker.intake.refusal import Refusals
from worker.intake.sqs import SqsMessage
from worker.intake.sweeps import Sweeps
from worker.launch.identity import launch_id
from worker.launch.intent import item_id_of
from worker.launch.job_spec import ArtifactRef, JobSpec
from worker.launch.message import CodeSource, Launch
from worker.launch.outcome import Verdict
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.launch.redaction import KnownSecrets
from worker.launch.retry import RetryRules
from worker.ledger.held import HeldLaunch
from worker.ledger.membership import Membership
from worker.ledger.port import WorkerBeat
from worker.pipeline import Pipeline, PipelineFacts
from worker.preparing import PlanFacts, Preparing
from worker.run_claims import RunClaims
from worker.sources.checkout import Checkout
from worker.sources.wandb_job import FoundJob, WandbJobs
from worker.sources.wandb_sdk import FoundArtifact
from worker.tracking.build_log import BuildLogs
from worker.training.policy import Policy

COMMIT = "c0ffee" * 6 + "c0ff"
HEARTBEAT = 10.0
MAX_ATTEMPTS = 3
OWN_KEY = "0123456789abcdef0123456789abcdef01234567"


class FakeBuilding(Building):
    """Makes the same image of every code, or fails as told."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0
        self.versions: list[str] = []
        self.failed: tuple[str, ...] = ()
        self.output: list[str] = []
        self.logs: BuildLogs | None = None
        """Where the output goes; None: nothing is built, the image was there."""

    @property
    def repository(self) -> str:
        return BUILT.partition("@")[0]

    async def image_of(
        self, launch: Launch, source: CodeSource, on_fetched: Callable[[Checkout], Awaitable[None]]
    ) -> LaunchImage:
        self.asked += 1
        self.versions.append(source.version)
        await on_fetched(Checkout(Path(), f"git:{COMMIT}", "https://git.example.com/code", COMMIT))
        await self.gate.wait()
        if self.logs is not None:
            on_line = self.logs.start(launch.launch_id)
            for line in self.output:
                on_line(line)
        if self.errors:
            raise self.errors.pop(0)
        command = launch.entry_point or launch.job_entry_point or ("python", "train.py")
        return LaunchImage(BUILT, command, True, ("no lock file",), self.failed)


class FakeJobs(WandbJobs):
    """One job, under each name that is asked for."""

    def __init__(self) -> None:
        self.spec = JobSpec(kind="image", image=IMAGE, entry_point=("python", "job.py"))
        self.errors: list[Exception] = []
        self.asked: list[str] = []

    async def job(self, ref: ArtifactRef) -> FoundJob:
        self.asked.append(str(ref))
        if self.errors:
            raise self.errors.pop(0)
        return FoundJob(FoundArtifact("job-id", "acme/vision/train", "v3", "digest", ()), self.spec)


@dataclass
class Worker:
    """One worker's leg 1; leg 2 only notes what it is given."""

    pipeline: Pipeline
    membership: Membership
    submitted: list[HeldLaunch]
    waiting: dict[str, asyncio.Future[None]]
    """Launch id → what leg 1 may wait for."""

    async def handle(self, body: Any, *, message_id: str = "m-1") -> Any:
        text = body if isinstance(body, str) else json.dumps(body)
        return await self.pipeline.handle(a_message(message_id, text))


@dataclass
class Bench:
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    queue: FakeLaunchQueue = field(default_factory=FakeLaunchQueue)
    building: FakeBuilding = field(default_factory=FakeBuilding)
    companion: FakeCompanion = field(default_factory=FakeCompanion)
    jobs: FakeJobs = field(default_factory=FakeJobs)
    now: float = 1000.0
    companion_project: str = ""
    policy: Policy = field(default_factory=Policy)
    secrets: KnownSecrets = field(default_factory=KnownSecrets)

    def __post_init__(self) -> None:
        self.items = FakeQueueItems(self.queue.told)

    def worker(self, name: str, *, builds: bool = True, online: bool = True) -> Worker:
        refusals = Refusals(self.items, self.queue)
        beat = WorkerBeat(name, 0, "default", "host", 0.0)
        membership = Membership(self.ledger, beat, HEARTBEAT, clock=lambda: self.now)
        build_logs = BuildLogs(self.companion, alerts=("failure", "waiting"))
        if self.building.output:
            self.building.logs = build_logs
        submitted: list[HeldLaunch] = []
        waiting: dict[str, asyncio.Future[None]] = {}

        def submit(held: HeldLaunch) -> Awaitable[None]:
            submitted.append(held)
            return waiting.setdefault(held.launch_id, asyncio.get_running_loop().create_future())

        pipeline = Pipeline(
            facts=PipelineFacts(
                worker=name,
                queue_arn=QUEUE_ARN,
                deployment="default",
                base_url=BASE_URL,
                log_target="companion",
                retry_rules=RetryRules({"capacity": 2}),
                heartbeat=HEARTBEAT,
                max_attempts=MAX_ATTEMPTS,
                secrets=self.secrets,
            ),
            ledger=self.ledger,
            membership=membership,
            refusals=refusals,
            preparing=Preparing(
                facts=PlanFacts(ACCOUNT, BASE_URL, "default", {}, self.policy),
                building=self.building if builds else None,
                jobs=self.jobs if online else None,
                refusals=refusals,
            ),
            build_logs=build_logs,
            sweeps=Sweeps(None),
            run_claims=RunClaims(self.ledger, companion_project=self.companion_project),
            submit=submit,
            is_held=lambda identity: any(held.launch_id == identity for held in submitted),
        )
        return Worker(pipeline, membership, submitted, waiting)

    async def only_record(self) -> LaunchRecord:
        (record,) = await self.records()
        return record

    async def records(self) -> list[LaunchRecord]:
        found = [await self.ledger.read(identity) for identity in self.ledger._records]
        return [record for record in found if record is not None]

    async def edit(self, **changes: Any) -> LaunchRecord:
        record = replace(await self.only_record(), **changes)
        self.ledger._put(record)
        return record


@pytest.fixture
async def bench() -> Bench:
    return Bench()


def code(**spec: Any) -> dict[str, Any]:
    return message(docker={}, uri="https://git.example.com/acme/vision.git", **spec)


async def test_done_means_that_the_ledger_holds_it_ready_to_submit(bench: Bench) -> None:
    worker = bench.worker("w1")
    outcome = await worker.handle(message(run_id="r1"))
    assert outcome.verdict is Verdict.DONE
    record = await bench.only_record()
    assert (record.state, record.owner, record.epoch) == (LaunchState.WAITING, "w1", 1)
    assert (record.run.run_id, record.job_name, record.item_id) == ("r1", "r1", "item-1")
    assert record.request is not None
    assert record.request["Environment"]["LAUNCH_ID"] == record.launch_id
    assert [held.record for held in worker.submitted] == [record]
    assert (bench.items.failed, bench.queue.copied) == ([], [])


async def test_code_is_built_and_submitted_by_digest(bench: Bench) -> None:
    worker = bench.worker("w1")
    assert (await worker.handle(code())).verdict is Verdict.DONE
    record = await bench.only_record()
    assert record.image == BUILT
    assert bench.items.warned == [("item-1", "LW-BUILD-WARNING: no lock file", "build")]


async def test_what_is_odd_but_runs_is_shown_on_the_queue_item(bench: Bench) -> None:
    body = {**message(priority="urgent"), "options": {"log_taget": "off"}}
    assert (await bench.worker("w1").handle(body)).verdict is Verdict.DONE
    assert [(item, stage) for item, _, stage in bench.items.warned] == [("item-1", "agent")] * 2
    assert "did you mean log_target?" in bench.items.warned[1][1]


@pytest.mark.parametrize("spec", [{"entity": 5}, {"docker": {}}])
async def test_a_refusal_names_the_problems_of_the_request_too(bench: Bench, spec: dict[str, Any]) -> None:
    """The sender mends the message once, not once a problem."""
    body = message({"region": "mars"}, **spec)
    outcome = await bench.worker("w1").handle(body)
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-BAD-MESSAGE")
    assert len(outcome.reason.splitlines()) == 6, outcome.reason


async def test_packages_that_an_image_lacks_are_told_with_their_list(bench: Bench) -> None:
    bench.building.failed = ("torhc==2.0", "apex")
    body = {**code(), "agentRun": "agent-7", "entity": "acme", "queue": "sm"}
    assert (await bench.worker("w1").handle(body)).verdict is Verdict.DONE
    record = await bench.only_record()
    assert (record.agent_run, record.queue_entity, record.queue) == ("agent-7", "acme", "sm")
    path = "item-1/warning/failed-packages.log"
    assert bench.items.attached == [[path]]
    assert bench.items.files == {f"acme/model-registry/agent-7/{path}": "torhc==2.0\napex\n"}


async def test_a_failed_build_is_told_with_the_end_of_its_output(bench: Bench) -> None:
    """Also when W&B gets to know it from the next worker, which has not seen the build."""
    bench.building.output = ["x" * 10_000, "secret: " + OWN_KEY, "pip: no matching distribution"]
    bench.building.errors = [Never("the build failed", code="LW-BUILD", stage=Stage.BUILD)]
    bench.items.errors = [Unreachable("W&B is away")]
    body = {**code(_wandb_api_key=OWN_KEY), "agentRun": "agent-7", "entity": "acme"}
    assert (await bench.worker("w1").handle(body)).verdict is Verdict.AGAIN
    assert OWN_KEY not in repr(await bench.only_record())
    assert (await bench.worker("w2").handle(body)).verdict is Verdict.NEVER
    (log,) = bench.items.files.values()
    assert log.endswith("\nsecret: ***\npip: no matching distribution")
    assert bench.items.attached == [["item-1/error/error.log"]]
    assert bench.items.failed == [("item-1", "LW-BUILD: the build failed", "build")]
    failure = (await bench.only_record()).failure
    assert failure is not None
    assert failure.log == "", "what has been told is not kept"
    ((_, level, title, text),) = bench.companion.alerts
    assert (level, text) == ("ERROR", "the build failed")
    assert title.endswith("its image could not be built")


async def test_a_run_of_a_sweep_that_is_over_is_refused_before_anything_is_fetched(bench: Bench) -> None:
    class Over(Sweeps):
        async def check(self, run: RunRef, sweep_id: str, *, max_age: float = 0.0) -> None:
            raise Never(f"Sweep {sweep_id} is over", code="LW-SWEEP-OVER")

    worker = bench.worker("w1")
    worker.pipeline._sweeps = Over(None)
    outcome = await worker.handle(code(sweep_id="s1"))
    assert (outcome.verdict, outcome.code, outcome.stage) == (Verdict.NEVER, "LW-SWEEP-OVER", "agent")
    assert bench.building.asked == 0


async def test_leg_2_knows_the_sweep_from_the_ledger(bench: Bench) -> None:
    assert (await bench.worker("w1").handle(message(sweep_id="s1"))).verdict is Verdict.DONE
    assert (await bench.only_record()).sweep_id == "s1"


def again(item: str, **spec: Any) -> dict[str, Any]:
    """Another launch of the same run, whose training job would have a name of its own."""
    own = sagemaker_args(TrainingJobName=f"job-{item}")
    return {**code(**{"run_id": "r1", "resource_args": {"sagemaker": own}, **spec}), "runQueueItemId": item}


def dead_build(bench: Bench) -> None:
    bench.building.errors = [Never("the build failed", code="LW-BUILD", stage=Stage.BUILD)]


@pytest.mark.parametrize("state", [LaunchState.WAITING, LaunchState.ACCEPTED, LaunchState.FINISHED])
async def test_a_run_that_another_launch_has_is_refused_and_its_companion_left_alone(
    bench: Bench, state: LaunchState
) -> None:
    """Two writers of one companion overwrite each other's lines, and one's end is told as the other's."""
    bench.building.output = ["pip install"]
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.DONE
    first = await bench.edit(state=state)
    written = len(bench.companion.opened)
    dead_build(bench)
    outcome = await bench.worker("w2").handle(again("b"))
    assert (outcome.verdict, outcome.code, outcome.stage) == (Verdict.NEVER, "LW-RUN-TAKEN", "agent")
    for named in (
        "acme/vision/r1",
        first.launch_id,
        "training job job-a",
        "another run_id",
        "launch-worker retry",
    ):
        assert named in outcome.reason
    assert (len(bench.companion.opened), bench.companion.finished) == (written, [])
    assert bench.building.asked == 1, "refused before anything is built"
    assert len(bench.queue.copied) == 1


@pytest.mark.parametrize("target", ["run", "files", "off"])
async def test_a_run_has_one_launch_wherever_its_log_goes(bench: Bench, target: str) -> None:
    options = {"options": {"log_target": target}}
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.DONE
    assert (await bench.worker("w1").handle({**again("b"), **options})).code == "LW-RUN-TAKEN"


async def test_the_same_run_id_in_another_project_is_another_run(bench: Bench) -> None:
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.DONE
    assert (await bench.worker("w1").handle(again("b", project="other"))).verdict is Verdict.DONE


async def test_companions_of_two_projects_do_not_meet_in_a_third(bench: Bench) -> None:
    bench.companion_project = "sagemaker-jobs"
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.DONE
    outcome = await bench.worker("w1").handle(again("b", project="other"))
    assert outcome.code == "LW-RUN-TAKEN"
    assert "acme/sagemaker-jobs/r1" in outcome.reason


async def test_a_refused_launch_leaves_its_run_to_the_corrected_one(bench: Bench) -> None:
    dead_build(bench)
    assert (await bench.worker("w1").handle(again("a"))).code == "LW-BUILD"
    assert (await bench.worker("w2").handle(again("b"))).verdict is Verdict.DONE
    outcome = await bench.worker("w1").handle(again("c"))
    assert outcome.code == "LW-RUN-TAKEN", "now it is the second one's"


async def test_a_refusal_that_is_still_being_told_keeps_its_run_for_now(bench: Bench) -> None:
    dead_build(bench)
    bench.items.errors = [Unreachable("W&B is away")]
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.AGAIN
    assert (await bench.worker("w2").handle(again("b"))).verdict is Verdict.AGAIN
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.NEVER
    assert (await bench.worker("w2").handle(again("b"))).verdict is Verdict.DONE


async def test_a_launch_that_the_ledger_has_forgotten_keeps_no_run(bench: Bench) -> None:
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.DONE
    bench.ledger._records.clear()
    assert (await bench.worker("w1").handle(again("b"))).verdict is Verdict.DONE


async def test_a_launch_meets_its_own_claim_at_the_next_try(bench: Bench) -> None:
    bench.building.errors = [Unreachable("docker is away")]
    assert (await bench.worker("w1").handle(again("a"))).verdict is Verdict.AGAIN
    assert (await bench.worker("w2").handle(again("a"))).verdict is Verdict.DONE


async def test_code_without_a_builder_is_refused_with_the_remedy(bench: Bench) -> None:
    outcome = await bench.worker("w1", builds=False).handle(code())
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-NO-BUILDER")
    assert "LAUNCH_REGISTRY" in outcome.reason


@pytest.mark.parametrize(
    "state", [LaunchState.WAITING, LaunchState.ACCEPTED, LaunchState.FINISHED, LaunchState.REFUSED]
)
async def test_a_duplicate_of_a_launch_past_leg_1_is_done(bench: Bench, state: LaunchState) -> None:
    await bench.worker("w1").handle(message())
    before = await bench.edit(state=state, reported=True)
    second = bench.worker("w2")
    assert (await second.handle(message())).verdict is Verdict.DONE
    assert await bench.only_record() == before
    assert second.submitted == []


async def test_a_live_worker_at_work_on_it_means_busy_beyond_its_heartbeat_limit(bench: Bench) -> None:
    first, second = bench.worker("w1"), bench.worker("w2")
    bench.building.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(first.handle(code()))
        await until(lambda: bench.building.asked)
        same, other = await first.handle(code()), await second.handle(code())
        assert (same.verdict, other.verdict) == (Verdict.BUSY, Verdict.BUSY)
        assert same.delay == other.delay
        assert other.delay > 3 * HEARTBEAT
        bench.building.gate.set()
    assert working.result().verdict is Verdict.DONE
    assert bench.building.asked == 1
    assert second.submitted == []


async def test_a_dead_workers_launch_is_claimed(bench: Bench) -> None:
    await bench.worker("w1").handle(message())
    await bench.edit(state=LaunchState.INTENT)
    second = bench.worker("w2")
    assert (await second.handle(message())).verdict is Verdict.BUSY
    for _ in range(4):
        await second.membership.beat_once()
        bench.now += HEARTBEAT
    await second.membership.beat_once()
    assert (await second.handle(message())).verdict is Verdict.DONE
    record = await bench.only_record()
    assert (record.owner, record.epoch, record.state) == ("w2", 2, LaunchState.WAITING)


@pytest.mark.parametrize("state", [LaunchState.WAITING, LaunchState.ACCEPTED])
async def test_a_launch_whose_owner_woke_up_before_it_was_claimed_is_left_to_leg_2(
    bench: Bench, state: LaunchState
) -> None:
    """Built again, a failure would refuse a launch whose job runs."""

    class WakesUp(MemoryLedger):
        async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
            self._put(replace(seen, state=state))
            return await super().claim(seen, worker)

    bench.ledger = WakesUp()
    bench.building.errors = [Unreachable("the registry is away")]
    await bench.worker("w1").handle(code())
    bench.building.asked = 0
    second = bench.worker("w2")
    assert (await second.handle(code())).verdict is Verdict.BUSY
    record = await bench.only_record()
    assert (record.state, record.owner, record.epoch) == (state, "", 2)
    assert (bench.building.asked, second.submitted) == (0, [])
    assert (await second.handle(code())).verdict is Verdict.DONE


async def test_two_workers_that_claim_at_once_are_one(bench: Bench) -> None:
    await bench.worker("w1").handle(message())
    await bench.edit(state=LaunchState.INTENT, owner="")
    workers = [bench.worker("w2"), bench.worker("w3")]
    outcomes = await asyncio.gather(*(worker.handle(message()) for worker in workers))
    assert sorted(outcome.verdict for outcome in outcomes) == [Verdict.BUSY, Verdict.DONE]
    assert sum(len(worker.submitted) for worker in workers) == 1
    assert (await bench.only_record()).epoch == 2


async def test_again_counts_the_try_releases_the_launch_and_warns(bench: Bench) -> None:
    bench.building.errors = [Unreachable("the registry is away")]
    outcome = await bench.worker("w1").handle(code())
    assert outcome.verdict is Verdict.AGAIN
    assert 5 <= outcome.delay <= 10
    record = await bench.only_record()
    assert (record.state, record.owner, record.tries) == (LaunchState.INTENT, "", 1)
    ((item, text, stage),) = bench.items.warned
    assert (item, stage) == ("item-1", "agent")
    assert text.startswith("LW-LAUNCH-AGAIN: ")
    assert "the registry is away" in text


async def test_a_later_try_fetches_the_commit_of_the_first(bench: Bench) -> None:
    """A branch may move between them: one launch is one commit, on whatever worker."""
    bench.building.errors = [Unreachable("the registry is away")]
    await bench.worker("w1").handle(code())
    assert (await bench.only_record()).commit == COMMIT
    await bench.worker("w2").handle(code())
    first, second = bench.building.versions
    assert (first != COMMIT, second) == (True, COMMIT)


def job_message(**spec: Any) -> dict[str, Any]:
    return message(docker={}, job="acme/vision/train:prod", **spec)


async def test_an_image_job_is_its_image(bench: Bench) -> None:
    worker = bench.worker("w1", builds=False)
    assert (await worker.handle(job_message())).verdict is Verdict.DONE
    record = await bench.only_record()
    assert (record.image, record.job_artifact, bench.building.asked) == (IMAGE, "job-id", 0)
    assert record.request is not None
    assert record.request["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "job.py"]
    assert record.request["Environment"]["WANDB_DOCKER"] == IMAGE


@pytest.mark.parametrize(("override", "command"), [(None, "job.py"), (["python", "other.py"], "other.py")])
async def test_a_code_job_is_built(bench: Bench, override: list[str] | None, command: str) -> None:
    bench.jobs.spec = JobSpec(
        kind="repo",
        remote="https://git.example.com/x.git",
        commit="main",
        entry_point=("python", "job.py"),
        base_image="base",
    )
    overrides = {"entry_point": override} if override else {}
    outcome = await bench.worker("w1").handle(job_message(overrides=overrides))
    assert outcome.verdict is Verdict.DONE
    record = await bench.only_record()
    assert (record.image, record.commit) == (BUILT, COMMIT)
    assert record.request is not None
    assert record.request["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", command]
    assert "WANDB_DOCKER" not in record.request["Environment"]


async def test_a_later_try_runs_the_version_of_the_first(bench: Bench) -> None:
    """The alias may have moved since, and so may a branch that the job names."""
    bench.jobs.spec = JobSpec(kind="repo", remote="https://git.example.com/x.git", commit="main")
    bench.building.errors = [Unreachable("docker is away")]
    worker = bench.worker("w1")
    assert (await worker.handle(job_message())).verdict is Verdict.AGAIN
    assert (await worker.handle(job_message())).verdict is Verdict.DONE
    assert bench.jobs.asked == ["acme/vision/train:prod", "wandb-artifact://_id/job-id"]
    assert bench.building.versions == ["main", COMMIT]


async def test_a_job_of_code_without_a_builder_is_never_a_bare_base_image_q28(bench: Bench) -> None:
    bench.jobs.spec = JobSpec(kind="repo", remote="r", commit="c", base_image="pytorch/pytorch:2.3.0")
    outcome = await bench.worker("w1", builds=False).handle(job_message())
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-NO-BUILDER")
    assert "$.runSpec.job" in outcome.reason


async def test_a_job_without_a_wandb_server_is_refused(bench: Bench) -> None:
    outcome = await bench.worker("w1", online=False).handle(job_message())
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-JOB-OFFLINE")


async def test_what_a_message_may_not_is_refused_before_wandb_is_asked(bench: Bench) -> None:
    bench.policy = Policy(instance_types=("ml.g5.*",), images=("none",))
    outcome = await bench.worker("w1").handle(job_message())
    assert (outcome.code, bench.jobs.asked) == ("LW-POLICY", [])
    assert "instance type" in outcome.reason
    assert "image" not in outcome.reason


async def test_a_jobs_image_is_held_to_the_list(bench: Bench) -> None:
    bench.policy = Policy(images=("*/other:*",))
    outcome = await bench.worker("w1").handle(job_message())
    assert outcome.code == "LW-POLICY"
    assert outcome.reason.startswith("$.runSpec.job: image")


async def test_secure_mode_lets_a_job_run_its_own_command_only(bench: Bench) -> None:
    bench.policy = Policy(secure_mode=True)
    override = {"entry_point": ["sh"]}
    bench.jobs.spec = JobSpec(
        kind="repo", remote="r", commit="c", dockerfile="D", entry_point=("python", "job.py")
    )
    assert (await bench.worker("w1").handle(job_message())).verdict is Verdict.DONE
    refused = await bench.worker("w1").handle({**job_message(overrides=override), "runQueueItemId": "item-2"})
    assert (refused.code, len(bench.jobs.asked)) == ("LW-POLICY", 1)


async def test_a_dockerfile_for_a_ready_image_is_told_and_not_used(bench: Bench) -> None:
    outcome = await bench.worker("w1").handle(job_message(overrides={"dockerfile": "D"}))
    assert outcome.verdict is Verdict.DONE
    ((item, text, stage),) = bench.items.warned
    assert (item, stage) == ("item-1", "agent")
    assert text.startswith("LW-MESSAGE-ODD: overrides.dockerfile is not used")


async def test_the_git_host_of_a_job_is_checked_before_it_is_fetched(bench: Bench) -> None:
    bench.policy = Policy(git_hosts=("git.example.com",))
    bench.jobs.spec = JobSpec(kind="repo", remote="https://elsewhere.example.com/x.git", commit="c")
    outcome = await bench.worker("w1").handle(job_message())
    assert (outcome.code, bench.building.asked) == ("LW-POLICY", 0)
    assert outcome.reason.startswith("$.runSpec.job: git host 'elsewhere.example.com' is not allowed")


async def test_the_wait_grows_with_the_tries_and_obeys_the_peer(bench: Bench) -> None:
    worker = bench.worker("w1")
    bench.building.errors = [Unreachable("a"), Throttled("b", retry_after=77)]
    first, second = await worker.handle(code()), await worker.handle(code())
    assert (first.verdict, second.verdict, second.delay) == (Verdict.AGAIN, Verdict.AGAIN, 77)
    assert (await bench.only_record()).tries == 2


async def test_an_unknown_exception_is_again_with_the_try_counted(bench: Bench) -> None:
    bench.building.errors = [KeyError("a defect of ours")]
    outcome = await bench.worker("w1").handle(code())
    assert outcome.verdict is Verdict.AGAIN
    assert "KeyError" in outcome.reason
    assert (await bench.only_record()).tries == 1


async def test_too_many_tries_are_a_refusal(bench: Bench) -> None:
    workers = [bench.worker("w1"), bench.worker("w2"), bench.worker("w3")]
    bench.building.errors = [Again("no luck")] * MAX_ATTEMPTS
    outcomes = [await worker.handle(code()) for worker in workers]
    assert [outcome.verdict for outcome in outcomes] == [Verdict.AGAIN, Verdict.AGAIN, Verdict.NEVER]
    assert outcomes[-1].code == "LW-GAVE-UP"
    record = await bench.only_record()
    assert record.state is LaunchState.REFUSED
    assert record.failure is not None
    assert (record.failure.code, record.reported) == ("LW-GAVE-UP", True)
    assert "after 3 tries" in record.failure.reason


async def test_a_refusal_is_decided_in_the_ledger_then_told_to_wandb_then_to_the_dlq(bench: Bench) -> None:
    class Watching(FakeQueueItems):
        async def fail(self, item_id: str, message: str, stage: str, files: Sequence[str] = ()) -> None:
            states.append((await bench.only_record()).state)
            await super().fail(item_id, message, stage, files)

    states: list[LaunchState] = []
    bench.items = Watching(bench.queue.told)
    outcome = await bench.worker("w1").handle(message(resource_args={"sagemaker": {}}))
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-BAD-MESSAGE")
    assert states == [LaunchState.REFUSED]
    assert bench.queue.told == ["wandb", "dlq"]
    record = await bench.only_record()
    assert (record.reported, record.owner, record.message) == (True, "", "")
    assert record.expires_at > record.finished_at
    ((body, identity, attributes),) = bench.queue.copied
    assert json.loads(body)["runQueueItemId"] == "item-1"
    assert identity == attributes["launchId"] == record.launch_id
    assert (attributes["stage"], attributes["code"]) == ("agent", "LW-BAD-MESSAGE")
    assert bench.items.failed == [("item-1", f"{attributes['code']}: {attributes['reason']}", "agent")]


@pytest.mark.parametrize("where", ["wandb", "dlq"])
async def test_a_refusal_whose_report_failed_is_finished_on_redelivery(bench: Bench, where: str) -> None:
    """By whichever worker gets the message next, also while the first one lives."""
    (bench.items.errors if where == "wandb" else bench.queue.dlq_errors).append(
        Unreachable(f"{where} is away")
    )
    wrong = message(resource_args={"sagemaker": {}})
    outcome = await bench.worker("w1").handle(wrong)
    assert outcome.verdict is Verdict.AGAIN
    record = await bench.only_record()
    assert (record.state, record.reported) == (LaunchState.REFUSED, False)
    assert bench.queue.copied == []
    second = await bench.worker("w2").handle(wrong)
    assert (second.verdict, second.code) == (Verdict.NEVER, "LW-BAD-MESSAGE")
    assert len(bench.queue.copied) == 1
    assert (await bench.only_record()).reported


def too_large() -> dict[str, Any]:
    """Its intent fits into DynamoDB, with a part of the message, and its request beside that does not."""
    return message(sagemaker_args(HyperParameters={f"h{i:02}": "é" * 2400 for i in range(60)}), run_id="r1")


async def test_a_launch_that_is_too_large_for_the_ledger_is_refused_and_leaves_its_run(bench: Bench) -> None:
    bench.ledger = SizedLedger()
    text = json.dumps(too_large(), ensure_ascii=False)
    outcome = await bench.worker("w1").handle(text)
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-LEDGER-ITEM-SIZE")
    record = await bench.only_record()
    assert (record.state, record.reported, record.owner) == (LaunchState.REFUSED, True, "")
    ((body, _, attributes),) = bench.queue.copied
    assert text.startswith(body)
    assert attributes["truncated"]
    corrected = {**message(run_id="r1"), "runQueueItemId": "item-2"}
    assert (await bench.worker("w2").handle(corrected)).verdict is Verdict.DONE


async def test_a_refusal_that_says_too_much_is_cut(bench: Bench) -> None:
    bench.ledger = SizedLedger()
    bench.building.errors = [Never("first " + "é" * 300_000 + " last", code="LW-X", stage=Stage.BUILD)]
    outcome = await bench.worker("w1").handle(json.dumps(code(args=["é" * 90_000]), ensure_ascii=False))
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-X")
    record = await bench.only_record()
    assert record.reported
    assert record.failure is not None
    assert record.failure.reason.startswith("first ")
    assert record.failure.reason.endswith(" last")


async def test_the_pause_for_a_ledger_that_is_away_does_not_grow_with_the_deliveries(bench: Bench) -> None:
    """Most of them found the launch busy; a quarter of an hour for the first cut connection would be wrong."""
    bench.ledger.failing = Unreachable("the ledger is away")
    delivered = a_message("m-1", json.dumps(message()), receives=30)
    outcome = await bench.worker("w1").pipeline.handle(delivered)
    assert outcome.verdict is Verdict.AGAIN
    assert outcome.delay <= 10


async def test_a_ledger_that_does_not_answer_is_again_and_starts_nothing(bench: Bench) -> None:
    worker = bench.worker("w1")
    bench.ledger.failing = Unreachable("the ledger is away")
    outcome = await worker.handle(code())
    assert outcome.verdict is Verdict.AGAIN
    assert (bench.building.asked, worker.submitted) == (0, [])


@pytest.mark.parametrize(
    ("body", "item"),
    [
        ('{"runQueueItemId": "item-9", "runSpec": 3}', "item-9"),
        ('{"runQueueItemId": 9}', ""),
        ("[1]", ""),
        ("not json", ""),
        ("[" * 100_000, ""),
    ],
    ids=["bad spec", "bad id", "list", "text", "deep"],
)
async def test_the_item_id_is_taken_out_of_a_broken_message(bench: Bench, body: str, item: str) -> None:
    assert item_id_of(body) == item
    outcome = await bench.worker("w1").handle(body, message_id="sqs-7")
    assert outcome.verdict is Verdict.NEVER
    record = await bench.only_record()
    assert record.item_id == item
    assert record.launch_id == launch_id(("sqs", QUEUE_ARN, "sqs-7"))
    assert [failed[0] for failed in bench.items.failed] == ([item] if item else [])
    assert len(bench.queue.copied) == 1


async def test_what_the_ledger_and_the_dlq_keep_of_a_message_has_no_secret(bench: Bench) -> None:
    await bench.worker("w1").handle(message(resource_args={"sagemaker": {}}, _wandb_api_key=OWN_KEY))
    assert len(bench.queue.copied) == 1
    assert OWN_KEY not in repr(bench.queue.copied) + repr(bench.ledger._records)


async def test_a_launch_with_its_own_key_keeps_its_message_until_the_job_exists(bench: Bench) -> None:
    worker = bench.worker("w1")
    body = message(_wandb_api_key=OWN_KEY)
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(worker.handle(body))
        await until(lambda: worker.submitted)
        await asyncio.sleep(0.02)
        assert not working.done()
        record = await bench.only_record()
        assert (record.state, record.private_key) == (LaunchState.WAITING, True)
        assert OWN_KEY not in repr(bench.ledger._records)
        (held,) = worker.submitted
        assert held.api_key is not None
        assert held.api_key.get_secret_value() == OWN_KEY
        # Redelivered meanwhile, here or elsewhere: it is in good hands.
        assert (await bench.worker("w2").handle(body)).verdict is Verdict.BUSY
        worker.waiting[record.launch_id].set_result(None)
    assert working.result().verdict is Verdict.DONE


async def test_a_launch_with_its_own_key_that_another_worker_took_over_keeps_its_message(
    bench: Bench,
) -> None:
    worker = bench.worker("w1")
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(worker.handle(message(_wandb_api_key=OWN_KEY)))
        await until(lambda: worker.submitted)
        (held,) = worker.submitted
        held.lost = True
        worker.waiting[held.launch_id].set_result(None)
    assert working.result().verdict is Verdict.BUSY


async def test_a_released_launch_with_its_own_key_is_taken_up_by_whoever_has_the_message(
    bench: Bench,
) -> None:
    first, second = bench.worker("w1"), bench.worker("w2")
    body = message(_wandb_api_key=OWN_KEY)
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(first.handle(body))
        await until(lambda: first.submitted)
        working.cancel()
    released = await bench.edit(owner="")  # as leg 2 does at shutdown
    assert released.state is LaunchState.WAITING
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(second.handle(body))
        await until(lambda: second.submitted)
        second.waiting[released.launch_id].set_result(None)
    assert working.result().verdict is Verdict.DONE
    assert (await bench.only_record()).epoch == 2


async def test_a_cancellation_gives_the_launch_back(bench: Bench) -> None:
    """A lost lease or the end of the grace: the next worker to get the message need not wait for this one's death."""
    first, second = bench.worker("w1"), bench.worker("w2")
    bench.building.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(first.handle(code()))
        await until(lambda: bench.building.asked)
        working.cancel()
    assert working.cancelled()
    record = await bench.only_record()
    assert (record.state, record.owner, record.tries) == (LaunchState.INTENT, "", 0)
    bench.building.gate.set()
    assert (await second.handle(code())).verdict is Verdict.DONE


class Gated(MemoryLedger):
    """Creates wait at a gate, before or after they are written."""

    written_first = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_gate = 0

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        existing = await super().create(record) if self.written_first else None
        self.at_gate += not self.gate.is_set()
        await self.gate.wait()
        return existing if self.written_first else await super().create(record)


async def cancelled_at_its_intent(bench: Bench, worker: Worker) -> None:
    ledger = bench.ledger
    assert isinstance(ledger, Gated)
    ledger.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(worker.handle(message()))
        await until(lambda: ledger.at_gate)
        working.cancel()
    assert working.cancelled()
    ledger.gate.set()


@pytest.mark.parametrize("state", [LaunchState.FINISHED, LaunchState.REFUSED])
@pytest.mark.parametrize("written_first", [True, False])
async def test_a_late_duplicate_that_is_cancelled_leaves_what_is_over_alone(
    bench: Bench, state: LaunchState, written_first: bool
) -> None:
    """By its very owner, which has written it in the epoch of the intent."""
    bench.ledger = Gated()
    worker = bench.worker("w1")
    await worker.handle(message())
    worker.submitted.clear()
    over = await bench.edit(state=state, reported=True, finished_at=1.0)
    bench.ledger.written_first = written_first
    await cancelled_at_its_intent(bench, worker)
    assert await bench.only_record() == over
    assert (await bench.worker("w2").handle(message())).verdict is Verdict.DONE


async def test_a_duplicate_that_is_cancelled_leaves_what_leg_2_holds_alone(bench: Bench) -> None:
    bench.ledger = Gated()
    worker = bench.worker("w1")
    await worker.handle(message())
    before = await bench.only_record()
    await cancelled_at_its_intent(bench, worker)
    assert await bench.only_record() == before


async def test_an_intent_that_was_written_while_it_was_cancelled_is_given_back(bench: Bench) -> None:
    bench.ledger = Gated()
    bench.ledger.written_first = True
    await cancelled_at_its_intent(bench, bench.worker("w1"))
    record = await bench.only_record()
    assert (record.state, record.owner) == (LaunchState.INTENT, "")


class LosesAnswers(MemoryLedger):
    """Takes a write in and is away before it has answered."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write = write
        """`create`, `claim` or `save` (of a launch that is `waiting`)."""

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        existing = await super().create(record)
        self._lose("create", existing is None)
        return existing

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        claimed = await super().claim(seen, worker)
        self._lose("claim")
        return claimed

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        lost = await super().save(records, owner=owner)
        self._lose("save", any(record.state is LaunchState.WAITING for record in records))
        return lost

    def _lose(self, write: str, is_it: bool = True) -> None:
        if write == self.write and is_it:
            self.write = ""
            self.failing = Unreachable("the ledger is away")
            raise self.failing


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.ledger.giving_back._LOOK_EVERY", 0.01)


async def is_given_back(bench: Bench, worker: Worker) -> LaunchRecord:
    """After a while, while the worker lives."""
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.pipeline.run())
        (identity,) = bench.ledger._records
        await until(lambda: (found := bench.ledger._get(identity)) and not found.owner)
        running.cancel()
    return await bench.only_record()


@pytest.mark.usefixtures("quick_looks")
async def test_a_launch_whose_waiting_was_written_without_an_answer_is_submitted_by_somebody(
    bench: Bench,
) -> None:
    """Each duplicate finds it `waiting`, and is deleted: nothing but the ledger brings it back."""
    bench.ledger = LosesAnswers("save")
    worker = bench.worker("w1")
    assert (await worker.handle(message())).verdict is Verdict.AGAIN
    bench.ledger.failing = None
    for again in (worker, bench.worker("w2")):
        assert (await again.handle(message())).verdict is Verdict.DONE
    assert worker.submitted == []
    record = await is_given_back(bench, worker)
    assert record.state is LaunchState.WAITING
    assert record.request is not None


async def test_what_may_be_waiting_is_not_taken_back(bench: Bench) -> None:
    """A duplicate that saw it may be deleted already."""

    class Hiccup(LosesAnswers):
        def _lose(self, write: str, is_it: bool = True) -> None:
            try:
                super()._lose(write, is_it)
            finally:
                self.failing = None

    bench.ledger = Hiccup("save")
    assert (await bench.worker("w1").handle(message())).verdict is Verdict.AGAIN
    record = await bench.only_record()
    assert (record.state, record.owner, record.tries) == (LaunchState.WAITING, "", 1)


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("write", ["create", "claim"])
async def test_a_launch_that_was_taken_without_an_answer_is_not_busy_for_ever(
    bench: Bench, write: str
) -> None:
    bench.ledger = LosesAnswers(write)
    if write == "claim":
        bench.building.errors = [Unreachable("the registry is away")]
        await bench.worker("w0").handle(code())
    worker = bench.worker("w1")
    assert (await worker.handle(code())).verdict is Verdict.AGAIN
    bench.ledger.failing = None
    other = bench.worker("w2")
    assert (await other.handle(code())).verdict is Verdict.BUSY
    assert (await is_given_back(bench, worker)).state is LaunchState.INTENT
    assert (await other.handle(code())).verdict is Verdict.DONE


async def test_a_launch_taken_over_meanwhile_is_not_written(bench: Bench) -> None:
    first = bench.worker("w1")
    bench.building.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(first.handle(code()))
        await until(lambda: bench.building.asked)
        theirs = await bench.edit(owner="w2", epoch=2)
        bench.building.gate.set()
    assert working.result().verdict is Verdict.AGAIN
    assert await bench.only_record() == theirs
    assert first.submitted == []


async def test_side_by_side_messages_are_launches_of_their_own(bench: Bench) -> None:
    worker = bench.worker("w1")
    bodies = [{**message(), "runQueueItemId": f"item-{i}"} for i in range(20)]
    sent: list[SqsMessage] = [a_message(f"m-{i}", json.dumps(body)) for i, body in enumerate(bodies)]
    outcomes = await asyncio.gather(*map(worker.pipeline.handle, sent))
    assert {outcome.verdict for outcome in outcomes} == {Verdict.DONE}
    assert len({held.launch_id for held in worker.submitted}) == 20


async def test_a_locked_command_may_come_from_the_source(bench: Bench) -> None:
    """The message chooses none; what the source brings is no override."""
    bench.policy = Policy(lock_entrypoint=True)
    worker = bench.worker("w1")
    assert (await worker.handle(code())).verdict is Verdict.DONE
    (held,) = worker.submitted
    assert held.record.request is not None
    assert held.record.request["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "train.py"]


@pytest.mark.parametrize("overrides", [{"entry_point": ["sh"]}, {"dockerfile": "Dockerfile"}])
async def test_what_policy_refuses_is_not_fetched(bench: Bench, overrides: dict[str, Any]) -> None:
    bench.policy = Policy(lock_entrypoint=True)
    outcome = await bench.worker("w1").handle(code(overrides=overrides))
    assert (outcome.verdict, outcome.code) == (Verdict.NEVER, "LW-POLICY")
    assert bench.building.asked == 0


async def test_a_secret_that_is_learnt_later_is_taken_out_as_well(bench: Bench) -> None:
    worker = bench.worker("w1")
    bench.secrets.add(OWN_KEY)
    body = message(name=f"my key is {OWN_KEY}", resource_args={"sagemaker": {}})
    assert (await worker.handle(body)).verdict is Verdict.NEVER
    assert OWN_KEY not in repr(await bench.records())
    assert OWN_KEY not in repr(bench.queue.told)
