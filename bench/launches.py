"""Launches for benchmarks: their messages, their names, and a ledger in which they run already."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.launch.log_state import LogState, StreamPosition
from worker.launch.record import JobFacts, LaunchRecord, LaunchState, RunRef
from worker.ledger.sqlite import open_sqlite_ledger

ENTITY = "acme"
PROJECT = "bench"
QUEUE = "bench"
_NOTHING_TAKEN = StreamPosition(timestamp=-1, ingested=-1, ties=0)
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"


def run_spec(run_id: str) -> dict[str, Any]:
    """A launch with a ready image, as W&B's queue carries it."""
    return {
        "entity": ENTITY,
        "project": PROJECT,
        "run_id": run_id,
        "name": run_id,
        "author": "bench",
        "docker": {"docker_image": IMAGE},
        "git": {},
        "overrides": {"args": ["--epochs", "1"], "run_config": {"lr": 0.1}},
        "resource": "sagemaker",
        "resource_args": {
            "sagemaker": {
                "TrainingJobName": run_id,
                "RoleArn": "arn:aws:iam::123456789012:role/train",
                "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
                "ResourceConfig": {
                    "InstanceType": "ml.m5.large",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 1,
                },
                "OutputDataConfig": {"S3OutputPath": "s3://bench/out"},
                "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
            }
        },
    }


def message(run_id: str) -> str:
    """The same as the body of an SQS message."""
    return json.dumps({"launchId": run_id, "queue": QUEUE, "entity": ENTITY, "runSpec": run_spec(run_id)})


def names(prefix: str, count: int) -> list[str]:
    """Run ids, which are also the names of the training jobs."""
    return [f"{prefix}-{number:05d}" for number in range(count)]


def ages(jobs: Sequence[str]) -> dict[str, float]:
    """Name → seconds since a running job was accepted: one a second, as fast as an account may create them."""
    return {name: 600.0 + number for number, name in enumerate(jobs)}


async def seed_ledger(path: Path, jobs: Sequence[str], streams: Mapping[str, str] | None = None) -> None:
    """A ledger of running jobs with such ages, left by a worker that has released them all since. `streams`: job → the
    log stream that it had found, and taken nothing of. Their companions are open."""
    now = time.time()
    async with open_sqlite_ledger(path) as ledger:
        for name, age in ages(jobs).items():
            began = now - age
            transitions = (("Starting", began), ("Training", began + 60))
            await ledger.create(
                LaunchRecord(
                    launch_id=name,
                    state=LaunchState.ACCEPTED,
                    run=RunRef(ENTITY, PROJECT, name),
                    queue=QUEUE,
                    queue_entity=ENTITY,
                    name=name,
                    author="bench",
                    image=IMAGE,
                    job_name=name,
                    job_arn=f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}",
                    instance_type="ml.m5.large",
                    log=LogState(
                        positions={streams[name]: _NOTHING_TAKEN} if streams else {},
                        statuses=len(transitions),
                    ),
                    opened=1,
                    created_at=began,
                    waiting_at=began,
                    accepted_at=began,
                    facts=JobFacts(
                        "InProgress",
                        "Training",
                        created_at=began,
                        started_at=began + 60,
                        transitions=transitions,
                    ),
                )
            )
