"""Parts of leg 2 around fakes, as `app` wires them."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.companion import FakeCompanion
from tests.fakes.launch_queue import FakeLaunchQueue, FakeQueueItems, no_unstarted_runs
from tests.fakes.ledger import MemoryLedger
from worker.intake.refusal import Refusals
from worker.intake.unstarted import UnstartedRuns
from worker.job_story import JobStory
from worker.ledger.held import HeldLaunches
from worker.pending import PendingJobs
from worker.stop_requests import StopRequests
from worker.stopping import Stopping
from worker.submission import Submission
from worker.tracking.heartbeats import CompanionHeartbeats
from worker.training.sagemaker import SageMaker


def story_of(
    companion: FakeCompanion, sagemaker: SageMaker, unstarted: UnstartedRuns | None = None
) -> JobStory:
    return JobStory(
        region="us-east-1",
        companion=companion,
        sagemaker=sagemaker,
        unstarted=unstarted or no_unstarted_runs(),
        prices={},
        alerts=("failure", "waiting"),
    )


def stopping_of(
    held: HeldLaunches,
    submission: Submission,
    sagemaker: SageMaker,
    story: JobStory,
    companion: FakeCompanion,
    *,
    interval: float,
    is_current: Callable[[], bool] = lambda: True,
    items: FakeQueueItems | None = None,
) -> Stopping:
    """Stops of companions alone are heard."""
    return Stopping(
        held=held,
        submission=submission,
        sagemaker=sagemaker,
        heartbeats=CompanionHeartbeats(
            companion,
            interval=interval,
            running=lambda: (launch.record for launch in held),
            is_current=is_current,
        ),
        run_stops=None,
        requests=StopRequests(MemoryLedger(), held, interval),
        refusals=Refusals(items, FakeLaunchQueue()),
        pending=PendingJobs(
            held=held,
            sagemaker=sagemaker,
            story=story,
            refusals=Refusals(None, FakeLaunchQueue()),
            interval=interval,
            start_timeout=0.0,
            alert_after=1e9,
            is_current=is_current,
        ),
    )
