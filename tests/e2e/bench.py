"""What one test works with: a queue, a ledger and workers of its own on the stack that all tests share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moto.sagemaker.models import sagemaker_backends

from tests.deploy.enforcement import Denial
from tests.e2e.launches import PROJECT, LaunchCase, Launches
from tests.e2e.process import WorkerProcess, until, worker_output
from tests.e2e.roles import Roles
from worker.ledger.dynamodb import create_table_request
from worker.ledger.opening import open_ledger
from worker.local.aws import ACCOUNT, REGION
from worker.local.logs import TRAINING_JOBS_GROUP
from worker.local.sagemaker_api import Refusal
from worker.local.stack import ENTITY, WANDB_KEY, LocalServices

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sagemaker import SageMakerClient
    from types_aiobotocore_sqs import SQSClient

    from worker.launch.record import LaunchRecord
    from worker.local.wandb_records import DoubleRun

LedgerKind = Literal["sqlite", "dynamodb"]

FAST = {
    "LAUNCH_HEARTBEAT": "0.4",
    "LAUNCH_LEASE": "3",
    "LAUNCH_LOG_INTERVAL": "0.2",
    "LAUNCH_LOG_QUIET": "0.8",
    "LAUNCH_STATUS_INTERVAL": "0.2",
    "LAUNCH_RECEIVE_WAIT": "1",
    "LAUNCH_COMPANION_HEARTBEAT": "0.5",
    "LAUNCH_SHUTDOWN_GRACE": "5",
    "LAUNCH_INIT_GRACE": "0.3",
    "LAUNCH_HTTP_PORT": "0",
    "LAUNCH_LOG_FORMAT": "json",
    "LAUNCH_RATE_CREATE_TRAINING_JOB": "50",
    "LAUNCH_RATE_DESCRIBE_TRAINING_JOB": "50",
    "LAUNCH_RATE_LIST_TRAINING_JOBS": "50",
    "LAUNCH_RATE_STOP_TRAINING_JOB": "50",
    "LAUNCH_RATE_FILTER_LOG_EVENTS": "50",
    "LAUNCH_RATE_DESCRIBE_LOG_STREAMS": "50",
}
"""The local services answer at once and share no quota with anybody."""


@dataclass(frozen=True)
class Clients:
    """What a test uses to look at AWS past the worker."""

    sqs: SQSClient
    sagemaker: SageMakerClient
    logs: CloudWatchLogsClient
    dynamodb: DynamoDBClient
    s3: S3Client


@contextlib.asynccontextmanager
async def open_clients(services: LocalServices) -> AsyncIterator[Clients]:
    session, url = services.aws.session(), services.aws_endpoint
    async with (
        session.client("sqs", endpoint_url=url) as sqs,
        session.client("sagemaker", endpoint_url=url) as sagemaker,
        session.client("logs", endpoint_url=url) as logs,
        session.client("dynamodb", endpoint_url=url) as dynamodb,
        session.client("s3", endpoint_url=url) as s3,
    ):
        yield Clients(sqs, sagemaker, logs, dynamodb, s3)


@dataclass(kw_only=True)
class Bench(Launches):
    """One test's queue, ledger and workers on the shared stack."""

    clients: Clients
    folder: Path
    queue_url: str
    dlq_url: str
    ledger: str
    workers: list[WorkerProcess] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    """Of all workers, beside what the stack says."""
    roles: Roles | None = None
    """Whom they run as; None: nobody enforces any policy."""

    def credentials(self, *command: str) -> Mapping[str, str]:
        """AWS's variables for `launch-worker COMMAND`."""
        return self.roles.environment(*command) if self.roles else {}

    async def start(self, *command: str, **settings: str) -> WorkerProcess:
        """Start a worker, or another command; `settings` are fields of Settings without their prefix, in lower
        case."""
        command = command or ("run",)
        environment = {
            **self.services.environment,
            **self.credentials(*command),
            **FAST,
            "HOME": str(self.folder),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
            "LAUNCH_DEPLOYMENT": self.deployment,
            "LAUNCH_QUEUE_URL": self.queue_url,
            "LAUNCH_LEDGER": self.ledger,
            **self.environment,
            **{f"LAUNCH_{name.upper()}": value for name, value in settings.items()},
        }
        output = self.folder / f"worker-{len(self.workers) + 1}.log"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", *command),
                cwd=self.folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        worker = WorkerProcess(process, output)
        self.workers.append(worker)
        return worker

    async def started(self, **settings: str) -> WorkerProcess:
        """Start a worker and wait until it is up."""
        worker = await self.start(**settings)
        await worker.wait_for("worker_started")
        return worker

    async def send(self, *cases: LaunchCase | str, **extra: Any) -> list[str]:
        """Put messages on the queue; returns their SQS message ids."""
        return [
            (
                await self.clients.sqs.send_message(
                    QueueUrl=self.queue_url,
                    MessageBody=case if isinstance(case, str) else case.body,
                    **extra,
                )
            )["MessageId"]
            for case in cases
        ]

    async def depth(self) -> tuple[int, int]:
        """Messages of the queue: (visible, in flight)."""
        answer = await self.clients.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["All"])
        attributes: Mapping[str, str] = answer["Attributes"]  # type: ignore[assignment]
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        )

    async def dead_letters(self, count: int) -> list[Any]:
        """The DLQ's messages once there are `count`; they are taken off."""
        found: list[Any] = []

        async def look() -> bool:
            answer = await self.clients.sqs.receive_message(
                QueueUrl=self.dlq_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
            )
            for message in answer.get("Messages", []):
                found.append(message)
                await self.clients.sqs.delete_message(
                    QueueUrl=self.dlq_url, ReceiptHandle=message["ReceiptHandle"]
                )
            return len(found) >= count

        await until(look, f"{count} messages in the DLQ")
        return found

    async def record(self, case: LaunchCase | str) -> LaunchRecord | None:
        """What the ledger holds of a launch."""
        identity = case if isinstance(case, str) else case.launch_id
        async with open_ledger(self.ledger, self.clients.dynamodb) as ledger:
            return await ledger.read(identity)

    def jobs(self, case: LaunchCase) -> list[str]:
        """Names of all training jobs that carry the launch's id, oldest first."""
        jobs = sagemaker_backends[ACCOUNT][REGION].training_jobs
        return [
            name
            for name, job in list(jobs.items())
            if (job.response_object.get("Environment") or {}).get("LAUNCH_ID") == case.launch_id
        ]

    def companion(self, case: LaunchCase) -> DoubleRun | None:
        """The companion run in W&B."""
        return self.services.wandb.run(ENTITY, PROJECT, f"{case.run_id}-sagemaker")

    async def lines_in_wandb(self, case: LaunchCase, count: int) -> None:
        """Wait until W&B has `count` console lines of a launch."""

        async def look() -> bool:
            run = self.companion(case)
            return run is not None and len(run.console()) >= count

        await until(look, f"{count} console lines of {case.run_id}")

    async def container_ended(self, case: LaunchCase) -> None:
        """Wait until SageMaker says that the job has ended."""

        async def look() -> bool:
            described = await self.clients.sagemaker.describe_training_job(TrainingJobName=case.job_name)
            return described["TrainingJobStatus"] in ("Completed", "Failed", "Stopped")

        await until(look, f"end of training job {case.job_name}")

    async def streams(self, case: LaunchCase) -> list[str]:
        """The log streams of the launch's jobs, in the order of jobs and names."""
        streams: list[str] = []
        for job in self.jobs(case):
            answer = await self.clients.logs.describe_log_streams(
                logGroupName=TRAINING_JOBS_GROUP, logStreamNamePrefix=f"{job}/"
            )
            streams += sorted(stream["logStreamName"] for stream in answer["logStreams"])
        return streams

    def press_stop(self, case: LaunchCase) -> None:
        """Press Stop in the companion run."""
        self.services.wandb.stop(ENTITY, PROJECT, f"{case.run_id}-sagemaker")

    def throttle(self, on: bool) -> None:
        """Let SageMaker refuse all CreateTrainingJob calls as too many, or none."""
        refusal = Refusal("ThrottlingException", "Rate exceeded", times=10_000)
        self.services.sagemaker.jobs.refusals[:] = [refusal] if on else []

    async def end_workers(self) -> None:
        for worker in self.workers:
            await worker.end()


