"""The ledger in a SQLite file, for one host. Several worker processes may share the file, on a local disk.

Writes take SQLite's single writer lock first (`BEGIN IMMEDIATE`), so that what a transaction has read still holds
when it writes. A commit is on the disk before a call returns (`synchronous=FULL`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiosqlite

from worker.launch.record import LaunchRecord, record_from_json, record_to_json
from worker.ledger.port import STOP_TTL, StopRequest, WorkerBeat
from worker.ledger.sqlite_file import prepare_patiently, translated

PURGE_INTERVAL = 3600.0
"""Seconds between two removals of expired records."""
PURGE_BATCH = 500
"""Records removed at once, so that a heartbeat never waits long for it."""
_RECORDS_A_TURN = 200
"""Read from JSON before others have their turn: some milliseconds."""


@contextlib.asynccontextmanager
async def open_sqlite_ledger(
    path: Path, *, busy_timeout: float = 5.0, now: Callable[[], float] = time.time
) -> AsyncIterator[SqliteLedger]:
    """Open the ledger in `path`, creating it if needed, and close it at the end.

    `busy_timeout`: seconds to wait for other processes' writes; `now`: epoch seconds. Raises `SettingsError` when
    the file cannot be used, `Unreachable` when another process keeps it locked."""
    with translated(path):
        # Not by aiosqlite.connect: its thread reports a failure to a loop that may be gone by then.
        file = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
    connection = await aiosqlite.Connection(lambda: file, iter_chunk_size=64)
    try:
        with translated(path):
            await prepare_patiently(connection, path, busy_timeout)
        ledger = SqliteLedger(connection, path, now)
        await ledger.remove_expired()
        yield ledger
    finally:
        await connection.close()


class SqliteLedger:
    """The ledger's port on one connection; made by `open_sqlite_ledger`."""

    def __init__(self, connection: aiosqlite.Connection, path: Path, now: Callable[[], float]) -> None:
        self._connection = connection
        self._path = path
        self._now = now
        self._turn = asyncio.Lock()  # one connection has one transaction at a time
        self._purge_at = 0.0

    async def read(self, launch_id: str) -> LaunchRecord | None:
        async with self._exclusive():
            return await self._get(launch_id)

    async def create(self, record: LaunchRecord) -> LaunchRecord | None:
        async with self._transaction():
            existing = await self._get(record.launch_id)
            if existing is None:
                await self._run(
                    "INSERT INTO launches (launch_id, owner, epoch, open, expires_at, body)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    record.launch_id,
                    record.owner,
                    record.epoch,
                    record.is_open,
                    record.expires_at,
                    record_to_json(record),
                )
            return existing

    async def claim(self, seen: LaunchRecord, worker: str) -> LaunchRecord | None:
        async with self._transaction():
            stored = await self._get(seen.launch_id)
            if stored is None or _claim_key(stored) != _claim_key(seen):
                return None
            claimed = replace(stored, owner=worker, epoch=stored.epoch + 1)
            await self._run(
                "UPDATE launches SET owner = ?, epoch = ? WHERE launch_id = ?",
                claimed.owner,
                claimed.epoch,
                claimed.launch_id,
            )
            return claimed

    async def save(self, records: Sequence[LaunchRecord], *, owner: str) -> frozenset[str]:
        epochs = {record.launch_id: record.epoch for record in records}
        rows = {  # made before the transaction, to keep other processes waiting no longer than needed
            record.launch_id: (
                record.owner,
                record.is_open,
                record.expires_at,
                record_to_json(record),
                record.launch_id,
            )
            for record in records
        }
        async with self._transaction():
            owned = await self._run(
                "SELECT launch_id, epoch FROM launches"
                " WHERE owner = ? AND launch_id IN (SELECT value FROM json_each(?))",
                owner,
                json.dumps(list(epochs)),
            )
            held = {launch_id for launch_id, epoch in owned if epochs[launch_id] == epoch}
            await self._connection.executemany(
                "UPDATE launches SET owner = ?, open = ?, expires_at = ?, body = ? WHERE launch_id = ?",
                [rows[launch_id] for launch_id in held],
            )
        return frozenset(epochs.keys() - held)

    async def open_records(self, owner: str) -> list[LaunchRecord]:
        async with self._exclusive():
            rows = await self._run(
                "SELECT owner, epoch, body FROM launches WHERE owner = ? AND open = 1", owner
            )
        return await _records(rows)

    async def beat(self, beat: WorkerBeat) -> None:
        async with self._transaction():
            await self._run(
                "INSERT OR REPLACE INTO workers (worker, version, deployment, host, started_at)"
                " VALUES (?, ?, ?, ?, ?)",
                beat.worker,
                beat.version,
                beat.deployment,
                beat.host,
                beat.started_at,
            )
        if self._now() >= self._purge_at:
            await self.remove_expired()

    async def beats(self) -> list[WorkerBeat]:
        async with self._exclusive():
            rows = await self._run("SELECT worker, version, deployment, host, started_at FROM workers")
        return [WorkerBeat(*row) for row in rows]

    async def forget_worker(self, worker: str) -> None:
        async with self._transaction():
            await self._run("DELETE FROM workers WHERE worker = ?", worker)

    async def lock(self, name: str, worker: str, *, held_by: str = "") -> str:
        async with self._transaction():
            rows = await self._run("SELECT worker FROM locks WHERE name = ?", name)
            if rows and rows[0][0] not in (worker, held_by):
                return str(rows[0][0])
            await self._run("INSERT OR REPLACE INTO locks (name, worker) VALUES (?, ?)", name, worker)
            return worker

    async def unlock(self, name: str, worker: str) -> None:
        async with self._transaction():
            await self._run("DELETE FROM locks WHERE name = ? AND worker = ?", name, worker)

    async def claim_run(self, run: str, launch_id: str, *, expires_at: float, former: str = "") -> str:
        async with self._transaction():
            rows = await self._run("SELECT launch_id FROM runs WHERE run = ?", run)
            if rows and rows[0][0] not in (launch_id, former):
                return str(rows[0][0])
            await self._run(
                "INSERT OR REPLACE INTO runs (run, launch_id, expires_at) VALUES (?, ?, ?)",
                run,
                launch_id,
                expires_at,
            )
            return launch_id

    async def records(self, *, over: bool) -> list[LaunchRecord]:
        async with self._exclusive():
            rows = await self._run("SELECT owner, epoch, body FROM launches WHERE open = 1 OR ?", over)
        return await _records(rows)

    async def ask_stop(self, request: StopRequest) -> None:
        async with self._transaction():
            await self._run(
                "INSERT OR REPLACE INTO stops (launch_id, reason, asked_at) VALUES (?, ?, ?)",
                request.launch_id,
                request.reason,
                request.asked_at,
            )

    async def stop_requests(self) -> list[StopRequest]:
        async with self._exclusive():
            rows = await self._run("SELECT launch_id, reason, asked_at FROM stops")
        return [StopRequest(*row) for row in rows]

    async def forget_stop(self, launch_id: str) -> None:
        async with self._transaction():
            await self._run("DELETE FROM stops WHERE launch_id = ?", launch_id)

    async def remove_expired(self) -> None:
        """Remove some finished and refused records whose time is over; `beat` does so now and then."""
        async with self._transaction():
            rows = await self._run(
                "SELECT launch_id FROM launches WHERE open = 0 AND expires_at > 0 AND expires_at < ? LIMIT ?",
                self._now(),
                PURGE_BATCH,
            )
            await self._connection.executemany("DELETE FROM launches WHERE launch_id = ?", rows)
            await self._run("DELETE FROM stops WHERE asked_at < ?", self._now() - STOP_TTL)
            await self._run(
                "DELETE FROM runs WHERE run IN (SELECT run FROM runs WHERE expires_at < ? LIMIT ?)",
                self._now(),
                PURGE_BATCH,
            )
        if len(rows) < PURGE_BATCH:
            self._purge_at = self._now() + PURGE_INTERVAL

    async def _get(self, launch_id: str) -> LaunchRecord | None:
        rows = await self._run("SELECT owner, epoch, body FROM launches WHERE launch_id = ?", launch_id)
        return _record(*rows[0]) if rows else None

    async def _run(self, sql: str, *parameters: Any) -> list[Any]:
        return list(await self._connection.execute_fetchall(sql, parameters))

    @contextlib.asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        async with self._turn:
            with translated(self._path):
                yield

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        async with self._exclusive():
            try:
                await self._run("BEGIN IMMEDIATE")
                yield
                await self._connection.commit()
            except BaseException:
                # Also when cancelled in mid-statement: the connection's thread runs statements in order, so the
                # rollback is queued behind it and before anybody else's. Without a transaction it does nothing.
                await self._connection.rollback()
                raise


def _claim_key(record: LaunchRecord) -> tuple[str, int, bool]:
    return record.owner, record.epoch, record.is_open


async def _records(rows: Sequence[tuple[str, int, str]]) -> list[LaunchRecord]:
    """Those of a dead worker may be thousands, and take tenths of a second: others have their turn meanwhile."""
    records: list[LaunchRecord] = []
    for row in rows:
        records.append(_record(*row))
        if len(records) % _RECORDS_A_TURN == 0:
            await asyncio.sleep(0)
    return records


def _record(owner: str, epoch: int, body: str) -> LaunchRecord:
    # A claim changes the columns only: they win over the body.
    return replace(record_from_json(body), owner=owner, epoch=epoch)
