"""`launch-worker doctor` against the local stack: nothing wrong, and each of many faults planted alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from typer.testing import CliRunner

from tests.fakes.aws_errors import AwsError
from tests.fakes.aws_server import AwsServer, serving_aws
from tests.unit.launches import message
from worker.cli import app
from worker.doctor.check import Check, Verdict
from worker.doctor.examination import all_well, examine
from worker.ledger.dynamodb import create_table_request, ensure_ttl
from worker.local.aws import ACCOUNT
from worker.local.stack import LocalServices, running_stack
from worker.settings import load_settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]

ROLE = f"arn:aws:iam::{ACCOUNT}:role/launch-training"
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "size": 1,
        "digest": "sha256:1",
    },
    "layers": [],
}
INSTANCE = "ml.m5.large"


@dataclass
class Clinic:
    """The stack, and what a worker on it would be given."""

    services: LocalServices
    fake: AwsServer
    environment: dict[str, str]
    body: dict[str, Any]

    def is_around(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """What the command finds: the environment, in an empty folder."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", str(folder))

    async def examine(self, monkeypatch: pytest.MonkeyPatch, *, with_message: bool = True) -> list[Check]:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        body = json.dumps(self.body) if with_message else None
        return list(await examine(load_settings(None, self.environment), body, lambda _: None))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stack() -> AsyncIterator[LocalServices]:
    async with running_stack(executor="process") as services:
        session, url = services.aws.session(), services.aws_endpoint
        async with session.client("iam", endpoint_url=url) as iam:
            nobody = json.dumps({"Version": "2012-10-17", "Statement": []})
            await iam.create_role(RoleName="untrusting", AssumeRolePolicyDocument=nobody)
        async with session.client("dynamodb", endpoint_url=url) as dynamodb:
            await dynamodb.create_table(**create_table_request("forgets-nothing"))
            earlier = create_table_request("earlier")
            for index in earlier["GlobalSecondaryIndexes"]:
                index["Projection"] = {"ProjectionType": "ALL"}
            await dynamodb.create_table(**earlier)
            await ensure_ttl(dynamodb, "earlier")
            await dynamodb.create_table(
                TableName="bare",
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            )
        async with session.client("sqs", endpoint_url=url) as sqs:
            await sqs.create_queue(QueueName="no-redrive")
            policy = {
                "deadLetterTargetArn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:launches-dlq",
                "maxReceiveCount": 3,
            }
            await sqs.create_queue(QueueName="hasty", Attributes={"RedrivePolicy": json.dumps(policy)})
            await sqs.create_queue(QueueName="forgetful", Attributes={"MessageRetentionPeriod": "3600"})
        async with session.client("ecr", endpoint_url=url) as ecr:
            await ecr.create_repository(repositoryName="train")
            await ecr.put_image(repositoryName="train", imageTag="1", imageManifest=json.dumps(MANIFEST))
        services.wandb.queue("acme", "gpu")
        yield services


