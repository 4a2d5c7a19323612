"""The local SageMaker: real states, real containers or processes, logs where AWS puts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError

from worker.local.executor_docker import DockerExecutor, docker_engine
from worker.local.images import ensure_busybox_image
from worker.local.logs import TRAINING_JOBS_GROUP
from worker.local.sagemaker_api import Refusal
from worker.local.stack import LocalServices, running_stack

if TYPE_CHECKING:
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_sagemaker import SageMakerClient

STATE = Path(__file__).parents[2] / ".state"
"""Debian packages for the test image, kept between runs."""


@dataclass(frozen=True)
class Bench:
    """A stack with open clients."""

    services: LocalServices
    sagemaker: SageMakerClient
    logs: CloudWatchLogsClient
    image: str

    def request(self, name: str, script: str, **changes: Any) -> dict[str, Any]:
        """A CreateTrainingJob request that runs a shell script."""
        return {
            "TrainingJobName": name,
            "RoleArn": self.services.role_arn,
            "AlgorithmSpecification": {
                "TrainingImage": self.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["sh", "-c"],
                "ContainerArguments": [script],
            },
            "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            **changes,
        }

    async def run(self, name: str, script: str, **changes: Any) -> dict[str, Any]:
        """Create a job, wait for its end, return its description."""
        await self.sagemaker.create_training_job(**self.request(name, script, **changes))
        return await self.ended(name)

    async def ended(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                described = await self.sagemaker.describe_training_job(TrainingJobName=name)
                if described["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"):
                    return dict(described)
                await asyncio.sleep(0.05)

    async def reached(self, name: str, secondary: str) -> None:
        async with asyncio.timeout(30):
            while True:
                described = await self.sagemaker.describe_training_job(TrainingJobName=name)
                if described["SecondaryStatus"] == secondary:
                    return
                await asyncio.sleep(0.02)

    async def log(self, name: str) -> dict[str, list[str]]:
        """Host → messages."""
        found = await self.logs.describe_log_streams(
            logGroupName=TRAINING_JOBS_GROUP, logStreamNamePrefix=f"{name}/"
        )
        streams = [stream["logStreamName"] for stream in found["logStreams"]]
        answer = await self.logs.filter_log_events(logGroupName=TRAINING_JOBS_GROUP, logStreamNames=streams)
        lines: dict[str, list[str]] = {}
        for event in answer["events"]:
            host = event["logStreamName"].split("/")[1].rpartition("-")[0]
            lines.setdefault(host, []).append(event["message"])
        return lines


@contextlib.asynccontextmanager
async def bench(executor: Literal["docker", "process"]) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        services = await stack.enter_async_context(running_stack(executor=executor, stop_grace=1))
        session, url = services.aws.session(), services.aws_endpoint
        once = AioConfig(retries={"total_max_attempts": 1})
        sagemaker = await stack.enter_async_context(
            session.client("sagemaker", endpoint_url=url, config=once)
        )
        logs = await stack.enter_async_context(session.client("logs", endpoint_url=url))
        image = "not-used:1"
        if executor == "docker":
            assert services.docker is not None
            image = await ensure_busybox_image(services.docker, STATE)
        yield Bench(services, sagemaker, logs, image)


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
async def any_bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with bench(request.param) as made:
        yield made


@pytest.fixture
async def process_bench() -> AsyncIterator[Bench]:
    async with bench("process") as made:
        yield made


@pytest.fixture
async def docker_bench() -> AsyncIterator[Bench]:
    async with bench("docker") as made:
        yield made


def _code(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, str]:
    details = error.value.response["Error"]
    return details["Code"], details["Message"]


async def test_completed_job(any_bench: Bench) -> None:
    described = await any_bench.run(
        "good",
        "echo $GREETING from $SM_CURRENT_HOST; cat $SM_INPUT_CONFIG_DIR/hyperparameters.json; echo; echo end >&2",
        Environment={"GREETING": "hello"},
        HyperParameters={"lr": "0.1"},
    )
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Completed"
    assert described["Environment"] == {"GREETING": "hello"}
    assert [step["Status"] for step in described["SecondaryStatusTransitions"]] == [
        "Starting",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert described["TrainingEndTime"] >= described["TrainingStartTime"] >= described["CreationTime"]
    assert described["ModelArtifacts"]["S3ModelArtifacts"] == "s3://launch-dev/out/good/output/model.tar.gz"
    assert "MetricDefinitions" not in described["AlgorithmSpecification"]
    log = await any_bench.log("good")
    assert sorted(log["algo-1"]) == ["end", "hello from algo-1", '{"lr": "0.1"}']


async def test_failed_job_says_what_the_failure_file_says(any_bench: Bench) -> None:
    described = await any_bench.run("bad", "echo loss is nan > $SM_OUTPUT_DIR/failure; exit 3")
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Failed"
    assert described["FailureReason"] == "AlgorithmError: loss is nan, exit code: 3"


async def test_entrypoint_that_does_not_exist(any_bench: Bench) -> None:
    request = any_bench.request("odd", "")
    request["AlgorithmSpecification"]["ContainerEntrypoint"] = ["/no/such/program"]
    await any_bench.sagemaker.create_training_job(**request)
    described = await any_bench.ended("odd")
    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"].startswith("AlgorithmError: ")
    assert described["FailureReason"].endswith("exit code: 127")


async def test_stop(any_bench: Bench) -> None:
    await any_bench.sagemaker.create_training_job(**any_bench.request("long", "echo up; sleep 60"))
    await any_bench.reached("long", "Training")
    await any_bench.sagemaker.stop_training_job(TrainingJobName="long")
    described = await any_bench.ended("long")
    assert described["TrainingJobStatus"] == described["SecondaryStatus"] == "Stopped"
    assert [step["Status"] for step in described["SecondaryStatusTransitions"]][-2:] == [
        "Stopping",
        "Stopped",
    ]
    with pytest.raises(ClientError) as error:
        await any_bench.sagemaker.stop_training_job(TrainingJobName="long")
    assert _code(error) == (
        "ValidationException",
        "The request was rejected because the training job is in status Stopped.",
    )


async def test_time_limit(any_bench: Bench) -> None:
    limit = {"MaxRuntimeInSeconds": 1}
    described = await any_bench.run("slow", "sleep 60", StoppingCondition=limit)
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


async def test_two_instances_have_a_stream_each(any_bench: Bench) -> None:
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    await any_bench.run("two", "echo I am $SM_CURRENT_HOST of $SM_HOSTS", ResourceConfig=resources)
    hosts = json.dumps(["algo-1", "algo-2"])
    assert await any_bench.log("two") == {
        "algo-1": [f"I am algo-1 of {hosts}"],
        "algo-2": [f"I am algo-2 of {hosts}"],
    }


async def test_one_failing_instance_ends_the_others(any_bench: Bench) -> None:
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    script = '[ "$SM_CURRENT_HOST" = algo-2 ] && exit 9; exec sleep 60'
    described = await any_bench.run("uneven", script, ResourceConfig=resources)
    assert described["TrainingJobStatus"] == "Failed"


async def test_name_is_used_once(process_bench: Bench) -> None:
    await process_bench.run("once", "true")
    with pytest.raises(ClientError) as error:
        await process_bench.sagemaker.create_training_job(**process_bench.request("once", "true"))
    code, message = _code(error)
    assert code == "ResourceInUse"
    assert "already exists" in message


async def test_missing_job(process_bench: Bench) -> None:
    for call in (
        process_bench.sagemaker.describe_training_job,
        process_bench.sagemaker.stop_training_job,
    ):
        with pytest.raises(ClientError) as error:
            await call(TrainingJobName="nobody")
        assert _code(error) == ("ValidationException", "Requested resource not found.")


async def test_quota_and_told_refusals(process_bench: Bench) -> None:
    jobs, client = process_bench.services.sagemaker.jobs, process_bench.sagemaker
    jobs.quota = 1
    await client.create_training_job(**process_bench.request("first", "sleep 60"))
    with pytest.raises(ClientError) as error:
        await client.create_training_job(**process_bench.request("second", "true"))
    assert _code(error)[0] == "ResourceLimitExceeded"
    jobs.quota = None
    jobs.refusals.append(Refusal("ThrottlingException", "Rate exceeded"))
    with pytest.raises(ClientError) as throttled:
        await client.create_training_job(**process_bench.request("second", "true"))
    assert _code(throttled) == ("ThrottlingException", "Rate exceeded")
    await client.create_training_job(**process_bench.request("second", "true"))


async def test_list_filters_by_status_after_paging(process_bench: Bench) -> None:
    client = process_bench.sagemaker
    for name in ("a-1", "a-2", "b-1"):
        await process_bench.run(name, "true")
    await process_bench.run("a-3", "exit 1")
    page = await client.list_training_jobs(MaxResults=2, StatusEquals="Failed", NameContains="a-")
    assert page["TrainingJobSummaries"] == []  # the page held a-1 and a-2
    rest = await client.list_training_jobs(
        MaxResults=2, StatusEquals="Failed", NameContains="a-", NextToken=page["NextToken"]
    )
    assert [job["TrainingJobName"] for job in rest["TrainingJobSummaries"]] == ["a-3"]
    assert "NextToken" not in rest
    newest = await client.list_training_jobs(SortBy="CreationTime", SortOrder="Descending", MaxResults=1)
    assert newest["TrainingJobSummaries"][0]["TrainingJobName"] == "a-3"
    assert newest["TrainingJobSummaries"][0]["SecondaryStatus"] == "Failed"


async def test_list_by_time_of_change(process_bench: Bench) -> None:
    await process_bench.run("old", "true")
    await asyncio.sleep(2)  # botocore sends whole seconds
    described = await process_bench.run("new", "true")
    changed = await process_bench.sagemaker.list_training_jobs(
        LastModifiedTimeAfter=described["CreationTime"]
    )
    assert [job["TrainingJobName"] for job in changed["TrainingJobSummaries"]] == ["new"]


async def test_jobs_are_found_by_tag(process_bench: Bench) -> None:
    await process_bench.run("mine", "true", Tags=[{"Key": "LaunchWorker", "Value": "default"}])
    await process_bench.run("other", "true")
    query: Any = {"Filters": [{"Name": "Tags.LaunchWorker", "Operator": "Equals", "Value": "default"}]}
    found = await process_bench.sagemaker.search(Resource="TrainingJob", SearchExpression=query)
    assert [result["TrainingJob"]["TrainingJobName"] for result in found["Results"]] == ["mine"]


async def test_logs_can_lag_behind_the_jobs_end(process_bench: Bench) -> None:
    process_bench.services.sagemaker.log_delay = 4.0  # more than a busy machine takes to come and look
    described = await process_bench.run("lagging", "echo x")
    with pytest.raises(ClientError):
        await process_bench.log("lagging")
    await _has_logged(process_bench, "lagging")
    found = await process_bench.logs.filter_log_events(logGroupName=TRAINING_JOBS_GROUP)
    (event,) = found["events"]
    assert event["ingestionTime"] - event["timestamp"] >= 4000
    assert event["timestamp"] <= described["TrainingEndTime"].timestamp() * 1000


async def test_told_failure_is_used_once(process_bench: Bench) -> None:
    process_bench.services.sagemaker.failures.append("CapacityError: Unable to provision requested capacity.")
    first = await process_bench.run("unlucky", "true")
    assert (first["TrainingJobStatus"], first["FailureReason"][:13]) == ("Failed", "CapacityError")
    assert "TrainingStartTime" not in first
    assert (await process_bench.run("lucky", "true"))["TrainingJobStatus"] == "Completed"


async def test_silent_job_has_no_stream_and_the_group_comes_with_the_first_line(process_bench: Bench) -> None:
    await process_bench.run("silent", "true")
    with pytest.raises(ClientError) as error:
        await process_bench.log("silent")
    assert _code(error)[0] == "ResourceNotFoundException"
    await process_bench.run("loud", "echo x")
    assert await process_bench.log("loud") == {"algo-1": ["x"]}


async def test_process_job_needs_an_entrypoint(process_bench: Bench) -> None:
    request = process_bench.request("plain", "")
    request["AlgorithmSpecification"] = {"TrainingImage": "x:1", "TrainingInputMode": "File"}
    await process_bench.sagemaker.create_training_job(**request)
    assert "ContainerEntrypoint" in (await process_bench.ended("plain"))["FailureReason"]


@pytest.mark.docker
async def test_unknown_image(docker_bench: Bench) -> None:
    request = docker_bench.request("ghost", "true")
    request["AlgorithmSpecification"]["TrainingImage"] = "no-such-image:1"
    await docker_bench.sagemaker.create_training_job(**request)
    described = await docker_bench.ended("ghost")
    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"].startswith("ClientError: Cannot find image no-such-image:1")


@pytest.mark.docker
async def test_image_from_the_local_ecr_is_pulled(docker_bench: Bench) -> None:
    services = docker_bench.services
    assert services.ecr is not None
    assert services.docker is not None
    pinned = await services.ecr.seed_image(services.docker, docker_bench.image, "team/base", "v1")
    for name, image in (("tag", f"{services.ecr.address}/team/base:v1"), ("digest", pinned)):
        request = docker_bench.request(name, "echo pulled")
        request["AlgorithmSpecification"]["TrainingImage"] = image
        await docker_bench.sagemaker.create_training_job(**request)
        assert (await docker_bench.ended(name))["TrainingJobStatus"] == "Completed"
    request = docker_bench.request("absent", "true")
    request["AlgorithmSpecification"]["TrainingImage"] = f"{services.ecr.address}/team/base:v2"
    await docker_bench.sagemaker.create_training_job(**request)
    assert "Cannot pull" in (await docker_bench.ended("absent"))["FailureReason"]


@pytest.mark.parametrize("ending", ["normal", "cancelled"])
async def test_no_process_or_folder_is_left(ending: str) -> None:
    running, folders = asyncio.Event(), []

    async def use_the_stack() -> None:
        async with bench("process") as made:
            await made.sagemaker.create_training_job(
                **made.request("left", "echo $$ $SM_MODEL_DIR; sleep 61 & wait")
            )
            await _has_logged(made, "left")
            folders.extend((await made.log("left"))["algo-1"][0].split())
            running.set()
            if ending == "cancelled":
                await asyncio.Event().wait()

    await _run_and_end(use_the_stack, running)
    pid, folder = folders
    assert _living_members(int(pid)) == []
    assert not Path(folder).exists()  # noqa: ASYNC240


@pytest.mark.docker
@pytest.mark.parametrize("ending", ["normal", "cancelled"])
async def test_no_container_is_left(ending: str) -> None:
    running, name = asyncio.Event(), f"left-{uuid.uuid4().hex[:8]}"
    label = json.dumps({"label": [f"launch-worker.local.job={name}"]})

    async def use_the_stack() -> None:
        async with bench("docker") as made:
            await made.sagemaker.create_training_job(**made.request(name, "echo up; sleep 61"))
            await _has_logged(made, name)
            assert made.services.docker is not None
            assert len(await made.services.docker.containers.list(filters=label)) == 1
            running.set()
            if ending == "cancelled":
                await asyncio.Event().wait()

    await _run_and_end(use_the_stack, running)
    async with docker_engine() as docker:
        assert await docker.containers.list(all=True, filters=label) == []


@pytest.mark.docker
async def test_containers_of_a_killed_stack_are_removed(docker_bench: Bench) -> None:
    docker = docker_bench.services.docker
    assert docker is not None
    gone = await asyncio.create_subprocess_exec("/bin/true")
    await gone.wait()
    names = {}
    ours = _pid_namespace()
    for owner, pid, processes in (
        ("dead", gone.pid, ours),
        ("alive", 1, ours),
        ("in another container", gone.pid, "pid:[1]"),
    ):
        labels = {
            "launch-worker.local": f"{socket.gethostname()}/{pid}",
            "launch-worker.local.processes": processes,
        }
        container = await docker.containers.create({"Image": docker_bench.image, "Labels": labels})
        names[owner] = container.id
    assert isinstance(docker_bench.services.executor, DockerExecutor)
    await docker_bench.services.executor.remove_leftovers()
    left = {container.id for container in await docker.containers.list(all=True)}
    for owner in ("alive", "in another container"):
        await docker.containers.container(names[owner]).delete()
        assert names[owner] in left
    assert names["dead"] not in left


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _living_members(group: int) -> list[str]:
    """Names of the processes of a group (proc(5): pid (name) state ppid pgrp); a zombie waits only for init."""
    living = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().rpartition(") ")
            state, _, member_of, *_ = rest.split()
            if int(member_of) == group and state != "Z":
                living.append(name)
    return living


async def _has_logged(made: Bench, name: str) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(ClientError):
                if (await made.log(name)).get("algo-1"):
                    return
            await asyncio.sleep(0.05)


async def _run_and_end(work: Callable[[], Coroutine[Any, Any, None]], running: asyncio.Event) -> None:
    """Run `work`; cancel it once it is `running`, unless it ends by itself."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work())
        await running.wait()
        done, _ = await asyncio.wait({task}, timeout=0.5)
        if not done:
            task.cancel()


