"""Templates: no lint in any partition, and what they make is what workers need."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from tests.deploy import user_data
from tests.deploy.enforcement import enforced, session_of
from tests.deploy.policies import PARTITIONS, ROOT
from tests.deploy.template import (
    BASE,
    PARAMETERS,
    TEMPLATES,
    WORKER_IMAGE,
    broken_rules,
    load,
    made_of,
    named,
)
from tests.e2e.audit import ended
from tests.e2e.bench import Bench, Clients, open_clients
from tests.e2e.launches import PROJECT, numbered
from tests.e2e.queues import claimed_by_its_run, queued, sagemaker_queue
from worker.clients.aws import translate
from worker.launch.record import LaunchState
from worker.ledger.dynamodb import create_table_request
from worker.local.stack import ENTITY, WANDB_KEY, LocalServices, running_stack

# Of what moto does not make: alarms, metric filters, scaling, capacity providers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Tried to parse AWS..(CloudWatch..Alarm|Logs..Metric|ApplicationAuto|ECS..C)"
)
FARGATE = BASE.parent / "fargate.yaml"
MIRROR_TEMPLATE = BASE.parent / "mirror.yaml"
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
QUEUE = "sm-default"
"""W&B's launch queue, as a bench of this deployment names it."""
TRAINING_IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"
"""A job is a process here, so nobody pulls it."""


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


def test_what_holds_launches_survives_the_stack_but_not_a_creation_that_failed() -> None:
    """With `Retain` what a failed creation leaves behind has the names that the next one needs. The queue goes: a
    sender is better told at once."""
    kept = {name: item for name, item in load(BASE)["Resources"].items() if "DeletionPolicy" in item}
    assert set(kept) == {"DeadLetterQueue", "Ledger", "Repository", "LogGroup"}
    for item in kept.values():
        assert (item["DeletionPolicy"], item["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")
    uninstall = DEPLOY.partition("## Uninstall")[2].partition("\n## ")[0]
    for name in ("launch-launches-dlq", "launch-ledger", "launch-images", "/launch-worker/launch"):
        assert name in uninstall


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, []),
        ({"SourceBucket": ""}, ["SourceBucket is needed with Builds=true"]),
        ({"WorkerOn": "ec2"}, ["WorkerImageRepositoryArn is needed with WorkerOn=ec2"]),
        ({"LedgerOn": "sqlite"}, ["LedgerOn=sqlite is for one worker on EC2"]),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(
    parameters: Mapping[str, str], told: list[str]
) -> None:
    template = load(BASE)
    found = broken_rules(template, named(template, **{**PARAMETERS, **parameters}))
    assert [text.partition(";")[0] for text in found] == told


def test_fargate_is_asked_for_sizes_that_it_has() -> None:
    """MiB for each 1/1024 of a core (ECS developer guide, task CPU and memory)."""
    sold = {
        256: [512, 1024, 2048],
        512: range(1024, 4097, 1024),
        1024: range(2048, 8193, 1024),
        2048: range(4096, 16385, 1024),
    }
    template = load(FARGATE)
    for cpu in template["Parameters"]["Cpu"]["AllowedValues"]:
        for memory in template["Parameters"]["Memory"]["AllowedValues"]:
            broken = broken_rules(template, named(template, Cpu=cpu, Memory=memory))
            assert bool(broken) == (int(memory) not in sold[int(cpu)]), (cpu, memory)


def test_the_table_is_the_ledgers() -> None:
    properties = made_of()["Ledger"]["Properties"]
    wanted: Mapping[str, Any] = create_table_request("launch-ledger")
    assert {name: properties[name] for name in wanted} == wanted
    assert properties["TimeToLiveSpecification"] == {"AttributeName": "expires", "Enabled": True}


