"""Refused launches by hand: look at them, and send them back once what was wrong is mended.

A launch that goes back keeps its identity, and with it its run, and gets a new attempt: its record in the ledger,
which says *refused*, is opened again first. The letter is deleted last, so that a crash on the way loses nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from worker.clients.aws import aws_clients
from worker.errors import SettingsError, WorkerError
from worker.intake.dead_letter_queue import DeadLetter, DeadLetterQueue, Letters
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.launch.identity import id_of_given, identity_parts, launch_id
from worker.launch.intent import intent_record
from worker.launch.message import LaunchMessage, interpret, parse_message
from worker.launch.record import LaunchRecord, LaunchState
from worker.launch.redaction import HIDDEN
from worker.ledger.opening import open_ledger
from worker.ledger.port import Ledger
from worker.settings import Settings

_SHORTEST_PREFIX = 4


class CannotSendBack(WorkerError):
    """This letter cannot go back as it is; the message says why and what to do."""

    code = "LW-CANNOT-SEND-BACK"


class NoSuchLetter(WorkerError):
    """No dead letter has that name, or the letters of several launches have."""

    code = "LW-NO-SUCH-LETTER"


@dataclass(frozen=True, slots=True)
class SentBack:
    """What became of a letter."""

    launch_id: str
    message_id: str
    """Of the new message; empty: none was needed, the launch is under way."""
    attempt: int
    note: str = ""


class DeadLetters:
    """The dead-letter queue together with what a letter's launch is in the ledger."""

    def __init__(
        self, queue: LaunchQueue, letters: DeadLetterQueue, ledger: Ledger, settings: Settings
    ) -> None:
        self._queue = queue
        self._letters = letters
        self._ledger = ledger
        self._settings = settings

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[Letters]:
        """All letters; those that are not deleted meanwhile are shown again to others at the end."""
        found = await self._letters.look()
        try:
            yield found
        finally:
            await self._letters.release(found.letters)

    async def delete(self, letters: Sequence[DeadLetter]) -> None:
        """Remove letters for good."""
        for letter in letters:
            await self._letters.delete(letter)

    async def send_back(self, letters: Sequence[DeadLetter], corrected: str | None = None) -> SentBack:
        """Send a launch back to its queue; `letters` are all of this launch, `corrected` a body instead of theirs.

        Raises `BadMessage` for a body that would be refused at once, and `CannotSendBack`."""
        sent = await self.send_again(letters[-1], corrected)
        await self.delete(letters)
        return sent

    async def send_again(self, letter: DeadLetter, corrected: str | None = None) -> SentBack:
        """The same, and the letter stays. Raises as `send_back`."""
        body = _whole_body(letter) if corrected is None else corrected
        record = await self._ledger.read(letter.launch_id) if letter.launch_id else None
        body, message = _with_name_of(letter, record, body)
        identity = self._identity(message)
        if identity != letter.launch_id:
            body, message = self._with_identity(letter, record, body, message)
            identity = self._identity(message)
            record = await self._ledger.read(identity)
        elif record is None and letter.code not in ("", "LW-UNHANDLED"):
            raise CannotSendBack(
                f"the ledger {self._settings.ledger} does not know launch {identity};"
                " is LAUNCH_LEDGER the workers' one?"
            )
        launch = interpret(message, launch_id=identity, default_log_target=self._settings.log_target)
        sent = await self._send(letter, body, launch.queue, identity, record)
        if message.item_id:
            note = f"queue item {message.item_id} stays failed in W&B, which revives no item; the run itself shows"
            return replace(sent, note=f"{sent.note}; {note}" if sent.note else note)
        return sent

    async def _send(
        self, letter: DeadLetter, body: str, queue: str, identity: str, record: LaunchRecord | None
    ) -> SentBack:
        attempt = 1
        if record is not None and record.state is LaunchState.REFUSED:
            attempt = await self._reopen(record, body)
        elif record is not None and record.state is not LaunchState.INTENT:
            return SentBack(identity, "", record.attempt, f"it is under way already ({record.state})")
        elif record is not None:
            attempt = record.attempt
        message_id = await self._queue.send(body, identity, group=queue, again=letter.message_id)
        return SentBack(identity, message_id, attempt)

    async def _reopen(self, record: LaunchRecord, body: str) -> int:
        """Make a refused launch one that a worker may take up; returns the number of its new attempt."""
        if not record.reported:
            raise CannotSendBack(
                f"a worker is still telling the refusal of {record.launch_id}; try again shortly"
            )
        me = f"dlq-{uuid4().hex[:8]}"
        await self._ledger.forget_stop(record.launch_id)  # a worker would stop the new attempt as well
        claimed = await self._ledger.claim(record, me)
        if claimed is None:
            raise CannotSendBack(f"somebody else is sending {record.launch_id} back at this moment")
        key = self._settings.wandb_api_key
        fresh = intent_record(
            parse_message(body),
            body,
            launch_id=record.launch_id,
            message_id=record.message_id,
            owner="",
            secrets=(key.get_secret_value(),) if key else (),
            now=time.time(),
        )
        reopened = replace(fresh, epoch=claimed.epoch, attempt=record.attempt + 1)
        if await self._ledger.save([reopened], owner=me):
            raise CannotSendBack(f"somebody else is sending {record.launch_id} back at this moment")
        return reopened.attempt

    def _identity(self, message: LaunchMessage) -> str:
        """As the workers compute it; a message without any identity of its own has none before it is sent."""
        return launch_id(
            identity_parts(
                message,
                base_url=self._settings.wandb_base_url,
                deployment=self._settings.deployment,
                queue_arn=self._queue.facts.arn,
                message_id="",
            )
        )

    def _with_identity(
        self, letter: DeadLetter, record: LaunchRecord | None, body: str, message: LaunchMessage
    ) -> tuple[str, LaunchMessage]:
        """A launch that was named after its SQS message, which a new message cannot repeat, is given a name."""
        old_id = record.message_id if record else letter.message_id
        was_of_sqs = (
            launch_id(("sqs", self._queue.facts.arn, old_id)) == letter.launch_id or not letter.launch_id
        )
        if not was_of_sqs:
            raise CannotSendBack(
                f"this is not the message of launch {letter.launch_id}: keep its launchId, runQueueItemId and entity,"
                " or leave launchId and runQueueItemId out (and run this command with the workers' LAUNCH_DEPLOYMENT"
                " and WANDB_BASE_URL)"
            )
        if message.launch_id or message.item_id:
            return body, message
        return _named(body, {"launchId": letter.launch_id or letter.message_id})


