"""The composition root: everything is opened here once, wired here, and closed here."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass

from worker.delivery.closing import Closing
from worker.delivery.loop import LogDelivery
from worker.delivery.posting import Posting
from worker.image_building import image_building
from worker.intake.lease import Leases
from worker.intake.mirror import Mirror
from worker.intake.receiver import Receiver
from worker.intake.refusal import Refusals
from worker.intake.sweeps import Sweeps
from worker.intake.unstarted import UnstartedRuns
from worker.intake.wandb_queue import QueueItems
from worker.job_story import JobStory
from worker.job_watch import JobWatch
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
from worker.pending import PendingJobs
from worker.persistence import Persistence
from worker.pipeline import Pipeline, PipelineFacts
from worker.preparing import PlanFacts, Preparing
from worker.resources import Opened, opened
from worker.retrying import Retrying
from worker.settings import Settings
from worker.stopping import Stopping
from worker.submission import Submission
from worker.supervisor import Supervisor
from worker.tracking.build_log import BuildLogs
from worker.tracking.heartbeats import CompanionHeartbeats
from worker.tracking.run_stops import RunStops
from worker.training.allowed import policy_of, retry_rules_of
from worker.training.log_end import log_end
from worker.training.log_feed import LogFeed
from worker.training.sagemaker import SageMaker
from worker.training.status_feed import StatusFeed

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """The wired worker."""

    receiver: Receiver
    adoption: Adoption
    supervisor: Supervisor
    locks: BuildLocks
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
    supervisor = _supervisor(parts, held, adoption, refusals)
    build_logs = BuildLogs(parts.companion, parts.secrets)
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
        sweeps=Sweeps(parts.wandb),
        submit=supervisor.submit,
        is_held=supervisor.is_held,
    )
    receiver = Receiver(
        queue=parts.queue,
        leases=Leases(parts.queue, settings.lease, metrics),
        handle=pipeline.handle,
        slots=settings.slots,
        wait=settings.receive_wait,
        grace=settings.shutdown_grace,
        metrics=metrics,
        may_receive=lambda: adoption.beating,
    )
    return Service(receiver, adoption, supervisor, locks, mirror_of(parts) if mirror else None)


def _supervisor(parts: Opened, held: HeldLaunches, adoption: Adoption, refusals: Refusals) -> Supervisor:
    settings = parts.settings
    sagemaker = SageMaker(parts.aws.sagemaker, parts.rates)
    persistence = Persistence(parts.metrics, settings.log_give_up)
    feed = LogFeed(parts.aws.logs, parts.rates, parts.metrics, now=parts.aws.clock.now)
    story = _job_story(parts, sagemaker, refusals, feed)
    heartbeats = CompanionHeartbeats(
        parts.companion,
        interval=settings.companion_heartbeat,
        running=lambda: (launch.record for launch in held),
        is_current=lambda: adoption.is_current,
    )
    submission = Submission(
        held=held,
        sagemaker=sagemaker,
        refusals=refusals,
        metrics=parts.metrics,
        api_key=parts.api_key,
        hand_over_key=settings.container_api_key == "environment",
        max_jobs=settings.max_jobs,
        max_wait=settings.max_wait,
        is_current=lambda: adoption.is_current,
    )
    return Supervisor(
        persistence=persistence,
        held=held,
        adoption=adoption,
        submission=submission,
        watch=_job_watch(parts, held, sagemaker, persistence),
        delivery=_delivery(parts, held, feed, heartbeats),
        companion=parts.companion,
        story=story,
        retrying=Retrying(
            held=held,
            sagemaker=sagemaker,
            refusals=refusals,
            metrics=parts.metrics,
            deployment=settings.deployment,
            pause=settings.retry_pause,
        ),
        stopping=Stopping(
            held=held,
            submission=submission,
            sagemaker=sagemaker,
            heartbeats=heartbeats,
            run_stops=_run_stops(parts, held, adoption),
            pending=PendingJobs(
                held=held,
                sagemaker=sagemaker,
                story=story,
                refusals=refusals,
                interval=settings.companion_heartbeat,
                start_timeout=settings.start_timeout,
                alert_after=settings.alert_after,
                is_current=lambda: adoption.is_current,
                now=parts.aws.clock.now,
            ),
        ),
        metrics=parts.metrics,
    )


def _job_watch(parts: Opened, held: HeldLaunches, sagemaker: SageMaker, persistence: Persistence) -> JobWatch:
    return JobWatch(
        held=held,
        sagemaker=sagemaker,
        # An hour back: AWS's clock need not agree with ours.
        status_feed=StatusFeed(
            parts.aws.sagemaker, parts.rates, since=parts.aws.clock.now() - 3600, now=parts.aws.clock.now
        ),
        interval=parts.settings.status_interval,
        persistence=persistence,
    )


def _job_story(parts: Opened, sagemaker: SageMaker, refusals: Refusals, feed: LogFeed) -> JobStory:
    settings = parts.settings
    return JobStory(
        region=parts.aws.region,
        companion=parts.companion,
        sagemaker=sagemaker,
        unstarted=UnstartedRuns(
            parts.wandb, refusals, lambda record: log_end(feed, record), grace=settings.init_grace
        ),
        prices=parts.prices,
        alerts=settings.alerts,
    )


def _run_stops(parts: Opened, held: HeldLaunches, adoption: Adoption) -> RunStops | None:
    """None: offline, nobody can press Stop."""
    if parts.wandb is None:
        return None
    return RunStops(
        parts.wandb,
        interval=parts.settings.companion_heartbeat,
        timeout=parts.settings.stopped_run_timeout,
        running=lambda: (launch.record for launch in held),
        is_current=lambda: adoption.is_current,
    )


def _delivery(
    parts: Opened, held: HeldLaunches, feed: LogFeed, heartbeats: CompanionHeartbeats
) -> LogDelivery:
    posting = Posting(
        held=held,
        feed=feed,
        companion=parts.companion,
        metrics=parts.metrics,
        give_up_after=parts.settings.log_give_up,
        on_stop=heartbeats.pressed,
    )
    return LogDelivery(
        feed=feed,
        held=held,
        posting=posting,
        closing=Closing(feed=feed, posting=posting, companion=parts.companion),
        interval=parts.settings.log_interval,
        quiet=parts.settings.log_quiet,
        drain_limit=parts.settings.log_drain_limit,
    )


async def _run(service: Service, stop: asyncio.Event, metrics: Metrics) -> None:
    """Both legs until `stop`; running jobs are given to other workers then, and the intake has the grace to drain."""
    async with asyncio.TaskGroup() as root:
        if service.mirror is not None:
            root.create_task(service.mirror.run(stop), name="mirror")
        others = [
            root.create_task(service.supervisor.run(stop), name="supervisor"),
            root.create_task(service.locks.run(), name="build locks"),
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
