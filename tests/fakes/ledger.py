"""An in-memory adapter of the ledger's port, held to the same contract suite as the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from worker.launch.record import LaunchRecord, record_from_json, record_to_json
from worker.ledger.dynamodb_items import MAX_ITEM_BYTES, Write, check_size
from worker.ledger.port import StopRequest, WorkerBeat


class MemoryLedger:
    """Share one instance among several workers of a test.

    Records are kept as JSON text, so that what no store could keep fails here too. Every call gives other tasks a
    turn before it acts, so that races show."""

    def __init__(self) -> None:
        self.failing: Exception | None = None
        """Raised by every call while set: the store does not answer."""
        self.saves: list[tuple[str, ...]] = []
        """The launch ids of each `save`, in order."""
        self._records: dict[str, str] = {}
        self._beats: dict[str, WorkerBeat] = {}
        self._locks: dict[str, str] = {}
        self._stops: dict[str, StopRequest] = {}
        self._runs: dict[str, str] = {}

    async def read(self, launch_id: str) -> LaunchRecord | None:
        await self._turn()
        return self._get(launch_id)

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        await self._turn()
        existing = self._get(record.launch_id)
        if existing is None:
            self._put(record)
        return existing

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        await self._turn()
        stored = self._get(seen.launch_id)
        if stored is None or _claim_key(stored) != _claim_key(seen):
            return None
        claimed = replace(stored, owner=worker, epoch=stored.epoch + 1)
        self._put(claimed)
        return claimed

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        await self._turn()
        self.saves.append(tuple(record.launch_id for record in records))
        lost = set()
        for record in {record.launch_id: record for record in records}.values():
            stored = self._get(record.launch_id)
            if stored is not None and (stored.owner, stored.epoch) == (owner, record.epoch):
                self._put(record)
            else:
                lost.add(record.launch_id)
        return frozenset(lost)

    async def open_records(self, owner: str) -> list[LaunchRecord]:
        await self._turn()
        records = map(record_from_json, self._records.values())
        return [record for record in records if record.owner == owner and record.is_open]

    async def beat(self, beat: WorkerBeat) -> None:
        await self._turn()
        self._beats[beat.worker] = beat

    async def beats(self) -> list[WorkerBeat]:
        await self._turn()
        return list(self._beats.values())

    async def forget_worker(self, worker: str) -> None:
        await self._turn()
        self._beats.pop(worker, None)

    async def lock(self, name: str, worker: str, *, held_by: str = "") -> str:
        await self._turn()
        holder = self._locks.get(name)
        if holder is None or holder in (worker, held_by):
            self._locks[name] = worker
        return self._locks[name]

    async def unlock(self, name: str, worker: str) -> None:
        await self._turn()
        if self._locks.get(name) == worker:
            del self._locks[name]

    async def claim_run(self, run: str, launch_id: str, *, expires_at: float, former: str = "") -> str:
        await self._turn()
        if self._runs.get(run) in (None, launch_id, former):
            self._runs[run] = launch_id
        return self._runs[run]

    async def records(self, *, over: bool) -> list[LaunchRecord]:
        await self._turn()
        return [record for record in map(record_from_json, self._records.values()) if over or record.is_open]

    async def ask_stop(self, request: StopRequest) -> None:
        await self._turn()
        self._stops[request.launch_id] = request

    async def stop_requests(self) -> list[StopRequest]:
        await self._turn()
        return list(self._stops.values())

    async def forget_stop(self, launch_id: str) -> None:
        await self._turn()
        self._stops.pop(launch_id, None)

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.failing is not None:
            raise self.failing

    def _get(self, launch_id: str) -> LaunchRecord | None:
        text = self._records.get(launch_id)
        return None if text is None else record_from_json(text)

    def _put(self, record: LaunchRecord) -> None:
        self._records[record.launch_id] = record_to_json(record)


class SizedLedger(MemoryLedger):
    """Takes records of the size that DynamoDB takes."""

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        check_size(Write.of(record))
        return await super().create(record)

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        writes = [(record, Write.of(record)) for record in records]
        fitting = [record for record, write in writes if write.size <= MAX_ITEM_BYTES]
        lost = await super().save(fitting, owner=owner)
        for _, write in writes:
            check_size(write, lost)
        return lost


def _claim_key(record: LaunchRecord) -> tuple[str, int, bool]:
    return record.owner, record.epoch, record.is_open
