"""What DescribeTrainingJob says, told truthfully: every end, and every state AWS may invent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from worker.launch.record import JobFacts
from worker.training.status import (
    End,
    console_links,
    ending,
    has_ended,
    job_facts,
    makes_new_streams,
)

OUTSIDE = (
    'AlgorithmError: ExecuteUserScriptError:\nExitCode 137\nErrorMessage "Killed"\nCommand "python train.py", '
    "exit code: 137"
)


def description(**changes: Any) -> dict[str, Any]:
    """A finished job, as DescribeTrainingJob tells it."""
    return {
        "TrainingJobName": "job",
        "TrainingJobStatus": "Completed",
        "SecondaryStatus": "Completed",
        "CreationTime": datetime(2026, 1, 1, 12, 0, tzinfo=UTC),
        "TrainingStartTime": datetime(2026, 1, 1, 12, 2, tzinfo=UTC),
        "TrainingEndTime": datetime(2026, 1, 1, 12, 12, tzinfo=UTC),
        "BillableTimeInSeconds": 420,
        "TrainingTimeInSeconds": 600,
        "SecondaryStatusTransitions": [
            {"Status": "Starting", "StartTime": datetime(2026, 1, 1, 12, 0, tzinfo=UTC)},
            {"Status": "Training", "StartTime": datetime(2026, 1, 1, 12, 2, tzinfo=UTC)},
        ],
        **changes,
    }


def test_facts_are_taken_with_times_as_epoch_seconds() -> None:
    noon = datetime(2026, 1, 1, 12, 0, tzinfo=UTC).timestamp()
    assert job_facts(description(FailureReason="why")) == JobFacts(
        status="Completed",
        secondary_status="Completed",
        failure_reason="why",
        created_at=noon,
        started_at=noon + 120,
        ended_at=noon + 720,
        billable_seconds=420,
        training_seconds=600,
        transitions=(("Starting", noon), ("Training", noon + 120)),
    )


def test_a_job_that_has_just_begun_has_few_facts() -> None:
    facts = job_facts(
        {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting", "FailureReason": None}
    )
    assert facts == JobFacts("InProgress", "Starting")
    assert not has_ended(facts)


@pytest.mark.parametrize(
    ("facts", "stop_reason", "end", "exit_code"),
    [
        (JobFacts("Completed", "Completed", ""), "", End.COMPLETED, 0),
        (JobFacts("Completed", "Completed", ""), "Stop was pressed.", End.COMPLETED, 0),
        (JobFacts("Failed", "Failed", OUTSIDE), "", End.FAILED, 137),
        (JobFacts("Failed", "Failed", "AlgorithmError: , exit code: 2"), "", End.FAILED, 2),
        (JobFacts("Failed", "Failed", "AlgorithmError: Exit Code: 3, see logs"), "", End.FAILED, 3),
        (JobFacts("Failed", "Failed", "AlgorithmError: exit code: 0"), "", End.FAILED, 1),
        (
            JobFacts("Failed", "Failed", "CapacityError: Unable to provision requested ML compute"),
            "",
            End.FAILED,
            1,
        ),
        (JobFacts("Failed", "Failed", ""), "", End.FAILED, 1),
        (JobFacts("Failed", "Failed", "InternalServerError: again"), "Stop was pressed.", End.FAILED, 1),
        (JobFacts("Stopped", "MaxRuntimeExceeded", ""), "", End.STOPPED_BY_TIME_LIMIT, 1),
        (JobFacts("Stopped", "MaxRuntimeExceeded", ""), "Stop was pressed.", End.STOPPED_BY_TIME_LIMIT, 1),
        (JobFacts("Stopped", "MaxWaitTimeExceeded", ""), "", End.STOPPED_BY_TIME_LIMIT, 1),
        (JobFacts("Stopped", "Stopped", ""), "Stop was pressed.", End.STOPPED_BY_WORKER, 1),
        (JobFacts("Stopped", "Stopped", ""), "", End.STOPPED_FROM_OUTSIDE, 1),
        (JobFacts("Stopped", "Deleted", ""), "", End.STOPPED_FROM_OUTSIDE, 1),
        (JobFacts("Stopped", "Deleted", ""), "Stop was pressed.", End.STOPPED_BY_WORKER, 1),
        (JobFacts("Stopped", "SomethingNew", ""), "", End.STOPPED_FROM_OUTSIDE, 1),
    ],
)
def test_every_end_is_told_for_what_it_is(
    facts: JobFacts, stop_reason: str, end: End, exit_code: int
) -> None:
    assert has_ended(facts)
    told = ending(facts, stop_reason=stop_reason)
    assert (told.end, told.exit_code) == (end, exit_code)
    assert told.reason


def test_only_a_completed_job_counts_as_success() -> None:
    """W&B's own agent maps Stopped to finished (wandb/sdk/launch/runner/sagemaker_runner.py)."""
    codes = {
        status: ending(JobFacts(status), stop_reason="").exit_code
        for status in ("Completed", "Failed", "Stopped")
    }
    assert codes == {"Completed": 0, "Failed": 1, "Stopped": 1}