@contextlib.asynccontextmanager
async def open_bench(
    services: LocalServices,
    clients: Clients,
    image: str,
    folder: Path,
    *,
    ledger: LedgerKind = "sqlite",
    fifo: bool = False,
    denials: Sequence[Denial] | None = None,
) -> AsyncIterator[Bench]:
    """A queue with its DLQ and a ledger that nobody else uses; at the end its workers are killed and checked.

    `denials`: IAM is enforced, and what it does not allow is noted there."""
    unique = uuid.uuid4().hex[:8]
    queue_url, dlq_url = await _create_queues(clients.sqs, unique, fifo=fifo)
    if ledger == "dynamodb":
        await clients.dynamodb.create_table(**create_table_request(f"ledger-{unique}"))
        address = f"dynamodb://ledger-{unique}"
    else:
        address = f"sqlite:///{folder}/ledger-{unique}.db"
    bench = Bench(
        services=services,
        clients=clients,
        image=image,
        folder=folder,
        deployment=f"e2e-{unique}",
        queue_url=queue_url,
        dlq_url=dlq_url,
        ledger=address,
    )
    if denials is not None:
        bench.roles = Roles(
            denials=denials,
            shared_ledger=ledger == "dynamodb",
            values={
                "QUEUE": queue_url.rpartition("/")[2],
                "DEAD_LETTER_QUEUE": dlq_url.rpartition("/")[2],
                "TABLE": address.removeprefix("dynamodb://"),
                "DEPLOYMENT": bench.deployment,
            },
        )
    try:
        yield bench
    finally:
        await bench.end_workers()
        sys.stdout.write(worker_output(folder))
    for worker in bench.workers:
        assert WANDB_KEY not in worker.printed()
        unwanted = [event for event in worker.events() if event.get("level") in ("error", "critical")]
        assert unwanted == [], "a worker has errors of its own, or prints what is no event"
    if bench.roles:
        assert bench.roles.unexpected() == [], "a policy of deploy/iam lacks something"


async def _create_queues(sqs: SQSClient, unique: str, *, fifo: bool) -> tuple[str, str]:
    suffix = ".fifo" if fifo else ""
    kind: dict[Any, str] = {"FifoQueue": "true"} if fifo else {}
    dlq = (await sqs.create_queue(QueueName=f"dlq-{unique}{suffix}", Attributes=kind))["QueueUrl"]
    asked = await sqs.get_queue_attributes(QueueUrl=dlq, AttributeNames=["QueueArn"])
    redrive = json.dumps({"deadLetterTargetArn": asked["Attributes"]["QueueArn"], "maxReceiveCount": 1000})
    queue = await sqs.create_queue(
        QueueName=f"launches-{unique}{suffix}", Attributes={**kind, "RedrivePolicy": redrive}
    )
    return queue["QueueUrl"], dlq
