"""W&B as far as the worker writes to it: runs are created, lines counted and checked, nothing is kept of them.

W&B documents 2 file stream posts a second a run and 500 a second a project for its dedicated servers; the sink
refuses nothing, it tells how near a program came to them."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bench.simulator.console import Console
from bench.simulator.latency import Latency

Json = dict[str, Any]
FEATURES = ("STRUCTURED_CONSOLE_LOGS", "FILESTREAM_GZIP")


@dataclass(slots=True)
class SinkRun:
    """One run."""

    console: Console = field(default_factory=Console)
    posted_at: float = 0.0
    heard_at: float = 0.0
    opened_at: float = 0.0
    exit_code: int | None = None
    files: dict[str, int] = field(default_factory=dict)
    """Its uploaded files → how many lines each has."""
    second: int = 0
    in_second: int = 0


@dataclass(slots=True)
class Busiest:
    """The most posts in one second of the clock."""

    second: int = 0
    count: int = 0
    most: int = 0

    def note(self, second: int) -> None:
        """One more post in this second."""
        if second != self.second:
            self.second, self.count = second, 0
        self.count += 1
        self.most = max(self.most, self.count)


class WandbSink:
    """Its runs by path, and what the present window has seen."""

    def __init__(self) -> None:
        self.runs: dict[str, SinkRun] = {}
        self.requests: Counter[str] = Counter()
        self.failed_items: list[str] = []
        self.pressed_at: dict[str, float] = {}
        """Run, as `entity/project/run` → when Stop was pressed in it, epoch seconds."""
        self.reset_window()

    def clear(self) -> None:
        """No runs."""
        self.runs.clear()
        self.failed_items.clear()
        self.pressed_at.clear()

    def reset_window(self) -> None:
        """Begin a new window."""
        self.requests.clear()
        self.latency = Latency()
        self.lines = 0
        self.bytes = 0
        self.in_project = Busiest()
        self.in_run = 0

    def graphql(self, body: Json) -> Json:
        """An operation by its name."""
        name, variables = str(body.get("operationName")), body.get("variables") or {}
        self.requests[name] += 1
        match name:
            case "UpsertBucket":
                return {"data": {"upsertBucket": self._upsert(variables)}}
            case "RunStoppedStatuses":
                return {"data": self._stopped(variables)}
            case "ServerFeaturesQuery":
                listed = [{"name": feature, "isEnabled": True} for feature in FEATURES]
                return {"data": {"serverInfo": {"features": listed}}}
            case "CreateRunFiles":
                return {"data": {"createRunFiles": _places(variables)}}
            case "failRunQueueItem":
                self.failed_items.append(str(variables.get("message", "")))
                return {"data": {"failRunQueueItem": {"success": True}}}
        return {"data": {}}

    def file_stream(self, path: str, raw: bytes) -> Json:
        """A post to a run; `path` is `entity/project/run`."""
        now = time.time()
        body: Json = json.loads(raw) if raw else {}
        run = self.runs.setdefault(path, SinkRun())
        self.requests["heartbeat" if not body else "file_stream"] += 1
        self.bytes += len(raw)
        run.heard_at = now
        self._note(run, int(now))
        if (chunk := (body.get("files") or {}).get("output.log")) is not None:
            run.posted_at = now
            self.lines += run.console.post(chunk["offset"], chunk["content"], int(now * 1000), self.latency)
        if body.get("complete"):
            run.exit_code = int(body.get("exitcode") or 0)
        return {"stopped": path in self.pressed_at}

    def upload(self, key: str, raw: bytes) -> None:
        """A file has come; `key` is `entity/project/run/name`. A second one of that name takes its place."""
        self.requests["upload"] += 1
        *parts, name = key.split("/", 3)
        self.runs.setdefault("/".join(parts), SinkRun()).files[name] = raw.count(b"\n")

    def summary(self) -> Json:
        """What the runs hold, and the window."""
        consoles = [run.console for run in self.runs.values()]
        return {
            "runs": len(self.runs),
            "runs_finished": sum(1 for run in self.runs.values() if run.exit_code is not None),
            "lines_in_files": sum(
                lines
                for run in self.runs.values()
                for name, lines in run.files.items()
                if name.startswith("logs/")
            ),
            "lines_window": self.lines,
            "lines": sum(console.length for console in consoles),
            "holes": sum(console.holes for console in consoles),
            "missing": sum(console.missing for console in consoles),
            "doubled": sum(console.doubled for console in consoles),
            "overwritten": sum(console.overwritten for console in consoles),
            "repeated_posts": sum(console.repeated for console in consoles),
            "foreign": sum(console.foreign for console in consoles),
            "latency": self.latency.summary(),
            "requests": dict(self.requests),
            "bytes": self.bytes,
            "most_posts_a_second": {"run": self.in_run, "project": self.in_project.most},
            "failed_items": len(self.failed_items),
        }

    def _upsert(self, variables: Json) -> Json:
        entity, project, name = variables["entity"], variables["project"], variables["name"]
        path = f"{entity}/{project}/{name}"
        inserted = path not in self.runs
        self.runs.setdefault(path, SinkRun()).opened_at = time.time()
        place = {"name": project, "entity": {"name": entity}}
        return {"bucket": {"id": name, "name": name, "project": place}, "inserted": inserted}

    def _stopped(self, variables: Json) -> Json:
        """Of many runs at once, as the worker asks: `e0`, `p0` and `n0` name the first one."""
        found: Json = {}
        for number in range(len(variables) // 3):
            path = "/".join(str(variables[f"{part}{number}"]) for part in "epn")
            found[f"r{number}"] = {"run": {"stopped": path in self.pressed_at}}
        return found

    def _note(self, run: SinkRun, second: int) -> None:
        if run.second != second:
            run.second, run.in_second = second, 0
        run.in_second += 1
        self.in_run = max(self.in_run, run.in_second)
        self.in_project.note(second)


def _places(variables: Json) -> Json:
    path = f"{variables['entity']}/{variables['project']}/{variables['run']}"
    files = [
        {"name": name, "uploadUrl": f"{variables.get('base', '')}/_storage/{path}/{name}"}
        for name in variables["files"]
    ]
    return {"runID": variables["run"], "uploadHeaders": [], "files": files}
