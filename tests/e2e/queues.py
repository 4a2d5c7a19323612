"""Launches that come from a W&B launch queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.e2e.bench import Bench
from tests.e2e.launches import LaunchCase
from worker.launch.identity import launch_id
from worker.local.stack import ENTITY
from worker.local.wandb_records import QueueItem

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
