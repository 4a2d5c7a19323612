"""What the companion run says about a job, in its config, tags, notes and summary: pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from worker.launch.record import JobFacts, LaunchRecord, PastAttempt
from worker.launch.redaction import redact_request
from worker.tracking.metric_definitions import definitions_of, unusable
from worker.tracking.prices import Prices, cost_of

_MAX_TAG = 64
"""Characters of a tag (W&B refuses longer ones)."""
_WAITING = frozenset({"Starting", "LaunchingMLInstances", "PreparingTrainingStack", "Pending"})
_DOWNLOADING = frozenset({"Downloading", "DownloadingTrainingImage"})
_TRAINING = frozenset({"Training"})
_UPLOADING = frozenset({"Uploading"})
_CONFIG_PIECE = re.compile(r"WANDB_CONFIG(?:_(\d+))?")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is said about a run when it is opened."""

    config: Mapping[str, Any]
    tags: Sequence[str] = ("sagemaker",)
    notes: str = ""


def run_facts(
    record: LaunchRecord, links: Mapping[str, str], request: Mapping[str, Any] | None = None
) -> RunFacts:
    """`request` is the CreateTrainingJob request, or what DescribeTrainingJob makes of it. What a run that the worker
    writes itself (`log_target: run`) was launched with stands in its config as with any run."""
    config = companion_config(record, links, request)
    if record.log_target == "run":
        config = {**launched_config(request), **config}
    return RunFacts(config, run_tags(record, request), run_notes(record, links, request))


def companion_config(
    record: LaunchRecord, links: Mapping[str, str], request: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Facts that stand from the start."""
    facts: dict[str, Any] = {
        "sagemaker/job_name": record.job_name,
        "sagemaker/job_arn": record.job_arn,
        "sagemaker/console": links["console"],
        "sagemaker/cloudwatch": links["cloudwatch"],
        "sagemaker/image": record.image,
        "sagemaker/instance_type": record.instance_type,
        "sagemaker/instance_count": record.instance_count,
        "sagemaker/output": _output(request),
        "sagemaker/request": without_secrets(request) if request else "",
        "sagemaker/unusable_metric_definitions": unusable(definitions_of(request)),
        "launch/launch_id": record.launch_id,
        "launch/attempt": record.attempt,
        "launch/attempts": [past.job_name for past in record.attempts],
        "launch/run": record.run.path,
        "launch/commit": record.commit,
        "launch/queue": record.queue,
        "launch/queue_item": record.item_id,
        "launch/author": record.author,
    }
    return {key: value for key, value in facts.items() if value not in ("", [])}


def without_secrets(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as it may be shown; the container's WANDB_API_KEY is not even named."""
    environment = request.get("Environment") or {}
    kept = {name: value for name, value in environment.items() if name != "WANDB_API_KEY"}
    return redact_request({**request, "Environment": kept})


def launched_config(request: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run config of a launch, as its container would find it (WANDB_CONFIG, in pieces where it is long)."""
    environment = (request or {}).get("Environment") or {}
    matches = [match for match in map(_CONFIG_PIECE.fullmatch, environment) if match]
    text = "".join(environment[match[0]] for match in sorted(matches, key=lambda m: int(m[1] or 0)))
    try:
        config = json.loads(text or "{}")
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def run_tags(record: LaunchRecord, request: Mapping[str, Any] | None = None) -> list[str]:
    """What companions are filtered by."""
    spot = record.facts.spot or bool((request or {}).get("EnableManagedSpotTraining"))
    tags = ["sagemaker", record.instance_type, "spot" if spot else "", record.queue]
    return list(dict.fromkeys(tag[:_MAX_TAG] for tag in tags if tag))


def run_notes(
    record: LaunchRecord, links: Mapping[str, str], request: Mapping[str, Any] | None = None
) -> str:
    """Where else the job is to be seen, in Markdown."""
    output = _output(request)
    lines = [
        f"SageMaker training job {record.job_name}",
        "",
        f"- [SageMaker]({links['console']})",
        f"- [CloudWatch log]({links['cloudwatch']})",
    ]
    return "\n".join([*lines, *([f"- Output: {output}"] if output else [])])


def _output(request: Mapping[str, Any] | None) -> str:
    return str(((request or {}).get("OutputDataConfig") or {}).get("S3OutputPath") or "")


def companion_summary(
    facts: JobFacts,
    *,
    lines: int,
    instance_count: int,
    end: str = "",
    reason: str = "",
    attempt: int = 1,
    attempts: Sequence[PastAttempt] = (),
    instance_type: str = "",
    prices: Prices | None = None,
) -> dict[str, Any]:
    """Facts that change; times are epoch seconds, durations seconds. Billable seconds and cost are of all instances.

    `attempts` are the training jobs before the present one, which the other facts are about."""
    billable = None if facts.billable_seconds is None else facts.billable_seconds * instance_count
    values: dict[str, Any] = {
        "sagemaker/status": facts.status,
        "sagemaker/secondary_status": facts.secondary_status,
        "sagemaker/status_message": facts.status_message,
        "sagemaker/end": end,
        "sagemaker/reason": reason,
        "sagemaker/failure_reason": facts.failure_reason,
        "sagemaker/created_at": facts.created_at,
        "sagemaker/training_started_at": facts.started_at,
        "sagemaker/training_ended_at": facts.ended_at,
        "sagemaker/pending_seconds": _seconds_in(facts, _WAITING),
        "sagemaker/download_seconds": _seconds_in(facts, _DOWNLOADING),
        "sagemaker/training_seconds": _first(facts.training_seconds, _seconds_in(facts, _TRAINING)),
        "sagemaker/upload_seconds": _seconds_in(facts, _UPLOADING),
        "sagemaker/billable_seconds": billable,
        "sagemaker/spot_saving_percent": _spot_saving(facts),
        "sagemaker/cost_usd": cost_of(prices, instance_type, billable),
        "sagemaker/transitions": [[status, at] for status, at in facts.transitions] or None,
        "launch/log_lines": lines,
        "launch/attempt": attempt if attempts else None,
        "launch/attempts": [[past.job_name, past.instance_type, past.kind, past.reason] for past in attempts]
        or None,
    }
    return {key: value for key, value in values.items() if value not in ("", None)}


def launch_summary(
    record: LaunchRecord, *, end: str = "", reason: str = "", prices: Prices | None = None
) -> dict[str, Any]:
    """`companion_summary` of a launch as its record has it; `end` and `reason` once it is over."""
    return companion_summary(
        record.facts,
        lines=record.log.next_line,
        instance_count=record.instance_count,
        end=end,
        reason=reason,
        attempt=record.attempt,
        attempts=record.attempts,
        instance_type=record.instance_type,
        prices=prices,
    )


def _seconds_in(facts: JobFacts, statuses: frozenset[str]) -> float | None:
    """How long the job was in these states, up to the next one; None: it never left one of them."""
    steps = pairwise(facts.transitions)
    spans = [until - since for (status, since), (_, until) in steps if status in statuses]
    return round(sum(spans), 3) if spans else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _spot_saving(facts: JobFacts) -> float | None:
    """As SageMaker's console computes it: (1 - billable / training) * 100."""
    if not facts.spot or not facts.training_seconds or facts.billable_seconds is None:
        return None
    return round(100 * (1 - facts.billable_seconds / facts.training_seconds), 1)
