"""The records that the W&B double keeps: runs with their lines, posts and states, queue items, artifacts."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
    clients: set[str] = field(default_factory=set)
    """Kinds of clients that wrote lines or history, by their User-Agent."""
    refused: list[str] = field(default_factory=list)
    """Posts that were refused because the double is strict, with the reason."""
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
    """PENDING → LEASED (popped) → CLAIMED (acked) or FAILED; DELETED by its owner."""
    priority: int = 2
    """0 critical, 1 high, 2 medium, 3 low."""
    pops: int = 0
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


@dataclass
class Agent:
    """One launch agent, with its life."""

    id: str
    name: str
    entity: str
    queues: list[str]
    """Storage ids."""
    hostname: str
    config: Json
    version: str
    stop_polling: bool = False
    statuses: list[tuple[float, str]] = field(default_factory=list)
    """(epoch seconds, status) of its registration and of each updateLaunchAgent: its heartbeats."""

    @property
    def status(self) -> str:
        """The last one."""
        return self.statuses[-1][1]


@dataclass
class Artifact:
    """One version of an artifact."""

    id: str
    entity: str
    project: str
    collection: str
    type: str
    version: int
    files: Mapping[str, bytes]
    aliases: set[str] = field(default_factory=set)
    """Beside its version; each belongs to one version of the collection, `latest` to the newest."""
    state: str = "COMMITTED"
    references: int = 0
    """Files elsewhere that it only names."""


def storage_id(kind: str, *parts: object) -> str:
    """Like the real ones, base64 of 'v1:kind:…'."""
    return base64.b64encode(":".join(["v1", kind, *map(str, parts)]).encode()).decode()
