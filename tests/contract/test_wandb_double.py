"""The W&B double is held to the real SDK: unmodified wandb 0.31 drives it from a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.sdk_shapes import RECORDED, file_stream_shapes, variables_shape
from tests.unit.waiting import until
from worker.errors import SettingsError
from worker.local.wandb_double import WandbDouble, running_wandb_double

KEY = "k" * 40
AUTHORIZATION = {"Authorization": aiohttp.encode_basic_auth("api", KEY)}

WHOLE_LIFE = """
import pathlib, wandb
run = wandb.init(entity="acme", project="demo", id="r1", name="first", group="g", job_type="train", tags=["a"],
                 notes="n", config={"lr": 0.1}, settings=wandb.Settings(x_label="main"))
print("hello from the container")
for step in range(3):
    run.log({"loss": 3 - step})
run.alert("careful", "it is hot", level="WARN")
run.summary["best"] = 1
pathlib.Path("weights.txt").write_text("w" * 10)
run.save("weights.txt", policy="now")
run.config.update({"seed": 7})
print("unicode: äöü 漢字")
run.finish(exit_code=3)
"""

RESUMED = """
import wandb
run = wandb.init(entity="acme", project="demo", id="r1", resume="must")
print("second life")
run.log({"loss": 0})
run.finish()
"""

SHARED_LOGS = """
import wandb
settings = wandb.Settings(mode="shared", x_primary=False, x_label="sagemaker", x_update_finish_state=False,
                          console="off", x_disable_stats=True, x_server_side_derived_summary=True)
run = wandb.init(entity="acme", project="demo", id="r2", settings=settings)
run.write_logs("one\\ntwo\\nthree")
run.finish(exit_code=1)
"""

READ_BACK = """
import json, wandb
api = wandb.Api()
run = api.run("acme/demo/r1")
print("ANSWER", json.dumps({
    "state": run.state, "config": dict(run.config), "summary": {"best": run.summary["best"]}, "group": run.group,
    "tags": run.tags, "loss": [row["loss"] for row in run.history(pandas=False)],
    "file": run.file("weights.txt").download(root="back").read(), "size": run.file("weights.txt").size,
    "files": len([file for file in run.files() if file.name == "weights.txt"]),
    "console": [(line.number, line.label, line.content) for line in run.console_logs(per_page=1)],
    "timed": all(line.timestamp is not None for line in run.console_logs()),
}))
api.run("acme/demo/r2").stop()
"""

STOPPED = """
import threading, wandb
import wandb.sdk.lib.run_stopping as run_stopping
from asyncio import sleep
# The SDK asks its own service every 15 s whether to stop; its source names this as the place to shorten that.
run_stopping._SLEEP = lambda _: sleep(0.1)
stopped = threading.Event()
settings = wandb.Settings(stop_fn=stopped.set, x_file_stream_transmit_interval=0.2, console="off")
run = wandb.init(entity="acme", project="demo", id="r3", settings=settings)
for step in range(100):
    run.log({"step": step})
    if stopped.wait(0.2):
        break
print("ANSWER", "stopped" if stopped.is_set() else "not stopped")
run.finish()
"""

QUEUED = """
import json, wandb
from wandb.sdk.launch import launch_add
queued = launch_add(docker_image="busybox:1", project="demo", entity="acme", queue_name="sm", resource="sagemaker",
                    resource_args={"sagemaker": {"RoleArn": "arn"}})
print("ANSWER", json.dumps({"state": queued.state, "id": queued.id}))
"""

AGENT = """
import json, wandb
from wandb.errors import CommError
from wandb.sdk.launch.api import LaunchApi
api, project = LaunchApi(), "model-registry"
agent = api.create_launch_agent("acme", project, ["sm"], {"max_jobs": 1}, "0.31")["launchAgentId"]
api.update_launch_agent_status(agent, "RUNNING")
first = api.pop_from_run_queue("sm", entity="acme", project=project, agent_id=agent)
second = api.pop_from_run_queue("sm", entity="acme", project=project, agent_id=agent)
empty = api.pop_from_run_queue("sm", entity="acme", project=project, agent_id=agent)
api.ack_run_queue_item(first["runQueueItemId"], "run-of-first")
try:
    api.ack_run_queue_item(first["runQueueItemId"], "again")
