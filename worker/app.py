"""The composition root: everything is opened here once, wired here, and closed here."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

from worker.image_building import image_building
from worker.intake.lease import Leases
from worker.intake.mirror import Mirror
from worker.intake.queue_watch import QueueWatch
from worker.intake.receiver import Receiver
from worker.intake.refusal import Refusals
from worker.intake.sweeps import Sweeps
from worker.intake.wandb_queue import QueueItems
from worker.launch.redaction import KnownSecrets
from worker.ledger.adoption import Adoption
from worker.ledger.build_lock import BuildLocks
from worker.ledger.held import HeldLaunches
from worker.ledger.membership import Membership
from worker.ledger.port import WorkerBeat
from worker.mirroring import mirror_of
from worker.ops.health import serving_health
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.ops.runtime import settle_garbage_collector, watch_loop_lag
from worker.ops.signals import crash_at, stop_on_signals
from worker.pipeline import Pipeline, PipelineFacts
from worker.preparing import PlanFacts, Preparing
from worker.resources import Opened, opened
from worker.run_claims import RunClaims
from worker.settings import Settings
from worker.supervision import supervisor_of
from worker.supervisor import Supervisor
from worker.tracking.build_log import BuildLogs
from worker.training.allowed import policy_of, retry_rules_of

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """The wired worker."""

    receiver: Receiver
    pipeline: Pipeline
    adoption: Adoption
    supervisor: Supervisor
    locks: BuildLocks
    queue_watch: QueueWatch
    refusals: Refusals
    mirror: Mirror | None
    """None: somebody else fills the queue."""


async def serve(settings: Settings, secrets: KnownSecrets, *, mirror: bool = False) -> int:
    """Run the worker, with `mirror` also the mirror, until SIGTERM or SIGINT; `secrets` learns those it comes to know.
    Returns the command's exit code: 1 when a second signal ended it at once.

    Raises `SettingsError` for settings it cannot run with."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    try:
        await _serve(settings, secrets, stop, mirror=mirror)
    except asyncio.CancelledError:
        _log.warning("worker_ended_at_once", why="a second signal; what was in work goes on elsewhere")
        return 1
    return 0


async def _serve(settings: Settings, secrets: KnownSecrets, stop: asyncio.Event, *, mirror: bool) -> None:
    crash_at(settings.crash_at)
    async with opened(settings, secrets) as parts:
        service = wire(parts, mirror=mirror)
        if service.mirror is not None:
            await service.mirror.start()
        settle_garbage_collector()
        async with serving_health(
            settings.http_host,
            settings.http_port,
            metrics=parts.metrics,
            not_ready=lambda: _not_ready(service, stop),
        ) as port:
            _log.info(
                "worker_started",
                worker=parts.worker,
                queue=parts.queue.facts.arn,
                ledger=settings.ledger,
                account=parts.account.account,
                region=parts.account.region,
                http_port=port,
            )
            await _run(service, stop, parts.metrics)
            _log.info("worker_stopped", worker=parts.worker)


def wire(parts: Opened, *, mirror: bool = False) -> Service:
    """Give every part what it needs; nothing is opened and nothing runs here."""
    settings, metrics = parts.settings, parts.metrics
    beat = WorkerBeat(parts.worker, 0, settings.deployment, socket.gethostname(), time.time())
    membership = Membership(parts.ledger, beat, settings.heartbeat)
    held = HeldLaunches(parts.ledger, parts.worker, metrics)
    refusals = Refusals(QueueItems(parts.wandb) if parts.wandb else None, parts.queue)
    adoption = Adoption(
        ledger=parts.ledger,
        membership=membership,
        held=held,
        worker=parts.worker,
        heartbeat=settings.heartbeat,
        metrics=metrics,
    )
    sweeps = Sweeps(parts.wandb)
    supervisor = supervisor_of(parts, held, adoption, refusals, sweeps)
    build_logs = BuildLogs(parts.companion, parts.secrets, alerts=settings.alerts)
    locks = BuildLocks(parts.ledger, membership, parts.worker)
    pipeline = Pipeline(
        facts=PipelineFacts(
            worker=parts.worker,
            queue_arn=parts.queue.facts.arn,
            deployment=settings.deployment,
            base_url=settings.wandb_base_url,
            log_target=settings.log_target,
            retry_rules=retry_rules_of(settings),
            heartbeat=settings.heartbeat,
            max_attempts=settings.max_attempts,
            secrets=parts.secrets,
        ),
        ledger=parts.ledger,
        membership=membership,
        refusals=refusals,
        preparing=Preparing(
            facts=PlanFacts(
                account=parts.account,
                base_url=settings.wandb_base_url,
                deployment=settings.deployment,
                macros=dict(settings.macros),
                policy=policy_of(settings),
            ),
            building=image_building(parts, locks, build_logs),
            jobs=parts.jobs,
            refusals=refusals,
        ),
        build_logs=build_logs,
        sweeps=sweeps,
        run_claims=RunClaims(parts.ledger, companion_project=settings.companion_project),
        submit=supervisor.submit,
        is_held=supervisor.is_held,
    )
    receiver = _receiver(parts, pipeline, adoption)
    mirroring = mirror_of(parts) if mirror else None
    queue_watch = QueueWatch(parts.queue, metrics)
    return Service(receiver, pipeline, adoption, supervisor, locks, queue_watch, refusals, mirroring)


def _receiver(parts: Opened, pipeline: Pipeline, adoption: Adoption) -> Receiver:
    settings, metrics = parts.settings, parts.metrics
    return Receiver(
        queue=parts.queue,
        leases=Leases(parts.queue, settings.lease, metrics),
        handle=pipeline.handle,
        slots=settings.slots,
        wait=settings.receive_wait,
        grace=settings.shutdown_grace,
        metrics=metrics,
        may_receive=lambda: adoption.beating,
    )


async def _run(service: Service, stop: asyncio.Event, metrics: Metrics) -> None:
    """Both legs until `stop`; running jobs are given to other workers then, and the intake has the grace to drain."""
    async with asyncio.TaskGroup() as root:
        if service.mirror is not None:
            root.create_task(service.mirror.run(stop), name="mirror")
        others = [
            root.create_task(service.supervisor.run(stop), name="supervisor"),
            root.create_task(service.pipeline.run(), name="launches to give back"),
            root.create_task(service.locks.run(), name="build locks"),
            root.create_task(service.queue_watch.run(), name="queue depth"),
            root.create_task(service.refusals.run(), name="late warnings"),
            root.create_task(watch_loop_lag(metrics), name="loop lag"),
        ]
        await service.receiver.run(stop)
        for task in others:
            task.cancel()
    await service.supervisor.leave()


def _not_ready(service: Service, stop: asyncio.Event) -> str:
    if stop.is_set():
        return "shutting down"
    if not service.adoption.beating:
        return "the ledger does not answer"
    return "" if service.receiver.receiving else "the queue does not answer"
