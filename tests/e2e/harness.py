"""The worker as a process of its own, and the world around it; a queue and a ledger for each test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from moto.sagemaker.models import sagemaker_backends

from worker.launch.identity import launch_id
from worker.ledger.dynamodb import create_table_request
from worker.ledger.opening import open_ledger
from worker.local.aws import ACCOUNT, REGION
from worker.local.stack import ENTITY, WANDB_KEY, LocalServices

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_sagemaker import SageMakerClient
    from types_aiobotocore_sqs import SQSClient

    from worker.launch.record import LaunchRecord
    from worker.local.wandb_state import DoubleRun

T = TypeVar("T")
LedgerKind = Literal["sqlite", "dynamodb"]

PROJECT = "e2e"
PATIENCE = 40.0
"""Seconds any wait may take; on a busy machine the usual second becomes ten."""
FAST = {
    "LAUNCH_HEARTBEAT": "0.4",
    "LAUNCH_LEASE": "3",
    "LAUNCH_LOG_INTERVAL": "0.2",
    "LAUNCH_LOG_QUIET": "0.8",
    "LAUNCH_STATUS_INTERVAL": "0.2",
    "LAUNCH_RECEIVE_WAIT": "1",
    "LAUNCH_COMPANION_HEARTBEAT": "0.5",
    "LAUNCH_SHUTDOWN_GRACE": "5",
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


async def until(condition: Callable[[], Awaitable[T]], what: str, seconds: float = PATIENCE) -> T:
    """Wait until `condition` gives something true; fails the test after `seconds`, saying `what` was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        if found := await condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what} (last: {found!r})"
        await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Clients:
    """What a test uses to look at AWS past the worker."""

    sqs: SQSClient
    sagemaker: SageMakerClient
    logs: CloudWatchLogsClient
    dynamodb: DynamoDBClient


@contextlib.asynccontextmanager
async def open_clients(services: LocalServices) -> AsyncIterator[Clients]:
    session, url = services.aws.session(), services.aws_endpoint
    async with (
        session.client("sqs", endpoint_url=url) as sqs,
        session.client("sagemaker", endpoint_url=url) as sagemaker,
        session.client("logs", endpoint_url=url) as logs,
        session.client("dynamodb", endpoint_url=url) as dynamodb,
    ):
        yield Clients(sqs, sagemaker, logs, dynamodb)


class WorkerProcess:
    """`python -m worker run`; what it prints goes to a file, so that nothing blocks it and nothing is lost."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process = process
        self._output = output

    def printed(self) -> str:
        return self._output.read_text(errors="replace")

    def events(self, name: str = "", **fields: object) -> list[dict[str, Any]]:
        """Its log events so far: those called `name` (all by default) that have these fields."""
        found = []
        for line in self.printed().splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(_parsed(line))
        return [
            event
            for event in found
            if event["event"].startswith(name) and all(event.get(k) == v for k, v in fields.items())
        ]

    async def wait_for(self, name: str, *, seconds: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """The first event called `name` with these fields, once it is there."""

        async def look() -> list[dict[str, Any]]:
            ended = self._process.returncode
            found = self.events(name, **fields)
            assert found or ended is None, f"the worker ended ({ended}) without {name} {fields}"
            return found

        return (await until(look, f"event {name} {fields}", seconds))[0]

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def freeze(self) -> None:
        """SIGSTOP; returns once the kernel has stopped it."""
        self.send_signal(signal.SIGSTOP)

        async def stopped() -> bool:
            return _process_state(self._process.pid) == "T"

        await until(stopped, "the worker is frozen")

    def wake(self) -> None:
        self.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)
        assert await self.exit_code() == -signal.SIGKILL

    async def exit_code(self, seconds: float = PATIENCE) -> int:
        """Its exit code once it has ended; negative: the signal that ended it."""
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def end(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        if self.alive:
            self.send_signal(signal.SIGKILL)
        await self._process.wait()


def _process_state(pid: int) -> str:
    """The letter of proc(5): T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            return event
    return {"event": "not an event", "level": "error", "text": line.rstrip()}


@dataclass(frozen=True, kw_only=True)
class LaunchCase:
    """A launch message, and what must become of it."""

    message: Mapping[str, Any]
    launch_id: str
    run_id: str
    job_name: str
    printed: Sequence[str]
    """The console lines of each host; `{host}` stands for its name."""
    hosts: int = 1

    @property
    def body(self) -> str:
        return json.dumps(self.message)


