"""What becomes of a popped item: a message under the identity that the workers give it, or a reason why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.launches import message
from worker.launch.envelope import SCHEDULER, Forward, Leave, Origin, TooLarge, envelope
from worker.launch.intent import identity_of, intent_record, read_message
from worker.launch.message import LaunchMessage

LIMIT = 1 << 20
ORIGIN = Origin("https://api.wandb.ai", "acme", "sm", "agent-7")


def spec(**changes: Any) -> dict[str, Any]:
    return {**message()["runSpec"], **changes}


def forwarded(run_spec: Any, item_id: str = "item-1") -> Forward:
    made = envelope(item_id, run_spec, ORIGIN, max_bytes=LIMIT)
    assert isinstance(made, Forward)
    return made


def test_the_message_is_what_was_popped_and_where() -> None:
    run_spec = spec(author="ada")
    assert json.loads(forwarded(run_spec).body) == {
        "runQueueItemId": "item-1",
        "runSpec": run_spec,
        "queue": "sm",
        "entity": "acme",
        "agentRun": "agent-7",
    }


@pytest.mark.parametrize(
    "changes",
    [{}, {"run_id": "abc123"}, {"run_id": None}, {"entity": "other-team"}, {"resource": None}],
    ids=["plain", "own run id", "null run id", "run of another entity", "no resource"],
)
@pytest.mark.parametrize("as_text", [False, True], ids=["object", "text"])
def test_launch_and_run_id_are_those_of_the_worker(changes: dict[str, Any], as_text: bool) -> None:
    run_spec = json.dumps(spec(**changes)) if as_text else spec(**changes)
    made = forwarded(run_spec)
    parsed = read_message(made.body)
    assert isinstance(parsed, LaunchMessage)
    identity = identity_of(
        parsed, base_url="https://api.wandb.ai/", deployment="d", queue_arn="q", message_id="m"
    )
    record = intent_record(
        parsed, made.body, launch_id=identity, message_id="m", owner="w", secrets=(), now=0.0
    )
    assert (made.launch_id, made.run_id) == (identity, record.run.run_id)
    assert (record.item_id, record.queue, record.queue_entity, record.agent_run) == (
        "item-1",
        "sm",
        "acme",
        "agent-7",
    )


@pytest.mark.parametrize("run_spec", [None, "{torn", "[1]", {}, {"run_id": 7, "entity": "acme"}, 3])
def test_a_broken_item_goes_to_the_workers_who_say_what_is_wrong(run_spec: Any) -> None:
    made = forwarded(run_spec)
    assert made.run_id == made.launch_id[:10]


@pytest.mark.parametrize("as_text", [False, True], ids=["object", "text"])
def test_a_sweep_scheduler_stays_in_the_queue(as_text: bool) -> None:
    scheduler = {"uri": "placeholder-uri-scheduler", "resource": "local-process"}
    made = envelope("i", json.dumps(scheduler) if as_text else scheduler, ORIGIN, max_bytes=LIMIT)
    assert made == Leave("it is a sweep scheduler, which `wandb launch-agent` runs", SCHEDULER)


def test_an_item_of_another_resource_stays_in_the_queue() -> None:
    made = envelope("i", spec(resource="kubernetes"), ORIGIN, max_bytes=LIMIT)
    assert isinstance(made, Leave)
    assert "kubernetes" in made.why


@pytest.mark.parametrize("letter", ["x", "ä", "\ud800"], ids=["ascii", "two bytes", "escaped"])
def test_the_limit_is_in_bytes_as_sent(letter: str) -> None:
    run_spec = spec(name=letter * 1000)
    size = len(forwarded(run_spec).body.encode())
    assert isinstance(envelope("item-1", run_spec, ORIGIN, max_bytes=size), Forward)
    made = envelope("item-1", run_spec, ORIGIN, max_bytes=size - 1)
    assert isinstance(made, TooLarge)
    assert str(size) in made.reason
    assert "LW-MESSAGE-SIZE" in made.reason


@pytest.mark.parametrize("text", ["\x00", "\x1f", "\ud800", "\ufffe", "\uffff", "漢字 \U0001f680"])
def test_sqs_can_take_whatever_the_item_holds(text: str) -> None:
    run_spec = spec(name=text)
    body = forwarded(run_spec).body
    assert json.loads(body)["runSpec"]["name"] == text
    for character in body:
        code = ord(character)
        assert code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
