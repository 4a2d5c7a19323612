"""The launch agent that W&B's queue page shows for a mirror: registered, beating, asked to stop, gone.

The calls and their order are those of `wandb launch-agent` (wandb/sdk/launch/agent/agent.py): the agent has a run of
its own, named after it, in which W&B looks for the files of failed items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.aio import effect
from worker.clients.wandb_api import WandbApi, WandbRefused
from worker.clients.wandb_runs import RunAddress, upsert_run
from worker.errors import SettingsError, Unreachable
from worker.intake.wandb_queue import QUEUE_PROJECT
from worker.ops.logging import get_logger

_JOB_TYPE = "sweep-controller"
"""By this W&B hides the runs of agents (HIDDEN_AGENT_RUN_TYPE)."""
_RUN_HEARTBEAT = 30.0
"""Seconds after which W&B's own client posts a sign of life of a silent run."""

_VIEWER = "query Viewer { viewer { id entity } }"

_QUEUES = """
query ProjectRunQueues($entity: String!, $projectName: String!) {
  project(entityName: $entity, name: $projectName) { runQueues { id name createdBy access } }
}"""

_CREATE = """
mutation createLaunchAgent($entity: String!, $project: String!, $queues: [ID!]!, $hostname: String!,
                           $agentConfig: JSONString, $version: String) {
  createLaunchAgent(input: {entityName: $entity, projectName: $project, runQueues: $queues, hostname: $hostname,
                            agentConfig: $agentConfig, version: $version}) {
    launchAgentId
  }
}"""

_LOOK = """
query LaunchAgent($agentId: ID!) {
  launchAgent(id: $agentId) { id name runQueues hostname agentStatus stopPolling heartbeatAt }
}"""

_UPDATE = """
mutation updateLaunchAgent($agentId: ID!, $agentStatus: String) {
  updateLaunchAgent(input: {launchAgentId: $agentId, agentStatus: $agentStatus}) { success }
}"""

_log = get_logger()


class AgentStatus(StrEnum):
    """What W&B shows of an agent."""

    POLLING = "POLLING"
    RUNNING = "RUNNING"
    KILLED = "KILLED"


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """How an agent presents itself."""

    entity: str
    """Empty: the default entity of the API key's owner."""
    queues: tuple[str, ...]
    hostname: str
    version: str
    config: Mapping[str, Any]
    """Shown in W&B beside the agent."""


