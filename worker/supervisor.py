"""Leg 2, the story of all running jobs: submit, follow, deliver the log, tell the end. Adopt what others left.

    `waiting` ─▶ CreateTrainingJob ─▶ `accepted` ─▶ status feed, log feed ─▶ ended ─▶ log delivered ─▶ `finished`

It rests on the ledger alone: a worker that starts, or sees another one die, claims the launches and goes on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Coroutine
from typing import Any

from worker.aio import backoff, effect
from worker.delivery.loop import LogDelivery
from worker.errors import Never, WorkerError
from worker.job_story import JobStory
from worker.job_watch import JobWatch
from worker.launch.record import LaunchState
from worker.ledger.adoption import Adoption
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.port import FINISHED_TTL
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.ops.ridden_out import RiddenOut
from worker.persistence import Persistence, Tried
from worker.retrying import Retrying
from worker.stopping import Stopping
from worker.submission import Submission
from worker.tracking.port import Companion
from worker.training.retry import NextAttempt, next_attempt
from worker.training.status import ending_of, has_ended

_LEAVE_WITHIN = 5.0
"""Seconds for the last writes."""
_LONGEST_PAUSE = 600.0
"""Seconds for which an adopted launch is left waiting for its next try at the most."""

_log = get_logger()


class Supervisor:
    """All launches of leg 2 that this worker holds. One loop a concern, none a job."""

    def __init__(
        self,
        *,
        persistence: Persistence,
        held: HeldLaunches,
        adoption: Adoption,
        submission: Submission,
        watch: JobWatch,
        delivery: LogDelivery,
        companion: Companion,
        story: JobStory,
        retrying: Retrying,
        stopping: Stopping,
        metrics: Metrics,
    ) -> None:
        self._persistence = persistence
        self._held = held
        self._adoption = adoption
        self._submission = submission
        self._watch = watch
        self._delivery = delivery
        self._companion = companion
        self._story = story
        self._retrying = retrying
        self._stopping = stopping
        self._metrics = metrics
        self._tasks: asyncio.TaskGroup
        self._opening: set[HeldLaunch] = set()
        self._finishing: set[tuple[HeldLaunch, int, bool]] = set()
        self._closed = False
        self._leaving = False
        self._arrived = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: then every launch is given back at once, while the heartbeat goes on for those of leg 1, and
        what leg 1 still hands over is given back as well, until cancelled. The first loop that fails ends the process;
        the platform starts it again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._adoption.run(self._adopted), name="heartbeat and adoption")
            work = tasks.create_task(self._work(), name="leg 2")
            await stop.wait()
            self._leaving = True
            self._adoption.stop_claiming()
            work.cancel()
            await asyncio.wait([work])
            await self._give_back()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._submission.run(self._accepted, self._over), name="submission")
            tasks.create_task(self._watch.run(self._looked, self._tell), name="status feed")
            tasks.create_task(self._delivery.run(self._delivered), name="log delivery")
            tasks.create_task(self._stopping.run(), name="stopping")
            try:
                await asyncio.Event().wait()
            finally:
                self._closed = True

    def _start(self, step: Coroutine[Any, Any, None], name: str) -> None:
        """Begin with a step of one launch, unless leg 2 is being cancelled: its loops may end a moment later."""
        if self._closed:
            step.close()
        else:
            self._tasks.create_task(step, name=name)

    # Launches come in: from leg 1, or from a worker that is gone.

    def submit(self, held: HeldLaunch) -> Awaitable[None]:
        """Take a launch that is `waiting` over from leg 1, at once; await the result to know that it is settled. It is
        cancelled when this worker is leaving."""
        self._held.add(held)
        self._arrived.set()
        return self._submission.enqueue(held)

    def is_held(self, launch_id: str) -> bool:
        """Leg 2 of this worker has the launch."""
        return launch_id in self._held

    async def _give_back(self) -> None:
        """Release every launch, so that other workers may claim it at once, and whatever comes after it; for ever."""
        tries = 0
        while True:
            self._arrived.clear()
            try:
                await self._release()
                tries = 0
                await self._arrived.wait()
            except WorkerError as error:
                _log.warning("launches_not_released", error=str(error))
                await asyncio.sleep(backoff(tries, cap=5))
                tries += 1

    async def leave(self) -> None:
        """The last thing: nothing is held any more, and no other worker has to wait until this one counts as dead."""
        try:
            async with asyncio.timeout(_LEAVE_WITHIN):
                await self._release()
                await self._adoption.leave()
        except (WorkerError, TimeoutError) as error:  # three missed heartbeats tell the others
            _log.warning("not_left_cleanly", error=str(error) or type(error).__name__)

    async def _release(self) -> None:
        if count := len(self._held):
            await self._held.release()
            # Leg 1 of a launch with a key of its own waits for it: its message goes back as well, but not before.
            self._submission.abandon()
            _log.info("launches_released", count=count)

    def _adopted(self, held: HeldLaunch) -> None:
        self._held.add(held)
        if self._leaving:
            self._arrived.set()
        elif held.record.given_up or held.record.is_delivered:
            self._over(held)
        elif held.record.state is not LaunchState.ACCEPTED:
            # It was noted by another worker's clock, which may have been far ahead.
            held.update(not_before=min(held.record.not_before, time.time() + _LONGEST_PAUSE))
            self._submission.enqueue(held)
        else:
            # It may have changed or ended while nobody looked; ten minutes forgive a wrong clock.
            self._watch.look_back_to(held.record.accepted_at - 600)
            self._accepted(held)

    # A job runs.

    def _accepted(self, held: HeldLaunch) -> None:
        """SageMaker has the job: open its companion, follow its log; the status feed tells the rest."""
        self._opening.add(held)
        self._start(self._open(held), f"open companion {held.record.job_name}")

    async def _open(self, held: HeldLaunch) -> None:
        opened = await self._persistence.until_done(held, "open_companion", lambda: self._story.open(held))
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

    def _looked(self, held: HeldLaunch) -> None:
        self._delivery.job_changed(held)
        if has_ended(held.record.facts):
            self._ended(held)

    async def _tell(self, held: HeldLaunch) -> None:
        """The new state, for those who watch the companion; the end tells everything again."""
        if not self._adoption.is_current:
            return
        with RiddenOut("summary_not_posted", launch_id=held.launch_id):
            await self._story.progress(held)

    # A job has ended.

    def _ended(self, held: HeldLaunch) -> None:
        if held in self._opening:
            return  # `_open` comes back to it: a companion opened after its end would live on
        if held.record.log_target == "off":
            self._delivered(held)
        else:
            self._delivery.job_ended(held)

    def _delivered(self, held: HeldLaunch) -> None:
        if held.record.state is LaunchState.ACCEPTED:
            self._over(held)

    def _over(self, held: HeldLaunch) -> None:
        """The last job's log is complete in W&B, and no other attempt is under way."""
        # Of one attempt once: the next one may end while this one's end is still being told.
        end_of = (held, held.record.attempt, bool(held.record.given_up))
        if end_of not in self._finishing:
            self._finishing.add(end_of)
            self._start(self._go_on_or_finish(held, end_of), f"finish {held.record.job_name}")

    async def _go_on_or_finish(self, held: HeldLaunch, end_of: tuple[HeldLaunch, int, bool]) -> None:
        try:
            following = next_attempt(held.record)
            if following is None or not await self._take(held, following):
                await self._finish(held)
        finally:
            self._finishing.discard(end_of)

    async def _take(self, held: HeldLaunch, following: NextAttempt) -> bool:
        """Let the next attempt follow; False: it cannot be made."""
        refused: list[Never] = []

        async def take() -> None:
            try:
                await self._retrying.take(held, following)
            except Never as error:
                refused.append(error)

        await self._persistence.until_done(held, "write_retry", take, for_ever=True)
        if refused:
            held.update(given_up=str(refused[0]))
        elif held.record.is_between_attempts:  # it may run already
            self._submission.enqueue(held)
            await self._tell(held)
        return not refused

    async def _finish(self, held: HeldLaunch) -> None:
        """Tell the end, then let the launch go."""
        end = ending_of(held.record)
        held.posted_at = math.inf  # a sign of life behind the end might revive the run in W&B
        # Durable first: who takes it over posts no line again behind the end, and who has lost it does not tell one.
        held.update(delivered=held.record.attempt)
        await self._persistence.until_done(
            held, "write_delivered", lambda: self._held.save([held]), for_ever=True
        )
        await self._persistence.until_done(
            held, "finish_companion", lambda: self._story.end(held, end, lambda: self._held.save([held]))
        )
        now = time.time()
        held.update(state=LaunchState.FINISHED, finished_at=now, expires_at=now + FINISHED_TTL)
        await self._persistence.until_done(
            held, "write_finished", lambda: self._write_finished(held), for_ever=True
        )
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
