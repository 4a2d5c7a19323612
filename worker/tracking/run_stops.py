"""Stop, pressed in W&B on the run that a container writes: asked for by the hundred, for all running jobs.

The container's own SDK hears it too, and interrupts the script; only what does not end by itself is stopped. A stop of
the companion is nobody else's to hear: `heartbeats` brings it, and it works at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from worker.aio import backoff
from worker.clients.wandb_api import WandbApi, WandbRefused
from worker.launch.record import LaunchRecord, LaunchState, RunRef
from worker.ops.logging import get_logger
from worker.ops.ridden_out import RiddenOut

MAX_RUNS = 100
"""Runs in one query."""
_STEP = 1.0
"""Seconds between two looks whether a query is due."""
_ONE = """
query RunStoppedStatus($projectName: String, $entityName: String, $runId: String!) {
  project(name: $projectName, entityName: $entityName) { run(name: $runId) { stopped } }
}"""
"""As W&B's agent asks (wandb/sdk/launch/api.py)."""

_log = get_logger()

StopJob = Callable[[str, str], Awaitable[bool]]
"""Launch id and reason; False: nothing was left to stop."""
NoteStop = Callable[[str, str], Awaitable[None]]
"""As `StopJob`, for a stop that the container is to obey by itself."""


class RunStops:
    """One loop for the runs of all containers."""

    def __init__(
        self,
        api: WandbApi,
        *,
        interval: float,
        timeout: float,
        running: Callable[[], Iterable[LaunchRecord]],
        is_current: Callable[[], bool],
    ) -> None:
        """Each run is asked about every `interval` seconds; a stopped one has `timeout` seconds to end by itself.
        `running`: the launches this worker holds; `is_current`: no other worker can have taken them over."""
        self._api = api
        self._interval = interval
        self._timeout = timeout
        self._running = running
        self._is_current = is_current
        self._seen: set[str] = set()
        """Launches whose stop is on its way; they stay here while they are asked about."""
        self._asked_at: dict[str, float] = {}
        """Launch id → monotonic time."""
        self._unstopped: set[str] = set()
        """Launches with an earlier stop whose run W&B has called not stopped since."""

    async def run(self, stop: StopJob, note: NoteStop) -> None:
        """Until cancelled; `stop` is asked to stop a job, with the reason, and `note` told of it beforehand."""
        async with asyncio.TaskGroup() as tasks:
            asked_at = time.monotonic()
            while True:
                # Worked out anew in each step: jobs may have come meanwhile, a thousand of them at an adoption.
                queries = max(1, math.ceil(len(self._asked_about()) / MAX_RUNS))
                due_in = asked_at + self._interval / queries - time.monotonic()
                if due_in > 0:
                    await asyncio.sleep(min(_STEP, due_in))
                    continue
                asked_at = time.monotonic()
                if not self._is_current():
                    continue
                for record in await self._stopped_of(self._next()):
                    if record.launch_id not in self._seen:
                        self._seen.add(record.launch_id)
                        ending = self._stop_later(record, stop, note)
                        tasks.create_task(ending, name=f"stop {record.job_name}")

    def _asked_about(self) -> dict[str, LaunchRecord]:
        return {record.launch_id: record for record in self._running() if _is_asked_about(record)}

    def _next(self) -> list[LaunchRecord]:
        """Those of a query: what was never asked about first, then what was longest ago."""
        alive = self._asked_about()
        self._seen &= alive.keys()
        self._unstopped &= alive.keys()
        self._asked_at = {launch_id: self._asked_at.get(launch_id, -math.inf) for launch_id in alive}
        chosen = sorted(alive, key=self._asked_at.__getitem__)[:MAX_RUNS]
        self._asked_at |= dict.fromkeys(chosen, time.monotonic())
        return [alive[launch_id] for launch_id in chosen]

    async def _stopped_of(self, records: Sequence[LaunchRecord]) -> list[LaunchRecord]:
        if not records:
            return []
        try:
            runs = list(dict.fromkeys(record.run for record in records))
            stopped = await stopped_runs(self._api, runs)
        except Exception as error:  # of any kind: they are asked about again within half a round
            # Not at once: those that always fail would keep all others from being asked about.
            asked = (record.launch_id for record in records)
            self._asked_at |= dict.fromkeys(asked, time.monotonic() - self._interval / 2)
            _log.warning("run_stops_not_read", runs=len(records), error=str(error) or type(error).__name__)
            return []
        again = [record for record in records if record.stopped_before]
        self._unstopped |= {record.launch_id for record in again if record.run not in stopped}
        earlier = {record.launch_id for record in again} - self._unstopped
        return [record for record in records if record.run in stopped and record.launch_id not in earlier]

    async def _stop_later(self, record: LaunchRecord, stop: StopJob, note: NoteStop) -> None:
        """Give the container its time, then stop the job if it still runs."""
        seen_at, tries = time.monotonic(), 0
        _log.info("run_stop_seen", launch_id=record.launch_id, job=record.job_name, timeout=self._timeout)
        reason = f"Stop was pressed in W&B, in the run {'/'.join(_path(record.run))}."
        with RiddenOut("job_not_stopped", launch_id=record.launch_id):  # its stop tells the reason too
            await note(record.launch_id, reason)
        await asyncio.sleep(max(0.0, seen_at + self._timeout - time.monotonic()))
        while True:
            with RiddenOut("job_not_stopped", launch_id=record.launch_id):
                stopping = await stop(record.launch_id, reason)
                break
            await asyncio.sleep(backoff(tries, cap=30))
            tries += 1
        waited = round(time.monotonic() - seen_at, 1)
        _log.info("run_stop_done", launch_id=record.launch_id, stopped=stopping, seconds=waited)


