"""Leg 2, the story of all running jobs: submit, follow, deliver the log, tell the end. Adopt what others left.

    `waiting` ─▶ CreateTrainingJob ─▶ `accepted` ─▶ status feed, log feed ─▶ ended ─▶ log delivered ─▶ `finished`

It rests on the ledger alone: a worker that starts, or sees another one die, claims the launches and goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from worker.aio import backoff, effect
from worker.delivery.loop import LogDelivery
from worker.delivery.persistence import GIVE_UP_AFTER, Persistence, Tried
from worker.errors import Again, MustRestart, WorkerError
from worker.launch.record import LaunchState
from worker.ledger.adoption import Adoption
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.port import FINISHED_TTL
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.submission import Submission
from worker.tracking.facts import companion_config, companion_summary
from worker.tracking.heartbeats import CompanionHeartbeats
from worker.tracking.port import Companion
from worker.training.sagemaker import SageMaker
from worker.training.status import Ending, console_links, ending, has_ended
from worker.training.status_feed import StatusFeed

_LOOK_ANYWAY = 600.0
"""Seconds after which a running job is looked at although the status feed told nothing."""
_LOOKS_AT_ONCE = 5
_LONGEST_PAUSE = 600.0
"""Seconds for which an adopted launch is left waiting for its next try at the most."""

_log = get_logger()


@dataclass(frozen=True, slots=True)
class SupervisorFacts:
    """What leg 2 needs to know of the deployment; fixed for the life of the process. Durations are seconds."""

    region: str
    status_interval: float
    give_up_after: float = GIVE_UP_AFTER


class Supervisor:
    """All launches of leg 2 that this worker holds. One loop a concern, none a job."""

    def __init__(
        self,
        *,
        facts: SupervisorFacts,
        held: HeldLaunches,
        adoption: Adoption,
        submission: Submission,
        sagemaker: SageMaker,
        status_feed: StatusFeed,
        delivery: LogDelivery,
        companion: Companion,
        heartbeats: CompanionHeartbeats,
        metrics: Metrics,
    ) -> None:
        self._facts = facts
        self._held = held
        self._adoption = adoption
        self._submission = submission
        self._sagemaker = sagemaker
        self._status_feed = status_feed
        self._delivery = delivery
        self._companion = companion
        self._heartbeats = heartbeats
        self._metrics = metrics
        self._persistence = Persistence(metrics, facts.give_up_after)
        self._tasks: asyncio.TaskGroup
        self._opening: set[HeldLaunch] = set()
        self._describing: set[HeldLaunch] = set()
        self._changed_meanwhile: set[HeldLaunch] = set()
        self._finishing: set[HeldLaunch] = set()

    async def run(self) -> None:
        """Until cancelled. The first loop that fails ends the process; the platform starts it again."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._adoption.run(self._adopted), name="heartbeat and adoption")
            tasks.create_task(self._submission.run(self._accepted), name="submission")
            tasks.create_task(self._follow_states(), name="status feed")
            tasks.create_task(self._delivery.run(self._delivered), name="log delivery")
            tasks.create_task(self._heartbeats.run(self.stop), name="companion heartbeats")

    # Launches come in: from leg 1, or from a worker that is gone.

    def submit(self, held: HeldLaunch) -> Awaitable[None]:
        """Take a launch that is `waiting` over from leg 1, at once; await the result to know that it is settled."""
        self._held.add(held)
        return self._submission.enqueue(held)

    def is_held(self, launch_id: str) -> bool:
        """Leg 2 of this worker has the launch."""
        return launch_id in self._held

    async def release(self) -> None:
        """Give every launch back, so that other workers may claim them at once: at shutdown."""
        count = len(self._held)
        await self._held.release()
        _log.info("launches_released", count=count)

    def _adopted(self, held: HeldLaunch) -> None:
        self._held.add(held)
        if held.record.state is not LaunchState.ACCEPTED:
            # It was noted by another worker's clock, which may have been far ahead.
            held.update(not_before=min(held.record.not_before, time.time() + _LONGEST_PAUSE))
            self._submission.enqueue(held)
        else:
            # It may have changed or ended while nobody looked; ten minutes forgive a wrong clock.
            self._status_feed.look_back_to(held.record.accepted_at - 600)
            self._accepted(held)

    # A job runs.

    def _accepted(self, held: HeldLaunch) -> None:
        """SageMaker has the job: open its companion, follow its log; the status feed tells the rest."""
        self._opening.add(held)
        self._tasks.create_task(self._open(held), name=f"open companion {held.record.job_name}")

    async def _open(self, held: HeldLaunch) -> None:
        links = console_links(self._facts.region, held.record.job_name)
        opened = await self._persistence.until_done(
            held,
            "open_companion",
            lambda: self._companion.open(held.record, companion_config(held.record, links)),
        )
        self._opening.discard(held)
        if opened is not Tried.DONE:
            if opened is Tried.GIVEN_UP:
                self._delivered(held)
            return
        _log.info(
            "companion_opened",
            launch_id=held.launch_id,
            training_job=held.record.job_name,
            url=self._companion.address(held.record),
        )
        if held.record.log_target != "off":
            self._delivery.follow(held)
        if has_ended(held.record.facts):
            self._ended(held)

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
            await asyncio.sleep(self._facts.status_interval)

    async def _changes(self) -> None:
        running = {
            held.record.job_name: held for held in self._held if held.record.state is LaunchState.ACCEPTED
        }
        if not running:
            return
        for name, summary in (await self._status_feed.changes()).items():
            held = running.get(name)
            if held is None:
                continue
            known = (held.record.facts.status, held.record.facts.secondary_status)
            if (summary.status, summary.secondary_status) != known:
                self._start_look(held)
        # The feed tells every change; this is for the one that a wrong clock or a lost answer has hidden.
        overdue = [held for held in running.values() if time.monotonic() - held.looked_at > _LOOK_ANYWAY]
        for held in overdue[:_LOOKS_AT_ONCE]:
            self._start_look(held)

    def _start_look(self, held: HeldLaunch) -> None:
        if held in self._describing:
            self._changed_meanwhile.add(held)
        elif not has_ended(held.record.facts):
            self._describing.add(held)
            self._tasks.create_task(self._look_at(held), name=f"describe {held.record.job_name}")

    async def _look_at(self, held: HeldLaunch) -> None:
        """DescribeTrainingJob, and what follows from the answer."""
        try:
            await self._persistence.until_done(held, "describe_training_job", lambda: self._describe(held))
            while held in self._changed_meanwhile:
                self._changed_meanwhile.discard(held)
                await self._persistence.until_done(
                    held, "describe_training_job", lambda: self._describe(held)
                )
        finally:
            self._describing.discard(held)
        if not (held.lost or has_ended(held.record.facts)):
            await self._tell(held)

    async def _describe(self, held: HeldLaunch) -> None:
        held.looked_at = time.monotonic()
        before = held.record.facts
        facts = await self._sagemaker.describe(held.record.job_name)
        held.update(facts=facts)
        if (facts.status, facts.secondary_status) != (before.status, before.secondary_status):
            try:
                await self._held.save([held])
            except WorkerError:
                held.update(facts=before)  # so that the next try sees the change again
                raise
            _log.info(
                "job_state",
                launch_id=held.launch_id,
                training_job=held.record.job_name,
                status=facts.status,
                secondary_status=facts.secondary_status,
            )
        self._delivery.job_changed(held)
        if has_ended(facts) and not held.lost:
            self._ended(held)

    async def _tell(self, held: HeldLaunch) -> None:
        """The new state, for those who watch the companion; the end tells everything again."""
        if not self._adoption.is_current:
            return
        try:
            await self._companion.summarize(held.record, self._summary(held))
        except MustRestart:
            raise
        except Exception as error:  # one run's unforeseen trouble ends no other
            _log.warning("summary_not_posted", launch_id=held.launch_id, error=str(error))

    async def stop(self, launch_id: str, reason: str) -> bool:
        """Stop a job for a reason that is told at its end; False: it had ended, or is not ours.

        The reason is durable before the stop, so that no crash can turn it into a stop from outside."""
        held = next((held for held in self._held if held.launch_id == launch_id), None)
        if held is None or held.record.state is not LaunchState.ACCEPTED or has_ended(held.record.facts):
            return False
        if not held.record.stop_reason:
            held.update(stop_reason=reason)
        # Each time: the write of an earlier try may have failed.
        await self._held.save([held])
        _log.info("job_stopping", launch_id=launch_id, training_job=held.record.job_name, reason=reason)
        return not held.lost and await self._sagemaker.stop(held.record.job_name)

    # A job has ended.

    def _ended(self, held: HeldLaunch) -> None:
        if held in self._opening:
            return  # `_open` comes back to it: a companion opened after its end would live on
        if held.record.log_target == "off":
            self._delivered(held)
        else:
            self._delivery.job_ended(held)

    def _delivered(self, held: HeldLaunch) -> None:
        if held not in self._finishing and held.record.state is LaunchState.ACCEPTED:
            self._finishing.add(held)
            self._tasks.create_task(self._finish(held), name=f"finish {held.record.job_name}")

    async def _finish(self, held: HeldLaunch) -> None:
        """The log is complete in W&B: tell the end, then let the launch go."""
        end = ending(held.record.facts, stop_reason=held.record.stop_reason)
        await self._persistence.until_done(
            held,
            "finish_companion",
            lambda: self._companion.finish(held.record, self._summary(held, end), end.exit_code),
        )
        now = time.time()
        held.update(state=LaunchState.FINISHED, finished_at=now, expires_at=now + FINISHED_TTL)
        await self._persistence.until_done(
            held, "write_finished", lambda: self._write_finished(held), for_ever=True
        )
        self._finishing.discard(held)
        if held.lost:
            return
        self._held.drop(held)
        self._metrics.jobs_ended.labels(str(end.end)).inc()
        _log.info(
            "job_finished",
            launch_id=held.launch_id,
            training_job=held.record.job_name,
            end=str(end.end),
            reason=end.reason,
            lines=held.record.log.next_line,
        )

    async def _write_finished(self, held: HeldLaunch) -> None:
        with effect("write_finished"):
            await self._held.save([held])

    # What is shared.

    def _summary(self, held: HeldLaunch, end: Ending | None = None) -> dict[str, object]:
        record = held.record
        return companion_summary(
            record.facts,
            lines=record.log.next_line,
            instance_count=record.instance_count,
            end=str(end.end) if end else "",
            reason=end.reason if end else "",
        )
