"""The local stack as one thing: AWS, registry, SageMaker and W&B on loopback, with what a worker needs in them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import aiodocker

from worker.ledger.dynamodb import create_table_request, ensure_ttl
from worker.local.aws import ACCESS_KEY, ACCOUNT, REGION, LocalAws, running_aws
from worker.local.ecr import LocalEcr, running_ecr
from worker.local.executor import Executor
from worker.local.executor_docker import DockerExecutor, DockerNotRunning, docker_engine
from worker.local.executor_process import ProcessExecutor
from worker.local.iam import aws_like_iam
from worker.local.logs import aws_like_logs
from worker.local.quotas import aws_like_quotas
from worker.local.registry_process import RegistryNotRunning
from worker.local.sagemaker import JobLogs, LocalSageMaker, running_sagemaker
from worker.local.wandb_double import WandbDouble, running_wandb_double

if TYPE_CHECKING:
    from types_aiobotocore_sqs import SQSClient
    from types_aiobotocore_sqs.literals import QueueAttributeNameType

ENTITY = "acme"
NAME = "launch-dev"
"""Of the ECR repository and of the S3 bucket."""
TABLE = "launch-ledger"
QUEUE = "launches"
"""Of the SQS queue, and of the W&B launch queue that is mirrored into it."""
DEAD_LETTER_QUEUE = "launches-dlq"
ROLE = "launch-training"
"""That the training jobs of examples run as."""
MAX_RECEIVE_COUNT = 1000
WANDB_KEY = "local" + "0" * 35
AWS_PORT, REGISTRY_PORT, WANDB_PORT = 4566, 5566, 8566

ExecutorChoice = Literal["auto", "docker", "process"]

_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}
_SERVICES = ("SQS", "SAGEMAKER", "CLOUDWATCH_LOGS", "ECR", "S3", "STS", "DYNAMODB")
"""As in AWS_ENDPOINT_URL_…: the endpoint variable of Logs is CLOUDWATCH_LOGS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServices:
    """The running stack: where things are, and the handles by which a test moves them."""

    aws: LocalAws
    wandb: WandbDouble
    sagemaker: LocalSageMaker
    ecr: LocalEcr | None
    """None: no docker or no registry program; `missing` says which."""
    docker: aiodocker.Docker | None
    queue_url: str
    dlq_url: str
    fifo_queue_url: str
    fifo_dlq_url: str
    missing: tuple[str, ...] = ()
    """What this machine lacks and what is off because of it, one sentence each."""
    table: str = TABLE
    bucket: str = NAME
    role_arn: str = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"

    @property
    def executor(self) -> Executor:
        """What runs the training jobs."""
        return self.sagemaker.executor

    @property
    def aws_endpoint(self) -> str:
        """URL of all AWS services."""
        return self.aws.endpoint

    @property
    def registry(self) -> str:
        """URI of the ECR repository; empty without a registry."""
        return f"{self.ecr.address}/{NAME}" if self.ecr else ""

    @property
    def environment(self) -> dict[str, str]:
        """Everything a worker needs to find this stack, in this process or in another."""
        endpoint = self.aws.endpoint
        return {
            "AWS_ENDPOINT_URL": endpoint,
            **{f"AWS_ENDPOINT_URL_{service}": endpoint for service in _SERVICES},
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "LAUNCH_QUEUE_URL": self.queue_url,
            "LAUNCH_LEDGER": f"dynamodb://{self.table}",
            **({"LAUNCH_REGISTRY": self.registry} if self.ecr else {"LAUNCH_BUILDER": "none"}),
            "LAUNCH_ENTITY": self.wandb.entity,
            "LAUNCH_WANDB_QUEUES": QUEUE,
            "WANDB_BASE_URL": self.wandb.base_url,
            "WANDB_API_KEY": WANDB_KEY,
        }


@contextlib.asynccontextmanager
async def running_stack(
    *,
    aws_port: int = 0,
    registry_port: int = 0,
    wandb_port: int = 0,
    executor: ExecutorChoice | Executor = "auto",
    stop_grace: float = 5.0,
    logs: JobLogs | None = None,
) -> AsyncIterator[LocalServices]:
    """Start everything on 127.0.0.1; port 0 takes any free one. Nothing is left of it afterwards.

    `executor`: `docker` and `process` insist on one way to run training jobs, `auto` takes docker where a daemon
    answers. `logs`: another CloudWatch Logs for the containers' output. Raises `SettingsError` when a port is taken,
    `DockerNotRunning` when docker is insisted on."""
    async with contextlib.AsyncExitStack() as stack:
        aws = await stack.enter_async_context(running_aws(aws_port))
        stack.enter_context(aws_like_logs())
        stack.enter_context(aws_like_iam())
        wandb = await stack.enter_async_context(running_wandb_double(wandb_port, ENTITY))
        wandb.queue(ENTITY, QUEUE).resource = "sagemaker"
        docker, ecr, missing = await _docker_and_registry(stack, registry_port, executor)
        chosen = await _executor(executor, docker, ecr)
        sagemaker = await stack.enter_async_context(
            running_sagemaker(chosen, region=REGION, stop_grace=stop_grace, logs=logs)
        )
        stack.enter_context(aws_like_quotas(sagemaker.jobs))
        urls = await _create_resources(aws, with_repository=ecr is not None)
        yield LocalServices(
            aws=aws,
            wandb=wandb,
            sagemaker=sagemaker,
            ecr=ecr,
            docker=docker,
            queue_url=urls[QUEUE],
            dlq_url=urls[DEAD_LETTER_QUEUE],
            fifo_queue_url=urls[f"{QUEUE}.fifo"],
            fifo_dlq_url=urls[f"{DEAD_LETTER_QUEUE}.fifo"],
            missing=missing,
        )


