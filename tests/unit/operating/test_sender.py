"""Sending launches by hand: checked first, sent once, followed to an end that is told in words."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.aws_server import AwsServer, serving_aws
from tests.unit.launches import ACCOUNT, BUILT, SAGEMAKER, launch_of, message, paths, sagemaker_args
from tests.unit.records import record
from tests.unit.waiting import until
from worker.errors import BadMessage, Never, SettingsError
from worker.launch.record import Failure, JobFacts, LaunchRecord, LaunchState
from worker.ledger.sqlite import open_sqlite_ledger
from worker.operating.sender import Sent, end_of, enqueue, planned_request, with_identity
from worker.settings import Settings, load_settings

QUEUE_URL = "http://127.0.0.1/1/launches"


@pytest.fixture
async def sqs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsServer]:
    async with serving_aws(monkeypatch) as server:
        server.answers["GetQueueAttributes"] = lambda _: {
            "Attributes": {"QueueArn": "arn:aws:sqs:us-east-1:1:launches"}
        }
        server.answers["SendMessage"] = lambda _: {"MessageId": "m-1"}
        yield server


def settings(**variables: str) -> Settings:
    return load_settings(None, {"LAUNCH_QUEUE_URL": QUEUE_URL, "AWS_REGION": "us-east-1", **variables})


def without_item(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "runQueueItemId"}


def test_a_message_without_an_identity_gets_one_and_another_keeps_its_own() -> None:
    bare = json.dumps(without_item(message()))
    first, second = json.loads(with_identity(bare)), json.loads(with_identity(bare))
    assert first["launchId"] != second["launchId"], "two sendings are two launches"
    assert with_identity(json.dumps(first)) == json.dumps(first), "sending the same file again is not"
    from_queue = json.dumps(message())
    assert with_identity(from_queue) == from_queue
    with pytest.raises(BadMessage):
        with_identity("{}")


def test_the_plan_is_what_a_worker_would_submit_without_its_secrets() -> None:
    request = planned_request(json.dumps(message()), settings(), account=ACCOUNT, image=None).request
    assert request["Environment"]["WANDB_API_KEY"] == "***"
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/sm-exec"
    with pytest.raises(BadMessage) as wrong:
        planned_request(json.dumps(message({"RoleArn": "r"})), settings(), account=ACCOUNT, image=None)
    assert len(paths(wrong.value)) > 1, "all problems at once"
    with pytest.raises(Never, match="t3"):
        body = message()
        body["runSpec"]["resource_args"]["sagemaker"]["ResourceConfig"]["InstanceType"] = "ml.t3.medium"
        planned_request(
            json.dumps(body), settings(LAUNCH_ALLOWED_INSTANCE_TYPES="ml.m5.*"), account=ACCOUNT, image=None
        )


@pytest.mark.parametrize(
    "uri", ["http://host/x.git", "file:///etc", "s3://b", "https://h:99999/x.git", "/tmp/x"]
)
def test_code_that_no_worker_would_fetch_is_told_with_all_else(uri: str) -> None:
    body = json.dumps(message(sagemaker_args(RoleArn=None), docker={}, uri=uri))
    with pytest.raises(BadMessage) as wrong:
        planned_request(body, settings(), account=ACCOUNT, image=BUILT)
    assert paths(wrong.value) == ["$.runSpec.uri", f"{SAGEMAKER}.RoleArn"]


async def test_a_message_is_sent_as_it_is_and_its_identity_told(sqs: AwsServer) -> None:
    sent: list[Sent] = []
    body = json.dumps(message(run_id="r1"))
    assert await enqueue(body, settings(), on_sent=sent.append) is None
    (request,) = sqs.requests("SendMessage")
    assert request["MessageBody"] == body
    launch_id = launch_of(json.loads(body)).launch_id
    assert sent == [Sent(launch_id, "m-1", "acme/vision/r1")]


async def test_a_wrong_message_is_not_sent(sqs: AwsServer) -> None:
    with pytest.raises(BadMessage):
        await enqueue(json.dumps({"runSpec": {}}), settings(), on_sent=lambda _: None)
    assert sqs.calls == []


async def test_without_a_queue_nothing_is_sent() -> None:
    with pytest.raises(SettingsError, match="LAUNCH_QUEUE_URL"):
        await enqueue("{}", load_settings(None, {}), on_sent=lambda _: None)


async def test_waiting_follows_the_launch_in_the_ledger_to_its_end(
    sqs: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.operating.sender._LOOK_EVERY", 0.01)
    path = tmp_path / "ledger.db"
    body = message()
    states = [
        record(launch_of(body).launch_id, state=LaunchState.WAITING, facts=JobFacts()),
        record(launch_of(body).launch_id, facts=JobFacts("InProgress", "Training")),
        record(
            launch_of(body).launch_id, state=LaunchState.FINISHED, facts=JobFacts("Completed", "Completed")
        ),
    ]
    seen: list[LaunchRecord] = []

    async def worker() -> None:
        async with open_sqlite_ledger(path) as ledger:
            await ledger.create(states[0])
            for before, state in itertools.pairwise(states):
                await until(lambda before=before: before in seen)  # type: ignore[misc]
                await ledger.save([state], owner=state.owner)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker())
        last = await enqueue(
            json.dumps(body),
            settings(LAUNCH_LEDGER=f"sqlite:///{path}"),
            on_sent=lambda _: None,
            on_state=seen.append,
        )
    assert [record.state for record in seen] == [
        LaunchState.WAITING,
        LaunchState.ACCEPTED,
        LaunchState.FINISHED,
    ]
    assert last == states[-1]
    assert end_of(states[-1]) == ("completed: The training job completed.", True)


def test_ends_are_told_in_words() -> None:
    refused = replace(record(state=LaunchState.REFUSED), failure=Failure("agent", "LW-X", "no such role"))
    assert end_of(refused) == ("refused (LW-X): no such role", False)
    failed = record(state=LaunchState.FINISHED, facts=JobFacts("Failed", "Failed", "out of memory"))
    assert end_of(failed) == ("failed: out of memory", False)
    stopped = record(
        state=LaunchState.FINISHED, facts=JobFacts("Stopped", "Stopped"), stop_reason="Stop was pressed."
    )
    words, success = end_of(stopped)
    assert not success
    assert words == "stopped by this worker: This worker stopped the job: Stop was pressed."


def test_a_launch_without_its_further_attempt_ends_as_its_last_job_and_says_why() -> None:
    failed = record(
        state=LaunchState.FINISHED,
        facts=JobFacts("Failed", "Failed", "CapacityError: none."),
        given_up="No key.",
    )
    assert end_of(failed) == ("failed: CapacityError: none. No further attempt: No key.", False)
    words, success = end_of(replace(failed, stop_reason="Stop was pressed.", given_up="Stop was pressed."))
    assert words == (
        "stopped by this worker: This worker stopped the launch: Stop was pressed."
        " Its last job: CapacityError: none."
    )
    assert not success