@pytest_asyncio.fixture(loop_scope="module")
async def clinic(stack: LocalServices, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clinic]:
    """A stack without a fault."""
    body = message(docker={"docker_image": f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/train:1"})
    arguments = body["runSpec"]["resource_args"]["sagemaker"]
    arguments["RoleArn"] = ROLE
    arguments["OutputDataConfig"] = {"S3OutputPath": "s3://launch-dev/out"}
    arguments["ResourceConfig"] = {"InstanceType": INSTANCE, "InstanceCount": 1, "VolumeSizeInGB": 10}
    async with serving_aws(monkeypatch) as fake:
        fake.answers["ListServiceQuotas"] = lambda _: {
            "Quotas": [{"QuotaName": f"{INSTANCE} for training job usage", "Value": 4.0}]
        }
        environment = {
            **stack.environment,
            "AWS_ENDPOINT_URL_SERVICE_QUOTAS": fake.url,
            "LAUNCH_WANDB_QUEUES": "gpu",
            "LAUNCH_BUILD_LOW_WATER": "1",
        }
        yield Clinic(stack, fake, environment, body)


def only(found: list[Check]) -> Check:
    assert len(found) == 1, found
    return found[0]


def crosses(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.verdict is Verdict.FAILED]


async def test_a_stack_without_fault_has_no_cross(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = await clinic.examine(monkeypatch)
    assert crosses(checks) == []
    assert all_well(checks)
    names = [check.name for check in checks]
    wanted = ["settings", "credentials", "region", "clock", "queue", "visibility", "redrive", "dead letters"]
    assert names[:8] == wanted
    for name in (
        "ledger", "ledger expiry", "registry login", "registry", "docker", "disk", "IAM", "execution role",
        "log group", "W&B login", "W&B features", "W&B entity", "W&B queues", "message", "image", "quota", "output",
    ):  # fmt: skip
        assert name in names


async def test_looking_changes_nothing(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    session, url = clinic.services.aws.session(), clinic.services.aws_endpoint
    async with (
        session.client("sqs", endpoint_url=url) as sqs,
        session.client("dynamodb", endpoint_url=url) as dynamodb,
    ):
        await sqs.send_message(QueueUrl=clinic.services.queue_url, MessageBody="waiting")
        await clinic.examine(monkeypatch)
        (received,) = (
            await sqs.receive_message(
                QueueUrl=clinic.services.queue_url, MessageSystemAttributeNames=["ApproximateReceiveCount"]
            )
        )["Messages"]
        assert received["Attributes"]["ApproximateReceiveCount"] == "1"
        await sqs.purge_queue(QueueUrl=clinic.services.queue_url)
        assert (await dynamodb.scan(TableName=clinic.services.table))["Count"] == 0
    assert clinic.services.sagemaker.jobs._jobs == {}


ROUNDS: list[tuple[dict[str, str], dict[str, str]]] = [
    (  # variables, and for each check that must fail a part of the remedy that must be named
        {
            "LAUNCH_QUEUE_URL": "",
            "LAUNCH_LEDGER": "dynamodb://gone",
            "LAUNCH_REGISTRY": "{registry}-gone",
            "WANDB_API_KEY": "",
            "LAUNCH_ALLOWED_REGIONS": "eu-west-1",
        },
        {
            "region": "add us-east-1",
            "queue": "give the URL",
            "ledger": "create it with: aws dynamodb create-table --table-name gone ",
            "registry": "create-repository",
            "W&B login": "WANDB_API_KEY",
        },
    ),
    (
        {
            "LAUNCH_QUEUE_URL": "{aws}/123456789012/gone",
            "LAUNCH_LEDGER": "dynamodb://bare",
            "LAUNCH_REGISTRY": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/train",
            "WANDB_BASE_URL": "http://127.0.0.1:1",
            "DOCKER_HOST": "tcp://127.0.0.1:1",
        },
        {
            "region": "AWS_REGION=eu-west-1",
            "queue": "correct LAUNCH_QUEUE_URL",
            "ledger": "add it, or set LAUNCH_LEDGER=dynamodb://bare-launches and create it with: aws dynamodb",
            "docker": "start docker",
            "W&B login": "WANDB_BASE_URL",
        },
    ),
    (
        {
            "LAUNCH_QUEUE_URL": "{aws}/123456789012/no-redrive",
            "LAUNCH_LEDGER": "sqlite:////nowhere/ledger.db",
            "LAUNCH_BUILD_LOW_WATER": str(10**18),
            "LAUNCH_ENTITY": "strangers",
            "LAUNCH_LEASE": "5",
        },
        {
            "visibility": "heartbeats",
            "dead letters": "redrive policy",
            "ledger": "mkdir",
            "disk": "make room",
            "W&B entity": "LAUNCH_ENTITY",
        },
    ),
    (
        {
            "LAUNCH_QUEUE_URL": "{aws}/123456789012/hasty",
            "LAUNCH_DLQ_URL": "{aws}/123456789012/gone",
            "LAUNCH_LEDGER": "sqlite:////dev/shm/ledger.db",
            "LAUNCH_WANDB_QUEUES": "gpu,tpu",
        },
        {
            "redrive": "1000",
            "dead letters": "create it",
            "ledger": "volume",
            "W&B queues": "LAUNCH_WANDB_QUEUES",
        },
    ),
    (
        {
            "LAUNCH_QUEUE_URL": "{aws}/123456789012/forgetful",
            "LAUNCH_DLQ_URL": "{aws}/123456789012/launches-dlq",
            "LAUNCH_LEDGER": "dynamodb://forgets-nothing",
        },
        {"queue": "MessageRetentionPeriod", "ledger expiry": "update-time-to-live"},
    ),
]


@pytest.mark.parametrize(("changes", "expected"), ROUNDS)
async def test_planted_faults_of_the_settings_are_found_and_nothing_else(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    stack = clinic.services
    clinic.environment |= {
        variable: value.format(aws=stack.aws_endpoint, registry=stack.registry)
        for variable, value in changes.items()
    }
    found = {
        check.name: check.remedy for check in crosses(await clinic.examine(monkeypatch, with_message=False))
    }
    assert found.keys() == expected.keys()
    assert [name for name, remedy in expected.items() if remedy not in found[name]] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {
                "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/gone",
                "OutputDataConfig": {"S3OutputPath": "s3://gone-bucket/x"},
                "ResourceConfig": {"InstanceType": INSTANCE, "InstanceCount": 5, "VolumeSizeInGB": 10},
            },
            {"execution role": "create the role", "output": "create it", "quota": "Service Quotas"},
        ),
        ({"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/untrusting"}, {"execution role": "trust policy"}),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, {"message": ""}),
    ],
)
async def test_planted_faults_of_a_message_are_found_and_nothing_else(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, arguments: Mapping[str, Any], expected: Mapping[str, str]
) -> None:
    clinic.body["runSpec"]["resource_args"]["sagemaker"] |= arguments
    found = {check.name: check.remedy for check in crosses(await clinic.examine(monkeypatch))}
    assert found.keys() == expected.keys()
    assert [name for name, remedy in expected.items() if remedy not in found[name]] == []


async def test_a_table_of_an_earlier_version_is_well_and_told_to_cost_more(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.environment["LAUNCH_LEDGER"] = "dynamodb://earlier"
    checks = await clinic.examine(monkeypatch, with_message=False)
    assert crosses(checks) == []
    ledger = only([check for check in checks if check.name == "ledger"])
    assert "holder-index projects ALL, so each write is paid twice" in ledger.detail
    clinic.environment["LAUNCH_LEDGER"] = clinic.services.environment["LAUNCH_LEDGER"]
    checks = await clinic.examine(monkeypatch, with_message=False)
    assert "projects" not in only([check for check in checks if check.name == "ledger"]).detail


async def test_an_image_that_is_not_in_ecr_is_found(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.body["runSpec"]["docker"]["docker_image"] = f"{clinic.services.registry}:gone"
    found = only(crosses(await clinic.examine(monkeypatch)))
    assert (found.name, "push it first" in found.remedy) == ("image", True)


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [("s3://launch-dev/gone.tar.gz", "upload"), ("https://127.0.0.1:1/acme/nlp.git", "")],
)
async def test_a_source_that_is_not_there_is_found(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, uri: str, remedy: str
) -> None:
    spec = clinic.body["runSpec"]
    del spec["docker"]
    spec |= {"uri": uri, "overrides": {"entry_point": ["python", "train.py"]}}
    found = only(crosses(await clinic.examine(monkeypatch)))
    assert (found.name, remedy in found.remedy) == ("source", True)


async def test_a_wandb_key_that_is_refused_is_found(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.services.wandb.fault("Viewer", status=401)
    found = only(crosses(await clinic.examine(monkeypatch, with_message=False)))
    assert (found.name, "WANDB_API_KEY" in found.remedy) == ("W&B login", True)


@pytest.mark.parametrize(
    ("service", "operation", "action"),
    [
        ("SAGEMAKER", "DescribeTrainingJob", "sagemaker:DescribeTrainingJob"),
        ("CLOUDWATCH_LOGS", "FilterLogEvents", "logs:FilterLogEvents"),
    ],
)
async def test_an_action_that_is_denied_is_found(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, service: str, operation: str, action: str
) -> None:
    clinic.environment[f"AWS_ENDPOINT_URL_{service}"] = clinic.fake.url
    clinic.fake.answers |= {name: lambda _: {} for name in ("ListTrainingJobs", "DescribeTrainingJob")}
    clinic.fake.answers |= {
        "DescribeLogStreams": lambda _: {"logStreams": []},
        "FilterLogEvents": lambda _: {},
    }
    clinic.fake.fail_next(operation, AwsError("AccessDeniedException", "no", status=400))
    found = only(crosses(await clinic.examine(monkeypatch, with_message=False)))
    assert (found.name, action in found.remedy) == (f"IAM {action}", True)


async def test_credentials_that_are_refused_are_found_and_the_rest_is_left_out(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.environment["AWS_ENDPOINT_URL_STS"] = clinic.fake.url
    clinic.fake.fail_next("", AwsError("InvalidClientTokenId", "no such key", status=403))
    checks = await clinic.examine(monkeypatch)
    assert [check.name for check in crosses(checks)] == ["credentials"]
    assert {"queue", "ledger", "IAM"} <= {c.name for c in checks if c.verdict is Verdict.SKIPPED}
    assert "W&B login" in {c.name for c in checks if c.verdict is Verdict.OK}


async def test_a_network_that_does_not_lead_to_aws_is_not_called_a_missing_role(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it looks as well with a Region that does not exist: its endpoint has no address."""
    clinic.environment["AWS_ENDPOINT_URL_STS"] = "http://127.0.0.1:1"
    checks = await clinic.examine(monkeypatch)
    found = only(crosses(checks))
    assert (found.name, "AWS_REGION (us-east-1)" in found.remedy) == ("credentials", True)
    assert "role" not in found.remedy
    assert "message" in {c.name for c in checks if c.verdict is Verdict.SKIPPED}, "it was given"


async def test_who_gave_a_message_is_not_asked_for_one(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    del clinic.body["runSpec"]["resource_args"]
    checks = await clinic.examine(monkeypatch)
    assert {check.name for check in crosses(checks)} == {"message"}
    assert not any("give --message FILE to have" in check.detail for check in checks)


async def test_no_secret_is_in_a_finding(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = await clinic.examine(monkeypatch)
    key = clinic.environment["WANDB_API_KEY"]
    assert not any(key in f"{check.detail} {check.remedy}" for check in checks)


IDENTITY = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:iam::123456789012:user/dev</Arn><UserId>dev</UserId><Account>123456789012</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>"""


async def test_a_clock_that_is_wrong_is_found(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.environment["AWS_ENDPOINT_URL_STS"] = clinic.fake.url
    early = format_datetime(datetime.now(UTC) - timedelta(minutes=4), usegmt=True)
    answer = web.Response(text=IDENTITY, content_type="text/xml", headers={"Date": early})
    clinic.fake.fail_next("", answer)
    found = only(crosses(await clinic.examine(monkeypatch, with_message=False)))
    assert (found.name, "NTP" in found.remedy) == ("clock", True)
    assert "s ahead of AWS" in found.detail


async def test_the_command_tells_crosses_by_its_exit_code_and_remedies_to_people_and_programs(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clinic.is_around(monkeypatch, tmp_path)
    (tmp_path / "launch.json").write_text(json.dumps(clinic.body))
    command = ("doctor", "--message", "launch.json")
    well = await asyncio.to_thread(CliRunner().invoke, app, [*command, "--json"])
    assert well.exit_code == 0, well.output
    assert {check["verdict"] for check in json.loads(well.stdout)} == {"ok", "skipped"}
    clinic.body["runSpec"]["docker"]["docker_image"] = f"{clinic.services.registry}:gone"
    (tmp_path / "launch.json").write_text(json.dumps(clinic.body))
    ill = await asyncio.to_thread(CliRunner().invoke, app, [*command, "--json"])
    assert ill.exit_code == 1
    (cross,) = [check for check in json.loads(ill.stdout) if check["verdict"] == "failed"]
    assert (cross["name"], "push it first" in cross["remedy"]) == ("image", True)
    told = await asyncio.to_thread(CliRunner().invoke, app, [*command])
    assert told.exit_code == 1
    (at,) = [number for number, line in enumerate(told.stdout.splitlines()) if line.startswith("✗ image")]
    assert told.stdout.splitlines()[at + 1].strip().startswith("→ ")


async def test_a_message_without_an_id_is_not_promised_a_name(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for identity in ({"launchId": "mine"}, {}):
        body = {k: v for k, v in clinic.body.items() if k not in ("launchId", "runQueueItemId")}
        clinic.body = {**body, **identity}
        checks = await clinic.examine(monkeypatch)
        told.append(only([check for check in checks if check.name == "message"]).detail)
    assert told[0].startswith("becomes the training job ")
    assert told[1].endswith("it has no launchId: a new id each time it is sent")


async def test_a_queue_that_is_not_there_is_told_with_the_region(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.environment["LAUNCH_QUEUE_URL"] = "https://sqs.eu-west-1.amazonaws.com/123456789012/gone"
    found = {check.name: check for check in crosses(await clinic.examine(monkeypatch, with_message=False))}
    assert found.keys() == {"region", "queue"}
    assert found["queue"].detail.endswith("(asked in us-east-1)")


async def test_a_service_that_fails_is_no_fault_of_the_launch(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.fake.fail_next("ListServiceQuotas", AwsError("InternalFailure", "no", status=500))
    checks = await clinic.examine(monkeypatch)
    assert crosses(checks) == []
    assert [check.verdict for check in checks if check.name == "quota"] == [Verdict.SKIPPED]


async def test_a_message_that_is_no_text_is_one_finding_as_broken_json_is(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clinic.is_around(monkeypatch, tmp_path)
    (tmp_path / "bin.json").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "broken.json").write_text('{"a": ')
    found = []
    for file in ("bin.json", "broken.json"):
        told = await asyncio.to_thread(CliRunner().invoke, app, ["doctor", "--message", file, "--json"])
        assert (told.exit_code, told.stderr) == (1, "")
        found.append(json.loads(told.stdout))
    of_bytes, of_text = found
    assert [check["name"] for check in of_bytes] == [check["name"] for check in of_text]
    crosses = [(check["name"], check["remedy"]) for check in of_bytes if check["verdict"] == "failed"]
    assert crosses == [("message", "save the file as UTF-8")]
    (role,) = [check["detail"] for check in of_bytes if check["name"] == "execution role"]
    assert role == "none is named: correct the message, or a full ARN in LAUNCH_ALLOWED_ROLES"