except CommError as error:
    acked_twice = str(error)
api.update_run_queue_item_warning(second["runQueueItemId"], "slow", "agent")
api.fail_run_queue_item(second["runQueueItemId"], "no such image", "build")
print("ANSWER", json.dumps({
    "first": first["runSpec"], "empty": empty, "acked_twice": acked_twice,
    "status": api.get_launch_agent(agent)["agentStatus"], "team": api.entity_is_team("acme"),
    "stop": api.check_stop_requested("demo", "acme", "r0"), "state": api.get_run_state("acme", "demo", "r0"),
}))
"""

QUEUE_OWNER = """
import json, wandb
from wandb.apis.public.sweeps import _get_sweep_state
from wandb.sdk.launch import launch_add
def add(tag, priority):
    return launch_add(docker_image=f"busybox:{tag}", project="demo", entity="acme", queue_name="sm",
                      resource="sagemaker", resource_args={"sagemaker": {}}, priority=priority)
low, high, gone = add("low", 3), add("high", 0), add("gone", 0)
gone.delete()
print("ANSWER", json.dumps({
    "ids": [low.id, high.id, gone.id],
    "sweep": _get_sweep_state(wandb.Api(), "s1", entity="acme", project="demo"),
}))
"""

JOB = """
import json, wandb
job = wandb.Api().job("acme/demo/job-train:latest")
print("ANSWER", json.dumps({"version": job._job_artifact.version, "info": job._job_info}))
"""


async def drive(double: WandbDouble, script: str, *command: str) -> str:
    """Run an SDK script, or a command of `wandb`, with nothing of this machine's environment; returns what follows
    `ANSWER`."""
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(("-m", "wandb", *command) if command else ("-c", script)),
            cwd=home,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": home,
                "TMPDIR": home,
                "LC_ALL": "C.UTF-8",
                "WANDB_BASE_URL": double.base_url,
                "WANDB_API_KEY": KEY,
                "WANDB_SILENT": "true",
                "WANDB_ERROR_REPORTING": "false",
                "WANDB_X_DISABLE_STATS": "true",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    answers = [line for line in output.decode().splitlines() if line.startswith("ANSWER ")]
    return answers[-1].removeprefix("ANSWER ") if answers else ""


async def observed_shapes(double: WandbDouble) -> dict[str, Any]:
    """What the SDK posts over a run's life, and how it attaches a shared writer, as shapes."""
    double.keep_bodies = True
    await drive(double, WHOLE_LIFE)
    await drive(double, SHARED_LOGS)
    upserts = [op["variables"] for op in double.operations if op["operation"] == "UpsertBucket"]
    return {
        "file_stream": file_stream_shapes(double.bodies),
        "UpsertBucket": variables_shape({k: v for k, v in upserts[0].items() if k not in MACHINE_VARIABLES}),
    }


MACHINE_VARIABLES = frozenset({"host", "program", "repo", "commit", "sweep", "debug"})
"""Variables of UpsertBucket that depend on where the script runs."""


@pytest.fixture
async def double() -> AsyncIterator[WandbDouble]:
    async with running_wandb_double(entity="acme") as running:
        yield running
    assert running.unknown_operations == {}


