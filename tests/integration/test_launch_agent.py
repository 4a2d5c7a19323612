"""W&B's launch queue over the wire, against the double: the agent's life, items, files, sweeps, missing runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue
from tests.fakes.leg2 import story_of
from tests.fakes.sagemaker import FakeSageMaker
from tests.unit.records import record
from tests.unit.waiting import until
from worker.clients.api_key import ApiKey
from worker.clients.wandb_api import WandbApi, WandbRefused, wandb_api
from worker.clients.wandb_runs import RunAddress
from worker.errors import Again, Never, SettingsError
from worker.intake.launch_agent import AgentFacts, AgentStatus, LaunchAgent
from worker.intake.refusal import Refusals
from worker.intake.sweeps import Sweeps
from worker.intake.unstarted import NO_INIT, NOT_STARTED, UnstartedRuns
from worker.intake.wandb_queue import QueueItems
from worker.launch.record import Failure, JobFacts, LaunchRecord, RunRef
from worker.ledger.held import HeldLaunch
from worker.local.wandb_double import WandbDouble, running_wandb_double
from worker.local.wandb_strict import STRICT
from worker.ops.metrics import Metrics
from worker.training.status import ending

RUN = RunRef("acme", "vision", "r1")
LOG = "importing torch\nTraceback …\n"


@pytest.fixture
async def double() -> AsyncIterator[WandbDouble]:
    async with running_wandb_double(entity="acme", lease_seconds=0.3) as running:
        running.queue("acme", "sm")
        running.queue("acme", "big")
        yield running
    assert running.unknown_operations == {}


@pytest.fixture
async def api(double: WandbDouble) -> AsyncIterator[WandbApi]:
    async with wandb_api(double.base_url, ApiKey("k" * 40), Metrics()) as opened:
        yield opened


def agent_of(api: WandbApi, *queues: str, entity: str = "acme") -> LaunchAgent:
    facts = AgentFacts(entity, queues or ("sm",), "host-1", "launch-worker@1", {"max_jobs": -1})
    return LaunchAgent(api, facts)


async def test_an_agent_registers_as_wandb_s_own_does(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api, "big", "sm")
    await agent.register()
    (seen,) = double.agents.values()
    assert (seen.name, seen.id, seen.hostname) == (agent.name, agent.agent_id, "host-1")
    assert seen.queues == [double.queue("acme", name).id for name in ("big", "sm")]
    assert seen.config == {"max_jobs": -1, "entity": "acme", "queues": ["big", "sm"]}
    run = double.run("acme", "model-registry", agent.name)
    assert run is not None
    assert (run.fields["jobType"], run.state) == ("sweep-controller", "running")


async def test_the_entity_is_the_key_owner_s_unless_it_is_given(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api, entity="")
    await agent.register()
    assert agent.entity == "acme"


async def test_a_queue_that_is_not_there_is_named_with_those_that_are(
    double: WandbDouble, api: WandbApi
) -> None:
    with pytest.raises(SettingsError, match=r"no launch queue gone;.*it has: big, sm"):
        await agent_of(api, "sm", "gone").register()
    assert double.agents == {}


async def test_an_agent_beats_is_stopped_and_ends(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api)
    await agent.register()
    assert not await agent.beat(AgentStatus.RUNNING)
    seen = double.agent(agent.name)
    assert seen.status == "RUNNING"
    seen.stop_polling = True
    assert await agent.beat(AgentStatus.POLLING)
    await agent.end()
    assert [status for _, status in seen.statuses] == ["POLLING", "RUNNING", "KILLED"]
    run = double.run("acme", "model-registry", agent.name)
    assert run is not None
    assert (run.state, run.exit_code) == ("finished", 0)


async def test_an_agent_that_wandb_has_forgotten_registers_again(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api)
    await agent.register()
    first, name = agent.agent_id, agent.name
    del double.agents[first]
    double.fault(f"file_stream acme/model-registry/{name}", status=503)
    with pytest.raises(Again):
        await agent.beat(AgentStatus.POLLING)
    assert not await agent.beat(AgentStatus.POLLING)
    assert agent.registered
    assert agent.agent_id in double.agents
    assert agent.agent_id != first
    run = double.run("acme", "model-registry", name)
    assert run is not None
    assert run.state == "finished", "nobody else would end it"


async def test_a_registration_that_fails_half_way_goes_on_with_the_agent_that_it_has_made(
    double: WandbDouble, api: WandbApi
) -> None:
    """Each try left another agent on W&B's page, polling for ever."""
    agent = agent_of(api)
    double.fault("UpsertBucket", status=503, times=2)
    for _ in range(2):
        with pytest.raises(Again):
            await agent.register()
    await agent.register()
    (seen,) = double.agents.values()
    assert agent.agent_id == seen.id


