"""Launches that come from a W&B launch queue."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from tests.e2e.bench import Bench
from tests.e2e.launches import PROJECT, LaunchCase
from worker.launch.identity import launch_id
from worker.local.stack import ENTITY, WANDB_KEY
from worker.local.wandb_records import Agent, Queue, QueueItem

MIRROR = {"mirror_interval": "0.2", "entity": ENTITY}
"""Settings of a mirror that does not let tests wait."""


def queued(
    bench: Bench, queue: str, lines: Sequence[str], *, priority: int = 2, **launch: Any
) -> tuple[QueueItem, LaunchCase]:
    """Push a launch that prints `lines`; what must become of it has the item's identity."""
    item = bench.services.wandb.push(ENTITY, queue, {}, priority=priority)
    case = bench.launch(lines, item_id=item.id, **launch)
    item.spec = dict(
        case.message["runSpec"]
    )  # in one turn of the loop that also serves W&B: nobody popped it
    return item, case


def case_of(bench: Bench, item: QueueItem, lines: Sequence[str]) -> LaunchCase:
    """What must become of an item that somebody else has pushed, without a run id."""
    identity = launch_id((bench.services.wandb.base_url, ENTITY, item.id))
    run_id = identity[:10]
    return LaunchCase(
        message={"runQueueItemId": item.id, "runSpec": item.spec},
        launch_id=identity,
        run_id=run_id,
        job_name=run_id,
        printed=lines,
    )


def sagemaker_queue(bench: Bench) -> Queue:
    """A launch queue as it is made in W&B: of resource sagemaker, with the arguments that all its launches share."""
    queue = bench.services.wandb.queue(ENTITY, f"sm-{bench.deployment}")
    queue.resource = "sagemaker"
    queue.config = {
        "RoleArn": bench.services.role_arn,
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "OutputDataConfig": {"S3OutputPath": "s3://launch-dev/out"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 120},
    }
    return queue


async def wandb_launch(bench: Bench, queue: Queue, config: dict[str, Any], *options: str) -> None:
    """The real command line."""
    home = bench.folder / f"home-{uuid.uuid4().hex[:8]}"
    home.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wandb", "launch", "-q", queue.name, "-e", ENTITY, "-p", PROJECT),
        *("-c", json.dumps(config), *options),
        cwd=home,
        env={
            "PATH": os.defpath,
            "HOME": str(home),
            "TMPDIR": str(home),
            "LC_ALL": "C.UTF-8",
            "WANDB_BASE_URL": bench.services.wandb.base_url,
            "WANDB_API_KEY": WANDB_KEY,
            "WANDB_ERROR_REPORTING": "false",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


def agents_of(bench: Bench, queue: Queue) -> list[Agent]:
    return [agent for agent in bench.services.wandb.agents.values() if agent.queues == [queue.id]]


def claimed_by_its_run(item: QueueItem, case: LaunchCase) -> bool:
    return (item.state, item.run_name) == ("CLAIMED", case.run_id)