async def test_whole_life_of_a_run(double: WandbDouble) -> None:
    await drive(double, WHOLE_LIFE)
    run = double.run("acme", "demo", "r1")
    assert run is not None
    assert run.console_text() == ["hello from the container", "unicode: äöü 漢字"]
    assert [row["loss"] for row in run.history()] == [3, 2, 1]
    assert (run.state, run.exit_code) == ("failed", 3)
    assert [state for _, state in run.transitions] == ["running", "failed"]
    assert run.config["lr"] == {"value": 0.1}
    assert run.config["seed"] == {"value": 7}
    assert run.summary["best"] == 1
    assert run.summary["loss"] == 1
    assert run.fields["displayName"] == "first"
    assert (run.fields["groupName"], run.fields["jobType"], run.fields["tags"]) == ("g", "train", ["a"])
    assert run.files["weights.txt"] == b"w" * 10
    assert "weights.txt" in run.uploaded
    assert [(a["title"], a["severity"]) for a in run.alerts] == [("careful", "WARN")]
    assert run.overwrites == []
    assert run.holes() == {}


async def test_resumed_run_goes_on_where_it_ended(double: WandbDouble) -> None:
    await drive(double, WHOLE_LIFE)
    await drive(double, RESUMED)
    run = double.run("acme", "demo", "r1")
    assert run is not None
    assert run.console_text()[-1] == "second life"
    assert len(run.console()) == 3
    assert run.overwrites == []
    assert [row["_step"] for row in run.history()] == [0, 1, 2, 3]
    assert (run.state, run.exit_code) == ("finished", 0)


async def test_shared_writer_leaves_state_and_lines_of_others_alone(double: WandbDouble) -> None:
    await drive(double, SHARED_LOGS)
    run = double.run("acme", "demo", "r2")
    assert run is not None
    (writer,) = run.lines
    assert writer
    assert run.console_text(writer) == ["one", "two", "three"]
    assert json.loads(run.console(writer)[0])["label"] == "sagemaker"
    assert (run.state, run.exit_code) == ("running", None)


async def test_api_reads_back_what_was_logged(double: WandbDouble) -> None:
    await drive(double, WHOLE_LIFE)
    await drive(double, SHARED_LOGS)
    answer = json.loads(await drive(double, READ_BACK))
    assert answer == {
        "state": "failed",
        "config": {"lr": 0.1, "seed": 7},
        "summary": {"best": 1},
        "group": "g",
        "tags": ["a"],
        "loss": [3, 2, 1],
        "file": "w" * 10,
        "size": 10,
        "files": 1,
        "console": [[0, "main", "hello from the container"], [1, "main", "unicode: äöü 漢字"]],
        "timed": True,
    }
    stopped = double.run("acme", "demo", "r2")
    assert stopped is not None
    assert stopped.stopped


async def test_stop_reaches_the_sdk(double: WandbDouble) -> None:
    await _upsert(double, "r3")
    double.stop("acme", "demo", "r3")
    assert await drive(double, STOPPED) == "stopped"


async def test_launch_queue_is_filled_by_the_sdk(double: WandbDouble) -> None:
    double.queue("acme", "sm")
    answer = json.loads(await drive(double, QUEUED))
    item = double.item(answer["id"])
    assert answer["state"] == item.state.lower() == "pending"
    assert item.spec["docker"] == {"docker_image": "busybox:1"}
    assert item.spec["resource_args"] == {"sagemaker": {"RoleArn": "arn"}}


async def test_operations_of_the_launch_agent(double: WandbDouble) -> None:
    await _upsert(double, "r0")
    first = double.push("acme", "sm", {"docker": {"docker_image": "a"}})
    second = double.push("acme", "sm", {"docker": {"docker_image": "b"}})
    answer = json.loads(await drive(double, AGENT))
    assert answer["first"] == first.spec
    assert answer["empty"] is None
    assert "already been acknowledged" in answer["acked_twice"]
    assert (answer["status"], answer["team"], answer["stop"], answer["state"]) == (
        "RUNNING",
        False,
        False,
        "running",
    )
    assert (first.state, first.run_name) == ("CLAIMED", "run-of-first")
    assert second.state == "FAILED"
    assert second.error is not None
    assert (second.error["message"], second.error["stage"]) == ("no such image", "build")
    assert [w["message"] for w in second.warnings] == ["slow"]