async def test_machines_of_one_type_have_a_quota_of_their_own(process_bench: Bench) -> None:
    jobs, client = process_bench.services.sagemaker.jobs, process_bench.sagemaker
    jobs.instance_quotas["ml.m5.large"] = 1
    await client.create_training_job(**process_bench.request("m5-1", "sleep 1"))
    with pytest.raises(ClientError) as error:
        await client.create_training_job(**process_bench.request("m5-2", "true"))
    code, sentence = _code(error)
    assert code == "ResourceLimitExceeded"
    assert "'ml.m5.large for training job usage' is 1 Instances, with current utilization of 1" in sentence
    await process_bench.run("spot", "true", EnableManagedSpotTraining=True, StoppingCondition=SPOT)
    await process_bench.ended("m5-1")
    assert (await process_bench.run("m5-2", "true"))["TrainingJobStatus"] == "Completed"


SPOT = {"MaxRuntimeInSeconds": 10, "MaxWaitTimeInSeconds": 10}


async def test_an_interrupted_spot_job_starts_again_with_new_streams(process_bench: Bench) -> None:
    sagemaker = process_bench.services.sagemaker
    request = process_bench.request(
        "taken",
        "echo one life; sleep 1; echo its end",
        EnableManagedSpotTraining=True,
        StoppingCondition=SPOT,
    )
    await process_bench.sagemaker.create_training_job(**request)
    await process_bench.reached("taken", "Training")
    await asyncio.sleep(0.4)
    sagemaker.interrupt("taken")
    described = await process_bench.ended("taken")
    states = [step["Status"] for step in described["SecondaryStatusTransitions"]]
    assert states == [
        *("Starting", "Downloading", "Training", "Interrupted"),
        *("Starting", "Downloading", "Training", "Uploading", "Completed"),
    ]
    assert (await process_bench.log("taken"))["algo-1"] == ["one life", "one life", "its end"]


async def test_a_spot_job_without_machines_waits_until_its_time_is_over(process_bench: Bench) -> None:
    sagemaker = process_bench.services.sagemaker
    sagemaker.spot_machines = False
    limits = {"MaxRuntimeInSeconds": 2, "MaxWaitTimeInSeconds": 2}
    request = process_bench.request(
        "starved", "sleep 60", EnableManagedSpotTraining=True, StoppingCondition=limits
    )
    await process_bench.sagemaker.create_training_job(**request)
    await process_bench.reached("starved", "Training")
    sagemaker.interrupt("starved")
    described = await process_bench.ended("starved")
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == (
        "Stopped",
        "MaxWaitTimeExceeded",
    )
