"""The double's GraphQL operations about launch queues and launch agents."""

from __future__ import annotations

import json
import time

from worker.local.wandb_records import Json, QueueItem, storage_id
from worker.local.wandb_runs import STOCK_TIME
from worker.local.wandb_state import WandbState

QUEUE_PROJECT = "model-registry"
"""All launch queues live in this project (LAUNCH_DEFAULT_PROJECT of wandb)."""


class QueueOperations:
    """Launch queues: filled, popped, acked, failed."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def op_ProjectRunQueues(self, v: Json) -> Json:
        """The queues of an entity."""
        queues = [
            queue
            for queue in self._state.queues.values()
            if queue.entity == v["entity"] and v["projectName"] == QUEUE_PROJECT
        ]
        node = {"createdBy": storage_id("User", 1), "access": "PROJECT"}
        return {"project": {"runQueues": [{"id": q.id, "name": q.name, **node} for q in queues]}}

    def op_CreateRunQueue(self, v: Json) -> Json:
        """Make a queue."""
        queue = self._state.queue(v["entity"], v["queueName"])
        return {"createRunQueue": {"success": True, "queueID": queue.id}}

    def op_UpsertRunQueue(self, v: Json) -> Json:
        """Give a queue its resource and template."""
        queue = self._state.queue(v["entityName"], v["queueName"])
        queue.resource, queue.config = v["resourceType"], json.loads(v["resourceConfig"])
        return {"upsertRunQueue": {"success": True, "configSchemaValidationErrors": None}}

    def op_pushToRunQueueByName(self, v: Json) -> Json:
        """`wandb launch -q`; null for an unknown queue."""
        queue = self._state.queues.get((v["entityName"], v["queueName"]))
        if queue is None:
            return {"pushToRunQueueByName": None}
        spec = json.loads(v["runSpec"])
        if queue.resource:  # the queue's resource and template are authoritative
            given = (spec.get("resource_args") or {}).get(queue.resource, {})
            spec["resource"] = queue.resource
            spec["resource_args"] = {queue.resource: {**queue.config, **given}}
        item = self._state.push(queue.entity, queue.name, spec)
        return {"pushToRunQueueByName": {"runQueueItemId": item.id, "runSpec": json.dumps(spec)}}

    def op_popFromRunQueue(self, v: Json) -> Json:
        """Lease the first free item; null when there is none. `runSpec` is an object, not text."""
        queue = self._state.queues.get((v["entity"], v["queueName"]))
        now = time.time()
        for item in queue.items if queue else ():
            if self._is_free(item, now):
                item.state, item.leased_at, item.agent = "LEASED", now, v.get("launchAgentId")
                return {"popFromRunQueue": {"runQueueItemId": item.id, "runSpec": item.spec}}
        return {"popFromRunQueue": None}

    def op_ackRunQueueItem(self, v: Json) -> Json:
        """Claim a leased item; success is false when it is not leased any more."""
        item = self._state.item(v["itemId"])
        leased = item.state == "LEASED"
        if leased:
            item.state, item.run_name = "CLAIMED", v["runId"]
        return {"ackRunQueueItem": {"success": leased}}

    def op_failRunQueueItem(self, v: Json) -> Json:
        """Report a failure, before or after the ack."""
        item = self._state.item(v["runQueueItemId"])
        item.state, item.error = "FAILED", _report(v)
        return {"failRunQueueItem": {"success": True}}

    def op_updateRunQueueItemWarning(self, v: Json) -> Json:
        """Attach a warning."""
        self._state.item(v["runQueueItemId"]).warnings.append(_report(v))
        return {"updateRunQueueItemWarning": {"success": True}}

    def op_GetRunQueueItem(self, v: Json) -> Json:
        """The state of an item."""
        item = self._state.item(v["itemId"])
        node = {"id": item.id, "state": item.state, "associatedRunId": item.run_name}
        return {"project": {"runQueue": {"runQueueItem": node}}}

    def _is_free(self, item: QueueItem, now: float) -> bool:
        lease_over = item.state == "LEASED" and now - item.leased_at > self._state.lease_seconds
        return item.state == "PENDING" or lease_over


class AgentOperations:
    """Launch agents: registered, asked, updated."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def op_createLaunchAgent(self, v: Json) -> Json:
        """Register an agent."""
        number = len(self._state.agents) + 1
        agent_id = storage_id("LaunchAgent", number)
        fresh = {"name": f"agent{number}", "status": "POLLING", "stopPolling": False}
        self._state.agents[agent_id] = {**fresh, **v}
        return {"createLaunchAgent": {"launchAgentId": agent_id}}

    def op_LaunchAgent(self, v: Json) -> Json:
        """An agent; `stopPolling` asks it to end."""
        agent = self._state.agents[v["agentId"]]
        return {
            "launchAgent": {
                "id": v["agentId"],
                "name": agent["name"],
                "runQueues": agent["queues"],
                "hostname": agent["hostname"],
                "agentStatus": agent["status"],
                "stopPolling": agent["stopPolling"],
                "heartbeatAt": STOCK_TIME,
            }
        }

    def op_updateLaunchAgent(self, v: Json) -> Json:
        """The agent's heartbeat."""
        self._state.agents[v["agentId"]]["status"] = v["agentStatus"]
        return {"updateLaunchAgent": {"success": True}}


def _report(v: Json) -> Json:
    return {key: v.get(key) for key in ("message", "stage", "filePaths")}
