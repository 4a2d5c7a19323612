"""What the worker does to W&B runs over HTTP, whichever run it is: a companion, or a launch agent's own.

The calls are those of W&B's own clients (wandb-core); repeating one changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worker.clients.wandb_api import WandbApi
from worker.errors import Unreachable

_UPSERT = """
mutation UpsertBucket($name: String, $project: String, $entity: String, $displayName: String, $groupName: String,
                      $jobType: String, $tags: [String!], $notes: String, $config: JSONString) {
  upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, displayName: $displayName,
                       groupName: $groupName, jobType: $jobType, tags: $tags, notes: $notes, config: $config}) {
    bucket { id name project { name entity { name } } }
    inserted
  }
}"""

_CREATE_FILES = """
mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
  createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) {
    runID
    uploadHeaders
    files { name uploadUrl }
  }
}"""

MARK_UPLOADED = "MARK_RUN_FILES_UPLOADED"
"""Server feature: the mutation of that name exists."""
_MARK_UPLOADED = """
mutation MarkRunFilesUploaded($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
  markRunFilesUploaded(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) { success }
}"""

_ALERT_PAUSE = 60_000
"""Milliseconds in which W&B tells an alert of the same title once (the SDK's default)."""
_ALERT = """
mutation NotifyScriptableRunAlert($entityName: String!, $projectName: String!, $runName: String!, $title: String!,
                                  $text: String!, $severity: AlertSeverity = INFO, $waitDuration: Duration) {
  notifyScriptableRunAlert(input: {entityName: $entityName, projectName: $projectName, runName: $runName,
                                   title: $title, text: $text, severity: $severity, waitDuration: $waitDuration}) {
    success
  }
}"""

_STATE = """
query RunState($project: String!, $entity: String!, $name: String!) {
  project(name: $project, entityName: $entity) { run(name: $name) { state jobType } }
}"""

_HISTORY_LENGTH = """
query RunHistoryLength($project: String!, $entity: String!, $name: String!) {
  project(name: $project, entityName: $entity) { run(name: $name) { historyLineCount } }
}"""


class RunAddress(NamedTuple):
    """Where a run lives in W&B."""

    entity: str
    project: str
    run: str


async def upsert_run(
    api: WandbApi,
    where: RunAddress,
    *,
    display_name: str,
    job_type: str,
    group: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Create a run, or bring what is given up to date."""
    variables = {
        "name": where.run,
        "project": where.project,
        "entity": where.entity,
        "displayName": display_name,
        "groupName": group,
        "jobType": job_type,
        "tags": tags,
        "notes": notes,
        "config": json.dumps({key: {"value": value} for key, value in (config or {}).items()}),
    }
    await api.graphql("UpsertBucket", _UPSERT, {k: v for k, v in variables.items() if v is not None})


async def upload_run_file(
    api: WandbApi, where: RunAddress, name: str, content: bytes, *, announce: bool = True
) -> None:
    """Put a file into a run; the same name replaces it.

    The server is told of it by a mutation, which leaves the run's state alone. One that does not know it (older than
    the feature) is told through the run's file stream, but only with `announce`: that makes a run that is over running
    again (a comment in wandb/apis/public/runs.py, `Run.upload_file`), and has another writer in runs that are not
    ours."""
    variables = {"entity": where.entity, "project": where.project, "run": where.run, "files": [name]}
    answer = (await api.graphql("CreateRunFiles", _CREATE_FILES, variables)).get("createRunFiles")
    if not answer or not answer.get("files"):
        raise Unreachable(f"CreateRunFiles: W&B gave no place for {name}")
    headers = dict(header.split(":", 1) for header in answer.get("uploadHeaders") or ())
    await api.put_file(answer["files"][0]["uploadUrl"], content, headers)
    if MARK_UPLOADED in await api.features():
        await api.graphql("MarkRunFilesUploaded", _MARK_UPLOADED, variables)
    elif announce:
        await api.file_stream(*where, {"uploaded": [name]})


async def alert_about_run(api: WandbApi, where: RunAddress, *, title: str, text: str, level: str) -> None:
    """What `run.alert` does."""
    variables = {
        "entityName": where.entity,
        "projectName": where.project,
        "runName": where.run,
        "title": title,
        "text": text,
        "severity": level,
        "waitDuration": _ALERT_PAUSE,
    }
    await api.graphql("NotifyScriptableRunAlert", _ALERT, variables)


class RunStanding(NamedTuple):
    """How W&B shows a run."""

    state: str
    """In lower case; empty: there is no such run."""
    job_type: str


async def run_standing(api: WandbApi, where: RunAddress) -> RunStanding:
    """The state of a run, and whose kind it is."""
    run = await _run(api, "RunState", _STATE, where)
    return RunStanding(str(run.get("state") or "").lower(), str(run.get("jobType") or ""))


async def history_length(api: WandbApi, where: RunAddress) -> int:
    """Rows of a run's history; 0 also for a run that does not exist."""
    run = await _run(api, "RunHistoryLength", _HISTORY_LENGTH, where)
    return int(run.get("historyLineCount") or 0)


async def _run(api: WandbApi, operation: str, query: str, where: RunAddress) -> Mapping[str, Any]:
    """What a query about one run tells; empty for a run that does not exist."""
    variables = {"project": where.project, "entity": where.entity, "name": where.run}
    project = (await api.graphql(operation, query, variables)).get("project") or {}
    return project.get("run") or {}


async def run_state(api: WandbApi, where: RunAddress) -> str:
    """The state that W&B shows, in lower case; empty for a run that does not exist."""
    return (await run_standing(api, where)).state
