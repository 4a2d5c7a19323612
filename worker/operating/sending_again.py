"""A launch that is over, sent again by hand: another attempt of the same launch, with the same run in W&B.

    its job failed or was stopped ─▶ attempt n + 1 waits in the ledger, its request read back from SageMaker
    it was refused                ─▶ its message goes back to the queue, from the dead-letter queue or a file

What has its own identity stays one launch: its name, its records and its console in W&B go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from worker.clients.aws import AwsClients, AwsDenied, AwsRefused
from worker.errors import WorkerError
from worker.intake.dead_letter_queue import DeadLetter
from worker.launch.log_state import LogState
from worker.launch.record import LaunchRecord, LaunchState, PastAttempt
from worker.ledger.port import Ledger
from worker.operating.dead_letters import NoSuchLetter, SentBack, matching, open_dead_letters
from worker.operating.overview import Overview, end_words, open_ledger_and_aws
from worker.ops.metrics import Metrics
from worker.ops.rates import Rates
from worker.settings import Settings
from worker.training.request import worker_tags
from worker.training.retry import BY_HAND, NextAttempt, attempt_by_hand, rebuilt_request
from worker.training.sagemaker import SageMaker
from worker.training.status import ending_of, has_ended


class CannotRetry(WorkerError):
    """This launch cannot be sent again, or not in this way; the message says why and what to do."""

    code = "LW-CANNOT-RETRY"


@dataclass(frozen=True, slots=True)
class SentAgain:
    """What became of it."""

    launch_id: str
    attempt: int
    job_name: str
    """Of the training job to come; empty: it is named when the message is worked on."""
    message_id: str
    """SQS's, of a refused launch; empty: the ledger alone knows of the attempt."""
    note: str


class SendingAgain:
    """Sends launches of one ledger again."""

    def __init__(self, ledger: Ledger, aws: AwsClients, settings: Settings) -> None:
        self._ledger = ledger
        self._overview = Overview(ledger, aws, settings)
        self._sagemaker = SageMaker(aws.sagemaker, Rates(Metrics(), {}))
        self._settings = settings

    async def retry(self, name: str, corrected: str | None = None) -> SentAgain:
        """`name` as `Overview.find` takes it; `corrected`: a message in place of the refused one.

        Raises `CannotRetry`, `CannotSendBack`, `NoSuchLaunch`, `BadMessage`, `SettingsError`, `Never` (`LW-JOB-GONE`)
        and `Again`; nothing has changed then."""
        record = await self._overview.find(name)
        if _may_lack_its_message(record):
            return await self._reopened(record, corrected)
        if record.state.is_open:
            raise _not_over(record)
        if record.state is LaunchState.REFUSED:
            return await self._refused(record, corrected)
        return await self._finished(record, corrected)

    # It was a training job.

    async def _finished(self, record: LaunchRecord, corrected: str | None) -> SentAgain:
        if corrected is not None:
            raise CannotRetry(
                f"{record.launch_id} was a training job, whose request is repeated as it was; leave --message out, or"
                " send the changed message as a launch of its own, with another launchId (and another run_id, if it has"
                " one): `launch-worker enqueue`"
            )
        if ending_of(record).exit_code == 0:
            raise CannotRetry(
                f"{record.launch_id} has completed; to train once more send its message with another launchId (and"
                " another run_id, if it has one): `launch-worker enqueue`"
            )
        following = attempt_by_hand(record)
        request = await self._request(record, following)
        await self._ledger.forget_stop(record.launch_id)  # a worker would stop the new attempt as well
        me = f"retry-{uuid4().hex[:8]}"
        claimed = await self._ledger.claim(record, me)
        waiting = claimed and replace(_again(record, following, request), epoch=claimed.epoch)
        if waiting is None or await self._ledger.save([waiting], owner=me):
            raise CannotRetry(f"somebody else is sending {record.launch_id} again at this moment")
        note = f"it waits in the ledger, and the next worker that looks takes it; before: {end_words(record)}"
        return SentAgain(record.launch_id, following.number, following.job_name, "", note)

    async def _request(self, record: LaunchRecord, following: NextAttempt) -> Mapping[str, Any]:
        if record.request is not None:  # of an attempt that was given up before it was a job
            return {**record.request, "TrainingJobName": following.job_name}
        described = await self._sagemaker.description(record.job_name)
        try:
            tags = await self._sagemaker.tags(record.job_arn)
        except (AwsDenied, AwsRefused):
            ours = worker_tags(record.run.run_id, record.launch_id, self._settings.deployment)
            tags = [{"Key": name, "Value": value} for name, value in ours.items()]
        return rebuilt_request(described, tags, following)

    # It never was one.

    async def _refused(self, record: LaunchRecord, corrected: str | None) -> SentAgain:
        if record.failure is None or not record.reported:
            raise CannotRetry(
                f"a worker is still telling the refusal of {record.launch_id}; retry it shortly"
            )
        sent = await self._through_the_queue(record, corrected)
        if sent is None:
            raise CannotRetry(
                f"the message of {record.launch_id} is in the dead-letter queue no more, and the ledger keeps none;"
                " give it with --message FILE"
            )
        before = f"before: {end_words(record)}"
        return _told(sent, f"{sent.note}; {before}" if sent.note else before)

    async def _reopened(self, record: LaunchRecord, corrected: str | None) -> SentAgain:
        """Whoever sent it again before may have ended between the ledger and the queue; a message too many is
        harmless."""
        sent = await self._through_the_queue(record, corrected)
        if sent is None:
            raise _not_over(record)
        return _told(sent, sent.note or "it was sent again before, and no worker has it")

    async def _through_the_queue(self, record: LaunchRecord, corrected: str | None) -> SentBack | None:
        """None: there is no message to send."""
        async with open_dead_letters(self._settings) as letters, letters.looking() as found:
            try:
                own = matching(found.letters, record.launch_id, deployment=self._settings.deployment)
            except NoSuchLetter as error:
                if corrected is not None:
                    return await letters.send_again(_letter_of(record), corrected)
                if found.more and record.state is LaunchState.REFUSED:
                    raise CannotRetry(
                        f"the message of {record.launch_id} is not to be seen in the dead-letter queue now: about"
                        f" {found.more} letters are hidden while somebody else looks at them; retry it in two minutes,"
                        " or give the message with --message FILE"
                    ) from error
                return None
            return await letters.send_back(own, corrected)


