"""The ledger's text form of a record: nothing is lost, and newer versions may add what they like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.launch.log_state import LogBatch, LogState, StreamPosition
from worker.launch.record import (
    Failure,
    JobFacts,
    LaunchRecord,
    LaunchState,
    PastAttempt,
    RunRef,
    record_from_json,
    record_to_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""Lone surrogates are no text: they are cleaned out of logs and refused in messages before they get here."""
TIMES = st.floats(min_value=0, max_value=1e11)
COUNTS = st.integers(min_value=0, max_value=2**63 - 1)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3),
    max_leaves=8,
)
FACTS = st.builds(
    JobFacts,
    status=TEXT,
    secondary_status=TEXT,
    failure_reason=TEXT,
    created_at=st.none() | TIMES,
    started_at=st.none() | TIMES,
    ended_at=st.none() | TIMES,
    billable_seconds=st.none() | COUNTS,
    training_seconds=st.none() | COUNTS,
    spot=st.booleans(),
    transitions=st.lists(st.tuples(TEXT, TIMES), max_size=3).map(tuple),
    status_message=TEXT,
)
POSITIONS = st.builds(
    StreamPosition,
    timestamp=COUNTS,
    ingested=COUNTS,
    ties=COUNTS,
    marks=st.lists(st.tuples(COUNTS, COUNTS), max_size=3).map(tuple),
    tied=TEXT,
)
BATCHES = st.builds(
    LogBatch,
    first_line=COUNTS,
    lines=COUNTS,
    streams=st.dictionaries(TEXT, st.tuples(COUNTS, COUNTS), max_size=3),
    events=TEXT,
    digest=TEXT,
    first_row=COUNTS,
    statuses=st.lists(st.tuples(TEXT, TIMES), max_size=3).map(tuple),
)
LOGS = st.builds(
    LogState,
    next_line=COUNTS,
    positions=st.dictionaries(TEXT, POSITIONS, max_size=3),
    batch=st.none() | BATCHES,
    sketch=TEXT,
    undelivered=TEXT,
    next_row=COUNTS,
    statuses=COUNTS,
)
REQUIRED: Mapping[str, st.SearchStrategy[Any]] = {
    "launch_id": TEXT,
    "state": st.sampled_from(LaunchState),
    "run": st.builds(RunRef, TEXT, TEXT, TEXT),
}
OPTIONAL: Mapping[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("owner", "item_id", "queue", "queue_entity", "message", "message_id", "given_id"), TEXT),
    **dict.fromkeys(
        (
            "name",
            "sweep_id",
            "author",
            "commit",
            "job_artifact",
            "image",
            "job_name",
            "job_arn",
            "instance_type",
        ),
        TEXT,
    ),
    **dict.fromkeys(
        ("log_target", "stop_reason", "stop_asked", "previous_job", "given_up", "waits_for", "agent_run"),
        TEXT,
    ),
    **dict.fromkeys(
        ("epoch", "attempt", "tries", "instance_count", "opened", "delivered", "end_told", "priority"), COUNTS
    ),
    **dict.fromkeys(("private_key", "reported", "stopped_before", "message_cut"), st.booleans()),
    **dict.fromkeys(
        ("not_before", "created_at", "waiting_at", "waited", "accepted_at", "finished_at", "expires_at"),
        TIMES,
    ),
    "request": st.none() | st.dictionaries(TEXT, JSON_VALUES, max_size=4),
    "facts": FACTS,
    "failure": st.none() | st.builds(Failure, TEXT, TEXT, TEXT),
    "log": LOGS,
    "retries": st.dictionaries(TEXT, COUNTS, max_size=3),
    "metrics": st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    "alerted": st.lists(TEXT, max_size=2).map(tuple),
    "instance_types": st.lists(TEXT, max_size=3).map(tuple),
    "attempts": st.lists(st.builds(PastAttempt, TEXT, TEXT, TEXT, TEXT), max_size=3).map(tuple),
}
RECORDS = st.fixed_dictionaries(REQUIRED, optional=OPTIONAL).map(lambda fields: LaunchRecord(**fields))


def test_every_field_of_a_record_is_tried() -> None:
    assert REQUIRED.keys() | OPTIONAL.keys() == set(LaunchRecord.__dataclass_fields__)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: LaunchRecord) -> None:
    again = record_from_json(record_to_json(record))
    assert again == record
    assert hash(again.facts) == hash(record.facts), "tuples stay tuples"


@given(RECORDS)
def test_the_text_is_valid_json_and_valid_utf8(record: LaunchRecord) -> None:
    text = record_to_json(record)
    assert json.loads(text)["launch_id"] == record.launch_id
    assert record_from_json(text.encode()) == record


@given(RECORDS, JSON_VALUES)
def test_unknown_keys_of_newer_versions_are_ignored(record: LaunchRecord, value: Any) -> None:
    fields = json.loads(record_to_json(record))
    newer = fields | {"added_later": value, "run": fields["run"] | {"added_later": value}}
    newer["log"] = fields.get("log", {}) | {"added_later": value}
    assert record_from_json(json.dumps(newer)) == record


def test_defaults_take_no_room() -> None:
    record = LaunchRecord(launch_id="a", state=LaunchState.INTENT, run=RunRef("e", "p", "r"))
    assert json.loads(record_to_json(record)) == {
        "launch_id": "a",
        "state": "intent",
        "run": {"entity": "e", "project": "p", "run_id": "r"},
    }
