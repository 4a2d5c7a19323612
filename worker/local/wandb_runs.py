"""The double's GraphQL operations about the account, the server and runs. `op_<Name>` answers operation <Name>."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from worker.local.wandb_records import (
    EVENTS,
    HISTORY,
    DoubleRun,
    Json,
    OperationRefused,
    RunKey,
    storage_id,
)
from worker.local.wandb_state import WandbState

STOCK_TIME = "2026-01-01T00:00:00Z"

_NOT_FIELDS = frozenset({"id", "name", "project", "entity", "config", "summaryMetrics", "state"})

_MAY_BECOME = {"pending": {"running", "failed", "crashed", "preempted"}, "failed": {"pending", "running"}}
"""State → states from which `Run.update_state` may reach it (its docstring in wandb/apis/public/runs.py)."""


class AccountOperations:
    """Who am I, what can this server do."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def op_Viewer(self, _: Json) -> Json:
        """The account of the API key."""
        entity = self._state.entity
        return {
            "viewer": {
                "id": storage_id("User", 1),
                "entity": entity,
                "username": entity,
                "email": f"{entity}@localhost",
                "name": entity,
                "flags": "{}",
                "admin": False,
                "deletedAt": None,
                "teams": {"edges": [{"node": {"name": entity}}]},
                "apiKeys": {"edges": []},
            }
        }

    def op_GetViewer(self, v: Json) -> Json:
        """`wandb.Api`'s name of the same query."""
        return self.op_Viewer(v)

    def op_GetDefaultEntity(self, v: Json) -> Json:
        """`wandb.Api`'s other name of the same query."""
        return self.op_Viewer(v)

    def op_ServerFeaturesQuery(self, _: Json) -> Json:
        """Feature flags."""
        flags = [{"name": name, "isEnabled": on} for name, on in self._state.features.items()]
        return {"serverInfo": {"features": flags}}

    def op_OrgFeatureFlags(self, _: Json) -> Json:
        """No organisation."""
        return {"organization": None}

    def op_OrganizationCoreWeaveOrganizationID(self, _: Json) -> Json:
        """No organisation."""
        return {"entity": {"organization": None}}

    def op_EntityIsTeam(self, v: Json) -> Json:
        """No teams here."""
        return {"entity": {"id": storage_id("Entity", v["entity"]), "isTeam": False}}