async def stopped_runs(api: WandbApi, runs: Sequence[RunRef]) -> set[RunRef]:
    """Those of `runs` that somebody has stopped; one that does not exist is not stopped.

    A run that makes the server refuse the query is found by halving, so that the others are answered."""
    if len(runs) == 1:
        return await _one(api, runs[0])
    try:
        answer = await api.graphql("RunStoppedStatuses", _query(len(runs)), _variables(runs))
        if all(f"r{number}" in answer for number in range(len(runs))):
            return {run for number, run in enumerate(runs) if _is_stopped(answer[f"r{number}"])}
    except WandbRefused as error:
        if error.status != 200:
            raise
    middle = len(runs) // 2
    return await stopped_runs(api, runs[:middle]) | await stopped_runs(api, runs[middle:])


async def _one(api: WandbApi, run: RunRef) -> set[RunRef]:
    variables = {"projectName": run.project, "entityName": run.entity, "runId": run.run_id}
    try:
        answer = await api.graphql("RunStoppedStatus", _ONE, variables)
    except WandbRefused as error:
        if error.status != 200:
            raise
        return set()  # no such project, or not ours to see: W&B's agent takes that for "not stopped" too
    return {run} if _is_stopped(answer.get("project")) else set()


def _is_stopped(project: Any) -> bool:
    run = project.get("run") if isinstance(project, Mapping) else None
    return bool(run.get("stopped")) if isinstance(run, Mapping) else False


def _query(count: int) -> str:
    numbers = range(count)
    declared = ", ".join(f"$p{n}: String, $e{n}: String, $n{n}: String!" for n in numbers)
    asked = "\n".join(
        f"  r{n}: project(name: $p{n}, entityName: $e{n}) {{ run(name: $n{n}) {{ stopped }} }}"
        for n in numbers
    )
    return f"query RunStoppedStatuses({declared}) {{\n{asked}\n}}"


def _variables(runs: Sequence[RunRef]) -> dict[str, str]:
    return {
        name: value
        for number, run in enumerate(runs)
        for name, value in (
            (f"p{number}", run.project),
            (f"e{number}", run.entity),
            (f"n{number}", run.run_id),
        )
    }


def _path(run: RunRef) -> tuple[str, str, str]:
    return run.entity, run.project, run.run_id


def _is_asked_about(record: LaunchRecord) -> bool:
    """Its container has a run of its own, and nobody has asked for its stop yet."""
    lives = record.state is LaunchState.ACCEPTED or record.is_between_attempts
    return lives and record.log_target != "run" and not record.stop_reason
