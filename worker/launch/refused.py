"""The record of a launch that can never become a job, small enough for the ledger whatever the launch was: pure."""

from __future__ import annotations

from dataclasses import replace

from worker.errors import shortened
from worker.launch.record import Failure, LaunchRecord, LaunchState, record_to_json

MAX_REASON = 60_000
"""Characters; `BadMessage` has no more, AWS and others may quote a whole request."""
MAX_BYTES = 380_000
"""Of the record as JSON: DynamoDB's 400 KB for an item, with room for its other attributes and what is yet to come."""


def refused(record: LaunchRecord, failure: Failure, *, now: float, kept_for: float) -> LaunchRecord:
    """`record` once it is refused; `now` is epoch seconds, `kept_for` seconds. A refusal that does not fit could not
    be written, and the launch would have its run for ever: then the request goes, and if need be the message's end."""
    decided = replace(
        record,
        state=LaunchState.REFUSED,
        failure=replace(failure, reason=shortened(failure.reason, MAX_REASON)),
        finished_at=now,
        expires_at=now + kept_for,
    )
    if _excess(decided) > 0:
        decided = replace(decided, request=None)
    if _excess(decided) > 0:
        decided = replace(decided, message_cut=True)
        kept = decided.message.encode()[: -_excess(decided)]  # each byte is at least one in JSON
        decided = replace(decided, message=kept.decode(errors="ignore"))
    return decided


def _excess(record: LaunchRecord) -> int:
    return len(record_to_json(record).encode()) - MAX_BYTES