class RunOperations:
    """Runs: made, read, changed, their files announced."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def op_UpsertBucket(self, v: Json) -> Json:
        """Create a run or change its fields. It never revives a finished run."""
        entity, project = v.get("entity") or self._state.entity, v.get("project") or "uncategorized"
        key = RunKey(entity, project, v["name"])
        inserted = key not in self._state.runs
        run = self._state.runs.setdefault(key, DoubleRun(key))
        run.seen_at = time.time()
        if v.get("state"):
            run.move(v["state"])
        elif run.state == "pending":
            run.move("running")
        run.fields.update({name: x for name, x in v.items() if name not in _NOT_FIELDS and x is not None})
        if v.get("config"):
            run.config.update(json.loads(v["config"]))
        if v.get("summaryMetrics"):
            run.summary.update(json.loads(v["summaryMetrics"]))
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def op_RunResumeStatus(self, v: Json) -> Json:
        """What `resume=` asks first; a run counts as existing only if `wandbConfig` has the key `t`."""
        run = self._state.run(v.get("entity") or self._state.entity, v["project"], v["name"])
        entity = {"id": storage_id("Entity", self._state.entity), "name": self._state.entity}
        model = {"id": storage_id("Project", v["project"]), "name": v["project"], "entity": entity}
        return {"model": {**model, "bucket": self._bucket(run) if run else None}}

    def op_RunStoppedStatus(self, v: Json) -> Json:
        """Was the Stop button pressed?"""
        run = self._state.run(v["entityName"], v["projectName"], v["runId"])
        return {"project": {"run": {"stopped": run.stopped} if run else None}}

    def op_RunStoppedStatuses(self, v: Json) -> Json:
        """The worker's own query for many runs: `r0: project(name: $p0, …)`, and so on."""
        if refused := self._state.refused_runs.intersection(v.values()):
            raise OperationRefused(f"permission denied: {refused}")
        ones = {name.removeprefix("n"): run for name, run in v.items() if name.startswith("n")}
        runs = {n: self._state.run(v[f"e{n}"], v[f"p{n}"], name) for n, name in ones.items()}
        return {f"r{n}": {"run": {"stopped": run.stopped} if run else None} for n, run in runs.items()}

    def op_RunState(self, v: Json) -> Json:
        """The state of a run."""
        run = self._state.run(v["entity"], v["project"], v["name"])
        if run is None:
            return {"project": {"run": None}}
        shown = {"state": self._state.run_state(run), "jobType": run.fields.get("jobType")}
        return {"project": {"run": shown}}

    def op_Run(self, v: Json) -> Json:
        """`wandb.Api().run(path)`: the full fragment."""
        run = self._state.run(v["entity"], v["project"], v["name"])
        if run is None:
            return {"project": {"run": None}}
        more = {
            "projectId": "1",
            "state": self._state.run_state(run),
            "group": run.fields.get("groupName"),
            "jobType": run.fields.get("jobType"),
            "commit": run.fields.get("commit"),
            "readOnly": False,
            "createdAt": STOCK_TIME,
            "heartbeatAt": STOCK_TIME,
            "systemMetrics": "{}",
            "historyKeys": None,
            "user": {"name": self._state.entity, "username": self._state.entity},
        }
        return {"project": {"run": {**self._bucket(run), **more}}}

    def op_RunFullHistory(self, v: Json) -> Json:
        """`wandb.Api().run(path).history()`: all rows, or the system metrics."""
        run = self._run(v["entity"], v["project"], v["name"])
        return {"project": {"run": {"history": run.file(HISTORY), "events": run.file(EVENTS)}}}

    def op_UpdateRunState(self, v: Json) -> Json:
        """`Run.update_state`; only the transitions that its documentation lists."""
        run, wanted = self._state.run_by_id(v["input"]["id"]), v["input"]["state"]
        current = self._state.run_state(run)
        if current not in _MAY_BECOME.get(wanted, ()):
            raise OperationRefused(f"cannot go from {current} to {wanted}")
        run.move(wanted)
        return {"updateRunState": {"success": True}}

    def op_StopRun(self, v: Json) -> Json:
        """The Stop button."""
        self._state.run_by_id(v["id"]).stopped = True
        return {"stopRun": {"success": True}}

    def op_NotifyScriptableRunAlert(self, v: Json) -> Json:
        """`run.alert`."""
        self._run(v["entityName"], v["projectName"], v["runName"]).alerts.append(v)
        return {"notifyScriptableRunAlert": {"success": True}}

    def op_CreateRunFiles(self, v: Json) -> Json:
        """Where to PUT the files of a run. The SDK asks for a run that exists: so do we."""
        run = self._run(v["entity"], v["project"], v["run"])
        prefix = f"{self._state.base_url}/_storage/run/{'/'.join(run.key)}"
        files = [{"name": name, "uploadUrl": f"{prefix}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}

    def op_MarkRunFilesUploaded(self, v: Json) -> Json:
        """Files are there; unlike a post to the file stream this leaves the run's state alone."""
        self._run(v["entity"], v["project"], v["run"]).uploaded += v["files"]
        return {"markRunFilesUploaded": {"success": True}}

    def op_RunFiles(self, v: Json) -> Json:
        """`wandb.Api().run(path).files()`, all of them in one page."""
        run = self._run(v["entity"], v["project"], v["name"])
        wanted = v.get("fileNames") or list(run.files)
        edges = [{"node": self._file(run, name), "cursor": name} for name in wanted if name in run.files]
        page = {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": False}
        files = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "run": {"fileCount": len(run.files), "files": files}}}

    def op_RunHistoryLength(self, v: Json) -> Json:
        """How many rows a run has."""
        run = self._state.run(v["entity"], v["project"], v["name"])
        return {"project": {"run": run and {"historyLineCount": len(run.file(HISTORY))}}}

    def op_RunConsoleLogPage(self, v: Json) -> Json:
        """`wandb.Api().run(path).console_logs()`: a page of lines behind `after`."""
        run = self._run(v["entity"], v["project"], v["runName"])
        lines = run.console()
        start = int(v.get("after") or 0)
        page = lines[start : start + int(v.get("first") or 1000)]
        nodes = [_console_line(number, line) for number, line in enumerate(page, start)]
        behind = start + len(page)
        info = {"endCursor": str(behind), "hasNextPage": behind < len(lines)}
        edges = {"edges": [{"node": node} for node in nodes], "pageInfo": info}
        return {"project": {"run": {"logLineCount": len(lines), "logLines": edges}}}

    def _file(self, run: DoubleRun, name: str) -> Json:
        url = f"{self._state.base_url}/_storage/run/{'/'.join(run.key)}/{name}"
        content = run.files[name]
        return {
            "id": storage_id("File", run.id, name),
            "name": name,
            "url": url,
            "directUrl": url,
            "sizeBytes": len(content),
            "mimetype": "text/plain",
            "updatedAt": STOCK_TIME,
            "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        }

    def _run(self, entity: str, project: str, name: str) -> DoubleRun:
        run = self._state.run(entity, project, name)
        if run is None:
            raise OperationRefused(f"run {entity}/{project}/{name} not found")
        return run

    def _bucket(self, run: DoubleRun) -> dict[str, Any]:
        history, events = run.file(HISTORY), run.file(EVENTS)
        entity = {"id": storage_id("Entity", run.key.entity), "name": run.key.entity}
        telemetry = run.config.get("_wandb", {}).get("value", {})
        return {
            "id": run.id,
            "name": run.key.run,
            "displayName": run.fields.get("displayName") or run.key.run,
            "description": None,
            "sweepName": None,
            "config": json.dumps(run.config),
            "wandbConfig": json.dumps({key: x for key, x in telemetry.items() if key == "t"}),
            "summaryMetrics": json.dumps(run.summary),
            "tags": run.fields.get("tags") or [],
            "notes": run.fields.get("notes"),
            "project": {
                "id": storage_id("Project", run.key.project),
                "name": run.key.project,
                "entity": entity,
            },
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": len(run.console()),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
        }


def _console_line(number: int, line: str) -> Json:
    """As the server has taken it apart: a structured line, or text with its time in front."""
    try:
        parts = json.loads(line)
    except ValueError:
        parts = None
    if isinstance(parts, dict) and "content" in parts:
        known = {
            "timestamp": parts.get("ts"),
            "level": parts.get("level", ""),
            "label": parts.get("label", ""),
        }
        return {"number": number, **known, "line": parts["content"]}
    stamp, _, text = line.partition(" ")
    return {"number": number, "timestamp": stamp, "level": "", "label": "", "line": text}
