"""Everything that is opened once: clients, ledger, docker, W&B; and where in AWS the worker is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worker.clients.api_key import ApiKey, KeyPlaces
from worker.clients.aws import AwsClients, Caller, aws_clients, caller_identity
from worker.clients.aws_calls import count_all_calls
from worker.clients.aws_role import TargetRole, with_role
from worker.clients.wandb_api import WandbApi, wandb_api
from worker.errors import SettingsError, Unreachable
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.launch.redaction import KnownSecrets
from worker.ledger.measured import MeasuredLedger
from worker.ledger.membership import new_worker_id
from worker.ledger.opening import check_ledger, open_ledger
from worker.ledger.port import Ledger
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.ops.rates import Rates
from worker.settings import Settings
from worker.sources.git_credentials import GitCredentials
from worker.sources.scratch import remove_leftovers
from worker.sources.wandb_job import WandbJobs, wandb_jobs
from worker.tracking.companion import CompanionRuns
from worker.tracking.offline import offline_runs
from worker.tracking.port import Companion
from worker.tracking.prices import Prices, parse_prices
from worker.training.request import AccountFacts

if TYPE_CHECKING:
    from worker.clients.docker import DockerEngine

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
    secrets: KnownSecrets
    api_key: ApiKey
    wandb: WandbApi | None
    """None: offline, nothing is reported to W&B's queue."""
    jobs: WandbJobs | None
    """None: offline, W&B jobs are refused."""
    companion: Companion
    queue: LaunchQueue
    ledger: Ledger
    docker: DockerEngine | None
    """None: no images are built."""
    work_dir: Path
    prices: Prices


@contextlib.asynccontextmanager
async def opened(settings: Settings, secrets: KnownSecrets) -> AsyncIterator[Opened]:
    """Open all of it; `secrets` learns those that are found.

    Raises `SettingsError` for what the worker cannot run with."""
    if not settings.queue_url:
        raise SettingsError("LAUNCH_QUEUE_URL: not set; give the URL of the SQS queue with launch messages")
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        aws = await enter(aws_clients(settings.aws_region))
        count_all_calls(aws, metrics)
        logins = GitCredentials(settings.git_credentials, secrets)
        ledger = MeasuredLedger(await enter(open_ledger(settings.ledger, aws.dynamodb)), metrics)
        # Side by side: each call takes its time, and nobody waits for another.
        caller, facts, _, _ = await asyncio.gather(
            caller_identity(aws.sts),
            queue_facts(aws.sqs, settings.queue_url, settings.dlq_url),
            check_ledger(ledger),
            asyncio.to_thread(logins.read),  # wrong ones are told now
        )
        if settings.assume_role:
            role = TargetRole(settings.assume_role, settings.assume_role_external_id)
            aws, caller = await enter(with_role(aws, role)), Caller(role.account, role.partition)
        api_key = await worker_key(settings, aws.region, secrets, metrics)
        wandb = await open_wandb(stack, settings, api_key, metrics)
        project = settings.companion_project
        yield Opened(
            settings=settings,
            worker=new_worker_id(socket.gethostname()),
            metrics=metrics,
            rates=Rates(metrics, _rate_bounds(settings)),
            aws=aws,
            account=AccountFacts(caller.account, aws.region, caller.partition),
            secrets=secrets,
            api_key=api_key,
            wandb=wandb,
            jobs=await enter(wandb_jobs(settings.wandb_base_url, api_key)) if wandb else None,
            companion=CompanionRuns(wandb, project=project)
            if wandb
            else await enter(offline_runs(settings.wandb_dir, project=project)),
            queue=LaunchQueue(aws.sqs, facts),
            ledger=ledger,
            docker=await _open_docker(stack, settings),
            work_dir=await asyncio.to_thread(_work_dir, settings),
            prices=await asyncio.to_thread(read_prices, settings.prices),
        )


def key_places(settings: Settings, region: str, metrics: Metrics | None = None) -> KeyPlaces:
    """Where the settings say that the worker's W&B key is."""
    given = settings.wandb_api_key
    return KeyPlaces(
        source=settings.wandb_api_key_source,
        environment=given.get_secret_value() if given else "",
        base_url=settings.wandb_base_url,
        netrc=settings.netrc,
        region=region,
        metrics=metrics,
    )


async def worker_key(
    settings: Settings, region: str, secrets: KnownSecrets, metrics: Metrics | None = None
) -> ApiKey:
    """The worker's W&B key, empty if there is none. Raises `SettingsError` where there must be one."""
    places = key_places(settings, region, metrics)
    value = await places.read()
    if not value and settings.wandb_identity_token_file and settings.wandb_mode == "online":
        raise SettingsError(
            "WANDB_IDENTITY_TOKEN_FILE: federated identity gives no key that containers could use, and this worker "
            "needs one; set WANDB_API_KEY or LAUNCH_WANDB_API_KEY_SOURCE to the key of a service account"
        )
    return ApiKey(value, read=places.read, secrets=secrets)


async def open_wandb(
    stack: contextlib.AsyncExitStack, settings: Settings, api_key: ApiKey, metrics: Metrics
) -> WandbApi | None:
    """W&B's API until the stack ends; None: offline, as the log says."""
    if settings.wandb_mode == "offline" or not api_key.value:
        _log.warning(
            "wandb_offline",
            why="WANDB_MODE=offline" if settings.wandb_mode == "offline" else "there is no W&B API key",
            folder=str(settings.wandb_dir),
            promise="log lines at least once, with the time of `wandb sync`; nothing is reported to launch queues",
        )
        return None
    api = wandb_api(settings.wandb_base_url, api_key, metrics)
    return await stack.enter_async_context(api)


async def _open_docker(stack: contextlib.AsyncExitStack, settings: Settings) -> DockerEngine | None:
    if settings.builder == "none" or not settings.registry:
        return None
    from worker.clients.docker import docker_engine  # noqa: PLC0415  # aiodocker is loaded where images are built

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


def read_prices(given: str) -> Prices:
    """LAUNCH_PRICES: prices, or the path of a file with them. Raises `SettingsError`."""
    if not given or "=" in given:
        return parse_prices(given)
    try:
        return parse_prices(Path(given).read_text())
    except OSError as error:
        raise SettingsError(f"LAUNCH_PRICES: {given}: {error.strerror}") from error


def _rate_bounds(settings: Settings) -> dict[str, float | None]:
    return {
        "CreateTrainingJob": settings.rate_create_training_job,
        "DescribeTrainingJob": settings.rate_describe_training_job,
        "ListTrainingJobs": settings.rate_list_training_jobs,
        "StopTrainingJob": settings.rate_stop_training_job,
        "FilterLogEvents": settings.rate_filter_log_events,
        "DescribeLogStreams": settings.rate_describe_log_streams,
    }
