"""Templates: no lint in any partition, no more rights than deploy/iam, and what they make is what workers need."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.deploy.policies import PARTITIONS, ROOT, policy
from tests.deploy.template import TEMPLATES, load, resolved
from tests.unit.records import WORKER, record
from worker.clients.aws import AwsClients, aws_clients
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.ledger.dynamodb import DynamoDbLedger, create_table_request
from worker.local.aws import LocalAws, running_aws

# Of alarms and metric filters, which it does not make.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Tried to parse AWS..(CloudWatch..Alarm|Logs..Metric|ApplicationAuto)"
)
BASE = ROOT / "deploy" / "cloudformation" / "base.yaml"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wandb-key-??????"
PARAMETERS = {
    "Name": "launch",
    "Deployment": "default",
    "Builds": "true",
    "SourceBucket": "launch-code",
    "InputBucket": "launch-in",
    "OutputBucket": "launch-out",
    "WandbSecretArn": SECRET,
}
NAMES = {
    **PARAMETERS,
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::AccountId": "123456789012",
    "AWS::URLSuffix": "amazonaws.com",
}


@pytest.mark.parametrize("partition", PARTITIONS)
def test_templates_are_free_of_lint(partition: str) -> None:
    region, _ = PARTITIONS[partition]
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--regions", region, "--format", "parseable"]
    ended = subprocess.run(
        [*command, *map(str, TEMPLATES)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (ended.stdout, ended.returncode) == ("", 0), ended.stderr


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_name_no_partition(path: Path) -> None:
    assert "arn:aws" not in path.read_text().replace("arn:[a-z-]+", "")


def _policies(role: str) -> list[dict[str, Any]]:
    """The statements of a role of base.yaml, in order."""
    resources = load(BASE)["Resources"]
    inline = [given["PolicyDocument"] for given in resources[role]["Properties"]["Policies"]]
    for resource in resources.values():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::IAM::Policy" and properties["Roles"] == [{"Ref": role}]:
            inline.append(properties["PolicyDocument"])
    conditions = {"HasBuilds": True}
    return [resolved(given, NAMES, conditions) for document in inline for given in document["Statement"]]


def _by_sid(statements: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({statement["Sid"] for statement in statements}) == len(statements)
    return {statement["Sid"]: statement for statement in statements}


VALUES = {
    "QUEUE": "launch-launches",
    "DEAD_LETTER_QUEUE": "launch-launches-dlq",
    "TABLE": "launch-ledger",
    "REPOSITORY": "launch-images",
    "JOB_ROLE": "launch-training-us-east-1",
    "SOURCE_BUCKET": "launch-code",
}


def test_the_workers_role_is_the_policy() -> None:
    wanted = policy("worker-builds.json", **VALUES)["Statement"]
    wanted += policy("optional/wandb-secret.json")["Statement"]
    assert _by_sid(_policies("WorkerRole")) == _by_sid(wanted)


def test_the_jobs_role_is_the_policy() -> None:
    assert _by_sid(_policies("JobRole")) == _by_sid(policy("execution-role.json", **VALUES)["Statement"])


def test_the_table_is_the_ledgers() -> None:
    properties = resolved(load(BASE)["Resources"]["Ledger"]["Properties"], NAMES, {})
    wanted: Mapping[str, Any] = create_table_request("launch-ledger")
    assert {name: properties[name] for name in wanted} == wanted
    assert properties["TimeToLiveSpecification"] == {"AttributeName": "expires", "Enabled": True}


@pytest.mark.parametrize("name", ["fargate.yaml", "builds.yaml"])
def test_tasks_have_settings_that_exist_and_time_to_drain(name: str) -> None:
    task = load(BASE.parent / name)["Resources"]["Task"]["Properties"]
    worker = task["ContainerDefinitions"][0]
    given = {variable["Name"]: variable["Value"] for variable in worker["Environment"]}
    known = (ROOT / ".env.example").read_text()
    for variable in given:
        assert f"#{variable}=" in known or variable in ("DOCKER_HOST", "HOME")
    grace = int(given["LAUNCH_SHUTDOWN_GRACE"].removesuffix("s"))
    assert grace < worker["StopTimeout"] <= 120
    assert not any(variable == "WANDB_API_KEY" for variable in given), "the secret stays where it is"


@dataclass(frozen=True)
class Made:
    """What a stack of base.yaml made in moto."""

    outputs: Mapping[str, str]
    aws: AwsClients
    local: LocalAws


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[Made]:
    async with running_aws() as local:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ENDPOINT_URL": local.endpoint,
                "AWS_ACCESS_KEY_ID": "local",
                "AWS_SECRET_ACCESS_KEY": "local",
                "AWS_REGION": local.region,
                "AWS_DEFAULT_REGION": local.region,
            }.items():
                patch.setenv(name, value)
            async with (
                local.session().client("cloudformation", endpoint_url=local.endpoint) as cloudformation,
                aws_clients() as aws,
            ):
                await cloudformation.create_stack(
                    StackName="launch",
                    TemplateBody=BASE.read_text(),
                    Capabilities=["CAPABILITY_NAMED_IAM"],
                    Parameters=[
                        {"ParameterKey": name, "ParameterValue": value.replace("??????", "AbCdEf")}
                        for name, value in PARAMETERS.items()
                    ],
                )
                (stack,) = (await cloudformation.describe_stacks(StackName="launch"))["Stacks"]
                assert stack["StackStatus"] == "CREATE_COMPLETE"
                outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
                yield Made(outputs, aws, local)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_worker_takes_messages_from_the_stacks_queue(made: Made) -> None:
    facts = await queue_facts(made.aws.sqs, made.outputs["QueueUrl"], "")
    # moto's CloudFormation knows AWS's own address only.
    assert facts.dlq_url.rpartition("/")[2] == made.outputs["DeadLetterQueueUrl"].rpartition("/")[2]
    queue = LaunchQueue(made.aws.sqs, facts)
    await queue.send("{}", "launch")
    (message,) = await queue.receive(1, wait=1, visibility=30)
    await queue.copy_to_dlq(message.body, "launch", {"code": "LW-TEST"})
    await queue.delete(message)
    answer = await made.aws.sqs.get_queue_attributes(QueueUrl=facts.url, AttributeNames=["RedrivePolicy"])
    assert json.loads(answer["Attributes"]["RedrivePolicy"])["maxReceiveCount"] == 1000


@pytest.mark.asyncio(loop_scope="module")
async def test_the_worker_keeps_its_ledger_in_the_stacks_table(made: Made) -> None:
    ledger = DynamoDbLedger(made.aws.dynamodb, made.outputs["LedgerAddress"].removeprefix("dynamodb://"))
    kept = record()
    assert await ledger.create(kept) is None
    assert await ledger.open_records(WORKER) == [kept]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_stack_has_repository_and_role(made: Made) -> None:
    async with made.local.session().client("iam", endpoint_url=made.local.endpoint) as iam:
        role = await iam.get_role(RoleName="launch-worker-us-east-1")
    assert role["Role"]["Arn"] == made.outputs["WorkerRoleArn"]
    repositories = await made.aws.ecr.describe_repositories(repositoryNames=["launch-images"])
    assert repositories["repositories"][0]["imageTagMutability"] == "IMMUTABLE"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_service_finds_what_the_base_has_made(made: Made) -> None:
    parameters = {
        "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-worker:1",
        "ImageRepositoryArn": "arn:aws:ecr:us-east-1:123456789012:repository/launch-worker",
        "Subnets": "subnet-1",
        "Vpc": "vpc-1",
    }
    session, url = made.local.session(), made.local.endpoint
    async with (
        session.client("cloudformation", endpoint_url=url) as cloudformation,
        session.client("ecs", endpoint_url=url) as ecs,
    ):
        await cloudformation.create_stack(
            StackName="worker",
            TemplateBody=(BASE.parent / "fargate.yaml").read_text(),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        )
        answer = await ecs.describe_task_definition(taskDefinition="worker-worker")
    task = answer["taskDefinition"]
    given = {
        variable["name"]: variable["value"] for variable in task["containerDefinitions"][0]["environment"]
    }
    assert given["LAUNCH_QUEUE_URL"] == made.outputs["QueueUrl"]
    assert given["LAUNCH_LEDGER"] == made.outputs["LedgerAddress"] == "dynamodb://launch-ledger"


def test_there_is_an_alarm_for_what_nobody_would_see() -> None:
    resources = load(BASE)["Resources"].values()
    alarms = [item["Properties"] for item in resources if item["Type"] == "AWS::CloudWatch::Alarm"]
    assert {alarm["MetricName"]: alarm["TreatMissingData"] for alarm in alarms} == {
        "ApproximateNumberOfMessagesVisible": "notBreaching",
        "ApproximateAgeOfOldestMessage": "notBreaching",
        "ConsumedWriteCapacityUnits": "breaching",
        "ThrottledCalls": "notBreaching",
    }
