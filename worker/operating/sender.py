"""Sending launches by hand: `validate` says what would be submitted, `enqueue` sends it and may wait for its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.clients.aws import aws_clients
from worker.errors import BadMessage, Never, Problem, SettingsError
from worker.intake.sqs import LaunchQueue, queue_facts
from worker.launch.identity import identity_parts, launch_id
from worker.launch.message import CodeSource, Launch, LaunchMessage, interpret, parse_message
from worker.launch.parsing import PartlyBad
from worker.launch.pasted import refuse_pasted_secrets
from worker.launch.record import LaunchRecord, LaunchState
from worker.launch.redaction import HIDDEN, KnownSecrets, redact_request
from worker.ledger.opening import open_ledger
from worker.ledger.port import Ledger
from worker.settings import Settings
from worker.sources.location import ACCEPTED, parse_location
from worker.training.allowed import policy_of
from worker.training.plan import plan_launch, review
from worker.training.request import AccountFacts, with_api_key
from worker.training.status import ending_of

_LOOK_EVERY = 1.0
_SILENT_AFTER = 10.0
"""Seconds without a record of the launch after which whoever waits is told; a worker takes a message in one or two."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A launch that is in the queue."""

    launch_id: str
    message_id: str
    run: str
    given_id: str = ""
    """The message's own `launchId`; empty: it is named by its queue item."""
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """What a message leads to."""

    request: Mapping[str, Any]
    """CreateTrainingJob, secrets as `***`."""
    warnings: tuple[Problem, ...]


def planned_request(body: str, settings: Settings, *, account: AccountFacts, image: str | None) -> Planned:
    """The CreateTrainingJob request a message leads to; calls nobody.

    Raises `BadMessage` with every problem, or `Never` for a source that cannot be run."""
    policy = policy_of(settings)
    plan = partial(
        plan_launch,
        account=account,
        base_url=settings.wandb_base_url,
        deployment=settings.deployment,
        macros=settings.macros,
        policy=policy,
    )
    try:
        message = parse_message(body)
        launch = _launch(message, settings, queue_arn="arn:aws:sqs:::", message_id="validate")
        _check_pasted(message, launch, settings)
        _check_location(launch)
    except BadMessage as error:
        raise review(error, plan) from None
    made = plan(launch, image=image)
    request = with_api_key(made.request, HIDDEN) if policy.container_key else made.request
    return Planned(redact_request(request), made.warnings)


def _check_pasted(message: LaunchMessage, launch: Launch, settings: Settings) -> None:
    """As a worker does, which has the same key: raises `BadMessage` for one that stands in a wrong place."""
    key = settings.wandb_api_key
    try:
        refuse_pasted_secrets(message, KnownSecrets([key.get_secret_value().strip()] if key else []))
    except BadMessage as error:
        raise PartlyBad(error.problems, launch) from None


def _check_location(launch: Launch) -> None:
    """What a worker finds out when it fetches the code: raises `BadMessage` for a `uri` that names none."""
    if not isinstance(launch.source, CodeSource):
        return
    try:
        parse_location(launch.source.uri)
    except Never as error:
        what, _, remedy = str(error).partition("; ")
        raise PartlyBad((Problem("$.runSpec.uri", what, remedy or ACCEPTED),), launch) from None


def with_identity(body: str) -> str:
    """The message with a `launchId`, if it has neither that nor a queue item id: sending it twice is then safe."""
    message = parse_message(body)
    if message.launch_id or message.item_id:
        return body
    return json.dumps({**json.loads(body), "launchId": uuid.uuid4().hex})


async def enqueue(
    body: str,
    settings: Settings,
    *,
    on_sent: Callable[[Sent], None],
    on_state: Callable[[LaunchRecord], None] | None = None,
    on_silence: Callable[[], None] = lambda: None,
) -> LaunchRecord | None:
    """Send a valid message; with `on_state` follow the launch in the ledger and return its last record. `on_silence` is
    called once if the ledger does not know the launch after some seconds.

    Raises what AWS and a ledger that cannot be read raise; nothing is sent then."""
    if not settings.queue_url:
        raise SettingsError("LAUNCH_QUEUE_URL: not set; give the URL of the SQS queue with launch messages")
    message = parse_message(body)
    async with contextlib.AsyncExitStack() as stack:
        aws = await stack.enter_async_context(aws_clients(settings.aws_region))
        queue = LaunchQueue(aws.sqs, await queue_facts(aws.sqs, settings.queue_url, settings.dlq_url))
        launch = _launch(message, settings, queue_arn=queue.facts.arn, message_id="")
        ledger: Ledger | None = None
        if on_state is not None:
            ledger = await stack.enter_async_context(open_ledger(settings.ledger, aws.dynamodb))
            await ledger.read(launch.launch_id)  # what cannot be followed is not sent: the launch would run
        message_id = await queue.send(body, launch.launch_id, group=launch.queue)
        on_sent(Sent(launch.launch_id, message_id, launch.run.path, message.launch_id, launch.warnings))
        if ledger is None or on_state is None:
            return None
        return await _followed(ledger, launch.launch_id, on_state=on_state, on_silence=on_silence)


async def _followed(
    ledger: Ledger,
    launch_id: str,
    *,
    on_state: Callable[[LaunchRecord], None],
    on_silence: Callable[[], None],
) -> LaunchRecord:
    last: LaunchRecord | None = None
    silent_at = time.monotonic() + _SILENT_AFTER
    while last is None or last.state.is_open:
        record = await ledger.read(launch_id)
        if record is not None and _differs(record, last):
            on_state(record)
            last = record
        if last is None and time.monotonic() >= silent_at:
            on_silence()
            silent_at = math.inf
        await asyncio.sleep(_LOOK_EVERY)
    return last


def end_of(record: LaunchRecord) -> tuple[str, bool]:
    """How a launch that is no longer open ended, in words, and whether that is a success."""
    if record.state is LaunchState.REFUSED:
        assert record.failure is not None
        return f"refused ({record.failure.code}): {record.failure.reason}", False
    end = ending_of(record)
    return f"{end.end}: {end.reason}", end.exit_code == 0


def next_step(record: LaunchRecord) -> str:
    """What shows why a launch has failed."""
    if record.state is LaunchState.REFUSED:
        return f"its message and the whole reason: `launch-worker dlq show {record.launch_id}`"
    return f"its log: `launch-worker logs {record.launch_id}`"


def _launch(message: LaunchMessage, settings: Settings, *, queue_arn: str, message_id: str) -> Launch:
    parts = identity_parts(
        message,
        base_url=settings.wandb_base_url,
        deployment=settings.deployment,
        queue_arn=queue_arn,
        message_id=message_id,
    )
    return interpret(message, launch_id=launch_id(parts), default_log_target=settings.log_target)


def _differs(record: LaunchRecord, last: LaunchRecord | None) -> bool:
    return last is None or (record.state, record.facts.secondary_status) != (
        last.state,
        last.facts.secondary_status,
    )