class LaunchAgent:
    """One registered agent; registered again, under another name, when W&B does not know it any more."""

    def __init__(self, api: WandbApi, facts: AgentFacts) -> None:
        self._api = api
        self._facts = facts
        self._run_seen_at = 0.0
        self.entity = facts.entity
        self.agent_id = ""
        """W&B's id; empty: not registered."""
        self._made = ""
        """W&B's id of an agent that is made, and not yet registered to the end."""
        self.name = ""
        """Also the id of the agent's own run."""

    @property
    def registered(self) -> bool:
        """W&B knows the agent."""
        return bool(self.agent_id)

    async def register(self) -> None:
        """Tell W&B that this agent serves these queues. A later try goes on with the agent that an earlier one has
        made. Raises `Again`, `WandbRefused`, and `SettingsError` when the entity or a queue is not there."""
        self.entity = self.entity or await self._default_entity()
        queues = await self._queue_ids()
        seen = await self._look(self._made) if self._made else None
        if seen is None:
            self._made = await self._create(queues)
            seen = await self._look(self._made)
        if seen is None:
            raise Unreachable("createLaunchAgent: W&B does not know the agent that it has just made")
        self.name = str(seen["name"])
        await self._open_run()
        self.agent_id, self._made = self._made, ""  # last: now items may be popped in its name
        _log.info("agent_registered", agent=self.name, entity=self.entity, queues=list(self._facts.queues))

    async def _create(self, queues: Sequence[str]) -> str:
        facts = self._facts
        config = {**facts.config, "entity": self.entity, "queues": list(facts.queues)}
        variables = {
            "entity": self.entity,
            "project": QUEUE_PROJECT,
            "queues": queues,
            "hostname": facts.hostname,
            "agentConfig": json.dumps(config),
            "version": facts.version,
        }
        with effect("register_agent"):
            answer = await self._api.graphql("createLaunchAgent", _CREATE, variables)
        return str((answer.get("createLaunchAgent") or {}).get("launchAgentId") or "")

    async def beat(self, status: AgentStatus) -> bool:
        """A sign of life; True: somebody asked the agent to stop polling. An agent that W&B does not know any more is
        registered again."""
        seen = await self._look(self.agent_id)
        if seen is None:
            _log.warning(
                "agent_unknown", agent=self.name, why="W&B does not know it any more; registering again"
            )
            await self._end_run()
            self.agent_id = ""
            await self.register()
            return False
        if seen.get("stopPolling"):
            return True
        await self._update(self.agent_id, status)
        if time.monotonic() - self._run_seen_at >= _RUN_HEARTBEAT:
            await self._beat_run()
        return False

    async def end(self) -> None:
        """Say that the agent polls no more, and end its run."""
        if agent_id := self.agent_id or self._made:
            await self._update(agent_id, AgentStatus.KILLED)
        if self.registered:
            await self._end_run()
        self.agent_id = self._made = ""

    async def _default_entity(self) -> str:
        viewer = (await self._api.graphql("Viewer", _VIEWER, {})).get("viewer") or {}
        if not viewer.get("entity"):
            raise SettingsError(
                "LAUNCH_ENTITY: not set, and the owner of WANDB_API_KEY has no default entity"
            )
        return str(viewer["entity"])

    async def _queue_ids(self) -> Sequence[str]:
        variables = {"entity": self.entity, "projectName": QUEUE_PROJECT}
        project = (await self._api.graphql("ProjectRunQueues", _QUEUES, variables)).get("project")
        if project is None:
            raise SettingsError(
                f"LAUNCH_ENTITY: WANDB_API_KEY sees no launch queues of entity {self.entity!r}; check both"
            )
        known = {str(queue["name"]): str(queue["id"]) for queue in project.get("runQueues") or ()}
        if missing := [name for name in self._facts.queues if name not in known]:
            raise SettingsError(
                f"LAUNCH_WANDB_QUEUES: entity {self.entity!r} has no launch queue {', '.join(missing)};"
                f" it has: {', '.join(sorted(known)) or 'none'}"
            )
        return [known[name] for name in self._facts.queues]

    async def _look(self, agent_id: str) -> Mapping[str, Any] | None:
        try:
            answer = await self._api.graphql("LaunchAgent", _LOOK, {"agentId": agent_id})
        except WandbRefused as error:
            if error.status == 404 or "not found" in str(error).lower():
                return None
            raise
        seen: Mapping[str, Any] | None = answer.get("launchAgent")
        return seen

    async def _update(self, agent_id: str, status: AgentStatus) -> None:
        variables = {"agentId": agent_id, "agentStatus": str(status)}
        await self._api.graphql("updateLaunchAgent", _UPDATE, variables)

    def _run(self) -> RunAddress:
        return RunAddress(self.entity, QUEUE_PROJECT, self.name)

    async def _open_run(self) -> None:
        await upsert_run(self._api, self._run(), display_name=self.name, job_type=_JOB_TYPE)
        self._run_seen_at = time.monotonic()

    async def _end_run(self) -> None:
        try:
            await self._api.file_stream(*self._run(), {"complete": True, "exitcode": 0})
        except WandbRefused as error:  # somebody has deleted it
            _log.info("agent_run_gone", agent=self.name, error=str(error))

    async def _beat_run(self) -> None:
        try:
            await self._api.file_stream(*self._run(), {})
        except WandbRefused:  # somebody has deleted it
            await self._open_run()
        self._run_seen_at = time.monotonic()
