"""The composition of leg 2: what follows jobs, delivers their logs, and tells their ends. `app` starts it."""

from __future__ import annotations

from worker.aio import Breather
from worker.delivery.closing import Closing
from worker.delivery.loop import LogDelivery
from worker.delivery.posting import Posting
from worker.intake.refusal import Refusals
from worker.intake.sweeps import Sweeps
from worker.intake.unstarted import UnstartedRuns
from worker.job_story import JobStory
from worker.job_watch import JobWatch
from worker.ledger.adoption import Adoption
from worker.ledger.held import HeldLaunches
from worker.pending import PendingJobs
from worker.persistence import Persistence
from worker.resources import Opened
from worker.retrying import Retrying
from worker.stop_requests import StopRequests
from worker.stopping import Stopping
from worker.submission import Submission
from worker.supervisor import Supervisor
from worker.tracking.heartbeats import CompanionHeartbeats
from worker.tracking.run_stops import RunStops
from worker.training.log_end import log_end
from worker.training.log_feed import LogFeed
from worker.training.sagemaker import SageMaker
from worker.training.status_feed import StatusFeed


def supervisor_of(
    parts: Opened, held: HeldLaunches, adoption: Adoption, refusals: Refusals, sweeps: Sweeps
) -> Supervisor:
    settings = parts.settings
    sagemaker = SageMaker(parts.aws.sagemaker, parts.rates)
    persistence = Persistence(parts.metrics, settings.log_give_up, refusals)
    breather = Breather()
    feed = LogFeed(parts.aws.logs, parts.rates, parts.metrics, breather=breather, now=parts.aws.clock.now)
    story = _job_story(parts, sagemaker, refusals, feed)
    silent = settings.companion_heartbeat / 2
    heartbeats = CompanionHeartbeats(
        parts.companion,
        interval=settings.companion_heartbeat,
        running=lambda: held.silent_for(silent),
        is_silent=lambda launch_id: held.is_silent_for(launch_id, silent),
        is_held=held.__contains__,
        is_current=lambda: adoption.is_current,
    )
    submission = _submission(parts, held, adoption, sagemaker, refusals=refusals, sweeps=sweeps)
    return Supervisor(
        persistence=persistence,
        held=held,
        adoption=adoption,
        submission=submission,
        watch=_job_watch(parts, held, sagemaker, persistence),
        delivery=_delivery(parts, held, adoption, feed, heartbeats, refusals=refusals, breather=breather),
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
            requests=StopRequests(parts.ledger, held, settings.heartbeat),
            refusals=refusals,
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


def _submission(
    parts: Opened,
    held: HeldLaunches,
    adoption: Adoption,
    sagemaker: SageMaker,
    *,
    refusals: Refusals,
    sweeps: Sweeps,
) -> Submission:
    settings = parts.settings
    return Submission(
        held=held,
        sagemaker=sagemaker,
        refusals=refusals,
        sweeps=sweeps,
        metrics=parts.metrics,
        api_key=parts.api_key,
        hand_over_key=settings.container_api_key == "environment",
        max_jobs=settings.max_jobs,
        max_wait=settings.max_wait,
        is_current=lambda: adoption.is_current,
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
        metrics=parts.metrics,
        now=parts.aws.clock.now,
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
    parts: Opened,
    held: HeldLaunches,
    adoption: Adoption,
    feed: LogFeed,
    heartbeats: CompanionHeartbeats,
    *,
    refusals: Refusals,
    breather: Breather,
) -> LogDelivery:
    posting = Posting(
        held=held,
        feed=feed,
        companion=parts.companion,
        metrics=parts.metrics,
        breather=breather,
        give_up_after=parts.settings.log_give_up,
        refusals=refusals,
        on_answer=heartbeats.answered,
        is_current=lambda: adoption.is_current,
    )
    return LogDelivery(
        feed=feed,
        held=held,
        posting=posting,
        closing=Closing(feed=feed, posting=posting, companion=parts.companion),
        breather=breather,
        interval=parts.settings.log_interval,
        quiet=parts.settings.log_quiet,
        drain_limit=parts.settings.log_drain_limit,
    )
