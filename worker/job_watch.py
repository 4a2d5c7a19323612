"""The states of all running jobs of this worker: one poller sees what changed, Describe tells how."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from worker.aio import backoff
from worker.clients.aws import NotPermitted
from worker.errors import Again, WorkerError
from worker.launch.record import LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.ops.permissions import MissingPermissions
from worker.persistence import Persistence
from worker.training.sagemaker import SageMaker
from worker.training.status import ENDED, has_ended
from worker.training.status_feed import StatusFeed
from worker.training.status_news import Summary, is_news, pace_of_looks

_LOOK_ANYWAY = 600.0
"""Seconds after which a running job may be looked at although the status feed told nothing."""
_ANYWAY_EVERY = 10.0
"""Seconds between two such looks: a thousand quiet jobs must not use up DescribeTrainingJob."""
_LOOKS_AT_ONCE = 20
"""Jobs that are asked for the first time at once; of those behind them the ended ones come first."""
_WITHOUT_FEED_AT_ONCE = 5
_LOOK_WITHOUT_FEED = 6
"""Intervals between two looks at one job where the feed is not permitted: with five jobs at once and the usual
interval of 5 s, one DescribeTrainingJob a second of the account's five."""

_log = get_logger()

OnLook = Callable[[HeldLaunch], None]
Tell = Callable[[HeldLaunch], Awaitable[None]]