def matching(
    letters: Sequence[DeadLetter], wanted: str, *, deployment: str, hidden: int = 0
) -> list[DeadLetter]:
    """The letters of one launch, by launch id, SQS message id or the beginning of either, or by the message's own
    `launchId`. `hidden`: how many more there are that somebody else looks at.

    Raises `NoSuchLetter` when there is none or more than one."""
    found = [
        letter
        for letter in letters
        if wanted in (letter.launch_id, letter.message_id)
        or letter.launch_id == id_of_given(deployment, wanted)
        or (
            len(wanted) >= _SHORTEST_PREFIX
            and (letter.launch_id.startswith(wanted) or letter.message_id.startswith(wanted))
        )
    ]
    groups = by_launch(found)
    if not groups:
        again = (
            f"; about {hidden} more are hidden at this moment, look again in two minutes" if hidden else ""
        )
        raise NoSuchLetter(f"no dead letter {wanted}; `launch-worker dlq list` shows what is there{again}")
    if len(groups) > 1:
        raise NoSuchLetter(f"{wanted} is the beginning of {len(groups)} letters; write more of it")
    return groups[0]


def by_launch(letters: Sequence[DeadLetter]) -> list[list[DeadLetter]]:
    """A launch may have several letters: its refusal was told again after a crash, or it was refused again."""
    groups: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault(letter.launch_id or letter.message_id, []).append(letter)
    return list(groups.values())


def run_of(letter: DeadLetter) -> str:
    """`entity/project/run` as far as the body tells it."""
    spec = _object(letter.body).get("runSpec")
    spec = _object(spec) if isinstance(spec, str) else spec
    if not isinstance(spec, dict):
        return ""
    return "/".join(str(spec[name]) for name in ("entity", "project", "run_id") if spec.get(name))


@contextlib.asynccontextmanager
async def open_dead_letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    """Open queue and ledger. Raises `SettingsError` when there is no dead-letter queue."""
    if not settings.queue_url:
        raise SettingsError("LAUNCH_QUEUE_URL: not set; give the URL of the SQS queue with launch messages")
    async with aws_clients(settings.aws_region) as aws:
        facts = await queue_facts(aws.sqs, settings.queue_url, settings.dlq_url)
        if not facts.dlq_url:
            raise SettingsError("LAUNCH_DLQ_URL: not set, and the queue has no redrive policy that names one")
        async with open_ledger(settings.ledger, aws.dynamodb) as ledger:
            queue = LaunchQueue(aws.sqs, facts)
            yield DeadLetters(queue, DeadLetterQueue(aws.sqs, facts.dlq_url), ledger, settings)


def _with_name_of(letter: DeadLetter, record: LaunchRecord | None, body: str) -> tuple[str, LaunchMessage]:
    """A message that names no launch is that of the letter's, whose name `enqueue` may have added to it."""
    message = parse_message(body)
    if message.launch_id or message.item_id:
        return body, message
    names = (_names_in_ledger(record) if record else {}) or _names_in(letter.body)
    return _named(body, names) if names else (body, message)


def _named(body: str, names: Mapping[str, str]) -> tuple[str, LaunchMessage]:
    named = json.dumps({**json.loads(body), **names})
    return named, parse_message(named)


def _names_in_ledger(record: LaunchRecord) -> dict[str, str]:
    if record.item_id:
        return {
            "runQueueItemId": record.item_id,
            **({"entity": record.queue_entity} if record.queue_entity else {}),
        }
    return {"launchId": record.given_id} if record.given_id else {}


def _names_in(body: str) -> dict[str, str]:
    """As a letter of a launch that the ledger has forgotten has them."""
    given = _object(body)
    names = {
        name: text
        for name in ("runQueueItemId", "entity", "launchId")
        if isinstance(text := given.get(name), str)
    }
    return names if names.keys() - {"entity"} else {}


def _object(text: str) -> Mapping[str, Any]:
    """A JSON object; empty for anything else: a letter may be no launch message at all."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _whole_body(letter: DeadLetter) -> str:
    if letter.is_cut:
        why = "its message was too long to be copied whole"
    elif HIDDEN in letter.body:
        why = f"secrets were taken out of its message ({HIDDEN})"
    else:
        return letter.body
    raise CannotSendBack(
        f"launch {letter.launch_id or letter.message_id}: {why}; give the whole message with --message FILE"
    )
