"""A refusal fits into the ledger, whatever the launch was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.records import waiting
from worker.launch.intent import MAX_KEPT_BODY
from worker.launch.record import Failure, LaunchRecord, LaunchState, record_to_json
from worker.launch.refused import MAX_BYTES, MAX_REASON, refused

FAILURE = Failure("run", "LW-X", "why", "the end of a log")
NOW, KEPT = 1000.0, 60.0


def refuse(record: LaunchRecord, failure: Failure = FAILURE) -> LaunchRecord:
    return refused(record, failure, now=NOW, kept_for=KEPT)


def test_nothing_else_of_an_ordinary_launch_changes() -> None:
    changes = {"state": LaunchState.REFUSED, "failure": FAILURE, "finished_at": NOW, "expires_at": NOW + KEPT}
    assert refuse(waiting()) == replace(waiting(), **changes)  # type: ignore[arg-type]


def test_the_request_goes_first() -> None:
    record = waiting(request={"HyperParameters": {"h": "x" * 300_000}}, message="é" * 60_000)
    decided = refuse(record)
    assert (decided.request, decided.message, decided.message_cut) == (None, record.message, False)


@pytest.mark.parametrize("character", ["x", "é", "\N{FIRE}", '"', "\n"])
def test_then_the_end_of_the_message(character: str) -> None:
    reason = f"first {character * 200_000} last"
    failure = Failure("run", "LW-X", reason, character * 16_000)
    decided = refuse(waiting(message=character * MAX_KEPT_BODY), failure)
    assert len(record_to_json(decided).encode()) <= MAX_BYTES
    assert decided.failure is not None
    told = decided.failure.reason
    assert len(told) <= MAX_REASON + 3
    assert told.startswith("first ")
    assert told.endswith(" last")
    assert decided.message_cut == (len(decided.message) < MAX_KEPT_BODY)
    assert decided.message_cut == (character == "\N{FIRE}")
