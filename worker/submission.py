"""Ready launches become training jobs: paced, repeatable, and told when they can never become one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from worker.aio import backoff, effect
from worker.errors import Again, Never, Stage, Throttled, WorkerError
from worker.intake.refusal import Refusals
from worker.launch.record import Failure, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ledger.port import FINISHED_TTL
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.training.request import with_api_key
from worker.training.sagemaker import QuotaExceeded, SageMaker

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
        api_key: str,
        max_jobs: int,
        max_wait: float,
        max_attempts: int,
    ) -> None:
        self._held = held
        self._sagemaker = sagemaker
        self._refusals = refusals
        self._metrics = metrics
        self._api_key = api_key
        self._max_jobs = max_jobs
        self._max_wait = max_wait
        self._max_attempts = max_attempts
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
        """Waiting launches whose time has come, oldest first, as many as `max_jobs` leaves room for."""
        now = time.time()
        waiting = [held for held in self._held if held.record.state is LaunchState.WAITING]
        due = [
            held
            for held in sorted(waiting, key=lambda held: held.record.waiting_at)
            if held.launch_id not in self._submitting and held.record.not_before <= now
        ]
        if self._max_jobs < 0:
            return due
        running = sum(1 for held in self._held if held.record.state is LaunchState.ACCEPTED)
        return due[: max(0, self._max_jobs - running - len(self._submitting))]

    async def _submit(self, held: HeldLaunch, on_accepted: Callable[[HeldLaunch], None]) -> None:
        try:
            await self._create(held)
            on_accepted(held)
            self._settle(held)
        except Never as error:
            self._metrics.submits.labels("never").inc()
            await self._refuse(held, Failure(error.stage, error.code, str(error)))
        except Again as error:
            self._metrics.submits.labels("again").inc()
            await self._wait(held, error)
        finally:
            self._submitting.discard(held.launch_id)

    async def _create(self, held: HeldLaunch) -> None:
        job = await self._sagemaker.create_or_adopt(self._request(held))
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
            except Again as error:
                # The job exists: only its record is late. Until it is written a restart would adopt the job.
                _log.warning("ledger_unreachable", error=str(error))
                await asyncio.sleep(backoff(tries, cap=10))
                tries += 1

    def _request(self, held: HeldLaunch) -> dict[str, Any]:
        key = held.api_key.get_secret_value() if held.api_key else self._api_key
        assert held.record.request is not None
        # Offline without a key the container gets none either.
        return with_api_key(held.record.request, key) if key else dict(held.record.request)

    async def _wait(self, held: HeldLaunch, error: Again) -> None:
        """Back into the queue; for quota as long as `max_wait`, for other trouble `max_attempts` tries."""
        record = held.record
        waited = time.time() - record.waiting_at
        quota = isinstance(error, QuotaExceeded)
        if quota and waited > self._max_wait:
            reason = f"Waited {waited / 3600:.1f} h (LAUNCH_MAX_WAIT) for room in SageMaker: {error}"
            await self._refuse(held, Failure(Stage.RUN, "LW-WAITED-TOO-LONG", reason))
            return
        # Throttling is the rate's business and says nothing about this launch.
        tries = record.tries + (0 if quota or isinstance(error, Throttled) else 1)
        if tries >= self._max_attempts:
            reason = f"Gave up after {tries} tries (LAUNCH_MAX_ATTEMPTS): {error}"
            await self._refuse(held, Failure(Stage.RUN, "LW-GAVE-UP", reason))
            return
        pause = error.retry_after or backoff(max(tries, 2 if quota else 0), base=2, cap=120)
        held.update(tries=tries, not_before=time.time() + pause)
        _log.warning("submit_again", launch_id=held.launch_id, error=str(error), again_in=round(pause, 1))
        if not isinstance(error, Throttled):
            await self._refusals.warn(record.item_id, f"Waiting to be submitted: {error}", Stage.RUN)

    async def _refuse(self, held: HeldLaunch, failure: Failure) -> None:
        """Decided in the ledger, then told to W&B and the DLQ, for as long as it takes; then dropped."""
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
        tries = 0
        while not held.lost:
            try:
                with effect("write_refused"):
                    await self._held.save([held])
                if not held.lost:
                    await self._refusals.report(held.record, failure)
                    held.update(reported=True, message="", request=None)
                    await self._held.save([held])
                break
            except WorkerError as error:
                _log.warning("refusal_not_reported", launch_id=held.launch_id, error=str(error))
                await asyncio.sleep(backoff(tries, cap=60))
                tries += 1
        self._held.drop(held)
        self._settle(held)

    def _settle(self, held: HeldLaunch) -> None:
        future = self._settled.pop(held.launch_id, None)
        if future is not None and not future.done():
            future.set_result(None)
        self._wake.set()
