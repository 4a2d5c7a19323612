"""Messages that can never become a job: told to W&B and the DLQ without secrets; the worker goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.audit import audit, queue_empty
from tests.e2e.bench import Bench
from tests.e2e.conftest import Stack
from tests.e2e.launches import numbered
from tests.e2e.process import WorkerProcess
from worker.launch.record import LaunchRecord, LaunchState
from worker.local.stack import ENTITY

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="package")]

SECRET = "7e57ab1e" * 5
"""A W&B API key of a submitter."""


@dataclass(frozen=True)
class Refusing:
    """A worker with a policy."""

    bench: Bench
    worker: WorkerProcess

    async def refused(self, message_id: str) -> tuple[Any, LaunchRecord]:
        """The DLQ's copy of a message and the ledger's record, once it is refused; what holds of every refusal."""
        event = await self.worker.wait_for("launch_refused", message_id=message_id)
        (letter,) = await self.bench.dead_letters(1)
        await queue_empty(self.bench)
        attributes = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
        assert attributes == {
            "reason": event["reason"],
            "stage": event["stage"],
            "code": event["code"],
            "launchId": event["launch_id"],
        }
        record = await self.bench.record(event["launch_id"])
        assert record is not None
        assert (record.state, record.reported) == (LaunchState.REFUSED, True)
        assert record.failure is not None
        assert record.failure.reason == event["reason"]
        for text in (letter["Body"], json.dumps(attributes), repr(record), self.worker.printed()):
            assert SECRET not in text
        assert self.worker.alive
        return letter, record


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def refusing(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    folder = tmp_path_factory.mktemp("refusals")
    async with stack.bench(folder) as bench:
        yield Refusing(bench, await bench.started(allowed_instance_types="ml.m5.*"))


@pytest.mark.parametrize(
    "body",
    [
        "not JSON at all",
        '{"runSpec": {"entity": "acme", ',
        "[1, 2, 3]",
        '{"queue": "no runSpec"}',
        '{"runSpec": {"entity": "acme", "project": "../x", "docker": {"docker_image": "a:1"}}}',
        f'{{"runSpec": {{"_wandb_api_key": "{SECRET}", "entity": "acme"',
        f"export WANDB_API_KEY={SECRET}",
        "bytes \ufffd\ufffd\u0085 \u2028 of something else",
        "[" * 20_000,
    ],
    ids=[
        "text",
        "cut",
        "array",
        "no runSpec",
        "bad field",
        "cut with key",
        "shell with key",
        "binary",
        "deep",
    ],
)
async def test_unparsable_message(refusing: Refusing, body: str) -> None:
    (message_id,) = await refusing.bench.send(body)
    letter, record = await refusing.refused(message_id)
    assert letter["MessageAttributes"]["code"]["StringValue"] == "LW-BAD-MESSAGE"
    assert letter["MessageAttributes"]["stage"]["StringValue"] == "agent"
    assert record.message_id == message_id
    if SECRET not in body and not body.startswith("{"):
        assert letter["Body"] == body or json.loads(letter["Body"]) == json.loads(body)


async def test_bad_message_of_a_queue_item_is_told_to_wandb(refusing: Refusing) -> None:
    item = refusing.bench.services.wandb.push(ENTITY, "refusals", {})
    (message_id,) = await refusing.bench.send(json.dumps({"runQueueItemId": item.id, "runSpec": {}}))
    _, record = await refusing.refused(message_id)
    assert record.failure is not None
    assert item.state == "FAILED"
    assert item.error is not None
    assert (item.error["message"], item.error["stage"]) == (
        f"LW-BAD-MESSAGE: {record.failure.reason}",
        "agent",
    )


async def test_refused_by_policy(refusing: Refusing) -> None:
    item = refusing.bench.services.wandb.push(ENTITY, "refusals", {})
    case = refusing.bench.launch(
        instance_type="ml.p5.48xlarge", item_id=item.id, author="ada", _wandb_api_key=SECRET
    )
    (message_id,) = await refusing.bench.send(case)
    letter, record = await refusing.refused(message_id)
    assert record.launch_id == case.launch_id
    assert "ml.p5.48xlarge" in letter["MessageAttributes"]["reason"]["StringValue"]
    copied = json.loads(letter["Body"])
    assert copied["runSpec"].pop("_wandb_api_key") == "***"
    sent = json.loads(case.body)
    del sent["runSpec"]["_wandb_api_key"]
    assert copied == sent, "the copy is the message, without its secret"
    assert item.error is not None
    assert refusing.bench.jobs(case) == []


async def test_job_name_taken_by_a_stranger(refusing: Refusing) -> None:
    bench = refusing.bench
    name = f"strangers-{bench.deployment}"
    await bench.clients.sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=bench.services.role_arn,
        AlgorithmSpecification={
            "TrainingImage": bench.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["true"],
        },
        OutputDataConfig={"S3OutputPath": "s3://launch-dev/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    item = bench.services.wandb.push(ENTITY, "refusals", {})
    case = bench.launch(job_name=name, item_id=item.id)
    await bench.send(case)
    event = await refusing.worker.wait_for("launch_refused", launch_id=case.launch_id)
    assert (event["code"], event["stage"]) == ("LW-JOB-NAME-TAKEN", "run")
    assert name in event["reason"]
    (letter,) = await bench.dead_letters(1)
    assert letter["MessageAttributes"]["code"]["StringValue"] == "LW-JOB-NAME-TAKEN"
    assert json.loads(letter["Body"]) == json.loads(case.body)
    await queue_empty(bench)
    assert item.state == "FAILED"
    assert bench.companion(case) is None
    described = await bench.clients.sagemaker.describe_training_job(TrainingJobName=name)
    assert described["TrainingJobStatus"] in ("InProgress", "Completed"), "the stranger's job is left alone"


async def test_the_worker_still_works_afterwards(refusing: Refusing) -> None:
    case = refusing.bench.launch(numbered(3))
    await refusing.bench.send(case)
    await audit(refusing.bench, case)
    assert refusing.worker.events("not an event") == []
