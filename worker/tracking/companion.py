"""The companion run over HTTP: the worker's own W&B run about a training job, with its log, facts and files.

It is named after the run that the container writes, never the same run: one writer at a time. Every write says the
same thing when it is repeated, so whoever holds the launch may do it again after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.aio import effect
from worker.clients.wandb_api import WandbApi, WandbRefused
from worker.clients.wandb_runs import (
    RunAddress,
    alert_about_run,
    history_length,
    run_standing,
    upload_run_file,
    upsert_run,
)
from worker.launch.console import ConsoleLine
from worker.launch.record import LaunchRecord, RunRef
from worker.tracking import file_stream
from worker.tracking.facts import RunFacts
from worker.tracking.history import Row
from worker.tracking.port import AlertLevel, RunPath, companion_path, companion_title

_JOB_TYPE = "sagemaker"
"""Of the runs that the worker makes."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Lines and rows with their places."""

    first_line: int
    lines: Sequence[ConsoleLine]
    first_row: int = 0
    rows: Sequence[Row] = ()

    def parts(self) -> list[Placed]:
        """The same in smaller posts; a single line is cut. Empty: it cannot be made smaller."""
        if self.lines and self.rows:
            return [
                Placed(self.first_line, self.lines),
                Placed(self.first_line, (), self.first_row, self.rows),
            ]
        if len(self.lines) > 1:
            middle = len(self.lines) // 2
            return [
                Placed(self.first_line, self.lines[:middle]),
                Placed(self.first_line + middle, self.lines[middle:]),
            ]
        if len(self.rows) > 1:
            middle = len(self.rows) // 2
            return [
                Placed(0, (), self.first_row, self.rows[:middle]),
                Placed(0, (), self.first_row + middle, self.rows[middle:]),
            ]
        shorter = file_stream.cut(self.lines[0]) if self.lines else None
        return [Placed(self.first_line, [shorter])] if shorter else []


class CompanionRuns:
    """Writes companion runs; holds nothing per run."""

    def __init__(self, api: WandbApi, *, project: str) -> None:
        self._api = api
        self._project = project

    def path(self, record: LaunchRecord) -> RunPath:
        """The companion's place, or the run itself for images that do not use W&B (`log_target: run`)."""
        return companion_path(record, self._project)

    def address(self, record: LaunchRecord) -> str:
        """The companion's page in W&B's app."""
        path = self.path(record)
        if record.log_target == "files":
            return self.page(record.run)
        return self.page(RunRef(path.entity, path.project, path.run))

    def page(self, run: RunRef) -> str:
        """A run's page in W&B's app."""
        site = self._api.base_url.replace("://api.wandb.ai", "://wandb.ai")
        return f"{site}/{run.entity}/{run.project}/runs/{run.run_id}"

    async def open(self, record: LaunchRecord, facts: RunFacts) -> None:
        """Create the run, or bring its facts up to date. With `log_target: files` there is nothing to open: the run is
        the container's."""
        if record.log_target == "files":
            return
        own = record.log_target == "run"
        notes = facts.notes if own else f"{facts.notes}\n- [Run]({self.page(record.run)})".lstrip()
        with effect("open_companion"):
            await upsert_run(
                self._api,
                self._address(record),
                display_name=companion_title(record),
                job_type=_JOB_TYPE,
                group=None if own else record.run.run_id,
                tags=list(facts.tags),
                notes=notes,
                config=facts.config,
            )

    async def post_lines(
        self,
        record: LaunchRecord,
        first_line: int,
        lines: Sequence[ConsoleLine],
        *,
        first_row: int = 0,
        rows: Sequence[Row] = (),
    ) -> bool:
        """Put lines and rows at their place; a return means that W&B has them.

        With `log_target: files` console and history stay empty: the whole log is in the numbered files."""
        if record.log_target == "files":
            return False
        structured = file_stream.STRUCTURED in await self._api.features()
        with effect("post_log_batch"):
            return await self._post_within_limit(
                record, Placed(first_line, lines, first_row, rows), structured
            )

    async def _post_within_limit(self, record: LaunchRecord, placed: Placed, structured: bool) -> bool:
        """In one post; in parts where it is too large for the server (413), down to one line, which is cut then."""
        body = file_stream.joined(
            file_stream.console_body(placed.first_line, placed.lines, structured=structured),
            file_stream.history_body(placed.first_row, placed.rows),
        )
        if not body:
            return False
        try:
            return bool((await self._post(record, body)).get("stopped"))
        except WandbRefused as error:
            if error.status != 413:
                raise
            parts = placed.parts()
            if not parts:  # not the line is too large: the server takes nothing
                raise
        return any([await self._post_within_limit(record, part, structured) for part in parts])

    async def heartbeat(self, record: LaunchRecord) -> bool:
        """Keep the run alive while nothing happens; True: somebody pressed Stop in the UI."""
        if record.log_target == "files":
            return False
        return bool((await self._post(record, file_stream.HEARTBEAT)).get("stopped"))

    async def summarize(self, record: LaunchRecord, summary: Mapping[str, Any]) -> None:
        """Replace the run's summary."""
        if record.log_target == "files":
            return
        await self._post(record, file_stream.summary_body(summary))

    async def alert(self, record: LaunchRecord, title: str, text: str, level: AlertLevel) -> None:
        """Send an alert of the companion, or of the run that has none."""
        where = RunAddress(record.run.entity, record.run.project, record.run.run_id)
        if record.log_target != "files":
            where = self._address(record)
        await alert_about_run(self._api, where, title=title, text=text, level=level)

    async def upload(self, record: LaunchRecord, name: str, content: bytes) -> None:
        """Put a file into the run; the same name replaces it."""
        with effect("upload_log_file"):
            if record.log_target == "files":
                await self._upload_beside_the_container(record, name, content)
            else:
                await upload_run_file(self._api, self._address(record), name, content)

    async def _upload_beside_the_container(self, record: LaunchRecord, name: str, content: bytes) -> None:
        """Into the container's own run, whose state and stream are the container's. A run that the container never
        made is made for the files, and ended at once: nobody else would."""
        where = RunAddress(record.run.entity, record.run.project, record.run.run_id)
        state, job_type = await run_standing(self._api, where)
        if not state:
            title = record.name or record.run.run_id
            await upsert_run(self._api, where, display_name=title, job_type=_JOB_TYPE)
        await upload_run_file(self._api, where, name, content, announce=False)
        # Also one that an earlier try has made and could not end.
        if not state or (job_type == _JOB_TYPE and state not in ("finished", "failed")):
            exit_code = 0 if record.facts.status == "Completed" else 1
            await self._api.file_stream(*where, file_stream.completion_body(exit_code))

    async def finish(self, record: LaunchRecord, summary: Mapping[str, Any], exit_code: int) -> None:
        """The last facts and the end state."""
        if record.log_target == "files":
            return
        body = file_stream.joined(file_stream.summary_body(summary), file_stream.completion_body(exit_code))
        with effect("finish_companion"):
            await self._post(record, body)

    async def history_length(self, record: LaunchRecord) -> int:
        """Rows of its history that W&B has; 0 as long as it does not exist."""
        return await history_length(self._api, self._address(record))

    async def _post(self, record: LaunchRecord, body: Mapping[str, Any]) -> dict[str, Any]:
        path = self.path(record)
        return await self._api.file_stream(path.entity, path.project, path.run, body)

    def _address(self, record: LaunchRecord) -> RunAddress:
        path = self.path(record)
        return RunAddress(path.entity, path.project, path.run)
