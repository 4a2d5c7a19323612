"""What runs, and by whom: read from the ledger, on any machine with the settings; and stopping it from there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.clients.aws import AwsClients, aws_clients
from worker.clients.aws_role import TargetRole, with_role
from worker.errors import SettingsError, WorkerError
from worker.launch.identity import id_of_given
from worker.launch.record import LaunchRecord, LaunchState
from worker.ledger.opening import SQLITE, open_ledger, sees_ledger
from worker.ledger.port import Ledger, StopRequest, WorkerBeat
from worker.ops.metrics import Metrics
from worker.ops.rates import Rates
from worker.settings import Settings
from worker.training.sagemaker import SageMaker
from worker.training.status import ended_at, ending_of

SHORTEST_PREFIX = 4
"""Characters of a launch id that may stand for it."""


class NoSuchLaunch(WorkerError):
    """Nothing in the ledger has that name, or more than one thing has."""

    code = "LW-NO-SUCH-LAUNCH"


class AlreadyOver(WorkerError):
    """The launch that is to be stopped has ended."""

    code = "LW-ALREADY-OVER"


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A worker as `workers` shows it."""

    beat: WorkerBeat
    alive: bool | None
    """Its heartbeat has changed while we looked; None: we did not look twice."""
    launches: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """How a launch is being stopped."""

    record: LaunchRecord
    by_owner: bool
    """The worker that has it lives and does it; False: its next owner does, or SageMaker was asked from here."""
    note: str


class Overview:
    """The ledger as people ask for it."""

    def __init__(self, ledger: Ledger, aws: AwsClients, settings: Settings) -> None:
        self._ledger = ledger
        self._aws = aws
        self._settings = settings

    async def launches(self, *, over: bool, states: Collection[str] = ()) -> list[LaunchRecord]:
        """Newest last; `over`: those that have ended as well; `states`: only these (a `LaunchState`, a job's state)."""
        wanted = {state.lower() for state in states}
        records = await self._ledger.records(over=over)
        kept = [r for r in records if not wanted or wanted & {r.state.value, *_job_states(r)}]
        return sorted(kept, key=lambda record: (record.created_at, record.launch_id))

    async def find(self, name: str) -> LaunchRecord:
        """A launch by its id or the `launchId` of its message, by run id, training job or name, or by the beginning of
        its id. Raises `NoSuchLaunch`."""
        for identity in (name, id_of_given(self._settings.deployment, name)):
            if record := await self._ledger.read(identity):
                return record
        records = await self._ledger.records(over=True)
        exact = [r for r in records if name in _names(r)]
        begun = [r for r in records if len(name) >= SHORTEST_PREFIX and r.launch_id.startswith(name)]
        found = exact or begun
        # Of several that had one name the one that still runs is meant.
        running = [record for record in found if record.is_open]
        found = running if len(running) == 1 else found
        if not found:
            raise NoSuchLaunch(
                f"no launch {name!r} in {self._settings.ledger}; `launch-worker jobs --all` lists them"
            )
        if len(found) > 1:
            ids = ", ".join(sorted(record.launch_id for record in found)[:5])
            raise NoSuchLaunch(f"{name!r} is the name of {len(found)} launches; say which: {ids}")
        return found[0]

    async def workers(self, *, look: float) -> list[WorkerLine]:
        """All workers that the ledger knows; a living one beats within `look` seconds (0: do not wait to see)."""
        before = {beat.worker: beat for beat in await self._ledger.beats()}
        counts = _owned(await self._ledger.records(over=False))
        changed = await self._changed(before, look) if look else set()
        now = {beat.worker: beat for beat in await self._ledger.beats()}
        ids = sorted(
            now.keys() | counts.keys() - {""}, key=lambda worker: now.get(worker, _gone(worker)).started_at
        )
        return [
            WorkerLine(
                now.get(worker, _gone(worker)), worker in changed if look else None, counts.get(worker, 0)
            )
            for worker in ids
        ]

    async def stop(self, record: LaunchRecord, reason: str, *, look: float) -> Stopping:
        """Leave the wish for the launch's owner, who keeps the reason; where no worker lives, ask SageMaker from here.

        `look`: seconds that a living worker takes to beat. Raises `AlreadyOver`, and what SageMaker and
        the ledger raise."""
        if not record.is_open:
            raise AlreadyOver(f"{record.job_name or record.launch_id} is over already: {end_words(record)}")
        await self._ledger.ask_stop(StopRequest(record.launch_id, reason, time.time()))
        before = {beat.worker: beat for beat in await self._ledger.beats()}
        alive = await self._changed(before, look, until=record.owner)
        if record.owner in alive:
            return Stopping(record, True, f"told {record.owner}")
        if alive:
            gone = f"; {record.owner} gives no heartbeat" if record.owner else ""
            return Stopping(record, False, f"told its next owner, the next worker to take it{gone}")
        if record.state is not LaunchState.ACCEPTED:
            return Stopping(record, False, "no worker lives; the next one that starts will not submit it")
        sagemaker = SageMaker(self._aws.sagemaker, Rates(Metrics(), {}))
        asked = await sagemaker.stop(record.job_name)
        what = "SageMaker was asked from here" if asked else "SageMaker says that it had ended"
        return Stopping(record, False, f"no worker lives: {what}; the next worker that starts tells the end")

    async def _changed(
        self, before: dict[str, WorkerBeat], look: float, *, until: str | None = None
    ) -> set[str]:
        """The workers whose heartbeat changes within `look` seconds; `until`: this one is enough, or any one where it
        has no heartbeat at all."""
        changed: set[str] = set()
        deadline = time.monotonic() + look
        while before.keys() - changed and time.monotonic() < deadline:
            await asyncio.sleep(min(1.0, look))
            for beat in await self._ledger.beats():
                known = before.get(beat.worker)
                if known is None or known.version != beat.version:
                    changed.add(beat.worker)
            if until is not None and (until in changed or (changed and until not in before)):
                break
        return changed


