"""What `launch-worker jobs` shows to people."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tests.unit.records import record, waiting
from worker.commands.jobs import moment, who_calls
from worker.commands.jobs_table import jobs_table
from worker.launch.record import JobFacts, LaunchRecord, PastAttempt
from worker.operating.overview import described

FAILED = JobFacts("Failed", "Failed", "AlgorithmError: exit code: 1")
NOW = 1000.0


def shown(*records: LaunchRecord, width: int = 200, **more: Any) -> str:
    console = Console(width=width, highlight=False)
    rows = [described(each, NOW, {"ml.m5.large": 0.1}) for each in records]
    with console.capture() as captured:
        console.print(jobs_table(rows, width=width, **more))
    return captured.get()


def test_a_row_tells_job_state_machines_age_lines_worker_and_cost() -> None:
    running = record(
        created_at=NOW - 7500,
        instance_type="ml.m5.large",
        instance_count=2,
        facts=JobFacts("InProgress", "Training", started_at=NOW - 3600),
    )
    (heads, row) = shown(running).splitlines()
    assert heads.split()[:4] == ["launch", "name", "run", "state"]
    assert "accepted Training" in row
    assert "2 x ml.m5.large" in row
    assert "2h05m" in row
    assert row.split()[-2:] == ["worker-a", "0.20"]


def test_a_further_attempt_that_waits_does_not_look_like_the_job_before() -> None:
    past = PastAttempt("job-1", "ml.m5.large", "by hand", "exit code: 1")
    facts = replace(FAILED, ended_at=NOW - 50)
    again = waiting(created_at=NOW - 60, facts=facts, attempt=2, attempts=(past,), previous_job="job-1")
    (_, row) = shown(again).splitlines()
    assert "waiting (attempt 2)" in row
    assert "a further attempt" in row
    assert "Failed" not in row
    assert " 1m " in row, "its age goes on"


def test_an_empty_list_says_so() -> None:
    assert "no open launches; --all" in shown(nothing="no open launches; --all shows those that are over")


def test_in_a_narrow_terminal_no_word_is_torn_apart() -> None:
    running = record(
        name="bert",
        created_at=NOW - 7500,
        instance_type="ml.p4d.24xlarge",
        instance_count=2,
        owner="ip-10-0-3-7-9cd70612",
        facts=JobFacts("InProgress", "Downloading", started_at=NOW - 3600),
    )
    words = set(shown(running, width=80).split())
    run = f"{running.run.entity}/{running.run.project}/{running.run.run_id}"
    assert {
        "bert",
        run,
        "ip-10-0-3-7-9cd70612",
        "accepted",
        "Downloading",
        "ml.p4d.24xlarge",
        "2h05m",
    } <= words


def test_a_user_without_a_name_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its own."""

    def nobody(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert who_calls() == f"uid {os.getuid()}"
    monkeypatch.setenv("LOGNAME", "anna")
    assert who_calls() == "anna"


def test_since_is_a_duration_or_an_iso_time() -> None:
    assert moment("10m", NOW) == NOW - 600
    assert moment("1970-01-01T00:01:00", NOW) == moment("1970-01-01T01:01:00+01:00", NOW) == 60
