"""From an SQS body to the first record of its launch, whatever the body is: pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from worker.errors import BadMessage
from worker.launch.identity import identity_parts, launch_id
from worker.launch.message import LaunchMessage, parse_message
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.launch.redaction import hide_secrets, redact_body

MAX_KEPT_BODY = 100_000
"""Characters of the message that the ledger keeps while it may still be refused and copied to the DLQ."""
_MAX_ITEM_ID = 256
_MAX_GIVEN_ID = 1024
"""Characters of a `launchId` that the ledger keeps; of a longer one it keeps none, so that a record always fits."""


def read_message(body: str) -> LaunchMessage | BadMessage:
    """The message, or why there is none: either has an identity and a record."""
    try:
        return parse_message(body)
    except BadMessage as error:
        return error


def identity_of(
    parsed: LaunchMessage | BadMessage, *, base_url: str, deployment: str, queue_arn: str, message_id: str
) -> str:
    """The launch id. Nothing in a broken message can be trusted to identify it, but the SQS message has an id."""
    if isinstance(parsed, BadMessage):
        return launch_id(("sqs", queue_arn, message_id))
    return launch_id(
        identity_parts(
            parsed, base_url=base_url, deployment=deployment, queue_arn=queue_arn, message_id=message_id
        )
    )


def intent_record(
    parsed: LaunchMessage | BadMessage,
    body: str,
    *,
    launch_id: str,
    message_id: str,
    owner: str,
    secrets: Iterable[str],
    now: float,
) -> LaunchRecord:
    """The record with which a worker says that it is at work on a launch; it holds no secret. `now`: epoch seconds."""
    if isinstance(parsed, BadMessage):
        hidden = tuple(secrets)
        run, item_id = RunRef("", "", launch_id[:10]), item_id_of(body)
        queue = queue_entity = agent_run = given_id = ""
    else:
        spec = parsed.run_spec
        own = spec.wandb_api_key.get_secret_value() if spec.wandb_api_key else ""
        hidden = (*secrets, own)
        names = (spec.entity, spec.project.lower(), spec.run_id or launch_id[:10])
        run = RunRef(*(hide_secrets(name, hidden) for name in names))
        item_id, given_id = parsed.item_id, parsed.launch_id
        queue, queue_entity, agent_run = parsed.queue, parsed.entity, parsed.agent_run
    kept = redact_body(body, hidden)[:MAX_KEPT_BODY]
    return LaunchRecord(
        launch_id=launch_id,
        state=LaunchState.INTENT,
        owner=owner,
        run=run,
        item_id=hide_secrets(item_id, hidden),
        queue=hide_secrets(queue, hidden),
        queue_entity=hide_secrets(queue_entity, hidden),
        agent_run=hide_secrets(agent_run, hidden),
        # Lone surrogates, which UTF-8 and so ledger and queues cannot hold, go.
        message=kept.encode("utf-8", "replace").decode(),
        message_id=message_id,
        given_id=hide_secrets(given_id, hidden) if len(given_id) <= _MAX_GIVEN_ID else "",
        created_at=now,
    )


def item_id_of(body: str) -> str:
    """The queue item id of a broken message, so that its refusal reaches W&B; empty if there is none to be trusted."""
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    item_id = envelope.get("runQueueItemId") if isinstance(envelope, dict) else None
    usable = isinstance(item_id, str) and item_id.isprintable() and len(item_id) <= _MAX_ITEM_ID
    return str(item_id) if usable else ""