@contextlib.asynccontextmanager
async def open_overview(settings: Settings) -> AsyncIterator[tuple[Overview, AwsClients]]:
    """Open ledger and clients; SageMaker and logs as LAUNCH_ASSUME_ROLE says. Raises `SettingsError`, also for a ledger
    that is not there: one made here would be empty, and hide that it is not the workers' one."""
    async with open_ledger_and_aws(settings) as (ledger, aws):
        yield Overview(ledger, aws, settings), aws


@contextlib.asynccontextmanager
async def open_ledger_and_aws(
    settings: Settings, *, create: bool = False
) -> AsyncIterator[tuple[Ledger, AwsClients]]:
    """The same without the view. `create`: a ledger that is not there is made. Raises `SettingsError`."""
    if not create and not sees_ledger(settings.ledger):
        raise _no_ledger(settings.ledger)
    async with contextlib.AsyncExitStack() as stack:
        aws = await stack.enter_async_context(aws_clients(settings.aws_region))
        if settings.assume_role:
            role = TargetRole(settings.assume_role, settings.assume_role_external_id)
            aws = await stack.enter_async_context(with_role(aws, role))
        ledger = await stack.enter_async_context(open_ledger(settings.ledger, aws.dynamodb))
        yield ledger, aws


def _no_ledger(address: str) -> SettingsError:
    path = Path(address.removeprefix(SQLITE)).absolute()
    return SettingsError(
        f"LAUNCH_LEDGER: there is no ledger at {path}; give the workers' one, which a worker makes"
        " when it starts (for one that was lost: `launch-worker rebuild`)"
    )


def end_words(record: LaunchRecord) -> str:
    """How a launch that is over ended."""
    if record.failure is not None:
        return f"refused ({record.failure.code}): {record.failure.reason}"
    end = ending_of(record)
    return f"{end.end}: {end.reason}"


def waits_for(record: LaunchRecord) -> str:
    """What a launch waits for; empty while its job runs, and once it is over."""
    if record.state is LaunchState.INTENT:
        return "source and image" if not record.image else "its request"
    if record.state is LaunchState.WAITING:
        return record.waits_for or ("a further attempt" if record.is_between_attempts else "its turn")
    return ""


def _end_of(record: LaunchRecord) -> str:
    return "" if record.is_open and record.failure is None else end_words(record)


def described(record: LaunchRecord, now: float, prices: dict[str, float] | None = None) -> dict[str, Any]:
    """A launch as `jobs --json` shows it. Times are epoch seconds, `age` is seconds."""
    facts = record.facts
    # Before a further attempt is a job, its facts are those of the job before.
    ended = ended_at(facts) if record.state is LaunchState.ACCEPTED else None
    until = record.finished_at or ended or now
    values: dict[str, Any] = {
        "launchId": record.launch_id,
        "name": record.name,
        "run": record.run.path,
        "job": record.job_name,
        "state": record.state.value,
        "status": facts.status,
        "secondaryStatus": facts.secondary_status,
        "instanceType": record.instance_type,
        "instanceCount": record.instance_count,
        "attempt": record.attempt,
        "age": round(max(0.0, until - record.created_at), 1) if record.created_at else None,
        "waitsFor": waits_for(record),
        "end": _end_of(record),
        "lines": record.log.next_line,
        "worker": record.owner,
        "stopReason": record.stop_reason,
    }
    cost = _cost(record, now, prices or {})
    return values if cost is None else {**values, "cost": round(cost, 4)}


def _cost(record: LaunchRecord, now: float, prices: dict[str, float]) -> float | None:
    """So far, by the prices of an instance hour; None: nobody has told the price."""
    price = prices.get(record.instance_type)
    if price is None:
        return None
    facts = record.facts
    seconds = facts.billable_seconds
    if seconds is None:
        seconds = int((ended_at(facts) or now) - facts.started_at) if facts.started_at else 0
    return price * record.instance_count * seconds / 3600


def _job_states(record: LaunchRecord) -> set[str]:
    return {record.facts.status.lower(), record.facts.secondary_status.lower()} - {""}


def _names(record: LaunchRecord) -> Sequence[str]:
    return [
        record.run.run_id,
        record.run.path,
        record.job_name,
        record.name,
        *(attempt.job_name for attempt in record.attempts),
    ]


def _owned(records: Sequence[LaunchRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record.owner] = counts.get(record.owner, 0) + 1
    return counts


def _gone(worker: str) -> WorkerBeat:
    """A worker that still owns launches and has no heartbeat."""
    return WorkerBeat(worker, 0, "", "", 0.0)