def test_reasons_name_what_ended_the_job() -> None:
    assert ending(JobFacts("Failed", "Failed", OUTSIDE), stop_reason="").reason == OUTSIDE
    limit = ending(JobFacts("Stopped", "MaxRuntimeExceeded"), stop_reason="")
    assert "MaxRuntimeInSeconds" in limit.reason
    wait = ending(JobFacts("Stopped", "MaxWaitTimeExceeded"), stop_reason="")
    assert "MaxWaitTimeInSeconds" in wait.reason
    assert (
        "Stop was pressed." in ending(JobFacts("Stopped", "Stopped"), stop_reason="Stop was pressed.").reason
    )


@pytest.mark.parametrize("wanted", ["stop_reason", "stop_asked"])
def test_a_stop_that_came_too_late_is_told_with_the_end(wanted: str) -> None:
    asked = {"stop_reason": "", wanted: "Stop was pressed."}
    for facts, own in (
        (JobFacts("Completed", "Completed"), "The training job completed."),
        (JobFacts("Failed", "Failed", OUTSIDE), OUTSIDE),
    ):
        late = "A stop was asked for, and the job ended by itself before it took effect: Stop was pressed."
        assert ending(facts, **asked).reason == f"{own} {late}"
    limit = ending(JobFacts("Stopped", "MaxRuntimeExceeded"), **asked)
    assert (limit.end, "too: Stop was pressed." in limit.reason) == (End.STOPPED_BY_TIME_LIMIT, True)


def test_only_a_stop_that_this_worker_made_is_its_own() -> None:
    outside = ending(JobFacts("Stopped", "Stopped"), stop_reason="", stop_asked="Stop was pressed.")
    assert outside.end is End.STOPPED_FROM_OUTSIDE
    assert outside.reason.endswith("A stop was asked for, too: Stop was pressed.")


@pytest.mark.parametrize("status", ["InProgress", "Stopping", "Deleting", "", "SomethingNew"])
def test_no_other_state_is_an_end(status: str) -> None:
    assert not has_ended(JobFacts(status, "Completed"))


@pytest.mark.parametrize(
    ("secondary", "expected"),
    [("Interrupted", True), ("Restarting", True), ("Training", False), ("SomethingNew", False), ("", False)],
)
def test_which_states_bring_new_log_streams(secondary: str, expected: bool) -> None:
    assert makes_new_streams(secondary) is expected


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "https://eu-west-1.console.aws.amazon.com/"),
        ("cn-north-1", "https://cn-north-1.console.amazonaws.cn/"),
        ("us-gov-west-1", "https://us-gov-west-1.console.amazonaws-us-gov.com/"),
    ],
)
def test_links_lead_to_the_partitions_own_console(region: str, host: str) -> None:
    links = console_links(region, "my-job")
    assert all(link.startswith(host) for link in links.values())
    assert links["console"].endswith("#/jobs/my-job")
    assert links["cloudwatch"].endswith(
        "$252Faws$252Fsagemaker$252FTrainingJobs$3FlogStreamNameFilter$3Dmy-job$252F"
    )
