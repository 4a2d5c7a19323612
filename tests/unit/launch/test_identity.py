"""Identity: golden vectors, and names that SageMaker accepts whatever was asked for."""

from __future__ import annotations

import ast
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.launches import EXAMPLES, message
from worker.launch.identity import (
    TRAINING_JOB_NAME,
    identity_parts,
    launch_id,
    normalise_base_url,
    training_job_name,
)
from worker.launch.message import parse_message

LAUNCH = "3e7zfv3cij42fmfmgai5u6dqjv"
LAUNCH_IDS = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=26, max_size=26)


def golden_vectors() -> list[tuple[list[str], str, str]]:
    rows = re.findall(
        r"^\| `(\[.*\])` \| `(\w+)` \| `(\w+)` \|$", (EXAMPLES / "launch_id.md").read_text(), re.M
    )
    return [(ast.literal_eval(parts), whole, run_id) for parts, whole, run_id in rows]


def test_there_are_golden_vectors_of_each_kind() -> None:
    assert len(golden_vectors()) == 3


@pytest.mark.parametrize(("parts", "expected", "run_id"), golden_vectors())
def test_launch_id_golden(parts: list[str], expected: str, run_id: str) -> None:
    assert launch_id(parts) == expected
    assert expected[:10] == run_id


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("https://api.wandb.ai", "acme", "item-1")),
        ({"entity": "queues"}, ("https://api.wandb.ai", "queues", "item-1")),
        ({"launchId": "nightly"}, ("https://api.wandb.ai", "acme", "item-1")),
        ({"launchId": "nightly", "runQueueItemId": None}, ("direct", "blue", "nightly")),
        ({"runQueueItemId": None}, ("sqs", "arn:q", "m-1")),
        ({"runQueueItemId": "", "launchId": ""}, ("sqs", "arn:q", "m-1")),
    ],
)
def test_identity_parts(change: dict[str, str | None], expected: tuple[str, ...]) -> None:
    parsed = parse_message(json.dumps({**message(), **change}))
    parts = identity_parts(
        parsed, base_url="https://api.wandb.ai/", deployment="blue", queue_arn="arn:q", message_id="m-1"
    )
    assert parts == expected


def test_base_url_has_no_trailing_slash() -> None:
    assert normalise_base_url("https://wandb.example.com/api//") == "https://wandb.example.com/api"


@pytest.mark.parametrize(
    ("requested", "attempt", "expected"),
    [
        ("ab12cd34", 1, "ab12cd34"),
        ("ab12cd34", 2, "ab12cd34-r2"),
        ("a--b", 1, "a--b"),
        ("test_project-x", 1, "test-project-x-3e7zfv3c"),
        ("run.1_2", 3, "run-1-2-3e7zfv3c-r3"),
        ("-lead", 1, "lead-3e7zfv3c"),
        ("trail-", 1, "trail-3e7zfv3c"),
        ("", 1, "launch-3e7zfv3c"),
        ("___", 1, "launch-3e7zfv3c"),
        ("läuft", 1, "l-uft-3e7zfv3c"),
        ("x\n", 1, "x-3e7zfv3c"),
        ("a" * 63, 1, "a" * 63),
        ("a" * 64, 1, "a" * 54 + "-3e7zfv3c"),
        ("a" * 63, 2, "a" * 51 + "-3e7zfv3c-r2"),
        ("a" * 60, 2, "a" * 60 + "-r2"),
    ],
)
def test_training_job_name_q17(requested: str, attempt: int, expected: str) -> None:
    assert training_job_name(requested, LAUNCH, attempt) == expected


def test_attempts_count_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        training_job_name("x", LAUNCH, 0)


@given(st.text(), LAUNCH_IDS, st.integers(1, 10**6))
def test_every_training_job_name_is_valid_q16(requested: str, launch: str, attempt: int) -> None:
    name = training_job_name(requested, launch, attempt)
    assert TRAINING_JOB_NAME.fullmatch(name)
    assert len(name) <= 63
    assert attempt == 1 or name.endswith(f"-r{attempt}")


@given(st.text(max_size=80), LAUNCH_IDS, st.integers(1, 50))
def test_the_name_of_attempt_one_leads_to_the_same_later_names(
    requested: str, launch: str, attempt: int
) -> None:
    first = training_job_name(requested, launch)
    assert training_job_name(first, launch, attempt) == training_job_name(requested, launch, attempt)


@given(st.text(max_size=80), st.text(max_size=80), LAUNCH_IDS, LAUNCH_IDS)
def test_changed_names_of_two_launches_never_meet(one: str, other: str, launch: str, peer: str) -> None:
    if launch[:8] == peer[:8]:
        return
    first, second = training_job_name(one, launch), training_job_name(other, peer)
    if first != one and second != other:
        assert first != second


@given(st.text(max_size=80), LAUNCH_IDS, st.integers(1, 20), st.integers(1, 20))
def test_attempts_of_one_launch_never_meet(requested: str, launch: str, attempt: int, other: int) -> None:
    same = training_job_name(requested, launch, attempt) == training_job_name(requested, launch, other)
    assert same == (attempt == other)
