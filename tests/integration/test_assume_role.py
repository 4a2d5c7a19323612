"""SageMaker and CloudWatch Logs with another role's credentials, which are renewed before they end."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from botocore.exceptions import UnknownServiceError

from tests.fakes.aws_server import quick_rates
from worker.clients.aws import AwsClients, AwsDenied, aws_clients, call, caller_identity
from worker.clients.aws_role import TargetRole, with_role
from worker.clients.service_models import SERVICES, model_loader
from worker.errors import Again, SettingsError, Unreachable
from worker.local.aws import LocalAws, running_aws
from worker.training.sagemaker import SageMaker

ROLE = TargetRole("arn:aws:iam::210987654321:role/sagemaker-launcher", external_id="acme")
REFUSAL = "<ErrorResponse><Error><Code>{}</Code><Message>made by a test</Message></Error></ErrorResponse>"
CODES = {403: "AccessDenied", 400: "MalformedPolicyDocument", 503: "ServiceUnavailable"}


@dataclass
class Sts:
    """STS that gives out numbered credentials, and a SageMaker that notes whose it is called with."""

    url: str = ""
    lives: list[float] = field(default_factory=list)
    """Seconds that the next credentials hold, one after the other; then an hour."""
    refusals: list[int] = field(default_factory=list)
    """Status of the next answers of STS; 0: the true one."""
    asked: list[dict[str, str]] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)
    """Service and access key of every call that is not AssumeRole."""

    async def handle(self, request: web.Request) -> web.Response:
        key, service = re.findall(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/", request.headers["Authorization"])[
            0
        ]
        form = {name: values[0] for name, values in parse_qs((await request.read()).decode()).items()}
        if form.get("Action") != "AssumeRole":
            self.used.append((service, key))
            return web.json_response({"TrainingJobSummaries": []}, content_type="application/x-amz-json-1.1")
        self.asked.append({**form, "key": key})
        status = self.refusals.pop(0) if self.refusals else 0
        if status:
            return web.Response(status=status, text=REFUSAL.format(CODES[status]), content_type="text/xml")
        return web.Response(text=self._credentials(), content_type="text/xml")

    def _credentials(self) -> str:
        ends = datetime.now(UTC) + timedelta(seconds=self.lives.pop(0) if self.lives else 3600)
        number = len(self.asked)
        return (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
            f"<AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>secret{number}</SecretAccessKey>"
            f"<SessionToken>token{number}</SessionToken><Expiration>{ends:%Y-%m-%dT%H:%M:%SZ}</Expiration>"
            "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )


@pytest.fixture
async def sts(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sts]:
    server = Sts()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = "http://{}:{}".format(*runner.addresses[0][:2])
    point_to(server.url, monkeypatch)
    yield server
    await runner.cleanup()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIAWORKER",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


@contextlib.asynccontextmanager
async def clients(role: TargetRole = ROLE) -> AsyncIterator[AwsClients]:
    async with aws_clients() as own, with_role(own, role) as aws:
        yield aws


async def list_jobs(aws: AwsClients) -> None:
    await call("ListTrainingJobs", aws.sagemaker.list_training_jobs)


def test_the_role_tells_its_account() -> None:
    assert (ROLE.partition, ROLE.account) == ("aws", "210987654321")


async def test_sagemaker_and_logs_are_the_roles_and_all_else_the_workers(sts: Sts) -> None:
    async with clients() as aws:
        await list_jobs(aws)
        await call("DescribeLogStreams", lambda: aws.logs.describe_log_streams(logGroupName="g"))
        await call("ListTables", aws.dynamodb.list_tables)
        await call("DescribeRepositories", aws.ecr.describe_repositories)
    assert sts.used == [
        ("sagemaker", "ASIA1"),
        ("logs", "ASIA1"),
        ("dynamodb", "AKIAWORKER"),
        ("ecr", "AKIAWORKER"),
    ]
    (asked,) = sts.asked
    assert asked["key"] == "AKIAWORKER"
    assert (asked["RoleArn"], asked["ExternalId"]) == (ROLE.arn, "acme")
    assert asked["RoleSessionName"] == "launch-worker"


@pytest.mark.usefixtures("sts")
async def test_sagemakers_model_is_in_memory_once() -> None:
    """Of the worker's client, of the role's, and of what checks requests: it is 8 MiB."""
    once = model_loader().load_service_model("sagemaker", "service-2")["metadata"]
    async with aws_clients() as own, with_role(own, ROLE) as aws:
        assert own.sagemaker.meta.service_model.metadata is once
        assert aws.sagemaker.meta.service_model.metadata is once


def test_the_loader_knows_the_services_that_have_a_client_and_no_other() -> None:
    clients = {each.name for each in dataclasses.fields(AwsClients)} - {"region", "clock"}
    assert clients == set(SERVICES)
    with pytest.raises(UnknownServiceError):
        model_loader().load_service_model("ec2", "service-2")


async def test_no_external_id_is_sent_where_there_is_none(sts: Sts) -> None:
    async with clients(TargetRole(ROLE.arn)):
        assert "ExternalId" not in sts.asked[0]


async def test_credentials_are_renewed_before_they_end(sts: Sts) -> None:
    sts.lives = [300, 3600]
    async with clients() as aws:
        await list_jobs(aws)
        await list_jobs(aws)
    assert sts.used == [("sagemaker", "ASIA2")] * 2, "five minutes are too few, an hour is enough"
    assert [asked["key"] for asked in sts.asked] == ["AKIAWORKER"] * 2


async def test_a_role_that_does_not_trust_the_worker_is_a_wrong_setting(sts: Sts) -> None:
    sts.refusals = [403]
    with pytest.raises(SettingsError, match=r"^LAUNCH_ASSUME_ROLE: AssumeRole: AccessDenied") as raised:
        async with clients():
            pass
    assert "trust policy" in str(raised.value)
    assert ROLE.arn in str(raised.value)


async def test_sts_that_does_not_answer_at_the_start_is_no_wrong_setting(sts: Sts) -> None:
    sts.refusals = [503]
    with pytest.raises(Unreachable):
        async with clients():
            pass


@pytest.mark.parametrize(("status", "expected"), [(403, AwsDenied), (503, Unreachable), (400, AwsDenied)])
async def test_trouble_with_a_renewal_is_tried_again(sts: Sts, status: int, expected: type[Again]) -> None:
    sts.lives = [300]
    async with clients() as aws:
        sts.refusals = [status]
        with pytest.raises(expected, match="AssumeRole"):
            await SageMaker(aws.sagemaker, quick_rates()).existing({"TrainingJobName": "job"})
        assert sts.used == []
        await list_jobs(aws)
    assert sts.used == [("sagemaker", "ASIA3")]


async def test_the_real_sts_gives_credentials_of_the_roles_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto's STS knows whose credentials it gave out."""
    local: LocalAws
    async with running_aws() as local:
        point_to(local.endpoint, monkeypatch)
        async with clients() as aws:
            credentials = await aws.sagemaker._request_signer._credentials.get_frozen_credentials()  # type: ignore[attr-defined]
            assert (await caller_identity(aws.sts)).account == "123456789012"
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
            monkeypatch.setenv("AWS_SESSION_TOKEN", credentials.token)
            async with aws_clients() as theirs:
                assert (await caller_identity(theirs.sts)).account == ROLE.account