def script(lines: Sequence[str], pause: float) -> str:
    """Shell code that prints `lines` with a pause after each."""
    host = "'\"$SM_CURRENT_HOST\"'"
    return "; ".join(
        f"printf '%s\\n' {shlex.quote(line).replace('{host}', host)}; sleep {pause}" for line in lines
    )


def arguments(code: str) -> list[str]:
    """`sh -c` arguments that run `code`; SageMaker allows 256 characters each."""
    size = 240
    parts = [code[start : start + size] for start in range(0, len(code), size)]
    return ['eval "$(printf %s "$@")"', "sh", *parts]


def numbered(count: int, what: str = "step") -> list[str]:
    return [f"{what} {number} on {{host}}" for number in range(count)]


@dataclass(kw_only=True)
class Bench:
    """One test's queue, ledger and workers on the shared stack."""

    services: LocalServices
    clients: Clients
    image: str
    folder: Path
    deployment: str
    queue_url: str
    dlq_url: str
    ledger: str
    workers: list[WorkerProcess] = field(default_factory=list)

    async def start(self, **settings: str) -> WorkerProcess:
        """Start a worker; `settings` are fields of Settings without their prefix, in lower case."""
        environment = {
            **self.services.environment,
            **FAST,
            "HOME": str(self.folder),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
            "LAUNCH_DEPLOYMENT": self.deployment,
            "LAUNCH_QUEUE_URL": self.queue_url,
            "LAUNCH_LEDGER": self.ledger,
            **{f"LAUNCH_{name.upper()}": value for name, value in settings.items()},
        }
        output = self.folder / f"worker-{len(self.workers) + 1}.log"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "run"),
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

    def launch(
        self,
        lines: Sequence[str] = (),
        *,
        pause: float = 0.15,
        tail: str = "true",
        hosts: int = 1,
        max_runtime: int = 120,
        item_id: str = "",
        job_name: str = "",
        image: str = "",
        instance_type: str = "ml.m5.large",
        **spec: Any,
    ) -> LaunchCase:
        """A launch that prints `lines` and then does `tail`; `spec` goes into the runSpec."""
        unique = uuid.uuid4().hex[:10]
        run_id = f"run-{unique}"
        sagemaker: dict[str, Any] = {
            "RoleArn": self.services.role_arn,
            "ResourceConfig": {"InstanceType": instance_type, "InstanceCount": hosts, "VolumeSizeInGB": 1},
            "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
            "StoppingCondition": {"MaxRuntimeInSeconds": max_runtime},
            **({"TrainingJobName": job_name} if job_name else {}),
        }
        code = "; ".join(part for part in (script(lines, pause), tail) if part)
        message: dict[str, Any] = {
            "runSpec": {
                "entity": ENTITY,
                "project": PROJECT,
                "run_id": run_id,
                "docker": {"docker_image": image or self.image},
                "overrides": {"entry_point": ["sh", "-c"], "args": arguments(code)},
                "resource": "sagemaker",
                "resource_args": {"sagemaker": sagemaker},
                **spec,
            }
        }
        if item_id:
            message["runQueueItemId"] = item_id
            identity = launch_id((self.services.wandb.base_url, ENTITY, item_id))
        else:
            message["launchId"] = unique
            identity = launch_id(("direct", self.deployment, unique))
        return LaunchCase(
            message=message,
            launch_id=identity,
            run_id=run_id,
            job_name=job_name or run_id,
            printed=lines,
            hosts=hosts,
        )

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

    def press_stop(self, case: LaunchCase) -> None:
        """Press Stop in the companion run."""
        self.services.wandb.stop(ENTITY, PROJECT, f"{case.run_id}-sagemaker")

    def no_room(self, full: bool) -> None:
        """Let SageMaker's quota be used up, or not."""
        self.services.sagemaker.jobs.quota = 0 if full else None

    async def end_workers(self) -> None:
        for worker in self.workers:
            await worker.end()


def worker_output(folder: Path) -> str:
    """All that the workers of a test printed."""
    files = sorted(folder.glob("worker-*.log"))
    return "".join(f"--- {file.stem}\n{file.read_text(errors='replace')}\n" for file in files)


@contextlib.asynccontextmanager
async def open_bench(
    services: LocalServices,
    clients: Clients,
    image: str,
    folder: Path,
    *,
    ledger: LedgerKind = "sqlite",
    fifo: bool = False,
) -> AsyncIterator[Bench]:
    """A queue with its DLQ and a ledger that nobody else uses; at the end its workers are killed and checked."""
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
    try:
        yield bench
    finally:
        await bench.end_workers()
        sys.stdout.write(worker_output(folder))
    for worker in bench.workers:
        assert WANDB_KEY not in worker.printed()


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
