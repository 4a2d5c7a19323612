"""From a popped item of a W&B launch queue to an SQS message, or to the reason why it becomes none: pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.launch.identity import launch_id, normalise_base_url

MESSAGE_SIZE = "LW-MESSAGE-SIZE"
SCHEDULER = (
    "LW-SWEEP-SCHEDULER: A sweep scheduler is left in the queue: launch-worker runs its trials, not the scheduler"
    " itself; let a `wandb launch-agent` serve this queue, too."
)
_RUN_ID_LENGTH = 10
_NOT_SENDABLE = re.compile("[\ud800-\udfff\ufffe\uffff]")
"""What SQS does not take (XML 1.0) and JSON does not escape by itself."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an item was popped, and by which launch agent."""

    base_url: str
    entity: str
    queue: str
    agent_run: str
    """The agent's name, which is the id of its own run in W&B."""


@dataclass(frozen=True, slots=True)
class Forward:
    """It goes to SQS; then W&B is told the run it becomes."""

    body: str
    launch_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Leave:
    """It is not for this worker: W&B returns it to the queue when the lease of the pop is over."""

    why: str
    warning: str = ""
    """What its owner should know, who may wait for it in vain; empty: nothing."""


@dataclass(frozen=True, slots=True)
class TooLarge:
    """It can never go to SQS."""

    reason: str


def envelope(item_id: str, run_spec: Any, origin: Origin, *, max_bytes: int) -> Forward | Leave | TooLarge:
    """What becomes of an item. A broken runSpec is forwarded too: the worker says all that is wrong with it.

    `max_bytes`: the largest body that the SQS queue takes."""
    spec = _readable(run_spec)
    if str(spec.get("uri") or "").startswith("placeholder"):
        return Leave("it is a sweep scheduler, which `wandb launch-agent` runs", SCHEDULER)
    resource = spec.get("resource") or "sagemaker"
    if resource != "sagemaker":
        return Leave(f"its resource is {resource}, and this worker runs sagemaker only")
    identity = launch_id((normalise_base_url(origin.base_url), origin.entity, item_id))
    message = {
        "runQueueItemId": item_id,
        "runSpec": run_spec,
        "queue": origin.queue,
        "entity": origin.entity,
        "agentRun": origin.agent_run,
    }
    body = json.dumps(message, ensure_ascii=False)
    if _NOT_SENDABLE.search(body):
        body = json.dumps(message)
    if (size := len(body.encode())) > max_bytes:
        return TooLarge(
            f"{MESSAGE_SIZE}: the launch has {size} bytes, and the SQS queue takes {max_bytes};"
            " put large values into an artifact or a file, and name that in the launch."
        )
    given = spec.get("run_id")
    run_id = given if isinstance(given, str) and given else identity[:_RUN_ID_LENGTH]
    return Forward(body, identity, run_id)


def _readable(run_spec: Any) -> Mapping[str, Any]:
    """The runSpec as an object; W&B writes it as text in some answers."""
    if isinstance(run_spec, str):
        try:
            run_spec = json.loads(run_spec)
        except (ValueError, RecursionError):
            return {}
    return run_spec if isinstance(run_spec, dict) else {}