async def test_an_agent_that_is_made_and_never_registered_to_the_end_is_ended(
    double: WandbDouble, api: WandbApi
) -> None:
    agent = agent_of(api)
    double.fault("UpsertBucket", status=503)
    with pytest.raises(Again):
        await agent.register()
    await agent.end()
    (seen,) = double.agents.values()
    assert seen.status == "KILLED"


async def test_the_agent_s_run_is_opened_again_when_somebody_deletes_it(
    double: WandbDouble, api: WandbApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_of(api)
    await agent.register()
    double.runs.clear()
    monkeypatch.setattr("worker.intake.launch_agent._RUN_HEARTBEAT", 0.0)
    assert not await agent.beat(AgentStatus.POLLING)
    assert double.run("acme", "model-registry", agent.name) is not None


async def test_items_are_popped_in_wandb_s_order_and_come_back_unless_acked(
    double: WandbDouble, api: WandbApi
) -> None:
    agent, items = agent_of(api), QueueItems(api)
    await agent.register()
    low = double.push("acme", "sm", {"n": 1}, priority=3)
    high = double.push("acme", "sm", {"n": 2}, priority=1)

    async def pop() -> str:
        popped = await items.pop("acme", "sm", agent.agent_id)
        return popped.item_id if popped else ""

    assert [await pop(), await pop(), await pop()] == [high.id, low.id, ""]
    assert await items.ack(high.id, "run-1")
    assert not await items.ack(high.id, "run-1")
    await asyncio.sleep(0.35)
    assert [await pop(), await pop()] == [low.id, ""]
    assert (high.state, high.run_name, low.pops) == ("CLAIMED", "run-1", 2)


def refused(item_id: str, agent_run: str = "", log: str = "") -> tuple[LaunchRecord, Failure]:
    failure = Failure("build", "LW-BUILD", "pip could not install torhc", log)
    return record(item_id=item_id, agent_run=agent_run, queue_entity="acme"), failure


async def test_a_failure_carries_the_end_of_the_log_in_the_agent_s_run(
    double: WandbDouble, api: WandbApi
) -> None:
    agent, queue = agent_of(api), FakeLaunchQueue()
    await agent.register()
    item = double.push("acme", "sm", {})
    await Refusals(QueueItems(api), queue).report(*refused(item.id, agent.name, LOG))
    path = f"{item.id}/error/error.log"
    assert item.error == {
        "message": "LW-BUILD: pip could not install torhc",
        "stage": "build",
        "filePaths": [path],
    }
    run = double.run("acme", "model-registry", agent.name)
    assert run is not None
    assert run.files == {path: LOG.encode()}
    assert run.uploaded == [path]
    assert len(queue.copied) == 1


async def test_a_file_in_the_run_of_an_agent_that_has_ended_does_not_revive_it(
    double: WandbDouble, api: WandbApi
) -> None:
    """Also where the server is older than the mutation that announces files: the run is another process's."""
    del double.features["MARK_RUN_FILES_UPLOADED"]
    double.strict = STRICT
    agent = agent_of(api)
    await agent.register()
    name = agent.name
    await agent.end()
    posts = double.counts["file_stream:data"]
    item = double.push("acme", "sm", {})
    await Refusals(QueueItems(api), FakeLaunchQueue()).report(*refused(item.id, name, LOG))
    run = double.run("acme", "model-registry", name)
    assert run is not None
    assert (run.state, run.files) == ("finished", {f"{item.id}/error/error.log": LOG.encode()})
    assert double.counts["file_stream:data"] == posts
    assert item.error is not None


@pytest.mark.parametrize("agent_run", ["", "never-registered"])
async def test_a_failure_without_a_run_for_its_file_is_told_all_the_same(
    double: WandbDouble, api: WandbApi, agent_run: str
) -> None:
    item = double.push("acme", "sm", {})
    await Refusals(QueueItems(api), FakeLaunchQueue()).report(*refused(item.id, agent_run, LOG))
    assert item.error is not None
    assert item.error["filePaths"] is None


async def test_a_wandb_that_is_away_gets_file_and_failure_later(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api)
    await agent.register()
    item = double.push("acme", "sm", {})
    refusals = Refusals(QueueItems(api), FakeLaunchQueue())
    double.fault("upload", status=503)
    with pytest.raises(Again):
        await refusals.report(*refused(item.id, agent.name, LOG))
    assert item.error is None
    await refusals.report(*refused(item.id, agent.name, LOG))
    error = double.item(item.id).error
    assert error is not None
    assert error["filePaths"]


async def test_warnings_are_told_once_while_they_stay_the_same(double: WandbDouble, api: WandbApi) -> None:
    item = double.push("acme", "sm", {})
    refusals = Refusals(QueueItems(api), FakeLaunchQueue())
    for text in ("no room", "no room", "AccessDenied", "no room"):
        await refusals.warn(item.id, "launch_waits", text, "run")
    told = ["no room", "AccessDenied", "no room"]
    assert [w["message"] for w in item.warnings] == [f"LW-LAUNCH-WAITS: {text}" for text in told]


async def test_packages_that_failed_are_a_warning_with_a_file(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api)
    await agent.register()
    item = double.push("acme", "sm", {})
    refusals = Refusals(QueueItems(api), FakeLaunchQueue())
    held = record(item_id=item.id, agent_run=agent.name, queue_entity="acme")
    await refusals.warn_of_build(held, ["no lock file"], [])
    await refusals.warn_of_build(held, ["some packages were left out"], ["torhc==2", "apex"])
    plain, packages = item.warnings
    assert plain["message"] == "LW-BUILD-WARNING: no lock file"
    assert (plain["stage"], plain["filePaths"]) == ("build", [])
    path = f"{item.id}/warning/failed-packages.log"
    assert packages["filePaths"] == [path]
    run = double.run("acme", "model-registry", agent.name)
    assert run is not None
    assert run.files[path] == b"torhc==2\napex\n"


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "PENDING"])
async def test_a_sweep_that_goes_on(double: WandbDouble, api: WandbApi, state: str) -> None:
    double.sweeps["acme", "vision", "s1"] = state
    await Sweeps(api).check(RUN, "s1")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("FINISHED", "is over (finished)"),
        ("CANCELED", "is over (canceled)"),
        ("", "is not in acme/vision"),
    ],
)
async def test_a_sweep_that_is_over(double: WandbDouble, api: WandbApi, state: str, told: str) -> None:
    if state:
        double.sweeps["acme", "vision", "s1"] = state
    with pytest.raises(Never) as refusal:
        await Sweeps(api).check(RUN, "s1")
    assert refusal.value.code == "LW-SWEEP-OVER"
    assert told in str(refusal.value)


