"""W&B's launch queue, as far as an item is reported back to it."""

from __future__ import annotations

from worker.aio import effect
from worker.clients.wandb_api import WandbApi

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


class QueueItems:
    """Failures and warnings on run queue items (wandb/sdk/launch/agent: stages `agent`, `build`, `run`)."""

    def __init__(self, api: WandbApi) -> None:
        self._api = api

    async def fail(self, item_id: str, message: str, stage: str) -> None:
        """The item failed for good; W&B shows `message` in the queue."""
        variables = {"runQueueItemId": item_id, "message": message, "stage": stage, "filePaths": None}
        with effect("fail_queue_item"):
            await self._api.graphql("failRunQueueItem", _FAIL, variables)

    async def warn(self, item_id: str, message: str, stage: str) -> None:
        """The item waits or is tried again; W&B shows `message` beside it."""
        variables = {"runQueueItemId": item_id, "message": message, "stage": stage, "filePaths": []}
        await self._api.graphql("updateRunQueueItemWarning", _WARN, variables)
