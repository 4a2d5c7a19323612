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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

FEATURES = ("STRUCTURED_CONSOLE_LOGS", "FILESTREAM_GZIP", "CLIENT_IDS")
CONSOLE = "output.log"
HISTORY = "wandb-history.jsonl"
EVENTS = "wandb-events.jsonl"
SUMMARY = "wandb-summary.json"

Json = dict[str, Any]


class RunKey(NamedTuple):
    """Where a run lives."""

    entity: str
    project: str
    run: str


class OperationRefused(Exception):
    """Answered as a GraphQL error: HTTP 200 with `errors`."""


@dataclass(frozen=True, slots=True)
class Overwrite:
    """A line that was replaced by a different one at the same place: somebody's line is lost."""

    writer: str
    file: str
    line: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class StreamPost:
    """One file_stream post without its content."""

    at: float
    writer: str
    files: Mapping[str, tuple[int, int]]
    """File → (offset, lines)."""
    rest: Mapping[str, Any]
    """Everything else in the body: `uploaded`, `complete`, `exitcode`, `preempting`."""


@dataclass
class DoubleRun:
    """One run as the server would keep it."""

    key: RunKey
    state: str = "running"
    exit_code: int | None = None
    stopped: bool = False
    fields: Json = field(default_factory=dict)
    """displayName, groupName, jobType, tags, … as upserted."""
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    lines: dict[str, dict[str, dict[int, str]]] = field(default_factory=dict)
    """Writer ("" for a plain run, the client id in shared mode) → file → line number → line."""
    overwrites: list[Overwrite] = field(default_factory=list)
    posts: list[StreamPost] = field(default_factory=list)
    heartbeats: list[float] = field(default_factory=list)
    """Epoch seconds of posts with an empty body."""
    transitions: list[tuple[float, str]] = field(default_factory=list)
    uploaded: list[str] = field(default_factory=list)
    """Files whose upload a file_stream post announced."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Run files that were uploaded (CreateRunFiles and PUT)."""
    alerts: list[Json] = field(default_factory=list)
    seen_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.transitions.append((time.time(), self.state))

    @property
    def id(self) -> str:
        """The storage id."""
        return storage_id("run", self.key.run, self.key.project, self.key.entity)

    def move(self, state: str) -> None:
        """Change the state and remember when."""
        if state != self.state:
            self.state = state
            self.transitions.append((time.time(), state))

    def file(self, name: str, writer: str | None = None) -> list[str]:
        """The lines of one file, of one writer or of all (writers in order of first appearance)."""
        writers = self.lines if writer is None else {writer: self.lines.get(writer, {})}
        return [text for files in writers.values() for _, text in sorted(files.get(name, {}).items())]

    def console(self, writer: str | None = None) -> list[str]:
        """Console lines as posted: plain text, or JSON text with ts, label, content, level."""
        return self.file(CONSOLE, writer)

    def console_text(self, writer: str | None = None) -> list[str]:
        """Console lines reduced to their content, whichever format they were posted in."""
        return [_content(line) for line in self.console(writer)]

    def history(self) -> list[Json]:
        """The rows logged with `run.log`."""
        return [json.loads(line) for line in self.file(HISTORY)]

    def holes(self, file: str = CONSOLE) -> dict[str, list[int]]:
        """Writer → line numbers that nobody wrote although later ones exist.

        A shared writer may begin anywhere (with `resume` it begins at the run's line count), a plain one begins
        at 0."""
        found: dict[str, list[int]] = {}
        for writer, files in self.lines.items():
            numbers = files.get(file) or {}
            if not numbers:
                continue
            first = min(numbers) if writer else 0
            missing = [number for number in range(first, max(numbers)) if number not in numbers]
            if missing:
                found[writer] = missing
        return found


def _content(line: str) -> str:
    try:
        parsed = json.loads(line)
    except ValueError:
        return line
    return str(parsed["content"]) if isinstance(parsed, dict) and "content" in parsed else line


@dataclass
class QueueItem:
    """One item of a launch queue."""

    id: str
    spec: Json
    state: str = "PENDING"
    """PENDING → LEASED (popped) → CLAIMED (acked) or FAILED."""
    leased_at: float = 0.0
    agent: str | None = None
    run_name: str | None = None
    error: Json | None = None
    warnings: list[Json] = field(default_factory=list)


@dataclass
class Queue:
    """One launch queue."""

    id: str
    entity: str
    name: str
    resource: str = ""
    config: Json = field(default_factory=dict)
    items: list[QueueItem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One version of an artifact."""

    id: str
    entity: str
    project: str
    collection: str
    type: str
    version: int
    files: Mapping[str, bytes]


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
        self.queues: dict[tuple[str, str], Queue] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.agents: dict[str, Json] = {}
        self.storage: dict[str, bytes] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.operations: list[Json] = []
        self.unknown_operations: dict[str, str] = {}
        self.bodies: list[Json] = []

    def run(self, entity: str, project: str, run: str) -> DoubleRun | None:
        """A run, or None."""
        return self.runs.get(RunKey(entity, project, run))

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

    def push(self, entity: str, queue: str, spec: Json) -> QueueItem:
        """Put a run spec on a launch queue."""
        target = self.queue(entity, queue)
        item = QueueItem(storage_id("RunQueueItem", target.name, len(target.items) + 1), spec)
        target.items.append(item)
        return item

    def item(self, item_id: str) -> QueueItem:
        """A queue item by id; refuses the operation when there is none."""
        for queue in self.queues.values():
            for item in queue.items:
                if item.id == item_id:
                    return item
        raise OperationRefused(f"run queue item {item_id} not found")

    def add_artifact(
        self, entity: str, project: str, name: str, files: Mapping[str, bytes], kind: str = "job"
    ) -> Artifact:
        """Make the next version of an artifact, for instance a launch job."""
        where = (entity, project, name)
        version = sum((a.entity, a.project, a.collection) == where for a in self.artifacts.values())
        artifact = Artifact(
            storage_id("Artifact", len(self.artifacts) + 1), *where, kind, version, dict(files)
        )
        self.artifacts[artifact.id] = artifact
        for path, data in files.items():
            self.storage[f"{artifact.id}/{path}"] = data
        self.storage[f"{artifact.id}/.manifest"] = json.dumps(_manifest(artifact)).encode()
        return artifact

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
            "agents": self.agents,
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
            "posts": [asdict(post) for post in run.posts] if console else len(run.posts),
            "heartbeats": len(run.heartbeats),
            "transitions": run.transitions,
            "uploaded": run.uploaded,
            "files": {name: len(data) for name, data in run.files.items()},
            "alerts": run.alerts,
        }


def storage_id(kind: str, *parts: object) -> str:
    """Like the real ones, base64 of 'v1:kind:…'."""
    return base64.b64encode(":".join(["v1", kind, *map(str, parts)]).encode()).decode()


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
