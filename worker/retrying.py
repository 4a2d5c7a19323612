"""A further attempt of a launch whose job ended for a reason that is not the code's: taken in the ledger, then waits.

The request of the attempt that ended is not kept anywhere; it is read back from SageMaker. Until the attempt is written
the launch stands where it stood, ended and delivered, so that any worker comes to the same attempt again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from worker.aio import backoff, effect
from worker.clients.aws import AwsDenied, AwsRefused
from worker.errors import Stage
from worker.intake.refusal import Refusals
from worker.launch.log_state import LogState
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.held import HeldLaunch, HeldLaunches
from worker.ops.logging import get_logger
from worker.ops.metrics import Metrics
from worker.training.request import worker_tags
from worker.training.retry import NextAttempt, rebuilt_request
from worker.training.sagemaker import SageMaker

_LONGEST_PAUSE = 900.0

_log = get_logger()


class Retrying:
    """Takes the next attempts of held launches."""

    def __init__(
        self,
        *,
        held: HeldLaunches,
        sagemaker: SageMaker,
        refusals: Refusals,
        metrics: Metrics,
        deployment: str,
        pause: float,
    ) -> None:
        """`pause`: seconds before the first further attempt of a kind; it doubles with each one."""
        self._held = held
        self._sagemaker = sagemaker
        self._refusals = refusals
        self._metrics = metrics
        self._deployment = deployment
        self._pause = pause

    async def take(self, held: HeldLaunch, following: NextAttempt) -> None:
        """Let the launch wait for its next attempt; durable when it returns, unless the launch is lost.

        Raises `Again` when SageMaker or the ledger does not answer, and `Never` (`LW-JOB-GONE`) when the request is
        to be had from nowhere."""
        record = held.record
        described = await self._sagemaker.description(record.job_name)
        request = rebuilt_request(described, await self._tags(record), following)
        now = time.time()
        pause = backoff(following.earlier_of_kind, base=self._pause, cap=_LONGEST_PAUSE)
        with effect("write_retry"):
            await self._held.advance(
                held,
                state=LaunchState.WAITING,
                attempt=following.number,
                attempts=(*record.attempts, following.past),
                previous_job=record.job_name,
                job_name=following.job_name,
                request=request,
                instance_type=following.instance_type,
                waiting_at=now,
                not_before=now + pause,
                tries=0,
                waits_for="",
                # Its streams are delivered to their end; the next job's lines follow in the same console.
                log=LogState(
                    next_line=record.log.next_line,
                    next_row=record.log.next_row,
                    undelivered=record.log.undelivered,
                ),
            )
        if not held.lost:
            await self._tell(held, following, pause)

    async def _tags(self, record: LaunchRecord) -> list[Mapping[str, str]]:
        try:
            return await self._sagemaker.tags(record.job_arn)
        except (AwsDenied, AwsRefused) as error:
            # Without the message's own tags the job is still the launch's; a launch that never goes on is not.
            _log.warning("tags_not_read", launch_id=record.launch_id, error=str(error))
            ours = worker_tags(record.run.run_id, record.launch_id, self._deployment)
            return [{"Key": name, "Value": value} for name, value in ours.items()]

    async def _tell(self, held: HeldLaunch, following: NextAttempt, pause: float) -> None:
        self._metrics.retries.labels(following.kind).inc()
        past = following.past
        _log.warning(
            "attempt_follows",
            launch_id=held.launch_id,
            training_job=following.job_name,
            kind=str(following.kind),
            reason=past.reason,
            again_in=round(pause, 1),
        )
        told = (
            f"Attempt {following.number - 1} ({past.job_name}) ended: {past.reason} Attempt {following.number}"
            f" follows in {pause:.0f} s as {following.job_name} on {following.instance_type or 'the same machines'}."
        )
        await self._refusals.warn(held.record.item_id, "attempt_follows", told, Stage.RUN)
