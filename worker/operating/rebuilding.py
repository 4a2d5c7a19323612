"""A lost ledger is filled again: running jobs with the deployment's tag become launches, which workers then adopt.

Nothing tells a worker that its ledger was lost, and a job that it does not know may be that of another ledger whose
deployment has the same name. So it is people who ask for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from worker.clients.api_key import ApiKey
from worker.clients.aws import AwsClients, call
from worker.clients.wandb_api import wandb_api
from worker.errors import Never
from worker.launch.record import LaunchRecord
from worker.ledger.port import Ledger
from worker.operating.forgotten import launch_of
from worker.operating.overview import open_ledger_and_aws
from worker.ops.metrics import Metrics
from worker.ops.rates import Rate
from worker.resources import key_places
from worker.run_claims import RunClaims
from worker.settings import Settings
from worker.tracking.companion import CompanionRuns
from worker.training.allowed import retry_rules_of

_SEARCHES = 2.0
"""Calls a second; AWS publishes no quota of Search."""
_RUNNING = "InProgress,Stopping"


class Found(StrEnum):
    """What becomes of a running job that Search finds."""

    ADDED = "added"
    MISSING = "missing"
    """It would be added."""
    KNOWN = "known"
    """The ledger has its launch."""
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A running job with the deployment's tag."""

    job_name: str
    launch_id: str
    """Empty: the job does not say."""
    run: str
    """`entity/project/run_id`; empty as well."""
    found: Found
    why: str = ""
    """It was left out."""


class Rebuilding:
    """Finds the launches that one ledger has lost."""

    def __init__(
        self,
        ledger: Ledger,
        aws: AwsClients,
        settings: Settings,
        *,
        companion: CompanionRuns | None = None,
        wandb_key: str = "",
    ) -> None:
        """`companion`: None offline. `wandb_key`: the workers' own, as far as known here. Raises `SettingsError`."""
        self._ledger = ledger
        self._aws = aws
        self._rate = Rate("Search", _SEARCHES, Metrics())
        self._run_claims = RunClaims(ledger, companion_project=settings.companion_project)
        self._retry_rules = retry_rules_of(settings)
        self._settings = settings
        self._companion = companion
        self._wandb_key = wandb_key

    async def rebuild(self, *, dry_run: bool) -> list[FoundJob]:
        """Add what is missing, oldest first; `dry_run`: only tell. Asking twice is harmless.

        Raises `Again` and `Never` as AWS and the ledger do; what was added until then stays."""
        found: list[FoundJob] = []
        launches: dict[str, LaunchRecord] = {}
        async for job in self._running_jobs():
            record = self._launch_of(job)
            if record is None:
                why = "its Environment does not name its launch and run: no worker of ours made it"
                found.append(FoundJob(job["TrainingJobName"], "", "", Found.LEFT_OUT, why))
            else:
                launches[record.launch_id] = record  # of two attempts the later one
        return found + [await self._restored(record, dry_run=dry_run) for record in launches.values()]

    async def _restored(self, record: LaunchRecord, *, dry_run: bool) -> FoundJob:
        why = ""
        if await self._ledger.read(record.launch_id) is not None:
            found = Found.KNOWN
        elif dry_run:
            found = Found.MISSING
        else:
            try:
                await self._run_claims.take(record)
                known = await self._ledger.create(await self._behind_its_history(record))
                found = Found.KNOWN if known else Found.ADDED
            except Never as error:
                found, why = Found.LEFT_OUT, str(error)
        return FoundJob(record.job_name, record.launch_id, record.run.path, found, why)

    def _launch_of(self, job: Mapping[str, Any]) -> LaunchRecord | None:
        return launch_of(
            job,
            log_target=self._settings.log_target,
            retry_rules=self._retry_rules,
            worker_key=self._wandb_key,
        )

    async def _behind_its_history(self, record: LaunchRecord) -> LaunchRecord:
        """Console lines come to their places again; which row of the history was made of what nobody knows any more, so
        rows go on behind those that W&B has, without the states that have one."""
        if self._companion is None or not record.has_history:
            return record
        rows = await self._companion.history_length(record)
        told = len(record.facts.transitions) if rows else 0
        return replace(record, log=replace(record.log, next_row=rows, statuses=told))

    async def _running_jobs(self) -> AsyncIterator[Mapping[str, Any]]:
        """Oldest first. Search may lag behind by seconds (API reference: it is an index)."""
        request: dict[str, Any] = {
            "Resource": "TrainingJob",
            "SearchExpression": {
                "Filters": [
                    {"Name": "Tags.LaunchWorker", "Operator": "Equals", "Value": self._settings.deployment},
                    {"Name": "TrainingJobStatus", "Operator": "In", "Value": _RUNNING},
                ]
            },
            "SortBy": "CreationTime",
            "SortOrder": "Ascending",
            "MaxResults": 100,
        }
        while True:
            page = await call("Search", lambda: self._aws.sagemaker.search(**request), self._rate)
            for result in page.get("Results", ()):
                yield result["TrainingJob"]
            if not page.get("NextToken"):
                return
            request["NextToken"] = page["NextToken"]


@contextlib.asynccontextmanager
async def open_rebuilding(settings: Settings) -> AsyncIterator[Rebuilding]:
    """Open ledger and clients; a SQLite file that was lost is made anew. Raises `SettingsError`."""
    async with contextlib.AsyncExitStack() as stack:
        ledger, aws = await stack.enter_async_context(open_ledger_and_aws(settings, create=True))
        key = await key_places(settings, aws.region).read()
        companion = None
        if key and settings.wandb_mode == "online":
            api = await stack.enter_async_context(wandb_api(settings.wandb_base_url, ApiKey(key), Metrics()))
            companion = CompanionRuns(api, project=settings.companion_project)
        yield Rebuilding(ledger, aws, settings, companion=companion, wandb_key=key)
