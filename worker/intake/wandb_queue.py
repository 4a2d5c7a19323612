"""Items of W&B's launch queues: popped, acknowledged, failed, warned about (wandb/sdk/launch/api.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.aio import effect
from worker.clients.wandb_api import WandbApi
from worker.clients.wandb_runs import RunAddress, upload_run_file
from worker.errors import Unreachable

QUEUE_PROJECT = "model-registry"
"""All launch queues and the runs of their agents live in this project (LAUNCH_DEFAULT_PROJECT of wandb)."""

_POP = """
mutation popFromRunQueue($entity: String!, $project: String!, $queueName: String!, $launchAgentId: ID) {
  popFromRunQueue(
    input: {entityName: $entity, projectName: $project, queueName: $queueName, launchAgentId: $launchAgentId}
  ) {
    runQueueItemId
    runSpec
  }
}"""

_ACK = """
mutation ackRunQueueItem($itemId: ID!, $runId: String!) {
  ackRunQueueItem(input: {runQueueItemId: $itemId, runName: $runId}) { success }
}"""

_FAIL = """
mutation failRunQueueItem($runQueueItemId: ID!, $message: String!, $stage: String!, $filePaths: [String!]) {
  failRunQueueItem(input: {runQueueItemId: $runQueueItemId, message: $message, stage: $stage, filePaths: $filePaths}) {
    success
  }
}"""

_WARN = """
mutation updateRunQueueItemWarning($runQueueItemId: ID!, $message: String!, $stage: String!, $filePaths: [String!]) {
  updateRunQueueItemWarning(
    input: {runQueueItemId: $runQueueItemId, message: $message, stage: $stage, filePaths: $filePaths}
  ) {
    success
  }
}"""


@dataclass(frozen=True, slots=True)
class QueueItem:
    """A popped item: ours for about a minute, then W&B returns it to the queue unless it is acknowledged."""

    item_id: str
    run_spec: Any


class QueueItems:
    """What is done to run queue items."""

    def __init__(self, api: WandbApi) -> None:
        self._api = api

    async def pop(self, entity: str, queue: str, agent_id: str) -> QueueItem | None:
        """The next item in W&B's own order (priority, then age); None while the queue has none."""
        variables = {
            "entity": entity,
            "project": QUEUE_PROJECT,
            "queueName": queue,
            "launchAgentId": agent_id,
        }
        with effect("pop_queue_item"):
            answer = await self._api.graphql("popFromRunQueue", _POP, variables)
        popped = answer.get("popFromRunQueue")
        if not popped:
            return None
        if not isinstance(popped.get("runQueueItemId"), str):
            raise Unreachable("popFromRunQueue: W&B gave an item without id")
        return QueueItem(popped["runQueueItemId"], popped.get("runSpec"))

    async def ack(self, item_id: str, run_id: str) -> bool:
        """The item becomes this run; False: somebody else has it, or it is gone."""
        with effect("ack_queue_item"):
            answer = await self._api.graphql("ackRunQueueItem", _ACK, {"itemId": item_id, "runId": run_id})
        return bool((answer.get("ackRunQueueItem") or {}).get("success"))

    async def fail(self, item_id: str, message: str, stage: str, files: Sequence[str] = ()) -> None:
        """The item failed for good; W&B shows `message` in the queue, with `files` of the agent's run."""
        variables = {
            "runQueueItemId": item_id,
            "message": message,
            "stage": stage,
            "filePaths": list(files) or None,
        }
        with effect("fail_queue_item"):
            await self._api.graphql("failRunQueueItem", _FAIL, variables)

    async def warn(self, item_id: str, message: str, stage: str, files: Sequence[str] = ()) -> None:
        """The item waits or is tried again; W&B shows `message` beside it."""
        variables = {"runQueueItemId": item_id, "message": message, "stage": stage, "filePaths": list(files)}
        await self._api.graphql("updateRunQueueItemWarning", _WARN, variables)

    async def attach(
        self, agent: RunAddress, item_id: str, kind: Literal["error", "warning"], name: str, text: str
    ) -> str:
        """Put a text where W&B looks for an item's files, the run of its agent; returns its path there
        (wandb/sdk/launch/agent/run_queue_item_file_saver.py).

        The run is the mirror's to write, and may be over: nothing is posted to its stream. A server without the
        mutation of `upload_run_file` has the file all the same."""
        path = f"{item_id}/{kind}/{name}"
        with effect("upload_item_file"):
            await upload_run_file(self._api, agent, path, text.encode("utf-8", "replace"), announce=False)
        return path
