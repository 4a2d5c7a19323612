"""AWS's manners on the wire: effects whose answers get lost, credentials that expire, clocks that differ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.aws_server import AwsError, AwsServer, HangUp, quick_rates
from tests.fakes.cloudwatch_logs import CloudWatchLogs
from worker.aio import Breather
from worker.clients.aws import AwsClients, AwsDenied, aws_clients, caller_identity
from worker.errors import Unreachable
from worker.intake.sqs import LaunchQueue, QueueFacts, SqsMessage
from worker.ops.metrics import Metrics
from worker.training.cursor import NOTHING_TAKEN
from worker.training.log_feed import LogFeed
from worker.training.sagemaker import Created, JobNotShown, SageMaker
from worker.training.status_feed import StatusFeed

NOW = 1_800_000_000.0
ONE = "job-1/algo-1-1700000000"
ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/job-1"
REQUEST = {
    "TrainingJobName": "job-1",
    "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
    "RoleArn": "arn:aws:iam::123456789012:role/train-role",
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "Environment": {"LAUNCH_ID": "launch-1"},
}
FACTS = QueueFacts("http://127.0.0.1/1/q", "arn:aws:sqs:us-east-1:1:q", False, "http://127.0.0.1/1/dlq")


class Effects:
    """Operations that happen, and whose first answers never come."""

    def __init__(self, server: AwsServer, operation: str, answer: dict[str, Any], *, lost: int = 1) -> None:
        self.happened: list[dict[str, Any]] = []
        self._answer, self._lost = answer, lost
        server.answers[operation] = self.take

    def take(self, parameters: dict[str, Any]) -> dict[str, Any]:
        self.happened.append(parameters)
        if len(self.happened) <= self._lost:
            raise HangUp
        return self._answer


# A timeout after the effect happened.


async def test_create_training_job_whose_answer_is_lost_is_adopted(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    sagemaker = SageMaker(aws.sagemaker, quick_rates())
    created = Effects(aws_server, "CreateTrainingJob", {})
    with pytest.raises(Unreachable):
        await sagemaker.create_or_adopt(REQUEST)
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceInUse"), AwsError("ResourceInUse"))
    # Its name is taken before it can be described: no reason to refuse the launch.
    aws_server.fail_next(
        "DescribeTrainingJob", AwsError("ValidationException", "Requested resource not found.")
    )
    with pytest.raises(JobNotShown):
        await sagemaker.create_or_adopt(REQUEST)
    aws_server.answers["DescribeTrainingJob"] = lambda _: {
        "TrainingJobName": "job-1",
        "TrainingJobArn": ARN,
        "TrainingJobStatus": "InProgress",
        "Environment": REQUEST["Environment"],
    }
    assert (await sagemaker.create_or_adopt(REQUEST)).how is Created.ADOPTED
    assert len(created.happened) == 1


async def test_stop_training_job_whose_answer_is_lost_may_be_repeated(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    sagemaker = SageMaker(aws.sagemaker, quick_rates())
    Effects(aws_server, "StopTrainingJob", {})
    with pytest.raises(Unreachable):
        await sagemaker.stop("job-1")
    aws_server.fail_next("StopTrainingJob", AwsError("ValidationException", "is in status Stopping"))
    assert not await sagemaker.stop("job-1"), "it is stopping already"


async def test_sqs_delete_whose_answer_is_lost_may_be_repeated(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    queue = LaunchQueue(aws.sqs, FACTS)
    deleted = Effects(aws_server, "DeleteMessage", {})
    message = SqsMessage("m", "handle", "{}", 1, "")
    with pytest.raises(Unreachable):
        await queue.delete(message)
    await queue.delete(message)
    assert [request["ReceiptHandle"] for request in deleted.happened] == ["handle", "handle"]


async def test_a_send_to_fifo_whose_answer_is_lost_is_one_message(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    queue = LaunchQueue(aws.sqs, QueueFacts("http://127.0.0.1/1/q.fifo", FACTS.arn, True, FACTS.dlq_url))
    sent = Effects(
        aws_server, "SendMessage", {"MessageId": "m", "MD5OfMessageBody": "841a2d689ad86bd1611447453c22c6fc"}
    )
    with pytest.raises(Unreachable):
        await queue.send("body", "launch-1")
    assert await queue.send("body", "launch-1") == "m"
    assert {request["MessageDeduplicationId"] for request in sent.happened} == {"launch-1"}


@pytest.mark.parametrize("status", [200, 502])
async def test_html_instead_of_an_answer_is_no_answer(
    aws: AwsClients, aws_server: AwsServer, status: int
) -> None:
    garbage = web.Response(status=status, text="<html><h1>proxy error</h1></html>", content_type="text/html")
    aws_server.fail_next("*", garbage)
    with pytest.raises(Unreachable):
        await SageMaker(aws.sagemaker, quick_rates()).describe("job-1")


# Credentials.


@pytest.fixture
async def keys() -> AsyncIterator[tuple[str, list[str]]]:
    """A container's credentials endpoint; gives a new key each time it is asked. Its address, and the keys given."""
    given: list[str] = []

    async def give(_: web.Request) -> web.Response:
        given.append(f"KEY{len(given) + 1}")
        expires = datetime.now(UTC) + timedelta(hours=6)
        return web.json_response(
            {
                "AccessKeyId": given[-1],
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )

    app = web.Application()
    app.router.add_get("/credentials", give)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/credentials", given
    await runner.cleanup()


class KeyCheck:
    """Accepts one access key."""

    def __init__(self, server: AwsServer, accepted: str) -> None:
        self.accepted = accepted
        self.used: list[str] = []
        self._server, self._handle = server, server.handle
        server.handle = self.handle  # type: ignore[method-assign]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        key = request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        self.used.append(key)
        if key != self.accepted:
            body = {
                "__type": "com.amazonaws#ExpiredTokenException",
                "message": "The security token is expired",
            }
            return web.json_response(body, status=403, content_type="application/x-amz-json-1.1")
        return await self._handle(request)


async def test_a_role_whose_credentials_expire_gets_new_ones_though_they_look_valid(
    aws_server: AwsServer, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, list[str]]
) -> None:
    address, given = keys
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
    aws_server.answers["StopTrainingJob"] = lambda _: {}
    check = KeyCheck(aws_server, "KEY1")
    async with aws_clients() as aws:
        sagemaker = SageMaker(aws.sagemaker, quick_rates())
        assert await sagemaker.stop("job-1")
        check.accepted = "KEY2"
        with pytest.raises(AwsDenied):
            await sagemaker.stop("job-1")
        assert await sagemaker.stop("job-1"), "the next try has the new key"
    assert check.used == ["KEY1", "KEY1", "KEY2"]
    assert given == ["KEY1", "KEY2"]


