"""AWS's errors become ours at the border: every code by what to do about it, and none of the SDK's leaks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)

from tests.fakes.aws_server import AwsError, AwsServer, HangUp, quick_rates
from tests.unit.launches import message as launch_message
from tests.unit.launches import request_of
from worker.aio import Breather
from worker.clients.aws import (
    THROTTLING_CODES,
    AwsClients,
    AwsDenied,
    AwsRefused,
    NotPermitted,
    aws_clients,
    call,
    caller_identity,
    translate,
)
from worker.errors import Again, Never, SettingsError, Throttled, Unreachable, WorkerError
from worker.intake.sqs import LaunchQueue, QueueFacts, SqsMessage, queue_facts
from worker.ops.metrics import Metrics
from worker.ops.rates import Rate
from worker.training.cursor import NOTHING_TAKEN
from worker.training.log_feed import LogFeed
from worker.training.sagemaker import QuotaExceeded, SageMaker
from worker.training.status_feed import StatusFeed

MESSAGE = SqsMessage("m", "h", "{}", 1, "")
FACTS = QueueFacts("http://127.0.0.1/1/q", "arn:aws:sqs:us-east-1:1:q", False, "http://127.0.0.1/1/dlq")

Method = Callable[[AwsClients], Awaitable[object]]


async def pages(aws: AwsClients) -> object:
    feed = LogFeed(aws.logs, quick_rates(), Metrics(), breather=Breather())
    return [page async for page in feed.pages(["s"], 0, None)]


METHODS: dict[str, Method] = {
    "create": lambda aws: SageMaker(aws.sagemaker, quick_rates()).create_or_adopt(
        request_of(launch_message())
    ),
    "describe": lambda aws: SageMaker(aws.sagemaker, quick_rates()).describe("job"),
    "stop": lambda aws: SageMaker(aws.sagemaker, quick_rates()).stop("job"),
    "existing": lambda aws: SageMaker(aws.sagemaker, quick_rates()).existing(request_of(launch_message())),
    "changes": lambda aws: StatusFeed(aws.sagemaker, quick_rates(), since=0, now=lambda: 0.0).changes(),
    "streams": lambda aws: LogFeed(aws.logs, quick_rates(), Metrics(), breather=Breather()).streams("job"),
    "sweep": lambda aws: LogFeed(aws.logs, quick_rates(), Metrics(), breather=Breather()).sweep(
        {"s": NOTHING_TAKEN}
    ),
    "pages": pages,
    "receive": lambda aws: LaunchQueue(aws.sqs, FACTS).receive(1, wait=0, visibility=60),
    "hide": lambda aws: LaunchQueue(aws.sqs, FACTS).hide(MESSAGE, 0),
    "extend": lambda aws: LaunchQueue(aws.sqs, FACTS).extend([MESSAGE], 60),
    "delete": lambda aws: LaunchQueue(aws.sqs, FACTS).delete(MESSAGE),
    "send": lambda aws: LaunchQueue(aws.sqs, FACTS).send("body", "launch-1"),
    "copy_to_dlq": lambda aws: LaunchQueue(aws.sqs, FACTS).copy_to_dlq("body", "launch-1", {"reason": "r"}),
    "queue_facts": lambda aws: queue_facts(aws.sqs, FACTS.url, ""),
    "caller_identity": lambda aws: caller_identity(aws.sts),
}


def client_error(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "told by AWS"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "Operation",
    )


@pytest.mark.parametrize("code", sorted(THROTTLING_CODES))
@pytest.mark.parametrize("status", [400, 403, 503])
def test_throttling_is_throttling_under_any_name_and_status(code: str, status: int) -> None:
    assert isinstance(translate("Op", client_error(code, status)), Throttled)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("AnythingElse", 429, Throttled),
        ("ExpiredToken", 403, AwsDenied),
        ("ExpiredTokenException", 400, AwsDenied),
        ("UnrecognizedClientException", 400, AwsDenied),
        ("InvalidSignatureException", 403, AwsDenied),
        ("AccessDenied", 403, NotPermitted),
        ("AccessDeniedException", 400, NotPermitted),
        ("KMSAccessDenied", 403, NotPermitted),
        ("InternalFailure", 500, Unreachable),
        ("InternalError", 400, Unreachable),
        ("ServiceUnavailable", 503, Unreachable),
        ("", 502, Unreachable),
        ("ValidationException", 400, AwsRefused),
        ("com.amazonaws.sagemaker#ResourceInUse", 400, AwsRefused),
        ("SomethingNew", 400, AwsRefused),
    ],
)
def test_each_code_says_what_to_do(code: str, status: int, expected: type[WorkerError]) -> None:
    translated = translate("Op", client_error(code, status))
    assert type(translated) is expected
    assert "told by AWS" in str(translated)
    assert str(translated).startswith("Op: ")


def test_a_refusal_carries_awss_own_code_without_its_namespace() -> None:
    refused = translate("Op", client_error("com.amazonaws.sagemaker#ResourceInUse", 400))
    assert isinstance(refused, AwsRefused)
    assert (refused.aws_code, refused.code) == ("ResourceInUse", "LW-AWS-ResourceInUse")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoCredentialsError(), AwsDenied),
        (ConnectTimeoutError(endpoint_url="http://x"), Unreachable),
        (ReadTimeoutError(endpoint_url="http://x"), Unreachable),
        (EndpointConnectionError(endpoint_url="http://x"), Unreachable),
        (aiohttp.ClientOSError(), Unreachable),
        (TimeoutError(), Unreachable),
        (ConnectionResetError(), Unreachable),
        (ParamValidationError(report="wrong"), AwsRefused),
        (BotoCoreError(), Unreachable),
    ],
)
def test_no_answer_is_no_refusal(error: Exception, expected: type[WorkerError]) -> None:
    assert type(translate("Op", error)) is expected


async def test_a_call_tells_its_rate_how_it_ended() -> None:
    rate = Rate("ListTrainingJobs", 1000, Metrics())

    async def throttled() -> None:
        raise client_error("ThrottlingException", 400)

    async def refused() -> None:
        raise client_error("ValidationException", 400)

    with pytest.raises(AwsRefused) as told:
        await call("Op", refused, rate)
    assert rate.per_second == 500, "a refusal says nothing about the pace"
    assert isinstance(told.value.__cause__, ClientError)
    with pytest.raises(Throttled):
        await call("Op", throttled, rate)
    assert rate.per_second == 250


async def test_a_defect_of_ours_is_not_taken_for_trouble_of_awss() -> None:
    async def defect() -> None:
        raise KeyError("Environment")

    with pytest.raises(KeyError):
        await call("Op", defect)


FAILURES: dict[str, tuple[Callable[[], Exception | web.Response], type[WorkerError]]] = {
    "throttled": (lambda: AwsError("ThrottlingException"), Throttled),
    "expired": (lambda: AwsError("ExpiredTokenException", status=403), AwsDenied),
    "denied": (lambda: AwsError("AccessDeniedException", status=403), AwsDenied),
    "broken": (lambda: AwsError("InternalFailure", status=500), Unreachable),
    "unavailable": (lambda: web.Response(status=503, text="<html>try later</html>"), Unreachable),
    "hung up": (HangUp, Unreachable),
    "torn": (lambda: HangUp(b'{"Messages": ['), Unreachable),
}


@pytest.mark.parametrize("method", METHODS)
async def test_each_adapter_method_fails_with_an_error_of_ours(
    aws: AwsClients, aws_server: AwsServer, method: str
) -> None:
    for name, (failure, expected) in FAILURES.items():
        aws_server.failures = {"*": [failure()]}
        with pytest.raises(WorkerError) as told:
            await METHODS[method](aws)
        assert isinstance(told.value, expected), f"{name}: {told.value!r}"
        assert isinstance(told.value, Again)
        assert aws_server.failures == {"*": []}, "it was called once: botocore's own retries are off"


@pytest.mark.parametrize("method", METHODS)
async def test_a_refusal_is_never_again(aws: AwsClients, aws_server: AwsServer, method: str) -> None:
    if method == "existing":
        aws_server.failures = {"*": [AwsError("InvalidThing")]}
        assert await METHODS[method](aws) is None, "asked whether it is there"
        return
    aws_server.failures = {"*": [AwsError("InvalidThing")]}
    with pytest.raises((Never, SettingsError)):
        await METHODS[method](aws)


async def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, aws_server: AwsServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        async with aws_clients() as aws:
            for method in METHODS.values():
                with pytest.raises(Unreachable):
                    await method(aws)


async def test_without_credentials_somebody_has_to_give_them(
    monkeypatch: pytest.MonkeyPatch, aws_server: AwsServer
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with aws_clients() as aws:
        with pytest.raises(AwsDenied, match="credentials"):
            await METHODS["describe"](aws)


async def test_a_missing_region_or_profile_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="AWS_REGION"):
        async with aws_clients():
            raise AssertionError
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SettingsError, match="AWS_PROFILE"):
        async with aws_clients("us-east-1"):
            raise AssertionError


async def test_a_cancelled_call_is_cancelled(aws: AwsClients, aws_server: AwsServer) -> None:
    started = asyncio.Event()

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        started.set()
        return {}

    aws_server.answers["ReceiveMessage"] = answer
    task = asyncio.ensure_future(METHODS["receive"](aws))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await METHODS["receive"](aws) == []
    assert started.is_set()


async def test_no_room_is_an_again_of_its_own(aws: AwsClients, aws_server: AwsServer) -> None:
    aws_server.fail_next("CreateTrainingJob", AwsError("ResourceLimitExceeded"))
    with pytest.raises(QuotaExceeded):
        await METHODS["create"](aws)


def test_a_page_in_place_of_an_answer_is_told_in_a_line() -> None:
    page = client_error("503", 503)
    page.response["Error"]["Message"] = "<!doctype html>\n<html lang=en>\n<title>503</title>\n"
    assert str(translate("Op", page)) == "Op: AWS failed with 503: an HTML page in place of an answer"