async def _docker_and_registry(
    stack: contextlib.AsyncExitStack, registry_port: int, executor: ExecutorChoice | Executor
) -> tuple[aiodocker.Docker | None, LocalEcr | None, tuple[str, ...]]:
    try:
        docker = await stack.enter_async_context(docker_engine())
    except DockerNotRunning as error:
        if executor == "docker":
            raise
        return None, None, (f"{error}: training jobs run as processes, nothing can be built",)
    try:
        ecr = await stack.enter_async_context(running_ecr(registry_port))
    except RegistryNotRunning as error:
        return docker, None, (f"{error}: images cannot be pushed, so nothing can be built",)
    return docker, ecr, ()


async def _executor(
    choice: ExecutorChoice | Executor, docker: aiodocker.Docker | None, ecr: LocalEcr | None
) -> Executor:
    if not isinstance(choice, str):
        return choice
    if choice == "process" or docker is None:
        return ProcessExecutor()
    executor = DockerExecutor(
        docker,
        registry=ecr.address if ecr else "",
        registry_password=ecr.issue_token if ecr else str,
    )
    await executor.remove_leftovers()
    return executor


async def _create_resources(aws: LocalAws, *, with_repository: bool) -> dict[str, str]:
    """Queues, table, bucket, the jobs' role and repository; returns the queues' URLs."""
    session, url = aws.session(), aws.endpoint
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        sqs = await enter(session.client("sqs", endpoint_url=url))
        dynamodb = await enter(session.client("dynamodb", endpoint_url=url))
        s3 = await enter(session.client("s3", endpoint_url=url))
        iam = await enter(session.client("iam", endpoint_url=url))
        urls = {**await _create_queues(sqs, ""), **await _create_queues(sqs, ".fifo")}
        await dynamodb.create_table(**create_table_request(TABLE))
        await ensure_ttl(dynamodb, TABLE)
        await s3.create_bucket(Bucket=NAME)
        await iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(_TRUST))
        if with_repository:
            ecr = await enter(session.client("ecr", endpoint_url=url))
            await ecr.create_repository(repositoryName=NAME)
    return urls


async def _create_queues(sqs: SQSClient, suffix: str) -> dict[str, str]:
    """A queue and its DLQ; `maxReceiveCount` is only a safety net (the worker copies refused messages itself)."""
    kind: dict[QueueAttributeNameType, str] = {"FifoQueue": "true"} if suffix else {}
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{DEAD_LETTER_QUEUE}{suffix}"
    redrive = f'{{"deadLetterTargetArn":"{arn}","maxReceiveCount":{MAX_RECEIVE_COUNT}}}'
    urls = {}
    for name, extra in ((DEAD_LETTER_QUEUE, kind), (QUEUE, {**kind, "RedrivePolicy": redrive})):
        answer = await sqs.create_queue(QueueName=f"{name}{suffix}", Attributes=extra)
        urls[f"{name}{suffix}"] = answer["QueueUrl"]
    return urls


async def serve_dev(
    env_file: Path | None = None,
    *,
    aws_port: int = AWS_PORT,
    registry_port: int = REGISTRY_PORT,
    wandb_port: int = WANDB_PORT,
    executor: ExecutorChoice = "auto",
    prepare: Callable[[LocalServices], Awaitable[Mapping[str, str]]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the stack until cancelled; write its environment to `env_file` and tell `say` where things are. `prepare`
    does what else is wanted, and returns variables that go into the file as well."""
    async with running_stack(
        aws_port=aws_port, registry_port=registry_port, wandb_port=wandb_port, executor=executor
    ) as services:
        for line in describe(services):
            say(line)
        more = await prepare(services) if prepare else {}
        if env_file is not None:
            await asyncio.to_thread(write_env_file, env_file, {**services.environment, **more})
            say(f"environment   {env_file}")
            say(f"next          in another shell: launch-worker run --env-file {env_file}")
        await asyncio.Event().wait()


def describe(services: LocalServices) -> list[str]:
    """Where things are, one line each, for people."""
    lines = [
        f"AWS           {services.aws_endpoint}  (account {ACCOUNT}, {REGION})",
        f"queue         {services.queue_url}",
        f"W&B           {services.wandb.base_url}  (entity {services.wandb.entity}, launch queue {QUEUE})",
        f"registry      {services.registry or 'none'}",
        f"training jobs {'docker containers' if services.executor.name == 'docker' else 'local processes'}",
    ]
    return [*lines, *(f"note: {sentence}" for sentence in services.missing)]


def write_env_file(path: Path, environment: Mapping[str, str]) -> None:
    """KEY=value lines, readable for the owner only."""
    header = "# Written by `launch-worker dev`: how to reach the local stack. Valid while it runs.\n"
    body = "".join(f"{name}={value}\n" for name, value in environment.items())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # the file may be older than this rule
        file.write(header + body)
