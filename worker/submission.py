"""Ready launches become training jobs: paced, repeatable, and told when they can never become one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from traceback import format_exception

from worker.aio import backoff, effect, wait_for_event
from worker.clients.api_key import ApiKey
from worker.container_key import ContainerKey
from worker.errors import Again, MustRestart, Never, Stage, Throttled, Unreachable, WorkerError
from worker.intake.refusal import Refusals
from worker.intake.sweeps import FRESH, Sweeps
from worker.launch.record import Failure, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.submit_queue import HeartbeatLate, SubmitQueue, waited_so_far
from worker.telling import RefusalTelling
from worker.tracking.metric_definitions import definitions_of
from worker.training.sagemaker import QuotaExceeded, QuotaTooSmall, SageMaker, TrainingJob

_log = get_logger()


class Submission:
    """Submits waiting launches as soon as there is room; one task per launch that is being submitted."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        sagemaker: SageMaker,
        refusals: Refusals,
        sweeps: Sweeps,
        metrics: Metrics,
        api_key: ApiKey,
        hand_over_key: bool = True,
        max_jobs: int,
        max_wait: float,
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        """`hand_over_key`: False keeps the W&B key from containers. `is_current`: no other worker can have taken this
        one's launches over."""
        self._held = held
        self._sagemaker = sagemaker
        self._telling = RefusalTelling(held, refusals)
        self._refusals = refusals
        self._sweeps = sweeps
        self._metrics = metrics
        self._key = ContainerKey(api_key, sagemaker, hand_over=hand_over_key)
        self._max_wait = max_wait
        self._is_current = is_current
        self._queue = SubmitQueue(held, metrics, max_jobs=max_jobs, max_wait=max_wait)
        self._settled: dict[str, asyncio.Future[None]] = {}
        self._looked_up: set[str] = set()
        """Launch ids that have no job, as far as each call that was made for them has had an answer."""
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        """Some launch would have a turn."""
        self._on_accepted: Callable[[HeldLaunch], None]
        self._on_given_up: Callable[[HeldLaunch], None]
        held.when_lost(self._settle)

    def enqueue(self, held: HeldLaunch) -> asyncio.Future[None]:
        """Submit a held launch when its turn comes; the future is done once it is a job, refused, or lost."""
        self._wake.set()
        return self._settled.setdefault(held.launch_id, asyncio.get_running_loop().create_future())

    async def run(
        self, on_accepted: Callable[[HeldLaunch], None], on_given_up: Callable[[HeldLaunch], None]
    ) -> None:
        """Serve the queue until cancelled. `on_accepted` is called for each launch that has become a job, and
        `on_given_up` for each whose further attempt is not made."""
        self._on_accepted, self._on_given_up = on_accepted, on_given_up
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_turns(tasks), name="turns")
            while True:
                # A worker that was frozen submits nothing that another one may have decided about meanwhile.
                if self._is_current():
                    for held in self._queue.take_untold(time.time()):
                        tasks.create_task(self._submit(held), name=f"end {held.record.job_name}")
                    if self._queue.may_submit(time.time()):
                        self._ready.set()
                self._wake.clear()
                await wait_for_event(self._wake, 1.0)

    async def _take_turns(self, tasks: asyncio.TaskGroup) -> None:
        """Each time that CreateTrainingJob may be called, the launch is chosen that is to be submitted then."""
        while True:
            await self._ready.wait()
            await self._sagemaker.turn()
            held = self._queue.take_next(time.time()) if self._is_current() else None
            if held is None:
                self._sagemaker.give_turn_back()
                self._ready.clear()
            else:
                tasks.create_task(self._submit(held), name=f"submit {held.record.job_name}")

    async def cancel(self, held: HeldLaunch, reason: str) -> bool:
        """Submit a launch that waits no more, if that has not happened already; False: it does not wait."""
        if held.record.state is not LaunchState.WAITING or held.record.given_up:
            return False
        held.update(stop_reason=reason, not_before=0.0)
        await self._held.save([held])
        self._wake.set()
        return not held.lost

    def abandon(self) -> None:
        """This worker submits nothing more: whoever waits for a launch to settle is cancelled, to give it back."""
        for future in self._settled.values():
            future.cancel()
        self._settled.clear()

    async def _submit(self, held: HeldLaunch) -> None:
        try:
            try:
                await self._step(held)
            except Exception as error:
                await self._decide(held, error)
        except MustRestart:
            raise
        except Exception as error:  # one launch's trouble, also of a kind we did not foresee, ends no other
            if not isinstance(error, Again):
                # Not as an exception: its text may quote the request, secrets included.
                trace = self._key.without_secrets(held, "".join(format_exception(error)))
                _log.error("submit_failed_unexpectedly", launch_id=held.launch_id, exception=trace)
            self._metrics.submits.labels("again").inc()
            await self._wait(held, error)
        finally:
            self._queue.done(held)
            self._wake.set()

    async def _step(self, held: HeldLaunch) -> None:
        if held.record.failure is not None:  # adopted from a worker that could not tell it any more
            await self._tell_refusal(held)
        elif held.record.stop_reason and held.record.is_between_attempts:
            await self._give_up(held, held.record.stop_reason)
        elif held.record.stop_reason:
            told = f"Stopped before it became a job: {held.record.stop_reason} To run it, send it again."
            raise Never(told, code="LW-STOPPED", stage=Stage.RUN)
        else:
            await self._create(held)

    async def _decide(self, held: HeldLaunch, error: Exception) -> None:
        """Act on what ends the waiting; raises what does not, or what says that nothing can be decided now."""
        if isinstance(error, QuotaTooSmall) and await self._falls_back(held, error):
            return
        if isinstance(error, Never):
            await self._refuse(held, error)
            return
        waited = waited_so_far(held.record, time.time())
        if waited > self._max_wait and not isinstance(error, MustRestart):
            told = self._key.without_secrets(held, str(error))
            reason = f"Waited {waited / 3600:.1f} h (LAUNCH_MAX_WAIT) for SageMaker: {told}"
            await self._refuse(held, Never(reason, code="LW-WAITED-TOO-LONG", stage=Stage.RUN))
            return
        raise error

    async def _create(self, held: HeldLaunch) -> None:
        try:
            request = await self._key.put_in(held)
            await self._sweeps.check(held.record.run, held.record.sweep_id, max_age=FRESH)
            self._check(held)
        except Exception:
            self._sagemaker.give_turn_back()
            raise
        try:
            job = await self._sagemaker.create_or_adopt(request)
        except QuotaExceeded as error:
            # Of all quotas it may be the launch's own job, of a call without an answer, that has used it up.
            if held.launch_id not in self._looked_up and await self._accept_lost_answer(held):
                return
            self._queue.refused(held, error.reason, time.time())
            raise
        except Unreachable:
            self._looked_up.discard(held.launch_id)
            raise
        self._queue.admitted(held, time.time())
        await self._accept(held, job)

    def _check(self, held: HeldLaunch) -> None:
        """Raise when CreateTrainingJob is not to be called any more, now that its turn has come."""
        if held.lost or not self._is_current():
            late = "this worker's heartbeat is late: another one may have the launch"
            raise HeartbeatLate(late, retry_after=1)
        self._queue.check(held)

    async def _accept(self, held: HeldLaunch, job: TrainingJob) -> None:
        self._metrics.submits.labels(job.how).inc()
        now, record = time.time(), held.record
        held.request = record.request
        held.update(
            state=LaunchState.ACCEPTED,
            metrics=definitions_of(record.request) if record.has_history else (),
            job_arn=job.arn,
            facts=job.facts,
            accepted_at=now,
            waited=record.waited + now - record.waiting_at,
            waits_for="",
            request=None,
            message="",
            tries=0,
        )
        _log.info("job_accepted", launch_id=held.launch_id, training_job=record.job_name, how=str(job.how))
        await self._until_saved(held)
        self._on_accepted(held)
        self._settle(held)

    async def _until_saved(self, held: HeldLaunch) -> None:
        tries = 0
        while not held.lost:
            try:
                with effect("write_accepted"):
                    await self._held.save([held])
                return
            except Exception as error:  # of any kind: the job exists, no trouble with the ledger undoes it
                # Only its record is late. Until it is written a restart would adopt the job.
                _log.warning("ledger_unreachable", error=str(error))
                await asyncio.sleep(backoff(tries, cap=10))
                tries += 1

    async def _wait(self, held: HeldLaunch, error: Exception) -> None:
        """Back into the queue: nothing but a *never* is the launch's own fault here."""
        if held.lost:
            return
        record, told = held.record, self._key.without_secrets(held, str(error))
        if isinstance(error, Throttled) and error.retry_after is None:
            _log.info("submit_throttled", launch_id=held.launch_id)
            self._queue.throttled(held)  # the rate knows: the next turn is the next try
            return
        if isinstance(error, QuotaExceeded):
            waits = error.reason
        else:
            asked = error.retry_after if isinstance(error, Again) else None
            pause = asked or backoff(record.tries, base=4, cap=120)
            held.update(tries=record.tries + 1, not_before=time.time() + pause)
            waits = record.waits_for if isinstance(error, Throttled | HeartbeatLate) else told
            _log.warning("submit_again", launch_id=held.launch_id, error=told, again_in=round(pause, 1))
        if waits != record.waits_for:
            await self._telling.tell_wait(held, waits, told)

    async def _accept_lost_answer(self, held: HeldLaunch) -> bool:
        """An earlier try may have made the job although its answer was lost: then it is running.

        Raises what DescribeTrainingJob raises: without its answer nobody can say that there is no job."""
        assert held.record.request is not None
        job = await self._sagemaker.existing(held.record.request)
        if job is None:
            self._looked_up.add(held.launch_id)
            return False
        await self._accept(held, job)
        return True

    async def _falls_back(self, held: HeldLaunch, error: QuotaTooSmall) -> bool:
        """The next instance type of the launch takes the place of one that can never start; False: there is none."""
        record = held.record
        following = self._queue.rule_out(record)
        if not following or record.request is None:
            return False
        resources = {**record.request["ResourceConfig"], "InstanceType": following}
        changed = {**record.request, "ResourceConfig": resources}
        try:
            await self._held.advance(held, instance_type=following, request=changed)
        except WorkerError as trouble:
            _log.warning("ledger_unreachable", error=str(trouble))
            held.update(not_before=time.time() + backoff(0, base=4))
            return True
        told = f"{self._key.without_secrets(held, str(error))} {following} is taken instead."
        _log.warning("instance_type_changed", launch_id=held.launch_id, reason=told)
        await self._refusals.warn(record.item_id, "instance_type_changed", told, Stage.RUN)
        self._wake.set()
        return True

    async def _refuse(self, held: HeldLaunch, error: Never) -> None:
        """It can never become a job, unless it is one already. A launch whose earlier attempts were jobs ends as the
        last of them did."""
        told = self._key.without_secrets(held, str(error))
        if held.record.previous_job:
            self._metrics.submits.labels("never").inc()
            await self._give_up(held, told)
            return
        if await self._accept_lost_answer(held):
            return
        self._metrics.submits.labels("never").inc()
        self._telling.decide(held, Failure(error.stage, error.code, told))
        await self._tell_refusal(held)

    async def _tell_refusal(self, held: HeldLaunch) -> None:
        await self._telling.tell(held, lambda text: self._key.without_secrets(held, text))
        self._settle(held)

    async def _give_up(self, held: HeldLaunch, why: str) -> None:
        """No further attempt, unless it was made already: decided in the ledger, then told as the launch's end."""
        if await self._accept_lost_answer(held):
            return
        tries = 0
        while not held.lost:
            try:
                with effect("write_given_up"):
                    await self._held.advance(held, given_up=why)
                break
            except Exception as error:  # of any kind: until it is written, nobody may act on it
                _log.warning("ledger_unreachable", error=self._key.without_secrets(held, str(error)))
                await asyncio.sleep(backoff(tries, cap=10))
                tries += 1
        if not held.lost:
            _log.warning("attempt_given_up", launch_id=held.launch_id, reason=why)
            self._on_given_up(held)
        self._settle(held)

    def _settle(self, held: HeldLaunch) -> None:
        self._looked_up.discard(held.launch_id)
        future = self._settled.pop(held.launch_id, None)
        if future is not None and not future.done():
            future.set_result(None)
        self._wake.set()
