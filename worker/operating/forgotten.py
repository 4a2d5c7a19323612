"""A training job that no ledger knows, read back as the launch that it is; pure.

All of it is in what SageMaker tells: the worker's tags, and the variables that the container was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.launch.retry import RetryRules
from worker.tracking.metric_definitions import definitions_of
from worker.training.plan import instance_type
from worker.training.policy import instance_count
from worker.training.retry import API_KEY_VARIABLE
from worker.training.sagemaker import LAUNCH_ID_VARIABLE
from worker.training.status import job_facts

_ATTEMPT = re.compile(r"-r([1-9]\d*)$")
"""What `training_job_name` adds to the name of a further attempt."""


def launch_of(
    job: Mapping[str, Any], *, log_target: str, retry_rules: RetryRules, worker_key: str
) -> LaunchRecord | None:
    """The record of an accepted launch, released, with a log that begins anew; None: its Environment names no launch.

    `job`: a TrainingJob as Search tells it. `log_target` and `retry_rules`: the operator's, since no
    job says what its message did. A W&B key other than `worker_key` is one that the launch brought."""
    environment: Mapping[str, str] = job.get("Environment") or {}
    names = (LAUNCH_ID_VARIABLE, "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_RUN_ID")
    launch_id, entity, project, run_id = (environment.get(name, "") for name in names)
    if not (launch_id and entity and project and run_id):
        return None
    facts = job_facts(job)
    own_type = instance_type(job.get("ResourceConfig") or {})
    attempt = _ATTEMPT.search(job["TrainingJobName"])
    record = LaunchRecord(
        launch_id=launch_id,
        state=LaunchState.ACCEPTED,
        run=RunRef(entity, project, run_id),
        attempt=int(attempt[1]) if attempt else 1,
        item_id=environment.get("WANDB_LAUNCH_TRACE_ID", ""),
        queue=environment.get("WANDB_LAUNCH_QUEUE_NAME", ""),
        queue_entity=environment.get("WANDB_LAUNCH_QUEUE_ENTITY", ""),
        private_key=environment.get(API_KEY_VARIABLE, worker_key) != worker_key,
        name=environment.get("WANDB_NAME", ""),
        sweep_id=environment.get("WANDB_SWEEP_ID", ""),
        author=environment.get("WANDB_USERNAME", ""),
        image=str((job.get("AlgorithmSpecification") or {}).get("TrainingImage", "")),
        job_name=job["TrainingJobName"],
        job_arn=job["TrainingJobArn"],
        instance_type=own_type,
        instance_count=instance_count(job),
        log_target=log_target,
        **retry_rules.of(own_type, None, ()),
        created_at=facts.created_at or 0.0,
        accepted_at=facts.created_at or 0.0,
        facts=facts,
    )
    return replace(record, metrics=definitions_of(job)) if record.has_history else record
