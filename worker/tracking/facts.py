"""What the companion run says about a job, in its config and summary: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.launch.record import JobFacts, LaunchRecord, PastAttempt


def companion_config(record: LaunchRecord, links: Mapping[str, str]) -> dict[str, Any]:
    """Facts that stand from the start."""
    facts: dict[str, Any] = {
        "sagemaker/job_name": record.job_name,
        "sagemaker/job_arn": record.job_arn,
        "sagemaker/console": links["console"],
        "sagemaker/cloudwatch": links["cloudwatch"],
        "sagemaker/image": record.image,
        "sagemaker/instance_type": record.instance_type,
        "sagemaker/instance_count": record.instance_count,
        "launch/launch_id": record.launch_id,
        "launch/attempt": record.attempt,
        "launch/run": f"{record.run.entity}/{record.run.project}/{record.run.run_id}",
        "launch/queue": record.queue,
        "launch/queue_item": record.item_id,
        "launch/author": record.author,
    }
    return {key: value for key, value in facts.items() if value != ""}


def companion_summary(
    facts: JobFacts,
    *,
    lines: int,
    instance_count: int,
    end: str = "",
    reason: str = "",
    attempt: int = 1,
    attempts: Sequence[PastAttempt] = (),
) -> dict[str, Any]:
    """Facts that change; times are epoch seconds, durations seconds. Billable seconds are of all instances.

    `attempts` are the training jobs before the present one, which the other facts are about."""
    billable = facts.billable_seconds
    values: dict[str, Any] = {
        "sagemaker/status": facts.status,
        "sagemaker/secondary_status": facts.secondary_status,
        "sagemaker/end": end,
        "sagemaker/reason": reason,
        "sagemaker/failure_reason": facts.failure_reason,
        "sagemaker/created_at": facts.created_at,
        "sagemaker/training_started_at": facts.started_at,
        "sagemaker/training_ended_at": facts.ended_at,
        "sagemaker/training_seconds": facts.training_seconds,
        "sagemaker/billable_seconds": None if billable is None else billable * instance_count,
        "sagemaker/transitions": [[status, at] for status, at in facts.transitions] or None,
        "launch/log_lines": lines,
        "launch/attempt": attempt if attempts else None,
        "launch/attempts": [[past.job_name, past.instance_type, past.kind, past.reason] for past in attempts]
        or None,
    }
    return {key: value for key, value in values.items() if value not in ("", None)}


def launch_summary(record: LaunchRecord, *, end: str = "", reason: str = "") -> dict[str, Any]:
    """`companion_summary` of a launch as its record has it; `end` and `reason` once it is over."""
    return companion_summary(
        record.facts,
        lines=record.log.next_line,
        instance_count=record.instance_count,
        end=end,
        reason=reason,
        attempt=record.attempt,
        attempts=record.attempts,
    )
