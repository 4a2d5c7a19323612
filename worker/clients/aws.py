"""AWS: one session with refreshing credentials, one client a service, errors translated by code.

botocore's own retries are off: a caller that tries again asks its rate again, so that a rate sees every throttle.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aioboto3
import aiohttp
import botocore.session
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError

from worker.clients.aws_answers import AnswerWatch, AwsClock, take_events_as_they_are
from worker.clients.service_models import model_loader
from worker.errors import Again, Never, SettingsError, Stage, Throttled, Unreachable, WorkerError
from worker.ops.rates import Rate

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_ecr import ECRClient
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sagemaker import SageMakerClient
    from types_aiobotocore_secretsmanager import SecretsManagerClient
    from types_aiobotocore_sqs import SQSClient
    from types_aiobotocore_ssm import SSMClient
    from types_aiobotocore_sts import STSClient

T = TypeVar("T")

THROTTLING_CODES = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "ProvisionedThroughputExceededException",
        "SlowDown",
        "OverLimit",
        "BandwidthLimitExceeded",
    }
)
"""Codes by which AWS services say 'slower' (botocore, retries/standard.py)."""

_CREDENTIAL_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "RequestTimeTooSkewed",
    }
)
_DENIED_CODES = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"})


class AwsRefused(Never):
    """AWS understood the request and said no. `aws_code` is AWS's error code."""

    def __init__(self, operation: str, aws_code: str, message: str) -> None:
        super().__init__(f"{operation}: {aws_code}: {message}", code=f"LW-AWS-{aws_code}", stage=Stage.RUN)
        self.operation = operation
        self.aws_code = aws_code
        self.aws_message = message


class AwsDenied(Again):
    """The worker's credentials or its IAM policy do not allow the call. Somebody can mend that, so: again."""


class NotPermitted(AwsDenied):
    """The IAM policy lacks the action; the credentials are good."""


def translate(operation: str, error: Exception) -> WorkerError:
    """The `WorkerError` that says what to do about an error of aiobotocore; the original goes along as its cause."""
    if isinstance(error, ClientError):
        return _translate_client_error(operation, error)
    if isinstance(error, ParamValidationError):
        return AwsRefused(operation, "ParamValidation", str(error))
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return AwsDenied(f"{operation}: no AWS credentials found; give the task or instance a role")
    if isinstance(error, HTTPClientError | aiohttp.ClientError | TimeoutError | OSError):
        return Unreachable(f"{operation}: no answer from AWS: {error}")
    return Unreachable(f"{operation}: {type(error).__name__}: {error}")


def _translate_client_error(operation: str, error: ClientError) -> WorkerError:
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), _in_a_line(str(details.get("Message", "")))
    code = code.rpartition("#")[2]
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in THROTTLING_CODES or status == 429:
        return Throttled(f"{operation}: throttled by AWS: {message}")
    if code in _CREDENTIAL_CODES:
        return AwsDenied(f"{operation}: {code}: {message}; the credentials expired or the clock is wrong")
    if code in _DENIED_CODES or status == 403:
        return NotPermitted(f"{operation}: {code}: {message}; allow it in the worker's IAM policy")
    if status >= 500 or code in {"InternalFailure", "InternalError", "ServiceUnavailable"}:
        what = str(status) if code == str(status) else f"{status} {code}"
        return Unreachable(f"{operation}: AWS failed with {what}: {message}")
    return AwsRefused(operation, code, message)


def _in_a_line(message: str) -> str:
    """What stands before a service, or plays it, answers with a page of its own."""
    is_page = message.lstrip().lower().startswith(("<!doctype html", "<html"))
    return "an HTML page in place of an answer" if is_page else " ".join(message.split())


async def call(
    operation: str, send: Callable[[], Awaitable[T]], rate: Rate | None = None, *, acquired: bool = False
) -> T:
    """One paced call: waits for the rate, sends, tells the rate how it went, translates the error.

    `acquired`: the caller has waited for the rate already.
    Raises `Throttled`, `Unreachable`, `AwsDenied` or `AwsRefused`."""
    if rate is not None and not acquired:
        await rate.acquire()
    if rate is not None:
        rate.sent()
    try:
        answer = await send()
    except (ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError) as error:
        translated = translate(operation, error)
        if rate is not None and isinstance(translated, Throttled):
            rate.throttled()
        raise translated from error
    if rate is not None:
        rate.succeeded()
    return answer


@functools.cache
def ecr_regions() -> frozenset[str]:
    """The Regions that have ECR, of all partitions, as botocore's own data lists them; asks no network."""
    session = botocore.session.get_session()
    session.register_component("data_loader", model_loader())
    partitions = session.get_available_partitions()
    return frozenset(
        region for partition in partitions for region in session.get_available_regions("ecr", partition)
    )


