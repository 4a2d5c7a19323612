"""What is there after a run, read past the worker: from AWS, W&B, the ledger's own store, processes and folders."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
import aiodocker
import aiohttp

from worker.local.aws import ACCESS_KEY, REGION
from worker.local.logs import TRAINING_JOBS_GROUP

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb import DynamoDBClient
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_sagemaker import SageMakerClient
    from types_aiobotocore_sqs import SQSClient

ConsoleLine = tuple[str, str, str]
"""(host, time as W&B has it, content)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of CloudWatch; times are ms since the epoch."""

    timestamp: int
    ingested: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job, and its log as CloudWatch has it: host → events in order."""

    name: str
    launch_id: str
    status: str
    api_key: str
    log: Mapping[str, Sequence[Event]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A companion run in W&B."""

    state: str
    exit_code: int | None
    summary: Mapping[str, Any]
    console: Sequence[ConsoleLine]
    holes: int = 0
    overwrites: int = 0
    refused: int = 0
    """Posts that a strict W&B did not take."""
    files: Mapping[str, str] = field(default_factory=dict)
    """`logs/algo-1/00001.log` → content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the ledger's store has of a launch."""

    state: str
    owner: str
    is_open: bool
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message in the dead-letter queue."""

    launch_id: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerContent:
    """All that the ledger's store holds."""

    records: Mapping[str, Record]
    workers: frozenset[str]
    locks: frozenset[str]
    text: str = field(repr=False)
    """Everything as text, to look for secrets in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the audit judges."""

    jobs: Sequence[Job]
    runs: Mapping[str, Run]
    """Companion runs by the id of the launch's run."""
    failed_items: Mapping[str, str]
    """W&B queue items that failed: id → message."""
    ledger: LedgerContent
    letters: Sequence[Letter]
    messages: tuple[int, int]
    """Messages of the queue: (visible, in flight)."""
    left_over: Sequence[str]
    """Processes, containers, folders that should be gone."""


@dataclass(frozen=True, slots=True)
class Clients:
    """AWS past the proxy."""

    sqs: SQSClient
    sagemaker: SageMakerClient
    logs: CloudWatchLogsClient
    dynamodb: DynamoDBClient


@contextlib.asynccontextmanager
async def opened_clients(url: str) -> AsyncIterator[Clients]:
    """Clients of the local AWS at `url`."""
    session = aioboto3.Session(
        region_name=REGION, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY
    )
    async with (
        session.client("sqs", endpoint_url=url) as sqs,
        session.client("sagemaker", endpoint_url=url) as sagemaker,
        session.client("logs", endpoint_url=url) as logs,
        session.client("dynamodb", endpoint_url=url) as dynamodb,
    ):
        yield Clients(sqs, sagemaker, logs, dynamodb)


async def depth(sqs: SQSClient, queue_url: str) -> tuple[int, int]:
    """Messages of the queue: (visible, in flight)."""
    answer = await sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["All"])
    attributes: Mapping[str, str] = answer["Attributes"]  # type: ignore[assignment]
    return (
        int(attributes["ApproximateNumberOfMessages"]),
        int(attributes["ApproximateNumberOfMessagesNotVisible"]),
    )


async def dead_letters(sqs: SQSClient, dlq_url: str) -> list[Letter]:
    """All messages of the DLQ; they are taken off."""
    letters: list[Letter] = []
    while True:
        answer = await sqs.receive_message(
            QueueUrl=dlq_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        )
        if not (messages := answer.get("Messages", [])):
            return letters
        for message in messages:
            given = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
            letters.append(
                Letter(
                    launch_id=given.get("launchId", ""),
                    code=given.get("code", ""),
                    reason=given.get("reason", ""),
                )
            )
            await sqs.delete_message(QueueUrl=dlq_url, ReceiptHandle=message["ReceiptHandle"])


async def training_jobs(clients: Clients) -> list[Job]:
    """Every training job of the account."""
    streams = await _streams(clients.logs)
    jobs: list[Job] = []
    pages = clients.sagemaker.get_paginator("list_training_jobs")
    async for page in pages.paginate(PaginationConfig={"PageSize": 100}):
        for summary in page["TrainingJobSummaries"]:
            name = summary["TrainingJobName"]
            described = await clients.sagemaker.describe_training_job(TrainingJobName=name)
            environment = described.get("Environment", {})
            jobs.append(
                Job(
                    name=name,
                    launch_id=environment.get("LAUNCH_ID", ""),
                    status=described["TrainingJobStatus"],
                    api_key=environment.get("WANDB_API_KEY", ""),
                    log={
                        stream.rpartition("/")[2].rpartition("-")[0]: await _events(clients.logs, stream)
                        for stream in streams.get(name, ())
                    },
                )
            )
    return jobs