@pytest.mark.parametrize("status", [429, 503, 401, 403])
async def test_a_sweep_that_nobody_knows_of_is_asked_for_again(
    double: WandbDouble, api: WandbApi, status: int
) -> None:
    double.fault("GetSweepState", status=status)
    with pytest.raises(Again):
        await Sweeps(api).check(RUN, "s1")


async def test_all_runs_of_a_sweep_share_an_answer_while_it_is_fresh(
    double: WandbDouble, api: WandbApi
) -> None:
    sweeps = Sweeps(api)
    double.sweeps["acme", "vision", "s1"] = double.sweeps["acme", "vision", "s2"] = "RUNNING"
    await asyncio.gather(*(sweeps.check(RUN, "s1", max_age=60) for _ in range(20)))
    assert double.counts["graphql:GetSweepState"] == 1
    await sweeps.check(RUN, "s2", max_age=60)
    assert double.counts["graphql:GetSweepState"] == 2
    double.sweeps["acme", "vision", "s1"] = "FINISHED"
    await sweeps.check(RUN, "s1", max_age=60)
    await asyncio.sleep(0.02)
    with pytest.raises(Never, match=r"is over \(finished\)"):
        await sweeps.check(RUN, "s1", max_age=0.01)
    with pytest.raises(Never):
        await sweeps.check(RUN, "s1", max_age=60)
    assert double.counts["graphql:GetSweepState"] == 3


