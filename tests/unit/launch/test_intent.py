"""What the first record of a launch keeps of its message."""

from __future__ import annotations

import json

import pytest

from tests.unit.launches import message
from worker.launch.intent import intent_record
from worker.launch.message import parse_message

SECRET = "5" * 40


@pytest.mark.parametrize(
    ("given", "kept"),
    [("nightly-2026-11-23", "nightly-2026-11-23"), ("x" * 1025, ""), (f"of-{SECRET}", "of-***")],
    ids=["as it is", "a huge one", "a secret"],
)
def test_the_record_keeps_the_launch_id_that_the_message_gave(given: str, kept: str) -> None:
    body = json.dumps({**message(), "launchId": given})
    record = intent_record(
        parse_message(body), body, launch_id="a" * 26, message_id="m", owner="w", secrets=(SECRET,), now=1.0
    )
    assert record.given_id == kept