async def _streams(logs: CloudWatchLogsClient) -> dict[str, list[str]]:
    """Job name → its log streams."""
    groups = await logs.describe_log_groups(logGroupNamePrefix=TRAINING_JOBS_GROUP)
    found: dict[str, list[str]] = {}
    if groups["logGroups"]:
        pages = logs.get_paginator("describe_log_streams").paginate(logGroupName=TRAINING_JOBS_GROUP)
        async for page in pages:
            for stream in page["logStreams"]:
                name = stream["logStreamName"]
                found.setdefault(name.partition("/")[0], []).append(name)
    return found


async def _events(logs: CloudWatchLogsClient, stream: str) -> list[Event]:
    """By GetLogEvents, which the worker does not use."""
    answer = await logs.get_log_events(
        logGroupName=TRAINING_JOBS_GROUP, logStreamName=stream, startFromHead=True, limit=10_000
    )
    return [Event(e["timestamp"], e["ingestionTime"], e["message"]) for e in answer["events"]]


async def wandb_state(session: aiohttp.ClientSession, url: str) -> tuple[dict[str, Run], dict[str, str]]:
    """Companion runs by run id, and failed queue items, as the double has them."""
    async with session.get(f"{url}/_double/state") as answer:
        state = await answer.json()
    runs = {}
    for path, run in state["runs"].items():
        run_id = path.rpartition("/")[2]
        if run_id.endswith("-sagemaker"):
            runs[run_id.removesuffix("-sagemaker")] = await _run(session, url, path, run)
    failed = {
        item["id"]: item["error"]["message"]
        for queue in state["queues"].values()
        for item in queue["items"]
        if item["state"] == "FAILED"
    }
    return runs, failed


async def _run(session: aiohttp.ClientSession, url: str, path: str, run: Mapping[str, Any]) -> Run:
    files = {}
    for name in run["files"]:
        async with session.get(f"{url}/_storage/run/{path}/{name}") as answer:
            files[name] = await answer.text("utf-8")
    console = [json.loads(text) for _, text in run["lines"].get("", {}).get("output.log", ())]
    return Run(
        state=run["state"],
        exit_code=run["exit_code"],
        summary=run["summary"],
        console=[(line["label"], line["ts"], line["content"]) for line in console],
        holes=sum(map(len, run["holes"].values())),
        overwrites=len(run["overwrites"]),
        refused=len(run["refused"]),
        files=files,
    )


def sqlite_content(path: Path) -> LedgerContent:
    """A ledger file, read with SQLite alone."""
    with closing(sqlite3.connect(path, timeout=30)) as file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'locks'").fetchone():
            return LedgerContent(records={}, workers=frozenset(), locks=frozenset(), text="")
        rows = file.execute("SELECT launch_id, owner, open, body FROM launches").fetchall()
        return LedgerContent(
            records={name: _record(owner, bool(is_open), body) for name, owner, is_open, body in rows},
            workers=frozenset(name for (name,) in file.execute("SELECT worker FROM workers")),
            locks=frozenset(name for (name,) in file.execute("SELECT name FROM locks")),
            text="".join(row[3] for row in rows),
        )


async def dynamodb_content(client: DynamoDBClient, table: str) -> LedgerContent:
    """A ledger's table, by Scan, which the worker does not use."""
    records: dict[str, Record] = {}
    workers: set[str] = set()
    locks: set[str] = set()
    text: list[str] = []
    async for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            kind, _, name = item["pk"]["S"].partition("#")
            text.append(json.dumps(item))
            if kind == "launch":
                records[name] = _record(item["owner"]["S"], "holder" in item, item["body"]["S"])
            elif kind != "run":  # whose a run is stays known, as the record does
                (workers if kind == "worker" else locks).add(name)
    return LedgerContent(
        records=records, workers=frozenset(workers), locks=frozenset(locks), text="".join(text)
    )


def _record(owner: str, is_open: bool, body: str) -> Record:
    content = json.loads(body)
    failure = content.get("failure") or {}
    return Record(state=content["state"], owner=owner, is_open=is_open, code=failure.get("code", ""))


def files_left(folder: Path, prefix: str = "") -> list[str]:
    """Whatever lies in a folder that should have nothing of such a name."""
    return [f"{path.name} in {folder.name}" for path in sorted(folder.glob(f"{prefix}*"))]


def processes_left(folder: Path) -> list[str]:
    """Processes of training jobs that run in `folder` (process executor), also those whose parent is gone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes()
            if b"TRAINING_JOB_NAME=" in environment and bytes(folder) in environment:
                found.append(f"process {process.name} of a training job")
    return found


async def containers_left(label: str) -> list[str]:
    """Containers with a label (docker executor)."""
    async with aiodocker.Docker() as docker:
        filters = json.dumps({"label": [label]})
        found = await docker.containers.list(all=True, filters=filters)
        return [f"container {container.id[:12]}" for container in found]
