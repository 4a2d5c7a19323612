"""The ledger with a clock beside it: how long each of its operations takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from worker.launch.record import LaunchRecord
from worker.ledger.port import Ledger, StopRequest, WorkerBeat
from worker.ops.metrics import Metrics


class MeasuredLedger:
    """The port, handed on to a ledger; what fails counts as well."""

    def __init__(self, ledger: Ledger, metrics: Metrics) -> None:
        self._ledger = ledger
        self._seconds = metrics.ledger_seconds

    @contextlib.contextmanager
    def _timed(self, operation: str) -> Iterator[Ledger]:
        started = time.monotonic()
        try:
            yield self._ledger
        finally:
            self._seconds.labels(operation).observe(time.monotonic() - started)

    async def read(self, launch_id: str) -> LaunchRecord | None:
        with self._timed("read") as ledger:
            return await ledger.read(launch_id)

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        with self._timed("create") as ledger:
            return await ledger.create(record)

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        with self._timed("claim") as ledger:
            return await ledger.claim(seen, worker)

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        with self._timed("save") as ledger:
            return await ledger.save(records, owner=owner)

    async def open_records(self, owner: str) -> list[LaunchRecord]:
        with self._timed("list") as ledger:
            return await ledger.open_records(owner)

    async def beat(self, beat: WorkerBeat) -> None:
        with self._timed("beat") as ledger:
            await ledger.beat(beat)

    async def beats(self) -> list[WorkerBeat]:
        with self._timed("list") as ledger:
            return await ledger.beats()

    async def forget_worker(self, worker: str) -> None:
        with self._timed("forget") as ledger:
            await ledger.forget_worker(worker)

    async def lock(self, name: str, worker: str, *, held_by: str = "") -> str:
        with self._timed("lock") as ledger:
            return await ledger.lock(name, worker, held_by=held_by)

    async def unlock(self, name: str, worker: str) -> None:
        with self._timed("lock") as ledger:
            await ledger.unlock(name, worker)

    async def claim_run(self, run: str, launch_id: str, *, expires_at: float, former: str = "") -> str:
        with self._timed("claim") as ledger:
            return await ledger.claim_run(run, launch_id, expires_at=expires_at, former=former)

    async def records(self, *, over: bool) -> list[LaunchRecord]:
        with self._timed("list") as ledger:
            return await ledger.records(over=over)

    async def ask_stop(self, request: StopRequest) -> None:
        with self._timed("stop") as ledger:
            await ledger.ask_stop(request)

    async def stop_requests(self) -> list[StopRequest]:
        with self._timed("list") as ledger:
            return await ledger.stop_requests()

    async def forget_stop(self, launch_id: str) -> None:
        with self._timed("forget") as ledger:
            await ledger.forget_stop(launch_id)