@pytest.mark.parametrize("name", ["fargate.yaml", "builds.yaml", "mirror.yaml"])
def test_tasks_have_settings_that_exist_and_time_to_drain(name: str) -> None:
    task = load(BASE.parent / name)["Resources"]["Task"]["Properties"]
    worker = task["ContainerDefinitions"][0]
    given = {variable["Name"]: variable["Value"] for variable in worker["Environment"]}
    known = (ROOT / ".env.example").read_text()
    for variable in given:
        assert f"#{variable}=" in known or variable in ("DOCKER_HOST", "HOME", "TMPDIR")
    grace = int(given["LAUNCH_SHUTDOWN_GRACE"].removesuffix("s"))
    assert grace < worker["StopTimeout"] <= 120
    assert not any(variable == "WANDB_API_KEY" for variable in given), "the secret stays where it is"


@pytest.mark.parametrize("name", ["fargate.yaml", "builds.yaml", "mirror.yaml"])
def test_tasks_may_write_to_volumes_only(name: str) -> None:
    """On Fargate a volume is root's, unless the image has one at that path; on EC2 docker makes it as it is in the
    image."""
    task = load(BASE.parent / name)["Resources"]["Task"]["Properties"]
    container = task["ContainerDefinitions"][0]
    assert container["ReadonlyRootFilesystem"] is True
    given = {variable["Name"]: variable["Value"] for variable in container["Environment"]}
    paths = {mount["ContainerPath"] for mount in container["MountPoints"] if "ContainerPath" in mount}
    if name == "builds.yaml":
        assert given["HOME"] in paths
        assert given["LAUNCH_WORK_DIR"].startswith(f"{given['HOME']}/")
    else:
        image = (ROOT / "deploy" / "Dockerfile").read_text()
        assert paths == set(re.findall(r"^VOLUME (\S+)$", image, re.MULTILINE))
        assert given["TMPDIR"] in paths


@pytest.mark.parametrize("name", ["fargate.yaml", "builds.yaml"])
def test_an_update_leaves_the_number_of_workers_to_the_scaling(name: str) -> None:
    resources = load(BASE.parent / name)["Resources"]
    assert "DesiredCount" not in resources["Service"]["Properties"]
    assert resources["ScalableTarget"]["Properties"]["MinCapacity"] == {"Ref": "MinWorkers"}