async def test_a_new_message_never_gets_an_old_answer(double: WandbDouble, api: WandbApi) -> None:
    sweeps = Sweeps(api)
    double.sweeps["acme", "vision", "s1"] = "RUNNING"
    await sweeps.check(RUN, "s1")
    double.sweeps["acme", "vision", "s1"] = "FINISHED"
    with pytest.raises(Never):
        await sweeps.check(RUN, "s1")


async def test_no_sweep_and_no_server_ask_nothing(double: WandbDouble, api: WandbApi) -> None:
    await Sweeps(api).check(RUN, "")
    await Sweeps(None).check(RUN, "s1")
    assert double.counts["graphql:GetSweepState"] == 0


def unstarted(api: WandbApi, *, grace: float = 0.0) -> UnstartedRuns:
    async def log_end(_: LaunchRecord) -> str:
        return LOG

    return UnstartedRuns(api, Refusals(QueueItems(api), FakeLaunchQueue()), log_end, grace=grace)


@pytest.mark.parametrize(
    ("completed", "told"),
    [(True, NO_INIT), (False, f"{NOT_STARTED}: CapacityError: no ml.p5 left")],
)
@pytest.mark.parametrize("state", ["", "pending"], ids=["no run", "pending"])
async def test_a_run_that_never_was_fails_its_item_with_the_log(
    double: WandbDouble, api: WandbApi, completed: bool, told: str, state: str
) -> None:
    agent = agent_of(api)
    await agent.register()
    item = double.push("acme", "sm", {})
    held = record(item_id=item.id, agent_run=agent.name)
    if state:
        variables: dict[str, Any] = {"entity": "acme", "project": "vision", "name": held.run.run_id}
        await api.graphql("UpsertBucket", "", {**variables, "state": state})
    await unstarted(api).report(held, completed=completed, reason="CapacityError: no ml.p5 left")
    assert item.error is not None
    assert item.error == {
        "message": told,
        "stage": "run",
        "filePaths": [f"{item.id}/error/error.log"],
    }


@pytest.mark.parametrize("told", ["refused", "never started"])
async def test_it_is_told_whatever_the_entity_of_the_run_is(
    double: WandbDouble, api: WandbApi, told: str
) -> None:
    """W&B's agent reports nothing about runs of other entities than its own."""
    agent = agent_of(api)
    await agent.register()
    item = double.push("acme", "sm", {})
    failed, failure = refused(item.id, agent.name, LOG)
    failed = replace(failed, run=RunRef("other-team", "vision", "r1"))
    if told == "refused":
        await Refusals(QueueItems(api), FakeLaunchQueue()).report(failed, failure)
    else:
        await unstarted(api).report(failed, completed=True, reason="")
    path = f"{item.id}/error/error.log"
    assert item.error is not None
    assert (item.state, item.error["filePaths"]) == ("FAILED", [path])
    run = double.run("acme", "model-registry", agent.name)
    assert run is not None
    assert run.files[path].decode() == LOG


