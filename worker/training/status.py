"""What a job's state means: pure, from DescribeTrainingJob's answer to facts and a truthful end.

States and their meaning: SageMaker API, DescribeTrainingJob, `TrainingJobStatus` and `SecondaryStatus`. AWS calls
the secondary states 'subject to change', so unknown ones pass through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.launch.record import JobFacts, LaunchRecord

ENDED = frozenset({"Completed", "Failed", "Stopped"})
_MAX_MESSAGE = 500
_EXIT_CODE = re.compile(r"exit code: (\d+)\b", re.IGNORECASE)


class End(StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED_BY_WORKER = "stopped by this worker"
    STOPPED_BY_TIME_LIMIT = "stopped by its time limit"
    STOPPED_FROM_OUTSIDE = "stopped from outside"


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a job, told for people and for W&B."""

    end: End
    reason: str
    """One sentence; FailureReason for a failure."""
    exit_code: int
    """For the companion run: 0 only for Completed."""


def job_facts(description: Mapping[str, Any]) -> JobFacts:
    """The facts the worker keeps, from DescribeTrainingJob's answer."""
    transitions = description.get("SecondaryStatusTransitions") or ()
    return JobFacts(
        status=str(description.get("TrainingJobStatus", "")),
        secondary_status=str(description.get("SecondaryStatus", "")),
        failure_reason=str(description.get("FailureReason") or ""),
        created_at=_seconds(description.get("CreationTime")),
        started_at=_seconds(description.get("TrainingStartTime")),
        ended_at=_seconds(description.get("TrainingEndTime")),
        billable_seconds=description.get("BillableTimeInSeconds"),
        training_seconds=description.get("TrainingTimeInSeconds"),
        spot=bool(description.get("EnableManagedSpotTraining")),
        status_message=str(transitions[-1].get("StatusMessage") or "")[:_MAX_MESSAGE] if transitions else "",
        transitions=tuple((str(step["Status"]), _seconds(step["StartTime"]) or 0.0) for step in transitions),
    )


def has_ended(facts: JobFacts) -> bool:
    """SageMaker will not change this job any more."""
    return facts.status in ENDED


def ended_at(facts: JobFacts) -> float | None:
    """When an ended job ended, epoch seconds by AWS's clock; a job that never trained has no TrainingEndTime."""
    if not has_ended(facts):
        return None
    return facts.ended_at or max((moment for _, moment in facts.transitions), default=None)


def ending_of(record: LaunchRecord) -> Ending:
    """How a launch whose last job has ended has ended itself."""
    return ending(
        record.facts,
        stop_reason=record.stop_reason,
        stop_asked=record.stop_asked,
        given_up=record.given_up,
    )


def ending(facts: JobFacts, *, stop_reason: str, stop_asked: str = "", given_up: str = "") -> Ending:
    """Tell the end of an ended job; `stop_reason` is why this worker asked SageMaker for a stop, if it did,
    `stop_asked` why somebody wanted one, and `given_up` why the attempt that was to follow is not made."""
    last = _end_of_job(facts, "" if given_up else stop_reason)
    if given_up and stop_reason:
        reason = f"This worker stopped the launch: {stop_reason} Its last job: {last.reason}"
        return Ending(End.STOPPED_BY_WORKER, reason, 1)
    if given_up:
        return Ending(last.end, f"{last.reason} No further attempt: {given_up}", last.exit_code or 1)
    wanted = stop_reason or stop_asked
    if wanted and last.end is not End.STOPPED_BY_WORKER:
        return Ending(last.end, f"{last.reason} {_stop_without_effect(last.end, wanted)}", last.exit_code)
    return last


def _stop_without_effect(end: End, wanted: str) -> str:
    if end in (End.COMPLETED, End.FAILED):
        return f"A stop was asked for, and the job ended by itself before it took effect: {wanted}"
    return f"A stop was asked for, too: {wanted}"


def _end_of_job(facts: JobFacts, stop_reason: str) -> Ending:
    if facts.status == "Completed":
        return Ending(End.COMPLETED, "The training job completed.", 0)
    if facts.status == "Failed":
        reason = facts.failure_reason or "SageMaker gave no reason."
        match = _EXIT_CODE.search(reason)
        return Ending(End.FAILED, reason, (int(match[1]) if match else 0) or 1)
    if facts.secondary_status in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded"):
        limit = facts.secondary_status.removesuffix("Exceeded")
        return Ending(
            End.STOPPED_BY_TIME_LIMIT,
            f"SageMaker stopped the job: {limit}InSeconds of its StoppingCondition passed.",
            1,
        )
    if stop_reason:
        return Ending(End.STOPPED_BY_WORKER, f"This worker stopped the job: {stop_reason}", 1)
    return Ending(
        End.STOPPED_FROM_OUTSIDE,
        "Somebody stopped the job outside of this worker (StopTrainingJob or console).",
        1,
    )


def makes_new_streams(secondary_status: str) -> bool:
    """After these states SageMaker starts containers again, which write to new log streams."""
    return secondary_status in ("Interrupted", "Restarting")


def console_links(region: str, job_name: str) -> Mapping[str, str]:
    """Where people look at the job in AWS's console."""
    domain = "console.amazonaws.cn" if region.startswith("cn-") else "console.aws.amazon.com"
    if region.startswith("us-gov-"):
        domain = "console.amazonaws-us-gov.com"
    group = "$252Faws$252Fsagemaker$252FTrainingJobs"
    return {
        "console": f"https://{region}.{domain}/sagemaker/home?region={region}#/jobs/{job_name}",
        "cloudwatch": f"https://{region}.{domain}/cloudwatch/home?region={region}#logsV2:log-groups/log-group/{group}"
        f"$3FlogStreamNameFilter$3D{job_name}$252F",
    }


def _seconds(value: datetime | float | None) -> float | None:
    return value.timestamp() if isinstance(value, datetime) else value
