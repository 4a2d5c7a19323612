"""Whether a job that ended is tried again, as what, and with which request: pure.

What SageMaker says: `CapacityError: …` in FailureReason when it had no machine, `InternalServerError: …` when it
failed itself. Interrupted spot jobs are restarted by SageMaker within MaxWaitTimeInSeconds; a job that does not make
it ends as Stopped / MaxWaitTimeExceeded, also when no spot machine ever came (developer guide, 'Managed Spot Training
Lifecycle'). Only that end is ours to retry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.errors import Problem
from worker.launch.identity import training_job_name
from worker.launch.message import SAGEMAKER_PATH, Launch
from worker.launch.record import JobFacts, LaunchRecord, PastAttempt
from worker.launch.retry import RetryKind
from worker.training.create_training_job import only_known_members
from worker.training.policy import Policy, refused_instance_types
from worker.training.status import ENDED, ending, ending_of

API_KEY_VARIABLE = "WANDB_API_KEY"
_CAPACITY = re.compile(r"\bCapacityError\b|insufficient capacity", re.IGNORECASE)
_CODE = re.compile(r"\s*AlgorithmError\b")
"""The container's own end: what follows may quote any text of the user's code."""
_INTERNAL = re.compile(r"\s*InternalServerError\b")
_MAX_REASON = 300
"""Characters of a reason that are kept of an earlier attempt."""
BY_HAND: Literal["by hand"] = "by hand"
"""The kind of an attempt after which somebody asked for another (`launch-worker retry`)."""


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """What comes after an attempt that ended."""

    kind: RetryKind | Literal["by hand"]
    number: int
    """Of the attempt, from 2."""
    job_name: str
    instance_type: str
    earlier_of_kind: int
    """Attempts that this kind of end has cost so far: the pause grows with it."""
    past: PastAttempt


def retry_kind(facts: JobFacts) -> RetryKind | None:
    """What kind of end this was; None: one that another attempt would meet again, or that somebody wanted."""
    if facts.status == "Failed":
        quotes_code = _CODE.match(facts.failure_reason) is not None
        if not quotes_code and _CAPACITY.search(facts.failure_reason):
            return RetryKind.CAPACITY
        if _INTERNAL.match(facts.failure_reason):
            return RetryKind.INTERNAL
        return RetryKind.SPOT if facts.spot and _last_step(facts) == "Interrupted" else None
    if facts.status == "Stopped" and facts.spot and facts.secondary_status == "MaxWaitTimeExceeded":
        return RetryKind.SPOT
    return None


def next_attempt(record: LaunchRecord) -> NextAttempt | None:
    """The attempt that follows an ended job; None: the launch is over."""
    is_over = bool(record.stop_reason or record.stop_asked or record.given_up)
    kind = None if is_over else retry_kind(record.facts)
    if kind is None:
        return None
    used = sum(past.kind == kind for past in _since_asked(record.attempts))
    if used >= record.retries.get(kind, 0):
        return None
    reason = ending(record.facts, stop_reason="").reason[:_MAX_REASON]
    return NextAttempt(
        kind=kind,
        number=record.attempt + 1,
        job_name=_next_name(record),
        instance_type=_next_type(record) if kind is RetryKind.CAPACITY else record.instance_type,
        earlier_of_kind=used,
        past=PastAttempt(record.job_name, record.instance_type, kind, reason),
    )


def attempt_by_hand(record: LaunchRecord) -> NextAttempt:
    """The attempt that somebody asks for once a launch is over; each kind of end has its whole budget again."""
    reason = ending_of(record).reason
    return NextAttempt(
        kind=BY_HAND,
        number=record.attempt + 1,
        job_name=_next_name(record),
        instance_type=record.instance_type,
        earlier_of_kind=0,
        past=PastAttempt(record.job_name, record.instance_type, BY_HAND, reason[:_MAX_REASON]),
    )


def rebuilt_request(
    description: Mapping[str, Any], tags: Sequence[Mapping[str, str]], following: NextAttempt
) -> dict[str, Any]:
    """The CreateTrainingJob request of the next attempt, from DescribeTrainingJob of the one before and its tags.

    It has no W&B key. The run goes on (WANDB_RESUME), and so do the checkpoints: CheckpointConfig is the same."""
    given = only_known_members({k: v for k, v in description.items() if v not in (None, [], {})})
    environment = {k: v for k, v in (given.get("Environment") or {}).items() if k != API_KEY_VARIABLE}
    algorithm = dict(given.get("AlgorithmSpecification") or {})
    if algorithm.get("AlgorithmName"):
        algorithm.pop("TrainingImage", None)  # Describe may tell both, CreateTrainingJob takes one
    resources = dict(given.get("ResourceConfig") or {})
    if "InstanceType" in resources and following.instance_type:
        resources["InstanceType"] = following.instance_type
    return {
        **given,
        "TrainingJobName": following.job_name,
        "AlgorithmSpecification": algorithm,
        "ResourceConfig": resources,
        "Environment": {**environment, "WANDB_RESUME": "allow"},
        "Tags": [
            {"Key": tag["Key"], "Value": tag["Value"]}
            for tag in tags
            if not tag["Key"].lower().startswith("aws:")
        ],
    }


def check_fallbacks(request: Mapping[str, Any], launch: Launch, policy: Policy) -> Iterator[Problem]:
    """Problems of `options.instance_types`: a type that would be refused later is refused now."""
    path = "$.options.instance_types"
    resources = request.get("ResourceConfig")
    if launch.instance_types and isinstance(resources, Mapping) and resources.get("InstanceGroups"):
        yield Problem(
            path, "does not go with InstanceGroups", f"use {SAGEMAKER_PATH}.ResourceConfig.InstanceType"
        )
    yield from refused_instance_types(path, launch.instance_types, policy)


def _next_name(record: LaunchRecord) -> str:
    first = record.job_name.removesuffix(f"-r{record.attempt}") if record.attempt > 1 else record.job_name
    return training_job_name(first, record.launch_id, record.attempt + 1)


def _since_asked(attempts: Sequence[PastAttempt]) -> Sequence[PastAttempt]:
    """The attempts that nobody asked for by hand, as far as they count for the present one."""
    asked = [number for number, past in enumerate(attempts, 1) if past.kind == BY_HAND]
    return attempts[asked[-1] :] if asked else attempts


def _next_type(record: LaunchRecord) -> str:
    types = record.instance_types
    if record.instance_type not in types:
        return record.instance_type
    return types[(types.index(record.instance_type) + 1) % len(types)]


def _last_step(facts: JobFacts) -> str:
    """The last secondary state before the end."""
    steps = [status for status, _ in facts.transitions if status not in (*ENDED, "Stopping")]
    return steps[-1] if steps else ""
