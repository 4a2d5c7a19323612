"""Templates: no lint in any partition, no more rights than deploy/iam, and what they make is what workers need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from tests.deploy.enforcement import enforced, session_of
from tests.deploy.policies import PARTITIONS, ROOT, policy
from tests.deploy.template import TEMPLATES, load, resolved
from tests.e2e.audit import ended
from tests.e2e.bench import Bench, Clients, open_clients
from tests.e2e.launches import numbered
from worker.clients.aws import translate
from worker.launch.record import LaunchState
from worker.ledger.dynamodb import create_table_request
from worker.local.stack import WANDB_KEY, LocalServices, running_stack

# Of alarms and metric filters, which it does not make.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Tried to parse AWS..(CloudWatch..Alarm|Logs..Metric|ApplicationAuto)"
)
BASE = ROOT / "deploy" / "cloudformation" / "base.yaml"
FARGATE = BASE.parent / "fargate.yaml"
TRAINING_IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"
"""A job is a process here, so nobody pulls it."""
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


def test_templates_are_free_of_lint() -> None:
    """In a Region of each partition."""
    regions = [region for region, _ in PARTITIONS.values()]
    command = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "--regions",
        *regions,
        "--format",
        "parseable",
    ]
    ended = subprocess.run(
        [*command, "--template", *map(str, TEMPLATES)], capture_output=True, text=True, check=False, cwd=ROOT
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


def test_the_daemon_of_builds_is_reached_by_its_socket_only() -> None:
    """Without arguments the entry point of docker's image opens it to the network, without a login."""
    task = load(BASE.parent / "builds.yaml")["Resources"]["Task"]["Properties"]
    (_, daemon, _) = task["ContainerDefinitions"][1]["Fn::If"]
    assert daemon["Command"] == ["dockerd", "--host=unix:///run/user/1000/docker.sock"]


@dataclass(frozen=True)
class Made:
    """What stacks of base.yaml and fargate.yaml made in moto."""

    outputs: Mapping[str, str]
    """Of base.yaml."""
    task: Mapping[str, str]
    """The environment of the worker's container."""
    services: LocalServices
    clients: Clients


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[Made]:
    async with running_stack(executor="process", stop_grace=1) as services, open_clients(services) as clients:
        session, url = services.aws.session(), services.aws_endpoint
        async with (
            session.client("cloudformation", endpoint_url=url) as cloudformation,
            session.client("secretsmanager", endpoint_url=url) as secrets,
            session.client("ecs", endpoint_url=url) as ecs,
        ):
            secret = await secrets.create_secret(Name="wandb-key", SecretString=WANDB_KEY)
            base = {**PARAMETERS, "Name": "acme", "WandbSecretArn": secret["ARN"]}
            outputs = await _stack(cloudformation, "launch", BASE.read_text(), base)
            service = {
                "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-worker:1",
                "ImageRepositoryArn": "arn:aws:ecr:us-east-1:123456789012:repository/launch-worker",
                "Subnets": "subnet-1",
                "Vpc": "vpc-1",
                "WandbBaseUrl": services.wandb.base_url,
            }
            await _stack(cloudformation, "worker", FARGATE.read_text(), service)
            answer = await ecs.describe_task_definition(taskDefinition="worker-worker")
        (container,) = answer["taskDefinition"]["containerDefinitions"]
        task = {variable["name"]: variable["value"] for variable in container["environment"]}
        yield Made(outputs, task, services, clients)


async def _stack(
    cloudformation: Any, name: str, template: str, parameters: Mapping[str, str]
) -> dict[str, str]:
    """Make a stack; returns its outputs."""
    await cloudformation.create_stack(
        StackName=name,
        TemplateBody=template,
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    (stack,) = (await cloudformation.describe_stacks(StackName=name))["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_worker_runs_on_what_the_stacks_made(made: Made, tmp_path: Path) -> None:
    """With the task's environment and role: a job to its end, its log, and a refused message in the DLQ."""
    role = session_of(made.outputs["WorkerRoleArn"].rpartition("/")[2])
    bench = Bench(
        services=made.services,
        clients=made.clients,
        image=TRAINING_IMAGE,
        folder=tmp_path,
        deployment=made.task["LAUNCH_DEPLOYMENT"],
        queue_url=made.outputs["QueueUrl"],
        dlq_url=made.outputs["DeadLetterQueueUrl"],
        ledger=made.outputs["LedgerAddress"],
        # WANDB_API_KEY: of the local stack; here it comes from Secrets Manager.
        environment={**made.task, **role.environment, "WANDB_API_KEY": "", "LAUNCH_SHUTDOWN_GRACE": "5"},
    )
    (sagemaker,) = bench.launch().message["runSpec"]["resource_args"].values()
    arguments = {"sagemaker": {**sagemaker, "RoleArn": made.outputs["JobRoleArn"]}}
    case = bench.launch(lines := numbered(3), resource_args=arguments)
    with enforced() as denials:
        worker = await bench.started()
        try:
            await bench.send(case, "{}")
            await ended(bench, case)
            assert len(await bench.dead_letters(1)) == 1
            worker.terminate()
            assert await worker.exit_code() == 0
        finally:
            await worker.end()
            sys.stdout.write(worker.printed())
    assert denials == []
    record = await bench.record(case)
    assert record is not None
    assert (record.state, record.log.next_line) == (LaunchState.FINISHED, len(lines))


@pytest.mark.asyncio(loop_scope="module")
async def test_the_stack_has_repository_and_queue_as_they_should_be(made: Made) -> None:
    asked = await made.clients.sqs.get_queue_attributes(
        QueueUrl=made.outputs["QueueUrl"], AttributeNames=["RedrivePolicy"]
    )
    assert json.loads(asked["Attributes"]["RedrivePolicy"])["maxReceiveCount"] == 1000
    session, url = made.services.aws.session(), made.services.aws_endpoint
    async with session.client("ecr", endpoint_url=url) as ecr:
        answer = await ecr.describe_repositories(repositoryNames=["acme-images"])
    assert answer["repositories"][0]["imageTagMutability"] == "IMMUTABLE"


def test_the_alarm_of_throttling_knows_what_workers_print() -> None:
    filters = [item for item in load(BASE)["Resources"].values() if item["Type"] == "AWS::Logs::MetricFilter"]
    (pattern,) = [item["Properties"]["FilterPattern"] for item in filters]
    error = ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "x")
    (text,) = re.findall(r'\$\.error = "\*(.+?)\*"', pattern)
    assert text in str(translate("ListTrainingJobs", error))
    (event,) = re.findall(r'\$\.event = "(.+?)"', pattern)
    assert f'"{event}"' in "".join(path.read_text() for path in (ROOT / "worker").glob("*.py"))


def test_there_is_an_alarm_for_what_nobody_would_see() -> None:
    resources = load(BASE)["Resources"].values()
    alarms = [item["Properties"] for item in resources if item["Type"] == "AWS::CloudWatch::Alarm"]
    assert {alarm["MetricName"]: alarm["TreatMissingData"] for alarm in alarms} == {
        "ApproximateNumberOfMessagesVisible": "notBreaching",
        "ApproximateAgeOfOldestMessage": "notBreaching",
        "ConsumedWriteCapacityUnits": "breaching",
        "ThrottledCalls": "notBreaching",
    }