async def test_priority_deletion_and_sweeps_as_the_sdk_knows_them(double: WandbDouble) -> None:
    double.queue("acme", "sm")
    double.sweeps["acme", "demo", "s1"] = "PAUSED"
    answer = json.loads(await drive(double, QUEUE_OWNER))
    assert answer["sweep"] == "PAUSED"
    low, high, gone = (item for item in double.queue("acme", "sm").items)
    assert [low.id, high.id, gone.id] == answer["ids"]
    assert (low.priority, high.priority, gone.state) == (3, 0, "DELETED")
    pop = {"entity": "acme", "queueName": "sm"}
    popped = [(await _graphql(double, "popFromRunQueue", pop))["data"]["popFromRunQueue"] for _ in range(3)]
    assert [item and item["runQueueItemId"] for item in popped] == [high.id, low.id, None]


async def test_the_real_agent_lives_and_is_stopped_in_wandb(double: WandbDouble) -> None:
    """Held to it, the double shows what our own agent has to send."""
    queue = double.queue("acme", "sm")
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        tasks.create_task(drive(double, "", "launch-agent", "-q", "sm", "-e", "acme"))
        await until(lambda: double.counts["graphql:popFromRunQueue"], limit=100)
        (agent,) = double.agents.values()
        agent.stop_polling = True
    assert (agent.entity, agent.queues, agent.config["queues"]) == ("acme", [queue.id], ["sm"])
    assert (agent.statuses[0][1], "KILLED" in [status for _, status in agent.statuses]) == ("POLLING", True)
    run = double.run("acme", "model-registry", agent.name)
    assert run is not None
    assert run.fields["jobType"] == "sweep-controller"


async def test_job_artifact_is_downloaded_by_the_sdk(double: WandbDouble) -> None:
    info = {
        "_version": "v0",
        "source_type": "image",
        "source": {"image": "busybox:1"},
        "input_types": {"wb_type": "typedDict", "params": {"type_map": {}}},
        "output_types": {"wb_type": "typedDict", "params": {"type_map": {}}},
        "runtime": "3.11",
    }
    files = {"wandb-job.json": json.dumps(info).encode()}
    double.add_artifact("acme", "demo", "job-train", files)
    answer = json.loads(await drive(double, JOB))
    assert answer["version"] == "v0"
    assert answer["info"]["source"] == {"image": "busybox:1"}


async def test_sdk_posts_have_the_recorded_shapes(double: WandbDouble) -> None:
    assert await observed_shapes(double) == json.loads(RECORDED.read_text())


async def _graphql(double: WandbDouble, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
    body = {"operationName": operation, "query": f"query {operation} {{ x }}", "variables": variables}
    async with (
        aiohttp.ClientSession(headers=AUTHORIZATION) as session,
        session.post(f"{double.base_url}/graphql", json=body) as response,
    ):
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
        return answer


async def _upsert(double: WandbDouble, run: str) -> None:
    await _graphql(double, "UpsertBucket", {"entity": "acme", "project": "demo", "name": run})


async def _post(double: WandbDouble, run: str, body: dict[str, Any]) -> int:
    async with (
        aiohttp.ClientSession(headers=AUTHORIZATION) as session,
        session.post(f"{double.base_url}/files/acme/demo/{run}/file_stream", json=body) as response,
    ):
        return response.status


def _lines(offset: int, *content: str) -> dict[str, Any]:
    return {"files": {"output.log": {"offset": offset, "content": list(content)}}}


async def test_overwritten_lines_and_holes_are_noticed(double: WandbDouble) -> None:
    await _upsert(double, "r")
    await _post(double, "r", _lines(0, "a", "b"))
    await _post(double, "r", _lines(1, "b", "c"))
    await _post(double, "r", _lines(5, "f"))
    run = double.run("acme", "demo", "r")
    assert run is not None
    assert run.overwrites == []
    assert run.holes() == {"": [3, 4]}
    await _post(double, "r", _lines(0, "A"))
    assert [(o.line, o.old, o.new) for o in run.overwrites] == [(0, "a", "A")]


async def test_a_completed_run_keeps_its_state(double: WandbDouble) -> None:
    await _upsert(double, "r")
    await _post(double, "r", {"complete": True, "exitcode": 0})
    await _post(double, "r", _lines(0, "late"))
    await _post(double, "r", {})
    run = double.run("acme", "demo", "r")
    assert run is not None
    assert (run.state, run.console(), len(run.heartbeats)) == ("finished", ["late"], 1)


async def test_post_to_a_missing_run_is_404_and_a_bad_key_401(double: WandbDouble) -> None:
    assert await _post(double, "nobody", {}) == 404
    async with (
        aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth("api", "short")}
        ) as session,
        session.post(f"{double.base_url}/graphql", json={"query": "query Viewer { x }"}) as response,
    ):
        assert response.status == 401