async def test_a_credentials_file_that_is_replaced_is_read_again(
    aws_server: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = s\n")
    aws_server.answers["StopTrainingJob"] = lambda _: {}
    check = KeyCheck(aws_server, "OLD")
    async with aws_clients() as aws:
        sagemaker = SageMaker(aws.sagemaker, quick_rates())
        assert await sagemaker.stop("job-1")
        check.accepted = "NEW"
        file.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = s\n")
        with pytest.raises(AwsDenied):
            await sagemaker.stop("job-1")
        assert await sagemaker.stop("job-1")
    assert check.used == ["OLD", "OLD", "NEW"]


# Clocks.


def dated(server: AwsServer, ahead: float) -> None:
    """Let the server's `Date` be so many seconds ahead of this host's clock."""
    handle = server.handle

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await handle(request)
        response.headers["Date"] = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
        return response

    server.handle = answer  # type: ignore[method-assign]


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_awss_time_is_told_by_its_answers(
    monkeypatch: pytest.MonkeyPatch, aws_server: AwsServer, ahead: float
) -> None:
    dated(aws_server, ahead)
    xml = (
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Account>123456789012</Account>"
        "<Arn>arn:aws:iam::123456789012:role/x</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"
    )
    aws_server.fail_next("*", web.Response(text=xml, content_type="text/xml"))
    async with aws_clients() as aws:
        assert aws.clock.ahead == 0
        await caller_identity(aws.sts)
        assert abs(aws.clock.ahead - ahead) < 5


async def test_a_clock_too_wrong_to_sign_says_so_and_is_tried_again(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    aws_server.fail_next("StopTrainingJob", AwsError("RequestTimeTooSkewed", status=403))
    with pytest.raises(AwsDenied, match="clock"):
        await SageMaker(aws.sagemaker, quick_rates()).stop("job-1")


async def test_an_adopted_jobs_end_is_seen_though_its_submitter_had_a_clock_an_hour_ahead(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    asked: list[float] = []

    def answer(parameters: dict[str, Any]) -> dict[str, Any]:
        asked.append(parameters["LastModifiedTimeAfter"])
        return {"TrainingJobSummaries": []}

    aws_server.answers["ListTrainingJobs"] = answer
    feed = StatusFeed(aws.sagemaker, quick_rates(), since=NOW, now=lambda: NOW)
    accepted_at = NOW - 7200 + 3600  # really two hours ago
    feed.look_back_to(accepted_at - 600)
    await feed.changes()
    assert asked == [pytest.approx(NOW - 7200 - 600 - 5)]


# The harsh CloudWatch, over HTTP.


async def test_the_real_client_reads_the_harsh_cloudwatch(aws: AwsClients, aws_server: AwsServer) -> None:
    logs = CloudWatchLogs(lambda: NOW)
    aws_server.answers.update(logs.answers())
    feed = LogFeed(aws.logs, quick_rates(), Metrics(), breather=Breather())
    assert await feed.streams("job-1") == ()
    for host in range(1, 121):
        logs.put(f"job-1/algo-{host}-17", f"from host {host}")
    streams = await feed.streams("job-1")
    assert len(streams) == 120
    logs.page_events, logs.empty_before = 17, lambda page: page % 3
    sweep = await feed.sweep(dict.fromkeys(streams, NOTHING_TAKEN))
    assert sorted(event.message for event in sweep.events) == sorted(f"from host {n}" for n in range(1, 121))
    missing = await feed.sweep({**dict.fromkeys(streams, NOTHING_TAKEN), "job-1/gone": NOTHING_TAKEN})
    assert missing.missing == {"job-1/gone"}
    assert len(missing.events) == 120


@pytest.mark.parametrize(
    "change",
    [
        {"logStreamNames": [f"s{n}" for n in range(101)]},
        {"logStreamNamePrefix": "job-1/"},
        {"nextToken": "f/of-another-request"},
        {"logStreamNames": ["unknown"]},
        {"logGroupName": "/another/group"},
    ],
)
async def test_the_harsh_cloudwatch_refuses_what_aws_refuses(
    aws: AwsClients, aws_server: AwsServer, change: dict[str, Any]
) -> None:
    logs = CloudWatchLogs(lambda: NOW)
    logs.put(ONE, "a")
    aws_server.answers.update(logs.answers())
    request = {
        "logGroupName": "/aws/sagemaker/TrainingJobs",
        "logStreamNames": [ONE],
        "startTime": 0,
        **change,
    }
    with pytest.raises(aws.logs.exceptions.ClientError) as refused:
        await aws.logs.filter_log_events(**request)
    code = refused.value.response["Error"]["Code"]
    assert code in ("InvalidParameterException", "ResourceNotFoundException")


async def test_the_harsh_cloudwatchs_tokens_expire_and_get_log_events_ends_by_its_token(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    now = NOW
    logs = CloudWatchLogs(lambda: now)
    logs.page_events, logs.empty_before = 2, lambda page: 1 if page == 1 else 0
    logs.put(ONE, *"abcde")
    aws_server.answers.update(logs.answers())
    request: dict[str, Any] = {
        "logGroupName": "/aws/sagemaker/TrainingJobs",
        "logStreamName": ONE,
        "startFromHead": True,
    }
    read: list[str] = []
    while True:
        page = await aws.logs.get_log_events(**request)
        read += [event["message"] for event in page["events"]]
        if page["nextForwardToken"] == request.get("nextToken"):
            break
        request["nextToken"] = page["nextForwardToken"]
    assert read == list("abcde")
    now += 86_401
    with pytest.raises(aws.logs.exceptions.InvalidParameterException):
        await aws.logs.get_log_events(**request)
