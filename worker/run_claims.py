"""One launch a run: the worker's own run about a job has one writer, so no two launches may share its name."""

from __future__ import annotations

import time

from worker.aio import effect
from worker.errors import Again, Never
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.port import RUN_CLAIM_TTL, Ledger
from worker.tracking.port import companion_path


class RunClaims:
    """Claims runs for launches, in the ledger, before anything is written about a launch in W&B."""

    def __init__(self, ledger: Ledger, *, companion_project: str) -> None:
        """`companion_project`: empty keeps companions in the projects of their runs."""
        self._ledger = ledger
        self._companion_project = companion_project

    async def take(self, record: LaunchRecord) -> None:
        """Let the launch have its run; repeating it is harmless.

        Raises `Never` (`LW-RUN-TAKEN`) when the run is that of another launch which the ledger remembers, and `Again`
        while that one's refusal is still being told. A launch that was refused leaves its run to the next one: its
        companion has no lines that others would collide with."""
        for run in self._names(record):
            holder = await self._claim(run, record, former="")
            if holder == record.launch_id:
                continue
            other = await self._ledger.read(holder)
            if other is not None:
                _refuse_unless_over(run, other)
            if await self._claim(run, record, former=holder) != record.launch_id:
                raise Again(f"another launch has claimed run {run} at this moment", retry_after=5)

    def _names(self, record: LaunchRecord) -> list[str]:
        """The run, and beside it its name where the companion is, since runs of several projects may meet there."""
        run, companion = record.run, companion_path(record, self._companion_project)
        projects = dict.fromkeys((run.project, companion.project))
        return [f"{run.entity}/{project}/{run.run_id}" for project in projects]

    async def _claim(self, run: str, record: LaunchRecord, former: str) -> str:
        with effect("claim_run"):
            return await self._ledger.claim_run(
                run, record.launch_id, expires_at=time.time() + RUN_CLAIM_TTL, former=former
            )


def _refuse_unless_over(run: str, other: LaunchRecord) -> None:
    if other.state is not LaunchState.REFUSED:
        job = f", training job {other.job_name}" if other.job_name else ""
        raise Never(
            f"Run {run} is that of launch {other.launch_id} ({other.state}{job}), and a run is written for one launch"
            f" only; give this one another run_id, or none. To have that launch run again:"
            f" `launch-worker retry {other.launch_id[:10]}`, once it has failed or was stopped.",
            code="LW-RUN-TAKEN",
        )
    if not other.reported:
        raise Again(f"launch {other.launch_id}, which was refused, still has run {run}", retry_after=5)