@dataclass(frozen=True, slots=True)
class AwsClients:
    """One client a service, open for the life of the process."""

    region: str
    sqs: SQSClient
    sagemaker: SageMakerClient
    logs: CloudWatchLogsClient
    sts: STSClient
    dynamodb: DynamoDBClient
    ecr: ECRClient
    s3: S3Client
    clock: AwsClock
    """AWS's time."""


def client_config() -> AioConfig:
    """What holds for every client: no retries of its own, bounded waits."""
    # Reading must outlast SQS's 20 s long poll. 50 connections: slots and submits run side by side.
    return AioConfig(
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=50,
        user_agent_extra="launch-worker",
    )


@contextlib.asynccontextmanager
async def ecr_client(region: str) -> AsyncIterator[ECRClient]:
    """A client of ECR in another Region, for base images that lie there: tokens hold for one Region."""
    async with aioboto3.Session().client("ecr", region_name=region, config=client_config()) as client:
        yield client


@contextlib.asynccontextmanager
async def secrets_client(region: str = "") -> AsyncIterator[SecretsManagerClient]:
    """A client of Secrets Manager, open for the reading of one secret."""
    session = aioboto3.Session(region_name=region or None)
    async with session.client("secretsmanager", config=client_config()) as client:
        yield client


@contextlib.asynccontextmanager
async def parameters_client(region: str = "") -> AsyncIterator[SSMClient]:
    """A client of Systems Manager's parameter store, open for the reading of one parameter."""
    session = aioboto3.Session(region_name=region or None)
    async with session.client("ssm", config=client_config()) as client:
        yield client


@contextlib.asynccontextmanager
async def iam_client(region: str) -> AsyncIterator[Any]:
    """A client of IAM, for `doctor`: the worker itself asks IAM nothing."""
    async with aioboto3.Session(region_name=region).client("iam", config=client_config()) as client:
        yield client


@contextlib.asynccontextmanager
async def quotas_client(region: str) -> AsyncIterator[Any]:
    """A client of Service Quotas, for `doctor`."""
    session = aioboto3.Session(region_name=region)
    async with session.client("service-quotas", config=client_config()) as client:
        yield client


@contextlib.asynccontextmanager
async def aws_clients(region: str = "") -> AsyncIterator[AwsClients]:
    """Open the clients. Endpoints come from AWS's own variables (`AWS_ENDPOINT_URL…`).

    Raises `SettingsError` when there is no Region or no such profile."""
    config = client_config()
    async with contextlib.AsyncExitStack() as stack:
        try:
            base = AioSession()
            base.register_component("data_loader", model_loader())
            session = aioboto3.Session(region_name=region or None, botocore_session=base)

            enter = stack.enter_async_context
            clock = AwsClock()
            clients = AwsClients(
                region=session.region_name or "",
                sqs=await enter(session.client("sqs", config=config)),
                sagemaker=await enter(session.client("sagemaker", config=config)),
                logs=await enter(session.client("logs", config=config)),
                sts=await enter(session.client("sts", config=config)),
                dynamodb=await enter(session.client("dynamodb", config=config)),
                s3=await enter(session.client("s3", config=config)),
                ecr=await enter(session.client("ecr", config=config)),
                clock=clock,
            )
        except NoRegionError as error:
            raise SettingsError("AWS_REGION: no Region is set; set AWS_REGION") from error
        except ProfileNotFound as error:
            raise SettingsError(f"AWS_PROFILE: {error}") from error
        watch: Any = AnswerWatch(base, clock)  # may be awaitable, which the stubs do not know
        # Not S3, where an object may be HTML; its calls need no clock, and share the credentials that others renew.
        for client in (
            clients.sqs,
            clients.sagemaker,
            clients.logs,
            clients.sts,
            clients.dynamodb,
            clients.ecr,
        ):
            client.meta.events.register("after-call", watch)
        clients.logs.meta.events.register(
            "before-parse.cloudwatch-logs.FilterLogEvents", take_events_as_they_are
        )
        yield clients


@dataclass(frozen=True, slots=True)
class Caller:
    """Who the worker is in AWS (STS GetCallerIdentity)."""

    account: str
    partition: str
    arn: str = ""
    """Of the user, or of the session of a role."""


async def caller_identity(sts: STSClient) -> Caller:
    """Account and partition of the worker's credentials. Needs no IAM permission."""
    answer = await call("GetCallerIdentity", sts.get_caller_identity)
    return Caller(account=answer["Account"], partition=answer["Arn"].split(":")[1], arn=answer["Arn"])
