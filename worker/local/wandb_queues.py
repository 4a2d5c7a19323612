"""The double's GraphQL operations about launch queues and launch agents."""

from __future__ import annotations

import json
import time

from worker.local.wandb_records import Agent, Json, OperationRefused, QueueItem, storage_id
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
        priority = v.get("priority")
        item = self._state.push(queue.entity, queue.name, spec, priority=2 if priority is None else priority)
        return {"pushToRunQueueByName": {"runQueueItemId": item.id, "runSpec": json.dumps(spec)}}

    def op_popFromRunQueue(self, v: Json) -> Json:
        """Lease the free item of the highest priority, of those the oldest; null when there is none. `runSpec` is an
        object, not text."""
        queue, agent = self._state.queues.get((v["entity"], v["queueName"])), v.get("launchAgentId")
        if queue is None:
            raise OperationRefused(f"run queue {v['queueName']} not found")
        if agent and agent not in self._state.agents:
            raise OperationRefused(f"launch agent {agent} not found")
        now = time.time()
        free = [item for item in queue.items if self._is_free(item, now)]
        if not free:
            return {"popFromRunQueue": None}
        item = min(free, key=lambda item: item.priority)  # of equals the first
        item.state, item.leased_at, item.agent = "LEASED", now, agent
        item.pops += 1
        return {"popFromRunQueue": {"runQueueItemId": item.id, "runSpec": item.spec}}

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

    def op_fetchRunQueuesFromProject(self, v: Json) -> Json:
        """What `QueuedRun.delete` asks first."""
        queue = self._state.queues.get((v["entityName"], v["runQueueName"]))
        return {"project": {"runQueue": {"id": queue.id} if queue else None}}

    def op_DeleteFromRunQueue(self, v: Json) -> Json:
        """`QueuedRun.delete`: an item that nobody has acknowledged is never popped again."""
        item = self._state.item(v["runQueueItemId"])
        deleted = item.state in ("PENDING", "LEASED")
        if deleted:
            item.state = "DELETED"
        return {"deleteFromRunQueue": {"success": deleted, "clientMutationId": None}}

    def op_GetSweepState(self, v: Json) -> Json:
        """Whether a sweep goes on."""
        state = self._state.sweeps.get((v["entity"], v["project"], v["sweep"]))
        return {"project": {"sweep": {"state": state} if state else None}}

    def _is_free(self, item: QueueItem, now: float) -> bool:
        lease_over = item.state == "LEASED" and now - item.leased_at > self._state.lease_seconds
        return item.state == "PENDING" or lease_over


class AgentOperations:
    """Launch agents: registered, asked, updated."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def op_createLaunchAgent(self, v: Json) -> Json:
        """Register an agent for queues that exist."""
        known = {queue.id for queue in self._state.queues.values() if queue.entity == v["entity"]}
        if not v["queues"] or not known.issuperset(v["queues"]):
            raise OperationRefused("run queue not found")
        self._state.agents_made += 1
        agent = Agent(
            id=storage_id("LaunchAgent", self._state.agents_made),
            name=f"agent{self._state.agents_made}",
            entity=v["entity"],
            queues=v["queues"],
            hostname=v["hostname"],
            config=json.loads(v["agentConfig"]),
            version=v["version"],
            statuses=[(time.time(), "POLLING")],
        )
        self._state.agents[agent.id] = agent
        return {"createLaunchAgent": {"launchAgentId": agent.id}}

    def op_LaunchAgent(self, v: Json) -> Json:
        """An agent, or null; `stopPolling` asks it to end."""
        agent = self._state.agents.get(v["agentId"])
        if agent is None:
            return {"launchAgent": None}
        return {
            "launchAgent": {
                "id": agent.id,
                "name": agent.name,
                "runQueues": agent.queues,
                "hostname": agent.hostname,
                "agentStatus": agent.status,
                "stopPolling": agent.stop_polling,
                "heartbeatAt": STOCK_TIME,
            }
        }

    def op_updateLaunchAgent(self, v: Json) -> Json:
        """The agent's heartbeat."""
        agent = self._state.agents.get(v["agentId"])
        if agent is None:
            raise OperationRefused(f"launch agent {v['agentId']} not found")
        if v["agentStatus"] not in ("POLLING", "RUNNING", "KILLED"):
            raise OperationRefused(f"{v['agentStatus']} is no status of an agent")
        agent.statuses.append((time.time(), v["agentStatus"]))
        return {"updateLaunchAgent": {"success": True}}


def _report(v: Json) -> Json:
    return {key: v.get(key) for key in ("message", "stage", "filePaths")}