@pytest.mark.parametrize("name", ["fargate.yaml", "builds.yaml"])
def test_what_the_mirror_brings_is_enough_for_all_workers(name: str) -> None:
    """Workers are added for messages that nobody has in hand; with fewer in SQS there would be MinWorkers for ever."""
    scaled, mirror = (
        {name: item.get("Default") for name, item in load(BASE.parent / path)["Parameters"].items()}
        for path in (name, "mirror.yaml")
    )
    (slots,) = re.findall(r"^#LAUNCH_SLOTS=(\d+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    before_the_last = scaled["MaxWorkers"] - 1
    assert mirror["Backlog"] > before_the_last * (scaled["BacklogPerWorker"] + int(slots))
    task = load(MIRROR_TEMPLATE)["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0]
    assert {"Name": "LAUNCH_MIRROR_BACKLOG", "Value": {"Ref": "Backlog"}} in task["Environment"]


def _user_data(daemon: str) -> str:
    """Of instances for builds, as they get it."""
    template = load(BASE.parent / "builds.yaml")["Resources"]["Template"]
    text: str = template["Properties"]["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"]
    names = {"Cluster": "workers", "DaemonIs": daemon}
    return re.sub(r"\$\{(!?)([^}]+)\}", lambda it: f"${{{it[2]}}}" if it[1] else names[it[2]], text)


SYSCTL = "sysctl -p /etc/sysctl.d/50-rootless.conf"
"""`--system` would fail on anybody's key that is not there, and with it all that follows."""


def test_the_worker_on_an_instance_may_use_a_socket_that_is_there_already(tmp_path: Path) -> None:
    """groupmod changes the group's number and not that of the files that have it. Builds are kept from credentials."""
    task = load(BASE.parent / "builds.yaml")["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0]
    _, group = task["User"]["Fn::If"][2].split(":")
    assert user_data.run(_user_data("host"), tmp_path) == [
        SYSCTL,
        f"groupmod --gid {group} docker",
        "chgrp docker /var/run/docker.sock",
        "systemctl daemon-reload",
        "systemctl enable --now block-build-metadata",
    ]
    firewall = tmp_path / "usr" / "local" / "sbin" / "block-build-metadata"
    assert firewall.read_text() == (ROOT / "deploy" / "block-build-metadata").read_text()
    assert os.access(firewall, os.X_OK)
    assert "ECS_CLUSTER=workers\n" in (tmp_path / "etc" / "ecs" / "ecs.config").read_text()


def test_a_rootless_daemon_has_no_rule_on_the_instance(tmp_path: Path) -> None:
    """Its builds' bridge is in its container."""
    calls = user_data.run(_user_data("rootless"), tmp_path)
    assert calls[0] == SYSCTL
    assert not [call for call in calls if "block-build-metadata" in call]


def test_the_daemon_of_builds_is_reached_by_its_socket_only() -> None:
    """Without arguments the entry point of docker's image opens it to the network, without a login."""
    task = load(BASE.parent / "builds.yaml")["Resources"]["Task"]["Properties"]
    (_, daemon, _) = task["ContainerDefinitions"][1]["Fn::If"]
    assert daemon["Command"] == ["dockerd", "--host=unix:///run/user/1000/docker.sock"]


@dataclass(frozen=True)
class Made:
    """What stacks of base.yaml, fargate.yaml and mirror.yaml made in moto."""

    outputs: Mapping[str, str]
    """Of base.yaml."""
    task: Mapping[str, str]
    """The environment of the worker's container."""
    mirror: Mapping[str, str]
    """The same of the mirror's."""
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
            queues = {"Entity": ENTITY, "WandbQueues": QUEUE}
            await _stack(cloudformation, "mirror", MIRROR_TEMPLATE.read_text(), {**service, **queues})
            task, mirror = [await _environment(ecs, family) for family in ("worker-worker", "mirror-mirror")]
        yield Made(outputs, task, mirror, services, clients)


async def _environment(ecs: Any, family: str) -> dict[str, str]:
    """Of the one container of a task definition."""
    answer = await ecs.describe_task_definition(taskDefinition=family)
    (container,) = answer["taskDefinition"]["containerDefinitions"]
    return {variable["name"]: variable["value"] for variable in container["environment"]}


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
    """With the tasks' environments and roles: a job to its end, its log, an item of W&B's queue the same way, and a
    refused message in the DLQ."""
    role, mirrors = (
        session_of(made.outputs[name].rpartition("/")[2]) for name in ("WorkerRoleArn", "MirrorRoleArn")
    )
    # WANDB_API_KEY: of the local stack; here it comes from Secrets Manager. TMPDIR: the image's volume.
    here = {"WANDB_API_KEY": "", "LAUNCH_SHUTDOWN_GRACE": "5", "TMPDIR": str(tmp_path)}
    bench = Bench(
        services=made.services,
        clients=made.clients,
        image=TRAINING_IMAGE,
        folder=tmp_path,
        deployment=made.task["LAUNCH_DEPLOYMENT"],
        queue_url=made.outputs["QueueUrl"],
        dlq_url=made.outputs["DeadLetterQueueUrl"],
        ledger=made.outputs["LedgerAddress"],
        environment={**made.task, **role.environment, **here},
    )
    mirroring = replace(bench, environment={**made.mirror, **mirrors.environment, **here})
    (sagemaker,) = bench.launch().message["runSpec"]["resource_args"].values()
    arguments = {"sagemaker": {**sagemaker, "RoleArn": made.outputs["JobRoleArn"]}}
    case = bench.launch(lines := numbered(3), resource_args=arguments)
    item, mirrored = queued(bench, sagemaker_queue(bench).name, lines, resource_args=arguments)
    bench.services.wandb.run_by_hand(ENTITY, PROJECT, mirrored.run_id)
    with enforced() as denials:
        processes = [await bench.started(), await mirroring.start("mirror", mirror_interval="0.2")]
        try:
            await bench.send(case, "{}")
            for one in (case, mirrored):
                await ended(bench, one)
            assert len(await bench.dead_letters(1)) == 1
            for process in processes:
                process.terminate()
            assert [await process.exit_code() for process in processes] == [0, 0]
        finally:
            for process in processes:
                await process.end()
                sys.stdout.write(process.printed())
    assert denials == []
    assert claimed_by_its_run(item, mirrored)
    for one in (case, mirrored):
        record = await bench.record(one)
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


@pytest.mark.asyncio(loop_scope="module")
async def test_the_stack_for_builds_can_be_made(made: Made) -> None:
    """With a rootless daemon: moto takes a list's missing item for one that is there."""
    session, url = made.services.aws.session(), made.services.aws_endpoint
    async with (
        session.client("cloudformation", endpoint_url=url) as cloudformation,
        session.client("ec2", endpoint_url=url) as ec2,
        session.client("ecs", endpoint_url=url) as ecs,
    ):
        (subnet, *_) = (await ec2.describe_subnets())["Subnets"]
        given = {
            "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/launch-worker:1",
            "ImageRepositoryArn": WORKER_IMAGE,
            "Subnets": subnet["SubnetId"],
            "Vpc": subnet["VpcId"],
        }
        outputs = await _stack(cloudformation, "builds", (BASE.parent / "builds.yaml").read_text(), given)
        answer = await ecs.describe_task_definition(taskDefinition="builds-worker")
    assert outputs["GroupName"]
    worker, daemon = answer["taskDefinition"]["containerDefinitions"]
    assert worker["dependsOn"] == [{"containerName": "dockerd", "condition": "HEALTHY"}]
    volumes = {volume["name"] for volume in answer["taskDefinition"]["volumes"]}
    mounted = {mount["sourceVolume"] for it in (worker, daemon) for mount in it["mountPoints"]}
    assert mounted == volumes == {"tmp", "docker"}


def test_the_alarm_of_throttling_knows_what_workers_print() -> None:
    filters = [item for item in load(BASE)["Resources"].values() if item["Type"] == "AWS::Logs::MetricFilter"]
    (pattern,) = [item["Properties"]["FilterPattern"] for item in filters]
    error = ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "x")
    (text,) = re.findall(r'\$\.error = "\*(.+?)\*"', pattern)
    assert text in str(translate("ListTrainingJobs", error))
    sources = "".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))
    told = set(re.findall(r"_log\.\w+\(\s*\"(\w*throttl\w*)\"", sources))
    assert set(re.findall(r'\$\.event = "(.+?)"', pattern)) == told


ON_INSTANCES = {"WorkerOn": "ec2", "WorkerImageRepositoryArn": WORKER_IMAGE}


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        ({}, {"ConsumedWriteCapacityUnits": "breaching", "ThrottledCalls": "notBreaching"}),
        # Only tasks on ECS write to the log group.
        (ON_INSTANCES, {"ConsumedWriteCapacityUnits": "breaching"}),
        ({"WorkerOn": "eks"}, {"ConsumedWriteCapacityUnits": "breaching"}),
        # Nobody writes to the table: the alarm would be on for ever.
        ({**ON_INSTANCES, "LedgerOn": "sqlite"}, {}),
    ],
)
def test_there_is_an_alarm_for_what_nobody_would_see(
    parameters: Mapping[str, str], more: Mapping[str, str]
) -> None:
    resources = made_of(**parameters).values()
    alarms = [item["Properties"] for item in resources if item["Type"] == "AWS::CloudWatch::Alarm"]
    assert {alarm["MetricName"]: alarm["TreatMissingData"] for alarm in alarms} == {
        "ApproximateNumberOfMessagesVisible": "notBreaching",
        "ApproximateAgeOfOldestMessage": "notBreaching",
        **more,
    }
