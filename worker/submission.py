"""Ready launches become training jobs: paced, repeatable, and told when they can never become one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from traceback import format_exception
from typing import Any

from worker.aio import backoff, effect
from worker.clients.api_key import ApiKey
from worker.errors import Again, MustRestart, Never, Stage, Throttled
from worker.intake.refusal import Refusals
from worker.launch.record import Failure, LaunchState
from worker.launch.redaction import is_secret_variable, redact_text
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.port import FINISHED_TTL
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.training.request import with_api_key
from worker.training.sagemaker import SageMaker, TrainingJob
from worker.training.status import has_ended

_TO_DO = frozenset({LaunchState.WAITING, LaunchState.REFUSED})
"""A held launch that is refused has not been told to everybody yet."""

_log = get_logger()


class Submission:
    """Submits waiting launches as soon as there is room; one task per launch that is being submitted."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        sagemaker: SageMaker,
        refusals: Refusals,
        metrics: Metrics,
        api_key: ApiKey,
        hand_over_key: bool = True,
        max_jobs: int,
        max_wait: float,
    ) -> None:
        """`hand_over_key`: False keeps the W&B key from containers."""
        self._held = held
        self._sagemaker = sagemaker
        self._refusals = refusals
        self._metrics = metrics
        self._api_key = api_key
        self._hand_over_key = hand_over_key
        self._max_jobs = max_jobs
        self._max_wait = max_wait
        self._submitting: set[str] = set()
        self._settled: dict[str, asyncio.Future[None]] = {}
        self._wake = asyncio.Event()
        held.when_lost(self._settle)

    def enqueue(self, held: HeldLaunch) -> asyncio.Future[None]:
        """Submit a held launch when its turn comes; the future is done once it is a job, refused, or lost."""
        self._wake.set()
        return self._settled.setdefault(held.launch_id, asyncio.get_running_loop().create_future())

    async def run(self, on_accepted: Callable[[HeldLaunch], None]) -> None:
        """Serve the queue until cancelled; `on_accepted` is called for each launch that has become a job."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for held in self._due():
                    self._submitting.add(held.launch_id)
                    tasks.create_task(self._submit(held, on_accepted), name=f"submit {held.record.job_name}")
                self._wake.clear()
                try:
                    async with asyncio.timeout(1.0):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    def _due(self) -> list[HeldLaunch]:
        """Launches whose time has come, oldest first; those that become jobs only as far as `max_jobs` has room."""
        now = time.time()
        waiting = [held for held in self._held if held.record.state in _TO_DO]
        due = [
            held
            for held in sorted(waiting, key=lambda held: held.record.waiting_at)
            if held.launch_id not in self._submitting and held.record.not_before <= now
        ]
        if self._max_jobs < 0:
            return due
        refused = [held for held in due if held.record.state is LaunchState.REFUSED]
        to_submit = [held for held in due if held.record.state is LaunchState.WAITING]
        room = self._max_jobs - sum(map(self._takes_room, self._held))
        return refused + to_submit[: max(0, room)]

    def _takes_room(self, held: HeldLaunch) -> bool:
        """It is a running job or is becoming one; telling a refusal takes no room, however long it lasts."""
        if held.record.state is LaunchState.ACCEPTED:
            return not has_ended(held.record.facts)
        return held.record.state is LaunchState.WAITING and held.launch_id in self._submitting

    async def _submit(self, held: HeldLaunch, on_accepted: Callable[[HeldLaunch], None]) -> None:
        try:
            if held.record.failure is not None:  # adopted from a worker that could not tell it any more
                await self._tell_refusal(held)
                return
            await self._create(held)
            on_accepted(held)
            self._settle(held)
        except Never as error:
            self._metrics.submits.labels("never").inc()
            told = self._without_secrets(held, str(error))
            await self._refuse(held, Failure(error.stage, error.code, told))
        except MustRestart:
            raise
        except Exception as error:  # one launch's trouble, also of a kind we did not foresee, ends no other
            if not isinstance(error, Again):
                # Not as an exception: its text may quote the request, secrets included.
                trace = self._without_secrets(held, "".join(format_exception(error)))
                _log.error("submit_failed_unexpectedly", launch_id=held.launch_id, exception=trace)
            self._metrics.submits.labels("again").inc()
            await self._wait(held, error, on_accepted)
        finally:
            self._submitting.discard(held.launch_id)

    async def _create(self, held: HeldLaunch) -> None:
        await self._accept(held, await self._sagemaker.create_or_adopt(self._request(held)))

    async def _accept(self, held: HeldLaunch, job: TrainingJob) -> None:
        self._metrics.submits.labels(job.how).inc()
        held.update(
            state=LaunchState.ACCEPTED,
            job_arn=job.arn,
            facts=job.facts,
            accepted_at=time.time(),
            request=None,
            message="",
            tries=0,
        )
        _log.info(
            "job_accepted", launch_id=held.launch_id, training_job=held.record.job_name, how=str(job.how)
        )
        await self._until_saved(held)

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

    def _request(self, held: HeldLaunch) -> dict[str, Any]:
        key = held.api_key.get_secret_value() if held.api_key else self._api_key.value
        assert held.record.request is not None
        # Offline without a key the container gets none either.
        given = with_api_key(held.record.request, key) if key and self._hand_over_key else held.record.request
        return dict(given)

    async def _wait(
        self, held: HeldLaunch, error: Exception, on_accepted: Callable[[HeldLaunch], None]
    ) -> None:
        """Back into the queue for as long as `max_wait`: nothing but a *never* is the launch's own fault here."""
        record = held.record
        waited = time.time() - record.waiting_at
        told = self._without_secrets(held, str(error))
        if waited > self._max_wait:
            if await self._accept_lost_answer(held, on_accepted):
                return
            reason = f"Waited {waited / 3600:.1f} h (LAUNCH_MAX_WAIT) for SageMaker: {told}"
            await self._refuse(held, Failure(Stage.RUN, "LW-WAITED-TOO-LONG", reason))
            return
        pause = (error.retry_after if isinstance(error, Again) else None) or backoff(
            record.tries, base=4, cap=120
        )
        held.update(tries=record.tries + 1, not_before=time.time() + pause)
        _log.warning("submit_again", launch_id=held.launch_id, error=told, again_in=round(pause, 1))
        if not isinstance(error, Throttled):
            await self._refusals.warn(record.item_id, f"Waiting to be submitted: {told}", Stage.RUN)

    async def _accept_lost_answer(self, held: HeldLaunch, on_accepted: Callable[[HeldLaunch], None]) -> bool:
        """An earlier try may have made the job although its answer was lost: then it is running."""
        try:
            job = await self._sagemaker.existing(self._request(held))
        except Exception as error:  # as any other try that failed
            _log.warning("lost_job_not_found", launch_id=held.launch_id, error=type(error).__name__)
            return False
        if job is None:
            return False
        await self._accept(held, job)
        on_accepted(held)
        self._settle(held)
        return True

    def _without_secrets(self, held: HeldLaunch, text: str) -> str:
        """AWS quotes the request it refuses, its Environment included."""
        environment = (held.record.request or {}).get("Environment", {})
        keys = [key.get_secret_value() for key in (held.api_key,) if key] + [*self._api_key.secrets]
        hidden = [value for name, value in environment.items() if is_secret_variable(name)]
        return redact_text(text, (*keys, *hidden))

    async def _refuse(self, held: HeldLaunch, failure: Failure) -> None:
        """Decided in the ledger; it stays open there until everybody has been told."""
        now = time.time()
        held.update(
            state=LaunchState.REFUSED, failure=failure, finished_at=now, expires_at=now + FINISHED_TTL
        )
        _log.warning(
            "launch_refused",
            launch_id=held.launch_id,
            stage=failure.stage,
            code=failure.code,
            reason=failure.reason,
        )
        await self._tell_refusal(held)

    async def _tell_refusal(self, held: HeldLaunch) -> None:
        """W&B and the DLQ, for as long as it takes; then the launch is dropped."""
        assert held.record.failure is not None
        tries = 0
        while not held.lost:
            try:
                with effect("write_refused"):
                    await self._held.save([held])
                if not held.lost:
                    await self._refusals.report(held.record, held.record.failure)
                    held.update(reported=True, message="", request=None)
                    await self._held.save([held])
                break
            except Exception as error:  # of any kind: the refusal stays open until it is told
                told = self._without_secrets(held, str(error) or type(error).__name__)
                _log.warning("refusal_not_reported", launch_id=held.launch_id, error=told)
                await asyncio.sleep(backoff(tries, cap=60))
                tries += 1
        self._held.drop(held)
        self._settle(held)

    def _settle(self, held: HeldLaunch) -> None:
        future = self._settled.pop(held.launch_id, None)
        if future is not None and not future.done():
            future.set_result(None)
        self._wake.set()