@contextlib.asynccontextmanager
async def open_sending_again(settings: Settings) -> AsyncIterator[SendingAgain]:
    """Open ledger and clients. Raises `SettingsError`."""
    async with open_ledger_and_aws(settings) as (ledger, aws):
        yield SendingAgain(ledger, aws, settings)


def _again(record: LaunchRecord, following: NextAttempt, request: Mapping[str, Any]) -> LaunchRecord:
    """The record of the attempt to come, released, so that any worker takes it."""
    was_job = record.request is None
    return replace(
        record,
        state=LaunchState.WAITING,
        owner="",
        attempt=following.number,
        attempts=(*record.attempts, following.past) if was_job else _marked_by_hand(record.attempts),
        previous_job=record.job_name if was_job else record.previous_job,
        job_name=following.job_name,
        request=request,
        tries=0,
        waits_for="",
        waited=0.0,
        waiting_at=time.time(),
        not_before=0.0,
        finished_at=0.0,
        expires_at=0.0,
        given_up="",
        stop_reason="",
        stop_asked="",
        stopped_before=bool(record.stop_reason or record.stop_asked),
        alerted=(),
        end_told=0,
        # Its streams are delivered; the next job's lines follow in the same console.
        log=LogState(
            next_line=record.log.next_line, next_row=record.log.next_row, undelivered=record.log.undelivered
        ),
    )


def _marked_by_hand(attempts: tuple[PastAttempt, ...]) -> tuple[PastAttempt, ...]:
    """Earlier jobs, after the last of which somebody asked for another: the attempt in between never was a job."""
    return (*attempts[:-1], *(replace(last, kind=BY_HAND) for last in attempts[-1:]))


def _letter_of(record: LaunchRecord) -> DeadLetter:
    """What the dead-letter queue would tell of a refused launch."""
    code = record.failure.code if record.failure else ""
    return DeadLetter(record.message_id, "", "", record.finished_at, launch_id=record.launch_id, code=code)


def _told(sent: SentBack, note: str) -> SentAgain:
    return SentAgain(sent.launch_id, sent.attempt, "", sent.message_id, note)


def _may_lack_its_message(record: LaunchRecord) -> bool:
    """A refused launch is opened again in the ledger first, then its message is sent."""
    return record.state is LaunchState.INTENT and record.attempt > 1 and not record.owner


def _not_over(record: LaunchRecord) -> CannotRetry:
    if record.job_name and has_ended(record.facts):
        what = f"its training job {record.job_name} is, but not the delivery of its log; retry it shortly"
        return CannotRetry(f"{record.launch_id} is not over ({record.state}): {what}")
    where = f"training job {record.job_name}" if record.job_name else "before its training job"
    return CannotRetry(
        f"{record.launch_id} is not over ({record.state}, {where});"
        f" `launch-worker stop {record.launch_id[:10]}` ends it, then retry it"
    )
