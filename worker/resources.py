"""Everything that is opened once: clients, ledger, docker, W&B; and where in AWS the worker is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from worker.clients.aws import AwsClients, aws_clients, caller_identity
from worker.clients.docker import DockerEngine, docker_engine
from worker.clients.wandb_api import WandbApi, wandb_api
from worker.errors import SettingsError, Unreachable
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.ledger.membership import new_worker_id
from worker.ledger.opening import open_ledger
from worker.ledger.port import Ledger
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.ops.rates import Rates
from worker.settings import Settings
from worker.sources.git_credentials import GitCredentials
from worker.sources.scratch import remove_leftovers
from worker.tracking.companion import CompanionRuns
from worker.tracking.offline import offline_runs
from worker.tracking.port import Companion
from worker.training.request import AccountFacts

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open for the life of the process."""

    settings: Settings
    worker: str
    metrics: Metrics
    rates: Rates
    aws: AwsClients
    account: AccountFacts
    wandb: WandbApi | None
    """None: offline, nothing is reported to W&B's queue."""
    companion: Companion
    queue: LaunchQueue
    ledger: Ledger
    docker: DockerEngine | None
    """None: no images are built."""
    work_dir: Path


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Opened]:
    """Open all of it. Raises `SettingsError` for what the worker cannot run with."""
    if not settings.queue_url:
        raise SettingsError("LAUNCH_QUEUE_URL: not set; give the URL of the SQS queue with launch messages")
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        aws = await enter(aws_clients(settings.aws_region))
        caller = await caller_identity(aws.sts)
        await asyncio.to_thread(GitCredentials(settings.git_credentials).read)  # wrong ones are told now
        wandb = await _open_wandb(stack, settings, metrics)
        project = settings.companion_project
        yield Opened(
            settings=settings,
            worker=new_worker_id(socket.gethostname()),
            metrics=metrics,
            rates=Rates(metrics, _rate_bounds(settings)),
            aws=aws,
            account=AccountFacts(caller.account, aws.region, caller.partition),
            wandb=wandb,
            companion=CompanionRuns(wandb, project=project)
            if wandb
            else await enter(offline_runs(settings.wandb_dir, project=project)),
            queue=LaunchQueue(aws.sqs, await queue_facts(aws.sqs, settings.queue_url, settings.dlq_url)),
            ledger=await enter(open_ledger(settings.ledger, aws.dynamodb)),
            docker=await _open_docker(stack, settings),
            work_dir=await asyncio.to_thread(_work_dir, settings),
        )


async def _open_wandb(
    stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics
) -> WandbApi | None:
    key = settings.wandb_api_key
    if settings.wandb_mode == "offline" or key is None:
        _log.warning(
            "wandb_offline",
            why="WANDB_MODE=offline" if settings.wandb_mode == "offline" else "WANDB_API_KEY is not set",
            folder=str(settings.wandb_dir),
            promise="log lines at least once, with the time of `wandb sync`; nothing is reported to launch queues",
        )
        return None
    api = wandb_api(settings.wandb_base_url, key.get_secret_value(), metrics)
    return await stack.enter_async_context(api)


async def _open_docker(stack: contextlib.AsyncExitStack, settings: Settings) -> DockerEngine | None:
    if settings.builder == "none" or not settings.registry:
        return None
    try:
        return await stack.enter_async_context(docker_engine())
    except Unreachable as error:
        raise SettingsError(f"LAUNCH_BUILDER: {error}; LAUNCH_BUILDER=none runs ready images only") from error


def _work_dir(settings: Settings) -> Path:
    folder = Path(settings.work_dir or tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    except OSError as error:
        raise SettingsError(f"LAUNCH_WORK_DIR: {folder}: {error.strerror}") from error
    return folder


def _rate_bounds(settings: Settings) -> dict[str, float | None]:
    return {
        "CreateTrainingJob": settings.rate_create_training_job,
        "DescribeTrainingJob": settings.rate_describe_training_job,
        "ListTrainingJobs": settings.rate_list_training_jobs,
        "StopTrainingJob": settings.rate_stop_training_job,
        "FilterLogEvents": settings.rate_filter_log_events,
        "DescribeLogStreams": settings.rate_describe_log_streams,
    }
