"""Jobs that SageMaker has taken and does not start: told after a while on the queue item and as an alert, and stopped
after LAUNCH_START_TIMEOUT."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from worker.errors import Stage
from worker.intake.refusal import Refusals
from worker.job_story import NO_START, JobStory
from worker.launch.record import JobFacts, LaunchRecord, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.ridden_out import RiddenOut
from worker.tracking.run_stops import StopJob
from worker.training.sagemaker import SageMaker
from worker.training.status import has_ended

_log = get_logger()

_TOLD_A_ROUND = 20
"""Jobs of a round about whose wait SageMaker is asked and W&B told: some seconds of DescribeTrainingJob's quota."""


class PendingJobs:
    """Two loops over all jobs, one stops and one tells; they ask SageMaker only about those that are overdue."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        sagemaker: SageMaker,
        story: JobStory,
        refusals: Refusals,
        interval: float,
        start_timeout: float,
        alert_after: float,
        is_current: Callable[[], bool],
        now: Callable[[], float] = time.time,
    ) -> None:
        """Durations in seconds; `start_timeout` 0: never. `now`: epoch seconds by AWS's clock."""
        self._held = held
        self._sagemaker = sagemaker
        self._story = story
        self._refusals = refusals
        self._interval = interval
        self._start_timeout = start_timeout
        self._alert_after = alert_after
        self._is_current = is_current
        self._now = now
        self._asked: dict[str, float] = {}
        """Launch id → monotonic time at which something was to be told of it."""
        self._told: dict[tuple[str, int], str] = {}
        """(launch id, attempt) of jobs whose overdue start SageMaker was asked about → what was told of it. Any number
        may be pending, so it is remembered here, not among the last warnings of all launches."""
        self._telling = asyncio.Lock()
        """One after the other, in their order: the last warning of a queue item is the one that stands."""
        self._tasks: asyncio.TaskGroup

    async def run(self, stop: StopJob) -> None:
        """Until cancelled; `stop` is asked to stop a job, with the reason. Stops cost money when they are late, so they
        do not wait for W&B."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._stop_late(stop), name="stops of jobs that do not start")
            self._tasks.create_task(self._tell_long(), name="jobs that wait long")

    async def _stop_late(self, stop: StopJob) -> None:
        while True:
            await asyncio.sleep(self._interval)
            for held, waited in self._pending():
                if self._is_late(waited):
                    await self._look(held, partial(self._stop, held, waited, stop))

    async def _tell_long(self) -> None:
        """Of what is to be told only some a round: any number may be pending."""
        while True:
            await asyncio.sleep(self._interval)
            present = {(held.launch_id, held.record.attempt) for held in self._held}
            self._told = {attempt: told for attempt, told in self._told.items() if attempt in present}
            self._asked = {launch_id: at for launch_id, at in self._asked.items() if launch_id in self._held}
            long = [
                each for each in self._pending() if self._alert_after < each[1] and not self._is_late(each[1])
            ]
            # Those about which nobody could be asked or told do not keep the others from their turn.
            long.sort(key=lambda each: self._asked.get(each[0].launch_id, -math.inf))
            untold = [each for each in long if self._is_untold(each[0])]
            for held, waited in untold[:_TOLD_A_ROUND]:
                self._asked[held.launch_id] = time.monotonic()
                async with self._telling:
                    await self._look(held, partial(self._tell, held, waited))

    def _pending(self) -> list[tuple[HeldLaunch, float]]:
        """Each with the seconds that it has waited."""
        return [(held, self._waited(held.record)) for held in self._held if _is_pending(held.record)]

    def _waited(self, record: LaunchRecord) -> float:
        # SageMaker's own time where it is known: the worker that submitted the job may have had a wrong clock.
        return self._now() - (record.facts.created_at or record.accepted_at)

    def _is_late(self, waited: float) -> bool:
        return 0 < self._start_timeout < waited

    def _is_untold(self, held: HeldLaunch) -> bool:
        told = self._told.get((held.launch_id, held.record.attempt))
        return told != _words(held.record) or self._story.wants(held.record, "waiting")

    async def _look(self, held: HeldLaunch, step: Callable[[], Awaitable[None]]) -> None:
        if not (self._is_current() and _is_pending(held.record)):  # while others had their turn
            return
        with RiddenOut("pending_job_not_looked_at", launch_id=held.launch_id):
            await step()

    async def _stop(self, held: HeldLaunch, waited: float, stop: StopJob) -> None:
        name = held.record.job_name
        # What it waits for changes without a change of its state, which the status feed would have told.
        facts = await self._sagemaker.describe(name)
        # Meanwhile the status feed may have told more, which is not to be overwritten.
        seen = replace(held.record, facts=facts)
        if held.record.job_name != name or not (_is_pending(held.record) and _is_pending(seen)):
            return
        reason = f"{NO_START} {waited:.0f} s (LAUNCH_START_TIMEOUT): {waits_for(seen)}"
        if await stop(held.launch_id, reason):
            _log.warning("job_not_started", launch_id=held.launch_id, reason=reason)
            self._tasks.create_task(self._tell_stop(held.record.item_id, reason), name=f"tell stop of {name}")

    async def _tell_stop(self, item_id: str, reason: str) -> None:
        async with self._telling:
            await self._refusals.warn(item_id, "job_not_started", f"The job is stopped. {reason}", Stage.RUN)

    async def _tell(self, held: HeldLaunch, waited: float) -> None:
        await self._warn(held)
        if not _is_pending(held.record):  # W&B may have taken a minute
            return
        text = f"Waiting for {waited / 60:.0f} min: {waits_for(held.record)}"
        if await self._story.alert(held, "waiting", f"{held.record.job_name} has not started", text):
            await self._held.save([held])

    async def _warn(self, held: HeldLaunch) -> None:
        """On the queue item, whether alerts are wanted or not: once for each attempt, and again when SageMaker's words
        for it change."""
        attempt = (held.launch_id, held.record.attempt)
        before = self._told.get(attempt)
        if before is None:
            # As in `_stop`, but once a worker, for any number of jobs may be pending.
            now = await self._sagemaker.describe(held.record.job_name)
            facts = held.record.facts
            if (now.status, now.secondary_status) != (facts.status, facts.secondary_status):
                return  # the status feed is about to tell it
            held.update(facts=replace(facts, status_message=now.status_message))
        told = _words(held.record)
        if told != before:
            self._told[attempt] = told
            await self._refusals.warn(held.record.item_id, "job_pending", told, Stage.RUN)


def _words(record: LaunchRecord) -> str:
    return f"The job has not started yet: {waits_for(record)}"


def waits_for(record: LaunchRecord) -> str:
    """In SageMaker's own words where it has some."""
    facts: JobFacts = record.facts
    machines = (
        f"{record.instance_count} x {record.instance_type}" if record.instance_type else "its instances"
    )
    said = f" ({facts.status_message})" if facts.status_message else ""
    return f"SageMaker says {facts.secondary_status or facts.status or 'nothing'}{said} for {machines}."


def _is_pending(record: LaunchRecord) -> bool:
    facts = record.facts
    is_there = record.state is LaunchState.ACCEPTED and not has_ended(facts) and facts.status != "Stopping"
    return is_there and facts.started_at is None and not record.stop_reason
