"""The local stack as a whole: what is in it, how a worker finds it, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
import sys
from functools import partial
from pathlib import Path

import pytest

from worker.demo import write_example
from worker.doctor.roles import trusts_sagemaker
from worker.errors import SettingsError
from worker.local.executor_docker import DockerNotRunning
from worker.local.ports import listening_socket
from worker.local.stack import running_stack, serve_dev, write_env_file
from worker.operating.sender import planned_request
from worker.settings import load_settings
from worker.training.request import AccountFacts

OTHER_PROCESS = """
import asyncio, aioboto3, os
async def main():
    async with aioboto3.Session().client("sqs") as sqs:
        await sqs.send_message(QueueUrl=os.environ["LAUNCH_QUEUE_URL"], MessageBody="hello")
asyncio.run(main())
"""


async def test_everything_a_worker_needs_is_there() -> None:
    async with running_stack(executor="process") as services:
        session, url = services.aws.session(), services.aws_endpoint
        async with (
            session.client("sqs", endpoint_url=url) as sqs,
            session.client("s3", endpoint_url=url) as s3,
            session.client("dynamodb", endpoint_url=url) as dynamodb,
            session.client("sts", endpoint_url=url) as sts,
            session.client("iam", endpoint_url=url) as iam,
        ):
            for queue, dead_letters in (
                (services.queue_url, "launches-dlq"),
                (services.fifo_queue_url, "launches-dlq.fifo"),
            ):
                attributes = await sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])
                redrive = json.loads(attributes["Attributes"]["RedrivePolicy"])
                assert redrive["deadLetterTargetArn"].endswith(f":{dead_letters}")
                assert int(redrive["maxReceiveCount"]) == 1000
            dlqs = await sqs.list_queues(QueueNamePrefix="launches-dlq")
            assert set(dlqs["QueueUrls"]) == {services.dlq_url, services.fifo_dlq_url}
            assert [b["Name"] for b in (await s3.list_buckets())["Buckets"]] == ["launch-dev"]
            table = await dynamodb.describe_table(TableName=services.table)
            assert table["Table"]["TableStatus"] == "ACTIVE"
            assert (await sts.get_caller_identity())["Account"] == "123456789012"
            role = (await iam.get_role(RoleName="launch-training"))["Role"]
            assert role["Arn"] == services.role_arn
            assert trusts_sagemaker(role["AssumeRolePolicyDocument"]), "doctor finds no fault in it"
        settings = load_settings(None, services.environment)
        assert settings.queue_url == services.queue_url
        assert settings.wandb_base_url == services.wandb.base_url
        assert settings.wandb_api_key is not None
        assert len(settings.wandb_api_key.get_secret_value()) == 40


async def test_doctor_reads_the_quotas_of_the_stack() -> None:
    async with (
        running_stack(executor="process") as services,
        services.aws.session().client("service-quotas", endpoint_url=services.aws_endpoint) as client,
    ):
        services.sagemaker.jobs.instance_quotas |= {"ml.g5.xlarge": 4, "ml.g5.xlarge spot": 2}
        found: dict[str, float] = {}
        async for page in client.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker"):
            assert len(page["Quotas"]) <= 100
            found |= {quota["QuotaName"]: quota["Value"] for quota in page["Quotas"]}
        with pytest.raises(client.exceptions.NoSuchResourceException):
            await client.list_service_quotas(ServiceCode="ec2")
    assert found["ml.m5.large for training job usage"] == 20
    assert found["ml.g5.xlarge for training job usage"] == 4
    assert found["ml.g5.xlarge for spot training job usage"] == 2


async def test_another_process_finds_it_by_its_environment() -> None:
    async with running_stack(executor="process") as services:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OTHER_PROCESS, env=services.environment
        )
        assert await process.wait() == 0
        async with services.aws.session().client("sqs", endpoint_url=services.aws_endpoint) as sqs:
            received = await sqs.receive_message(QueueUrl=services.queue_url)
    assert [message["Body"] for message in received["Messages"]] == ["hello"]


async def test_it_forgets_everything() -> None:
    async with (
        running_stack(executor="process") as services,
        services.aws.session().client("sqs", endpoint_url=services.aws_endpoint) as sqs,
    ):
        await sqs.create_queue(QueueName="extra")
    async with (
        running_stack(executor="process") as services,
        services.aws.session().client("sqs", endpoint_url=services.aws_endpoint) as sqs,
    ):
        assert "QueueUrls" not in await sqs.list_queues(QueueNamePrefix="extra")


async def test_errors_of_the_user_pass_through_unchanged() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with running_stack(executor="process"):
            raise KeyError("mine")


async def test_one_at_a_time_in_a_process() -> None:
    async with running_stack(executor="process"):
        with pytest.raises(SettingsError, match="runs in this process already"):
            async with running_stack(executor="process"):
                pass


@pytest.mark.parametrize(
    ("parameter", "option"),
    [
        ("aws_port", "--aws-port"),
        ("wandb_port", "--wandb-port"),
        pytest.param("registry_port", "--registry-port", marks=pytest.mark.docker),
    ],
)
async def test_a_taken_port_is_explained(parameter: str, option: str) -> None:
    with listening_socket(0, "this test", "") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"port {port} .* is in use by another program.*{option}"):
            async with running_stack(executor="process", **{parameter: port}):
                pass


async def test_without_docker_it_says_what_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{_free_port()}")
    async with running_stack() as services:
        assert services.executor.name == "process"
        assert services.registry == ""
        assert "nothing can be built" in services.missing[0]
        assert services.environment["LAUNCH_BUILDER"] == "none"
        assert "LAUNCH_REGISTRY" not in services.environment
    with pytest.raises(DockerNotRunning):
        async with running_stack(executor="docker"):
            pass


@pytest.mark.docker
async def test_with_docker_images_can_be_pushed_and_jobs_are_containers() -> None:
    async with running_stack() as services:
        assert services.executor.name == "docker"
        assert services.missing == ()
        async with services.aws.session().client("ecr", endpoint_url=services.aws_endpoint) as ecr:
            (repository,) = (await ecr.describe_repositories())["repositories"]
        assert repository["repositoryUri"] == services.registry == services.environment["LAUNCH_REGISTRY"]


async def test_dev_writes_an_environment_that_works(tmp_path: Path) -> None:
    file, said, ready = tmp_path / "dev.env", [], asyncio.Event()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("environment"):
            ready.set()

    async with asyncio.TaskGroup() as tasks:
        ports = {"aws_port": 0, "registry_port": 0, "wandb_port": 0}
        example = partial(write_example, file=tmp_path / "launch.json", state=tmp_path)
        serving = serve_dev(file, **ports, executor="process", prepare=example, say=say)
        dev = tasks.create_task(serving)
        await ready.wait()
        settings = load_settings(file, {})
        assert settings.queue_url.endswith("/123456789012/launches")
        assert any(settings.wandb_base_url in line for line in said)
        assert file.read_text().startswith("# ")
        account = AccountFacts("123456789012", "us-east-1", "aws")
        text = (tmp_path / "launch.json").read_text()
        assert planned_request(text, settings, account=account, image=None).request["RoleArn"]
        dev.cancel()
        await asyncio.wait({dev})
    with contextlib.closing(socket.socket()) as probe:
        port = int(settings.wandb_base_url.rpartition(":")[2])
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_env_file_is_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "old.env"
    file.write_text("OLD=1\n" * 100)
    file.chmod(0o644)
    write_env_file(file, {"A": "1", "B": "x=y"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().splitlines()[1:] == ["A=1", "B=x=y"]


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