async def test_the_end_of_a_companion_is_told_once_though_its_worker_dies_while_it_waits_for_the_run(
    double: WandbDouble, api: WandbApi
) -> None:
    """A second end comes up to the grace later, and a server may refuse what comes behind an end."""
    item, companion = double.push("acme", "sm", {}), FakeCompanion()
    completed = JobFacts("Completed", "Completed")
    held = HeldLaunch(record(item_id=item.id, facts=completed, attempt=2))
    ledger: list[LaunchRecord] = []

    async def save() -> None:
        ledger.append(held.record)

    story = story_of(companion, FakeSageMaker(), unstarted(api, grace=30))
    dying = asyncio.ensure_future(story.end(held, ending(completed, stop_reason=""), save))
    await until(lambda: ledger)
    dying.cancel()
    story = story_of(companion, FakeSageMaker(), unstarted(api))
    await story.end(HeldLaunch(ledger[0]), ending(completed, stop_reason=""), save)
    assert len(companion.finished) == 1
    assert item.error is not None


async def test_a_run_may_appear_late(double: WandbDouble, api: WandbApi) -> None:
    item = double.push("acme", "sm", {})
    held = record(item_id=item.id)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(unstarted(api, grace=30).report(held, completed=True, reason=""))
        await asyncio.sleep(0.1)
        variables: dict[str, Any] = {"entity": "acme", "project": "vision", "name": held.run.run_id}
        await api.graphql("UpsertBucket", "", variables)
    assert item.error is None


async def test_a_run_that_was_started_tells_its_own_end(double: WandbDouble, api: WandbApi) -> None:
    item = double.push("acme", "sm", {})
    held = record(item_id=item.id)
    variables: dict[str, Any] = {"entity": "acme", "project": "vision", "name": held.run.run_id}
    await api.graphql("UpsertBucket", "", variables)
    await unstarted(api).report(held, completed=False, reason="exit code 1")
    assert item.error is None


@pytest.mark.parametrize(
    "changes",
    [{"item_id": ""}, {"log_target": "run"}, {"log_target": "files"}],
    ids=str,
)
async def test_nobody_expects_a_run_of_the_container(
    double: WandbDouble, api: WandbApi, changes: dict[str, str]
) -> None:
    held = record(**{"item_id": "item-1", **changes})
    await unstarted(api).report(held, completed=True, reason="")
    assert double.counts["graphql:RunState"] == 0


async def test_who_wants_no_log_in_wandb_is_told_without_it(double: WandbDouble, api: WandbApi) -> None:
    agent = agent_of(api)
    await agent.register()
    item = double.push("acme", "sm", {})
    held = record(item_id=item.id, agent_run=agent.name, log_target="off")
    await unstarted(api).report(held, completed=True, reason="")
    assert item.error == {"message": NO_INIT, "stage": "run", "filePaths": None}


async def test_trouble_is_not_taken_for_a_missing_run(double: WandbDouble, api: WandbApi) -> None:
    item = double.push("acme", "sm", {})
    for status, expected in ((503, Again), (401, WandbRefused)):
        double.fault("RunState", status=status)
        with pytest.raises(expected):
            await unstarted(api).report(record(item_id=item.id), completed=True, reason="")
    assert item.error is None


async def test_what_goes_over_the_wire_is_what_wandb_s_agent_sends(
    double: WandbDouble, api: WandbApi
) -> None:
    agent, items = agent_of(api), QueueItems(api)
    await agent.register()
    item = double.push("acme", "sm", {})
    await items.pop("acme", "sm", agent.agent_id)
    await items.ack(item.id, "r")
    sent = {op["operation"]: op["variables"] for op in double.operations}
    assert sent["popFromRunQueue"] == {
        "entity": "acme",
        "project": "model-registry",
        "queueName": "sm",
        "launchAgentId": agent.agent_id,
    }
    assert sent["ackRunQueueItem"] == {"itemId": item.id, "runId": "r"}
    assert json.loads(sent["createLaunchAgent"]["agentConfig"])["queues"] == ["sm"]
    assert RunAddress("acme", "model-registry", agent.name).run == sent["UpsertBucket"]["name"]
