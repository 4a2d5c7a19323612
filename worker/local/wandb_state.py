"""What the W&B double remembers: runs, queues, artifacts, uploads, requests.

Where the real server's behaviour cannot be seen from the client side, the double takes the strictest plausible
reading and says so in a comment.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict

from worker.local.wandb_records import (
    Agent,
    Artifact,
    DoubleRun,
    Json,
    OperationRefused,
    Queue,
    QueueItem,
    RunKey,
    storage_id,
)
from worker.local.wandb_strict import RateLimits, Strictness

FEATURES = ("STRUCTURED_CONSOLE_LOGS", "FILESTREAM_GZIP", "CLIENT_IDS", "MARK_RUN_FILES_UPLOADED")


class WandbState:
    """Everything the double knows, and the questions a test asks of it."""

    def __init__(self, entity: str, *, lease_seconds: float = 60.0, crash_after: float = 300.0) -> None:
        self.entity = entity
        self.lease_seconds = lease_seconds
        """An item popped and not acked returns after this time ("pushed back … in 1 min", W&B's agent)."""
        self.crash_after = crash_after
        """Silence in seconds after which a running run counts as crashed."""
        self.base_url = ""
        self.keep_bodies = False
        """Keep whole file_stream bodies in `bodies`, for comparing clients."""
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.features = dict.fromkeys(FEATURES, True)
        self.runs: dict[RunKey, DoubleRun] = {}
        self.refused_runs: set[str] = set()
        """Run ids that make a query for many runs fail as a whole."""
        self.queues: dict[tuple[str, str], Queue] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.agents: dict[str, Agent] = {}
        self.agents_made = 0
        self.sweeps: dict[tuple[str, str, str], str] = {}
        """(entity, project, sweep) → state."""
        self.storage: dict[str, bytes] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.operations: list[Json] = []
        self.unknown_operations: dict[str, str] = {}
        self.bodies: list[Json] = []
        self.strict = Strictness()
        self.limits = RateLimits()

    def run(self, entity: str, project: str, run: str) -> DoubleRun | None:
        """A run, or None."""
        return self.runs.get(RunKey(entity, project, run))

    def run_by_hand(self, entity: str, project: str, run: str) -> DoubleRun:
        """A run as `wandb.init` makes it, without a client: for tests whose containers have no wandb."""
        key = RunKey(entity, project, run)
        return self.runs.setdefault(key, DoubleRun(key))

    def run_by_id(self, wanted: str) -> DoubleRun:
        """A run by storage id; refuses the operation when there is none."""
        for run in self.runs.values():
            if run.id == wanted:
                return run
        raise OperationRefused(f"run {wanted} not found")

    def run_state(self, run: DoubleRun) -> str:
        """The state that the server shows: a running run that has gone silent is crashed."""
        silent = time.time() - run.seen_at > self.crash_after
        return "crashed" if run.state == "running" and silent else run.state

    def stop(self, entity: str, project: str, run: str) -> None:
        """Press the Stop button of a run. Raises KeyError for an unknown run."""
        self.runs[RunKey(entity, project, run)].stopped = True

    def queue(self, entity: str, name: str) -> Queue:
        """A launch queue, created when it is missing."""
        key = (entity, name)
        if key not in self.queues:
            self.queues[key] = Queue(storage_id("RunQueue", len(self.queues) + 1), entity, name)
        return self.queues[key]

    def push(self, entity: str, queue: str, spec: Json, *, priority: int = 2) -> QueueItem:
        """Put a run spec on a launch queue. `priority`: 0 critical, 1 high, 2 medium, 3 low."""
        target = self.queue(entity, queue)
        number = len(target.items) + 1
        item = QueueItem(storage_id("RunQueueItem", target.name, number), spec, priority=priority)
        target.items.append(item)
        return item

    def item(self, item_id: str) -> QueueItem:
        """A queue item by id; refuses the operation when there is none."""
        for queue in self.queues.values():
            for item in queue.items:
                if item.id == item_id and item.state != "DELETED":
                    return item
        raise OperationRefused(f"run queue item {item_id} not found")

    def agent(self, name: str) -> Agent:
        """A launch agent by name. Raises KeyError for an unknown one."""
        for agent in self.agents.values():
            if agent.name == name:
                return agent
        raise KeyError(name)

    def add_artifact(
        self,
        entity: str,
        project: str,
        name: str,
        files: Mapping[str, bytes],
        kind: str = "job",
        *,
        aliases: Collection[str] = (),
        references: int = 0,
    ) -> Artifact:
        """Make the next version of an artifact, for instance a launch job. It takes `latest` and `aliases` over."""
        where = (entity, project, name)
        others = [a for a in self.artifacts.values() if (a.entity, a.project, a.collection) == where]
        artifact = Artifact(
            storage_id("Artifact", len(self.artifacts) + 1), *where, kind, len(others), dict(files)
        )
        artifact.aliases, artifact.references = {"latest", *aliases}, references
        for other in others:
            other.aliases -= artifact.aliases
        self.artifacts[artifact.id] = artifact
        for path, data in files.items():
            self.storage[f"{artifact.id}/{path}"] = data
        self.storage[f"{artifact.id}/.manifest"] = json.dumps(_manifest(artifact)).encode()
        return artifact

    def delete_artifact(self, artifact: Artifact) -> None:
        """Delete a version: it is still known by its id, as deleted, and its files are gone."""
        artifact.state = "DELETED"
        artifact.aliases = set()
        for path in artifact.files:
            self.storage.pop(f"{artifact.id}/{path}", None)

    def dump(self, *, console: bool = True) -> Json:
        """All of it as JSON; `console=False` leaves counts in place of lines and posts."""
        return {
            "runs": {"/".join(key): self._dump_run(run, console) for key, run in self.runs.items()},
            "queues": {"/".join(key): asdict(queue) for key, queue in self.queues.items()},
            "artifacts": {
                a.id: {
                    "name": f"{a.entity}/{a.project}/{a.collection}:v{a.version}",
                    "type": a.type,
                    "files": list(a.files),
                }
                for a in self.artifacts.values()
            },
            "agents": {agent.id: {**asdict(agent), "status": agent.status} for agent in self.agents.values()},
            "sweeps": {"/".join(key): state for key, state in self.sweeps.items()},
            "counts": dict(self.counts),
            "unknown_operations": self.unknown_operations,
        }

    def _dump_run(self, run: DoubleRun, console: bool) -> Json:
        lines: Json = {
            writer: {name: sorted(text.items()) if console else len(text) for name, text in files.items()}
            for writer, files in run.lines.items()
        }
        return {
            "state": self.run_state(run),
            "exit_code": run.exit_code,
            "stopped": run.stopped,
            "fields": run.fields,
            "config": run.config,
            "summary": run.summary,
            "lines": lines,
            "holes": run.holes(),
            "overwrites": [asdict(overwrite) for overwrite in run.overwrites],
            "refused": run.refused,
            "posts": [asdict(post) for post in run.posts] if console else len(run.posts),
            "heartbeats": len(run.heartbeats),
            "transitions": run.transitions,
            "uploaded": run.uploaded,
            "files": {name: len(data) for name, data in run.files.items()},
            "alerts": run.alerts,
        }


def _manifest(artifact: Artifact) -> Json:
    contents = {
        path: {
            "digest": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            "birthArtifactID": artifact.id,
            "size": len(data),
        }
        for path, data in artifact.files.items()
    }
    return {
        "version": 1,
        "storagePolicy": "wandb-storage-policy-v1",
        "storagePolicyConfig": {"storageLayout": "V2"},
        "contents": contents,
    }