class JobWatch:
    """Keeps the facts of held launches true, in memory and, when the state changes, in the ledger."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        sagemaker: SageMaker,
        status_feed: StatusFeed,
        interval: float,
        persistence: Persistence,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        """`interval`: seconds between two looks at the states of all jobs; `now`: AWS's clock, epoch seconds."""
        self._held = held
        self._sagemaker = sagemaker
        self._status_feed = status_feed
        self._interval = interval
        self._persistence = persistence
        self._metrics = metrics
        self._now = now
        self._permissions = MissingPermissions()
        self._tasks: asyncio.TaskGroup
        self._on_look: OnLook
        self._tell: Tell
        self._wanted: dict[HeldLaunch, bool] = {}
        """Jobs to look at, and whether the feed says that they have ended."""
        self._asking: set[HeldLaunch] = set()
        self._listed: dict[str, Summary] = {}
        """Job name → the summary for which it was looked at last."""
        self._last_change_at = time.monotonic()
        self._describing: set[HeldLaunch] = set()
        self._changed_meanwhile: set[HeldLaunch] = set()

    async def run(self, on_look: OnLook, tell: Tell) -> None:
        """Until cancelled. `on_look` is called after each look at a job, and `tell` once what was seen is settled and
        the job has not ended."""
        self._on_look, self._tell = on_look, tell
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._look_anyway(), name="looks without news")
            await self._follow_states()

    def look_back_to(self, moment: float) -> None:
        """As `StatusFeed.look_back_to`, for an adopted job."""
        self._status_feed.look_back_to(moment)

    async def _follow_states(self) -> None:
        tries = 0
        while True:
            try:
                await self._changes()
                tries = 0
            except WorkerError as error:
                pause = error.retry_after if isinstance(error, Again) else None
                _log.warning("status_feed_failed", error=str(error))
                await asyncio.sleep(pause or backoff(tries, cap=30))
                tries += 1
            since = time.monotonic() - self._last_change_at
            await asyncio.sleep(self._interval * pace_of_looks((held.record for held in self._held), since))

    async def _changes(self) -> None:
        if not self._running():
            self._listed.clear()
            return
        try:
            changes = await self._status_feed.changes()
        except NotPermitted as error:
            cost = "each job is asked for by itself (DescribeTrainingJob), so that its end is seen later"
            self._permissions.tell("sagemaker:ListTrainingJobs", cost=cost, error=error)
            self._look_without_feed(self._running().values())
            return
        # Also those that were accepted while it looked: it may not tell of them again.
        running = self._running()
        self._listed = {name: listed for name, listed in self._listed.items() if name in running}
        for name, summary in changes.items():
            held, looked_for = running.get(name), self._listed.get(name)
            if held is None or not is_news(summary, held.record.facts, looked_for):
                continue
            if summary != looked_for or held not in self._describing:
                self._listed[name] = summary
                self._last_change_at = time.monotonic()
                if summary != looked_for:
                    # SageMaker tells whole seconds, and a clock may be a little behind its own.
                    self._metrics.status_lag.observe(max(0.0, self._now() - summary.modified_at))
                self._want_look(held, ended=summary.status in ENDED)

    def _look_without_feed(self, running: Iterable[HeldLaunch]) -> None:
        """Some of the jobs that were not looked at for a while, the longest unseen first."""
        now = time.monotonic()
        overdue = [held for held in running if now - held.looked_at > _LOOK_WITHOUT_FEED * self._interval]
        for held in sorted(overdue, key=lambda held: held.looked_at)[:_WITHOUT_FEED_AT_ONCE]:
            self._want_look(held, ended=False)

    def _running(self) -> dict[str, HeldLaunch]:
        return {
            held.record.job_name: held for held in self._held if held.record.state is LaunchState.ACCEPTED
        }

    async def _look_anyway(self) -> None:
        """The feed tells every change; this is for the one that a wrong clock or a lost answer has hidden, and while
        the feed fails."""
        while True:
            running = [held for held in self._running().values() if not has_ended(held.record.facts)]
            oldest = min(running, key=lambda held: held.looked_at, default=None)
            if oldest is not None and time.monotonic() - oldest.looked_at > _LOOK_ANYWAY:
                self._want_look(oldest, ended=False)
            await asyncio.sleep(_ANYWAY_EVERY)

    def _want_look(self, held: HeldLaunch, *, ended: bool) -> None:
        if held in self._describing:
            self._changed_meanwhile.add(held)
        elif not has_ended(held.record.facts):
            self._wanted[held] = ended or self._wanted.get(held, False)
            self._start_looks()

    def _start_looks(self) -> None:
        """A thousand jobs may have changed while nobody looked: their ends are not to wait behind lesser news."""
        while self._wanted and len(self._asking) < _LOOKS_AT_ONCE:
            held = next((held for held, ended in self._wanted.items() if ended), next(iter(self._wanted)))
            del self._wanted[held]
            if not held.lost:
                self._asking.add(held)
                self._describing.add(held)
                self._tasks.create_task(self._look_at(held), name=f"describe {held.record.job_name}")

    async def _look_at(self, held: HeldLaunch) -> None:
        """DescribeTrainingJob, and what follows from the answer."""
        try:
            await self._persistence.until_done(held, "describe_training_job", lambda: self._describe(held))
            while held in self._changed_meanwhile:
                self._changed_meanwhile.discard(held)
                if has_ended(held.record.facts):
                    break
                await self._persistence.until_done(
                    held, "describe_training_job", lambda: self._describe(held)
                )
        finally:
            self._describing.discard(held)
        if not (held.lost or has_ended(held.record.facts)):
            await self._tell(held)

    async def _describe(self, held: HeldLaunch) -> None:
        held.looked_at = time.monotonic()
        before, name = held.record.facts, held.record.job_name
        try:
            facts = await self._sagemaker.describe(name)
        except asyncio.CancelledError:
            self._wanted.clear()  # the group of tasks ends, and takes no further look
            raise
        finally:
            # Also when it failed: a job that is tried again and again holds up no other.
            self._asking.discard(held)
            self._start_looks()
        if held.record.job_name != name:
            return  # the answer is about an earlier attempt
        if (facts.status, facts.secondary_status) == (before.status, before.secondary_status):
            held.update(facts=facts)
        else:
            # Durable before anybody acts on it: an end that is not written yet could be seen, and unseen again.
            await self._held.advance(held, facts=facts)
            if held.lost:
                return
            _log.info(
                "job_state",
                launch_id=held.launch_id,
                training_job=held.record.job_name,
                status=facts.status,
                secondary_status=facts.secondary_status,
            )
        if not held.lost:
            self._on_look(held)