@pytest.mark.parametrize(("when", "stored"), [("before", []), ("after", ["line"])])
async def test_faults_before_and_after_the_effect(double: WandbDouble, when: Any, stored: list[str]) -> None:
    await _upsert(double, "r")
    run = double.run("acme", "demo", "r")
    assert run is not None
    double.fault("file_stream", status=503, when=when)
    assert await _post(double, "r", _lines(0, "line")) == 503
    assert run.console() == stored
    double.fault("file_stream acme/demo/r", cut=True, when=when)
    with pytest.raises(aiohttp.ClientError):
        await _post(double, "r", _lines(0, "line"))
    assert run.console() == stored
    assert await _post(double, "r", _lines(0, "line")) == 200


async def test_control_endpoints(double: WandbDouble) -> None:
    await _upsert(double, "r")
    url = f"{double.base_url}/_double"
    async with aiohttp.ClientSession() as session:

        async def tell(what: str, **body: Any) -> Any:
            async with session.post(f"{url}/{what}", json=body) as response:
                response.raise_for_status()
                return await response.json()

        async def ask(what: str) -> Any:
            async with session.get(f"{url}/{what}") as response:
                response.raise_for_status()
                return await response.json()

        assert len((await tell("queue", entity="acme", queue="q", specs=[{}, {}]))["ids"]) == 2
        await tell("sweep", entity="acme", project="demo", sweep="s1", state="RUNNING")
        made = {"entity": "acme", "queues": [double.queue("acme", "q").id], "hostname": "h", "version": "v"}
        await _graphql(double, "createLaunchAgent", {**made, "agentConfig": "{}"})
        await tell("agent", name="agent1", stop=True)
        assert double.agent("agent1").stop_polling
        await tell("agent", name="agent1", forget=True)
        assert (await tell("job", entity="acme", project="demo", name="j", files={"a": "b"}))["version"] == 0
        await tell("stop", entity="acme", project="demo", run="r")
        await tell("fault", match="Viewer", status=500)
        state = await ask("state?console=0")
        assert state["runs"]["acme/demo/r"]["stopped"] is True
        assert [item["state"] for item in state["queues"]["acme/q"]["items"]] == ["PENDING", "PENDING"]
        asked = ["UpsertBucket", "createLaunchAgent"]
        assert (await ask("stats"))["counts"] == {f"graphql:{name}": 1 for name in asked}
        assert [op["operation"] for op in await ask("ops")] == asked
        await tell("reset")
        assert (await ask("state"))["runs"] == {}
    assert "viewer" in (await _graphql(double, "Viewer", {}))["data"]


async def test_taken_port_is_explained(double: WandbDouble) -> None:
    port = int(double.base_url.rpartition(":")[2])
    with pytest.raises(SettingsError, match=rf"port {port} for W&B is in use.*--wandb-port"):
        async with running_wandb_double(port):
            pass


async def record(path: Path = RECORDED) -> None:
    """Write what the SDK posts now; look at the difference before you keep it."""
    async with running_wandb_double(entity="acme") as double:
        shapes = await observed_shapes(double)
    path.write_text(json.dumps(shapes, indent=2, sort_keys=True) + "\n")  # noqa: ASYNC240  # a script


if __name__ == "__main__":
    asyncio.run(record())
