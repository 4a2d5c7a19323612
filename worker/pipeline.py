"""Leg 1, the story of one message: from SQS to a launch that the ledger holds ready to submit.

    message ─▶ identity ─▶ intent in the ledger ─▶ job, image, request ─▶ `waiting` in the ledger ─▶ leg 2

Everything is named after the launch's identity, so a message may come twice, to two workers, or again after a crash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog

from worker.aio import backoff, effect
from worker.errors import Again, BadMessage, MustRestart, Never, Stage, WorkerError
from worker.intake.refusal import Refusals
from worker.intake.sqs import SqsMessage
from worker.intake.sweeps import Sweeps
from worker.launch.intent import identity_of, intent_record, read_message
from worker.launch.message import Launch, LaunchMessage
from worker.launch.outcome import Outcome, Verdict
from worker.launch.pasted import refuse_pasted_secrets
from worker.launch.record import Failure, LaunchRecord, LaunchState
from worker.launch.redaction import KnownSecrets, redact_text
from worker.launch.retry import RetryRules
from worker.ledger.giving_back import GivingBack
from worker.ledger.held import HeldLaunch
from worker.ledger.membership import MISSED_BEATS, Membership
from worker.ledger.port import Ledger
from worker.ops.logging import get_logger
from worker.preparing import Preparing
from worker.run_claims import RunClaims
from worker.tracking.build_log import BuildLogs

_log = get_logger()


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """What leg 1 needs to know of the deployment; fixed for the life of the process."""

    worker: str
    queue_arn: str
    deployment: str
    base_url: str
    log_target: str
    retry_rules: RetryRules
    heartbeat: float
    max_attempts: int
    secrets: KnownSecrets = field(repr=False)


class Pipeline:
    """Handles one message at a time per call; many calls run side by side."""

    def __init__(
        self,
        *,
        facts: PipelineFacts,
        ledger: Ledger,
        membership: Membership,
        refusals: Refusals,
        preparing: Preparing,
        build_logs: BuildLogs,
        sweeps: Sweeps,
        run_claims: RunClaims,
        submit: Callable[[HeldLaunch], Awaitable[None]],
        is_held: Callable[[str], bool],
    ) -> None:
        """`submit` hands a launch to leg 2; what it returns is done once SageMaker has
        the job, or never will. `is_held`: leg 2 of this worker has the launch."""
        self._facts = facts
        self._ledger = ledger
        self._membership = membership
        self._refusals = refusals
        self._preparing = preparing
        self._build_logs = build_logs
        self._sweeps = sweeps
        self._run_claims = run_claims
        self._submit = submit
        self._is_held = is_held
        self._in_work: set[str] = set()
        self._giving_back = GivingBack(ledger, facts.worker, in_work=self._in_work, is_held=is_held)

    async def run(self) -> None:
        """Until cancelled: give back the launches that could not be given back when they were let go."""
        await self._giving_back.run()

    async def handle(self, message: SqsMessage) -> Outcome:
        """The whole of leg 1. Never raises but for cancellation; the outcome says what becomes of the message."""
        parsed = read_message(message.body)
        identity = identity_of(
            parsed,
            base_url=self._facts.base_url,
            deployment=self._facts.deployment,
            queue_arn=self._facts.queue_arn,
            message_id=message.message_id,
        )
        with structlog.contextvars.bound_contextvars(launch_id=identity):
            if identity in self._in_work:
                return self._busy("this worker is at work on it")
            try:
                self._in_work.add(identity)
                return await self._handle_once(message, identity, parsed)
            except MustRestart:
                raise
            except Exception as error:  # a defect of ours, or a message that the ledger cannot hold
                _log.exception("message_failed_unexpectedly")
                return await self._give_up_or_again(message, identity, error)
            finally:
                self._in_work.discard(identity)
                self._build_logs.drop(identity)

    async def _handle_once(
        self, message: SqsMessage, identity: str, parsed: LaunchMessage | BadMessage
    ) -> Outcome:
        intent = self._intent(message, identity, parsed)
        taken: HeldLaunch | Outcome | None = None
        try:
            taken = await self._take(intent)
            return taken if isinstance(taken, Outcome) else await self._conclude(taken, parsed)
        except Again as error:
            # Written or claimed without an answer, it would be busy for all others.
            self._giving_back.owe(identity)
            return self._again(error, 1)  # not by SQS's count: being busy raises that, too
        except asyncio.CancelledError:
            # Left with this worker, the launch would be busy for all others for as long as it lives.
            if taken is None:
                await self._giving_back.give_back_unclear(identity)
            elif isinstance(taken, HeldLaunch) and not self._is_held(identity):
                await self._giving_back.give_back(taken.record)
            raise

    async def _conclude(self, held: HeldLaunch, parsed: LaunchMessage | BadMessage) -> Outcome:
        try:
            return await self._carry_out(held, parsed)
        except Never as error:
            told, log = self._told(error), self._told(self._build_logs.end_of(held.launch_id))
            return await self._refuse(held, Failure(error.stage, error.code, told, log))
        except Again as error:
            return await self._try_again(held, error)
        except Exception as error:  # a defect of ours must not take the launch away from its owner
            if isinstance(error, MustRestart):
                raise
            _log.exception("launch_failed_unexpectedly")
            return await self._try_again(held, Again(f"{type(error).__name__}: {error}"))

    def _told(self, text: object) -> str:
        """A text as everybody may read it: it may quote what the message, a service or a build said."""
        return redact_text(str(text), self._facts.secrets)

    async def _give_up_or_again(self, message: SqsMessage, identity: str, error: Exception) -> Outcome:
        """Outside the ledger, so SQS counts the tries; the DLQ gets what could be made of the message."""
        if message.receive_count < self._facts.max_attempts:
            return self._again(Again(f"{type(error).__name__}: {error}"), message.receive_count)
        reason = f"Gave up after {message.receive_count} receives: {type(error).__name__}: {error}"
        failure = Failure(Stage.AGENT, "LW-UNHANDLED", reason)
        record = self._intent(message, identity, BadMessage(()))
        try:
            await self._refusals.report(record, failure)
        except WorkerError as trouble:
            return self._again(trouble, message.receive_count)
        return Outcome(Verdict.NEVER, stage=failure.stage, code=failure.code, reason=reason)

    async def _carry_out(self, held: HeldLaunch, parsed: LaunchMessage | BadMessage) -> Outcome:
        """What is left to do for a launch that is ours now."""
        if held.record.failure is not None:
            return await self._refuse(held, held.record.failure)
        if isinstance(parsed, LaunchMessage):
            refuse_pasted_secrets(parsed, self._facts.secrets)
        target = self._facts.log_target
        launch = self._preparing.read(parsed, launch_id=held.launch_id, default_log_target=target)
        held.api_key = launch.api_key
        held.update(run=launch.run, name=launch.name, sweep_id=launch.sweep_id, log_target=launch.log_target)
        await self._make_ready(held, launch)
        _log.info("launch_ready", training_job=held.record.job_name, image=held.record.image)
        settled = self._submit(held)
        if held.record.private_key:
            # The ledger holds no secret: the message, which has the key, stays leased until the job exists.
            await settled
            if held.lost:  # whoever has it now needs the message
                return self._busy("another worker took this launch over")
        return Outcome(Verdict.DONE)

    async def _make_ready(self, held: HeldLaunch, launch: Launch) -> None:
        await self._sweeps.check(launch.run, launch.sweep_id)
        await self._run_claims.take(held.record)
        plan = await self._preparing.plan(held, launch, self._save)
        held.update(
            state=LaunchState.WAITING,
            author=launch.author,
            image=plan.image or "",
            job_name=plan.job_name,
            request=plan.request,
            instance_type=plan.instance_type,
            instance_count=plan.instance_count,
            priority=launch.priority,
            **self._facts.retry_rules.of(plan.instance_type, launch.retry, launch.instance_types),
            private_key=launch.api_key is not None,
            waiting_at=time.time(),
        )
        with effect("write_waiting"):
            await self._save(held)
        await self._build_logs.publish(held.record)  # now: a worker that lost the launch does not get here

    async def _take(self, record: LaunchRecord) -> HeldLaunch | Outcome:
        """Write the intent, or find out who has the launch already."""
        with effect("write_intent"):
            existing = await self._ledger.create(record)
        if existing is None:
            _log.info("launch_received", queue_item=record.item_id, run=record.run.run_id)
            return HeldLaunch(record)
        unreported = existing.state is LaunchState.REFUSED and not existing.reported
        if existing.state is not LaunchState.INTENT and not unreported and not existing.needs_message:
            _log.info("launch_known", state=existing.state)
            return Outcome(Verdict.DONE)
        if existing.owner == self._facts.worker:
            if existing.needs_message and self._is_held(existing.launch_id):
                return self._busy("this worker is submitting it")
        elif existing.owner and self._membership.is_alive(existing.owner):
            return self._busy(f"worker {existing.owner} is at work on it")
        return await self._claim(existing)

    async def _claim(self, existing: LaunchRecord) -> HeldLaunch | Outcome:
        with effect("claim_launch"):
            claimed = await self._ledger.claim(existing, self._facts.worker)
        if claimed is None:
            return self._busy("another worker was faster")
        if claimed.state is not existing.state:
            # Its owner woke up: what is leg 2's by now is not built again.
            await self._giving_back.give_back(claimed)
            return self._busy("it went on meanwhile")
        _log.info("launch_claimed", previous_owner=existing.owner, epoch=claimed.epoch)
        return HeldLaunch(claimed)

    async def _refuse(self, held: HeldLaunch, failure: Failure) -> Outcome:
        """Decide in the ledger first, tell W&B and the DLQ, then let the message go."""
        try:
            if held.record.failure is None:
                failure = held.refuse(failure, time.time())
                with effect("write_refused"):
                    await self._save(held)
                _log.warning("launch_refused", stage=failure.stage, code=failure.code, reason=failure.reason)
                await self._build_logs.publish(held.record, failure=failure.reason)
            await self._refusals.report(held.record, failure)
            held.update(reported=True, failure=replace(failure, log=""), message="", request=None, owner="")
            await self._save(held)
        except Again as error:
            # Whoever gets the message next shall tell it, also while this worker lives.
            held.update(tries=held.record.tries + 1)
            await self._giving_back.give_back(held.record)
            return self._again(error, held.record.tries)
        return Outcome(Verdict.NEVER, stage=failure.stage, code=failure.code, reason=failure.reason)

    async def _try_again(self, held: HeldLaunch, error: Again) -> Outcome:
        """Count the try and give the launch back; too many tries are a refusal."""
        tries = held.record.tries + 1
        if tries >= self._facts.max_attempts:
            reason = f"Gave up after {tries} tries (LAUNCH_MAX_ATTEMPTS): {self._told(error)}"
            return await self._refuse(held, Failure(Stage.AGENT, "LW-GAVE-UP", reason))
        # As it stands: what may be `waiting` in the ledger stays so, for a duplicate's message may be deleted by now.
        held.update(tries=tries)
        await self._giving_back.give_back(held.record)
        outcome = self._again(error, tries)
        told = f"Try {tries} failed, next in {outcome.delay:.0f} s: {self._told(error)}"
        await self._refusals.warn(held.record.item_id, "launch_again", told, Stage.AGENT)
        return outcome

    async def _save(self, held: HeldLaunch) -> None:
        lost = await self._ledger.save([held.record], owner=self._facts.worker)
        if lost:
            raise Again("another worker took this launch over")

    def _intent(self, message: SqsMessage, identity: str, parsed: LaunchMessage | BadMessage) -> LaunchRecord:
        return intent_record(
            parsed,
            message.body,
            launch_id=identity,
            message_id=message.message_id,
            owner=self._facts.worker,
            secrets=self._facts.secrets,
            now=time.time(),
        )

    def _busy(self, why: str) -> Outcome:
        _log.info("launch_busy", why=why)
        return Outcome(Verdict.BUSY, delay=(MISSED_BEATS + 2) * self._facts.heartbeat)

    def _again(self, error: WorkerError, tries: int) -> Outcome:
        delay = (error.retry_after if isinstance(error, Again) else None) or backoff(tries, base=5, cap=900)
        _log.warning("launch_again", error=str(error), again_in=round(delay, 1))
        return Outcome(Verdict.AGAIN, delay=delay, reason=str(error))
