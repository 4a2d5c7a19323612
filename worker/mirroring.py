"""The composition root of the mirror, by itself (`launch-worker mirror`) or in a worker (`run --mirror`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator

from worker import __version__
from worker.clients.aws import aws_clients
from worker.clients.aws_calls import count_all_calls
from worker.clients.wandb_api import WandbApi
from worker.errors import SettingsError
from worker.intake.backlog import Backlog, CountWaiting
from worker.intake.launch_agent import AgentFacts, LaunchAgent
from worker.intake.mirror import Mirror, MirrorFacts
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.intake.wandb_queue import QueueItems
from worker.launch.redaction import KnownSecrets
from worker.ledger.opening import check_ledger, open_ledger, sees_ledger
from worker.ledger.waiting import count_waiting
from worker.ops.health import serving_health
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.ops.signals import crash_at, stop_on_signals
from worker.resources import Opened, open_wandb, worker_key
from worker.settings import Settings

_log = get_logger()


async def serve_mirror(settings: Settings, secrets: KnownSecrets) -> int:
    """Mirror until SIGTERM or SIGINT, or until the agent is stopped in W&B; `secrets` learns those it comes to know.
    Returns the command's exit code: 1 when a second signal ended it at once.

    Raises `SettingsError`."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    crash_at(settings.crash_at)
    try:
        await _serve(settings, secrets, stop)
    except asyncio.CancelledError:
        _log.warning("mirror_ended_at_once", why="a second signal; W&B returns what was popped")
        return 1
    return 0


async def _serve(settings: Settings, secrets: KnownSecrets, stop: asyncio.Event) -> None:
    metrics = Metrics()
    async with _opened_mirror(settings, secrets, metrics) as mirror:
        await mirror.start()
        async with serving_health(
            settings.http_host,
            settings.http_port,
            metrics=metrics,
            not_ready=lambda: "shutting down" if stop.is_set() else mirror.trouble,
        ) as port:
            _log.info("mirror_started", queues=list(settings.wandb_queues), http_port=port)
            await mirror.run(stop)


@contextlib.asynccontextmanager
async def _opened_mirror(
    settings: Settings, secrets: KnownSecrets, metrics: Metrics
) -> AsyncIterator[Mirror]:
    if not settings.queue_url:
        raise SettingsError("LAUNCH_QUEUE_URL: not set; give the URL of the SQS queue with launch messages")
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        aws = await enter(aws_clients(settings.aws_region))
        count_all_calls(aws, metrics)
        key = await worker_key(settings, aws.region, secrets, metrics)
        api = await open_wandb(stack, settings, key, metrics)
        if api is None:
            raise _offline()
        queue = LaunchQueue(aws.sqs, await queue_facts(aws.sqs, settings.queue_url, settings.dlq_url))
        counting: CountWaiting | None = None
        if await asyncio.to_thread(sees_ledger, settings.ledger):
            ledger = await enter(open_ledger(settings.ledger, aws.dynamodb))
            await check_ledger(ledger)
            counting = functools.partial(count_waiting, ledger)
        else:
            _log.warning(
                "mirror_without_ledger",
                ledger=settings.ledger,
                why="there is no such file on this host: launches that wait in the ledger are not counted",
            )
        yield make_mirror(settings, queue, api, counting, metrics)


def mirror_of(parts: Opened) -> Mirror:
    """The mirror in a worker. Raises `SettingsError` without W&B or without queues."""
    counting = functools.partial(count_waiting, parts.ledger)
    return make_mirror(parts.settings, parts.queue, parts.wandb, counting, parts.metrics)


def make_mirror(
    settings: Settings,
    queue: LaunchQueue,
    api: WandbApi | None,
    counting: CountWaiting | None,
    metrics: Metrics,
) -> Mirror:
    """Wire a mirror. Raises `SettingsError` without W&B or without queues."""
    if api is None:
        raise _offline()
    if not settings.wandb_queues:
        raise SettingsError("LAUNCH_WANDB_QUEUES: not set; name the W&B launch queues to mirror")
    queues = tuple(dict.fromkeys(settings.wandb_queues))
    agent = LaunchAgent(
        api,
        AgentFacts(
            entity=settings.entity,
            queues=queues,
            hostname=socket.gethostname(),
            version=f"launch-worker@{__version__}",
            config={"max_jobs": settings.max_jobs, "secure_mode": settings.secure_mode},
        ),
    )
    facts = MirrorFacts(
        base_url=settings.wandb_base_url,
        queues=queues,
        limit=settings.mirror_backlog,
        interval=settings.mirror_interval,
        heartbeat=settings.heartbeat,
        # The whole process has that long, and the agent's end has to be told afterwards.
        grace=settings.shutdown_grace / 2,
    )
    return Mirror(
        facts=facts,
        agent=agent,
        items=QueueItems(api),
        queue=queue,
        backlog=Backlog(queue, counting),
        metrics=metrics,
    )


def _offline() -> SettingsError:
    return SettingsError(
        "WANDB_API_KEY, WANDB_MODE: the mirror needs W&B; give it a key, and no offline mode"
    )
